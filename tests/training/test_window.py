"""A value that is not finite names the records that it came with, and writes them out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vltool.errors import RunFailed, Where
from vltool.run.telemetry import NOT_FINITE_FILE_NAME
from vltool.training.ranks import Ranks
from vltool.training.window import GRAD_NORM, MOST_NAMED, Window

NAN, INF = float("nan"), float("inf")
RARE = "Ω"
"""No other text holds the bytes of it."""
BAD_LINE = 6


@pytest.fixture
def poisoned(tiny, tmp_path):
    """A checkpoint in which one token's embedding, and not the head's row of it, is NaN."""
    folder = tmp_path / "poisoned"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("embed_tokens.weight"))
    weights["lm_head.weight"] = weights[name].clone()
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(RARE, add_special_tokens=False).ids
    weights[name][ids] = NAN
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def with_rare(records, tmp_path):
    """The records, of which one holds the rare character."""
    lines = []
    for number, line in enumerate(records.read_text(encoding="utf-8").splitlines(), 1):
        record = json.loads(line)
        record["images"] = [str(records.parent / image) for image in record["images"]]
        if number == BAD_LINE:
            record["objects"][0]["desc"] += RARE
        lines.append(json.dumps(record, ensure_ascii=False))
    path = tmp_path / "rare.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def blamed(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / NOT_FINITE_FILE_NAME).read_text(encoding="utf-8").splitlines()]


def is_bad_record(row, path) -> bool:
    # As it stands in the file, not as some encoder would write it again.
    line = path.read_text(encoding="utf-8").splitlines()[BAD_LINE - 1]
    return line in (path.parent / "run" / NOT_FINITE_FILE_NAME).read_text(encoding="utf-8") and row == row | {
        "file": str(path), "line": BAD_LINE, "source": "dataset", "record": json.loads(line),
    }  # fmt: skip


def test_a_record_whose_loss_is_nan_is_named_and_written_out(overlay, train, poisoned, with_rare, tmp_path):
    training = {"per_device_train_batch_size": 1, "effective_batch_size": 2, "max_steps": 4, "logging_steps": 4}
    recipe = overlay(
        "stage2_llm_lora", model={"model": str(poisoned), "torch_dtype": "float32"}, training=training,
        custom={"train_jsonl": str(with_rare), "val_jsonl": None}, data={"train_dataloader_shuffle": False},
    )  # fmt: skip
    with pytest.raises(RunFailed) as caught:
        train(recipe)
    (problem,) = caught.value.problems
    assert problem.what == (
        f"train/loss is nan at step 4: the first such loss is that of a batch of step 3, with {with_rare}:{BAD_LINE}"
    )
    assert str(tmp_path / "run" / NOT_FINITE_FILE_NAME) in problem.do
    (row,) = blamed(tmp_path / "run")
    assert is_bad_record(row, with_rare)
    assert (row["step"], row["rank"], row["not_finite"]) == (3, 0, "the loss of its batch")


def test_a_validation_record_is_named_too(overlay, train, poisoned, with_rare, records, tmp_path):
    training = {"max_steps": 1, "eval_steps": 1, "save_steps": 1, "per_device_eval_batch_size": 2}
    recipe = overlay(
        "stage2_llm_lora", model={"model": str(poisoned), "torch_dtype": "float32"}, training=training,
        custom={"train_jsonl": str(records), "val_jsonl": str(with_rare), "val_sample_limit": 8},
    )  # fmt: skip
    with pytest.raises(RunFailed) as caught:
        train(recipe)
    assert (
        "eval/loss is nan at step 1: the first such loss is that of a batch of the evaluation, "
        f"with {with_rare}:{BAD_LINE - 1}, {with_rare}:{BAD_LINE}"
    ) in str(caught.value)
    first, second = blamed(tmp_path / "run")
    assert first["line"] == BAD_LINE - 1
    assert is_bad_record(second, with_rare)


def test_a_gradient_that_is_too_large_names_the_records_of_its_step(overlay, train, records, tmp_path):
    """An adapter that adds nothing yet, and whose gradient is too large to square; the teacher wrote the text."""
    recipe = overlay(
        "stage3_gkd", tuner={"lora_alpha": 10**30}, rlhf={"lmbda": 0.0, "seq_kd": True, "seq_kd_ratio": 1.0,
        "max_completion_length": 4}, custom={"val_jsonl": None}, data={"train_dataloader_shuffle": False},
    )  # fmt: skip
    with pytest.raises(RunFailed) as caught:
        train(recipe)
    audit, problem = caught.value.problems
    assert audit.what.startswith("audit of the gradients at step 1: ")
    assert problem.what == (
        "train/grad_norm is inf at step 1: the losses of step 1 are finite, its gradient is not; it saw "
        f"{', '.join(f'{records}:{line}' for line in (1, 2, 3, 4))}, whose answers the teacher wrote"
    )
    rows = blamed(tmp_path / "run")
    assert [(row["line"], row["source"], row["not_finite"]) for row in rows] == [
        (line, "teacher", "the gradient's norm") for line in (1, 2, 3, 4)
    ]
    assert [row["record"] for row in rows] == list(map(json.loads, records.read_text().splitlines()[:4]))


@pytest.fixture
def window(tmp_path):
    """Two steps of two batches, their losses as given; a line of data for each record, two a batch."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"summary":"{number}"}}\n' for number in range(1, 9)))

    def make(*losses, norms=(1.0, 1.0), source="dataset"):
        made = Window(tmp_path, Ranks())
        for number, loss in enumerate(losses):
            places = tuple(Where(str(data), line) for line in (2 * number + 1, 2 * number + 2))
            made.add("train", torch.tensor(loss), step=1 + number // 2, records=places, source=source)
        for step, norm in enumerate(norms, 1):
            made.add_norm(step, norm)
        return made

    return make


FINITE_ROW = {"train/loss": 1.0, GRAD_NORM: 1.0}


@pytest.mark.parametrize(
    ("losses", "norms", "values", "step", "lines"),
    [
        ((1.0, 1.0, NAN, NAN), (1.0, NAN), {"train/loss": NAN, GRAD_NORM: NAN}, 2, [5, 6]),
        ((1.0, INF, 1.0, NAN), (NAN, NAN), {"train/loss": NAN, GRAD_NORM: NAN}, 1, [3, 4]),
        # The gradient's norm was infinite, and took the weights with it.
        ((1.0, 1.0, NAN, NAN), (INF, NAN), {"train/loss": NAN, GRAD_NORM: NAN}, 1, [1, 2, 3, 4]),
        ((1.0, 1.0, 1.0, 1.0), (1.0, INF), FINITE_ROW | {GRAD_NORM: INF}, 2, [5, 6, 7, 8]),
        # ms-swift has dropped this update, and the row is that of the next.
        ((1.0, 1.0, 1.0, 1.0), (NAN, 1.0), FINITE_ROW, 1, [1, 2, 3, 4]),
    ],
)
def test_the_first_thing_that_is_not_finite_is_blamed(losses, norms, values, step, lines, window, tmp_path):
    found = window(*losses, norms=norms).problem("train", values, 2)
    assert f" of step {step}" in found.what
    rows = blamed(tmp_path)
    assert [row["line"] for row in rows] == lines
    assert {row["step"] for row in rows} == {step}
    assert [row["record"]["summary"] for row in rows] == list(map(str, lines))


def test_where_every_loss_of_a_step_is_nan_the_weights_are_suspected(window):
    values = {"train/loss": NAN}
    assert "so are all 2 losses of step 2" in window(1.0, 1.0, NAN, NAN).problem("train", values, 2).what
    assert "so are all" not in window(1.0, 1.0, NAN, 1.0).problem("train", values, 2).what
    written = window(1.0, 1.0, NAN, 1.0, source="student").problem("train", values, 2).what
    assert written.endswith(", whose answers the student wrote")


def test_a_message_stays_readable_however_many_records_a_step_has(window, tmp_path):
    made = window(1.0, 1.0)
    made.add(
        "train",
        torch.tensor(1.0),
        step=1,
        records=tuple(Where(str(tmp_path / "data.jsonl"), n) for n in range(5, 9)),
        source="dataset",
    )
    made.add_norm(1, NAN)
    assert f":{MOST_NAMED}" in made.gradient_problem(1).what
    made.add("train", torch.tensor(1.0), step=1, records=(Where(str(tmp_path / "data.jsonl"), 99),), source="dataset")
    assert made.gradient_problem(1).what.endswith(" and 1 more")
    assert blamed(tmp_path)[-1]["record"] is None, "the line is not there any more"


def test_what_is_finite_or_of_an_earlier_row_blames_nobody(window, tmp_path):
    made = window(1.0, NAN, 1.0, 1.0, norms=(INF, 1.0))
    made.forget("eval")
    with pytest.raises(RunFailed):
        made.require_finite("train", FINITE_ROW, 2)
    (tmp_path / NOT_FINITE_FILE_NAME).unlink()
    assert made.problem("train", {"train/loss": 1.0}, 2) is None, "only a row asks for the norms of its steps"
    made.forget("train")
    made.require_finite("train", FINITE_ROW, 2)
    assert "look for bad records" in made.problem("train", {"train/sft_loss": NAN}, 2).do
    assert not (tmp_path / NOT_FINITE_FILE_NAME).exists()


@pytest.mark.slow
def test_processes_end_together_with_the_record_of_any_of_them(overlay, train, poisoned, with_rare, tmp_path):
    training = {"per_device_train_batch_size": 1, "effective_batch_size": 4, "logging_steps": 2, "max_steps": 2}
    recipe = overlay(
        "stage2_llm_lora", model={"model": str(poisoned), "torch_dtype": "float32"}, training=training,
        custom={"train_jsonl": str(with_rare), "val_jsonl": None}, data={"train_dataloader_shuffle": False},
        launch={"nproc_per_node": 2},
    )  # fmt: skip
    with pytest.raises(RunFailed) as caught:
        train(recipe)
    assert (
        "train/loss is nan at step 2: the first such loss is that of a batch of step 2 on process 1, "
        f"with {with_rare}:{BAD_LINE}"
    ) in str(caught.value)
    (row,) = blamed(tmp_path / "run")
    assert is_bad_record(row, with_rare)
    assert row["rank"] == 1
