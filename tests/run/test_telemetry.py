"""Metric names and the rows of logging.jsonl, written and read again."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vltool.errors import BadContent
from vltool.run.telemetry import (
    FILE_NAME,
    append_row,
    encode_row,
    expected_metrics,
    forget_after,
    identity_error,
    make_row,
    prefixed,
    read_rows,
)


def same(one, other):
    """Equal, names in the same order, with NaN equal to NaN and 1 unlike 1.0."""
    return repr(one) == repr(other)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("loss", "train/loss"), ("token_acc", "train/token_acc"),
        ("learning_rate/aligner", "train/learning_rate/aligner"),
        ("eval_loss", "eval/loss"), ("eval_token_acc", "eval/token_acc"), ("evaluations", "train/evaluations"),
        ("eval_eval_x", "eval/eval_x"), ("perf/tokens_per_s", "train/perf/tokens_per_s"),
    ],
)  # fmt: skip
def test_one_prefix(name, want):
    assert prefixed(name) == want


def test_a_row_holds_the_step_and_what_is_a_number():
    row = make_row(3, {"loss": 1, "eval_loss": 0.5, "note": "text", "list": [1], "nothing": None, "step": 9})
    assert same(row, {"step": 3, "train/loss": 1.0, "eval/loss": 0.5, "train/step": 9.0})


def test_lines_are_json_that_any_reader_takes():
    line = encode_row({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1, "ü\u2028": 1e300})
    assert "\n" not in line
    assert line.isascii()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(line, parse_constant=refuse) == {
        "step": 1, "a": "nan", "b": "inf", "c": "-inf", "d": 0.1, "ü\u2028": 1e300,
    }  # fmt: skip


LOGS = st.dictionaries(st.text(), st.floats() | st.integers(-(10**6), 10**6), max_size=4)


@given(rows=st.lists(st.tuples(st.integers(0, 10**9), LOGS), max_size=4))
@settings(deadline=None, max_examples=100)
def test_rows_come_back_as_they_were_written(rows, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    (folder / FILE_NAME).unlink(missing_ok=True)
    written = [make_row(step, logs) for step, logs in rows]
    for row in written:
        append_row(folder, row)
    assert same(list(read_rows(folder)), written)
    forget_after(folder, 10**9)
    assert same(list(read_rows(folder)), written)
    assert (folder / FILE_NAME).read_text().count("\n") == len(written)


def test_no_file_no_rows(tmp_path):
    assert list(read_rows(tmp_path)) == []
    forget_after(tmp_path, 3)
    assert list(read_rows(tmp_path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "", "{", "[]", "5", "null", '"step"', '{"train/loss": 1.0}', '{"step": 1.5}', '{"step": "1"}',
        '{"step": true}', '{"step": "nan"}', '{"step": null}', '{"step": 2, "train/loss": "low"}',
        '{"step": 2, "train/loss": null}', '{"step": 2, "train/loss": [1]}', '{"step": 2, "train/loss": false}',
        '{"step": 2} {"step": 3}', '{"a":' * 100_000, '\udcff{"step": 2}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_is_named(line, tmp_path):
    content = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    (tmp_path / FILE_NAME).write_bytes(content.encode(errors="surrogateescape"))
    rows = read_rows(tmp_path)
    assert next(rows) == {"step": 1}
    with pytest.raises(BadContent, match=rf"{FILE_NAME}:2: is no metric row") as caught:
        next(rows)
    assert caught.value.problems[0].do
    with pytest.raises(BadContent, match=f"{FILE_NAME}:2: "):
        forget_after(tmp_path, 3)
    assert (tmp_path / FILE_NAME).read_bytes() == content.encode(errors="surrogateescape"), "nothing was lost"


def test_a_resumed_run_forgets_what_it_will_write_again(tmp_path):
    for step in (1, 2, 2, 3, 4):
        append_row(tmp_path, {"step": step, "train/loss": math.nan})
    forget_after(tmp_path, 2)
    assert same(list(read_rows(tmp_path)), [{"step": step, "train/loss": math.nan} for step in (1, 2, 2)])
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    append_row(tmp_path, {"step": 3})
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 2, 3]
    forget_after(tmp_path, 0)
    assert (tmp_path / FILE_NAME).read_bytes() == b""


def test_a_run_that_died_within_a_line_can_be_resumed(tmp_path):
    append_row(tmp_path, {"step": 1})
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"step": 2, "train/lo')
    with pytest.raises(BadContent, match=f"{FILE_NAME}:2: "):
        list(read_rows(tmp_path))
    forget_after(tmp_path, 1)
    assert list(read_rows(tmp_path)) == [{"step": 1}]


def plan(weight=1.0, alpha=0.3, eval_kd_batches=8, *, distils=True, visual=None):
    kd = SimpleNamespace(llm_kd_weight=weight, sft_alpha=alpha, eval_kd_batches=eval_kd_batches, visual=visual)
    return SimpleNamespace(distillation=kd if distils else None)


ALWAYS = {"loss", "sft_loss", "token_acc", "entropy"}
TRAIN = {*ALWAYS, "grad_norm", "learning_rate", "epoch"}


@pytest.mark.parametrize(
    ("made", "split", "want"),
    [
        (plan(distils=False), "train", TRAIN),
        (plan(distils=False), "eval", ALWAYS),
        (plan(), "train", {*TRAIN, "llm_kd_loss"}),
        (plan(), "eval", {*ALWAYS, "llm_kd_loss"}),
        (plan(eval_kd_batches="all"), "eval", {*ALWAYS, "llm_kd_loss"}),
        (plan(eval_kd_batches=0), "eval", ALWAYS),
        (plan(eval_kd_batches=0), "train", {*TRAIN, "llm_kd_loss"}),
        (plan(weight=0.0), "train", TRAIN),
        (plan(weight=0.0), "eval", ALWAYS),
        (plan(weight=0.0, visual="aligner"), "train", {*TRAIN, "vision_kd_loss"}),
        (plan(visual="aligner"), "eval", {*ALWAYS, "llm_kd_loss", "vision_kd_loss"}),
        (plan(visual="aligner", eval_kd_batches=0), "eval", ALWAYS),
    ],
)
def test_expected_metrics(made, split, want):
    assert expected_metrics(made, split) == {f"{split}/{name}" for name in want}


@pytest.mark.parametrize(
    ("made", "row", "want"),
    [
        (plan(distils=False), {"loss": 2.0, "sft_loss": 2.0}, 0.0),
        (plan(distils=False), {"loss": 2.0, "sft_loss": 2.5}, 0.5),
        (plan(alpha=0.3), {"loss": 0.8, "sft_loss": 2.0, "llm_kd_loss": 0.2}, 0.0),
        (plan(alpha=0.3), {"loss": 0.6, "sft_loss": 2.0, "llm_kd_loss": 0.2}, 0.2),
        (plan(alpha=0.3, weight=0.0), {"loss": 0.6, "sft_loss": 2.0}, 0.0),
        (plan(alpha=0.5), {"loss": 1.5, "sft_loss": 2.0, "llm_kd_loss": 0.2, "vision_kd_loss": 0.3}, 0.0),
        (plan(alpha=0.5), {"loss": 1.2, "sft_loss": 2.0, "llm_kd_loss": 0.2, "vision_kd_loss": 0.3}, 0.3),
        (plan(alpha=0.0), {"loss": 0.2, "sft_loss": 2.0, "llm_kd_loss": 0.2}, 0.0),
    ],
)
@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_loss_is_held_against_its_parts(made, row, want, split):
    prefixes = {f"{split}/{name}": value for name, value in row.items()}
    assert identity_error(made, prefixes, split) == pytest.approx(want, abs=1e-12)
