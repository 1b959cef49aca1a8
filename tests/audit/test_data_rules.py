"""Findings on records: each problem under the id of its rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from vltool.audit.catalogue import RULES
from vltool.audit.data_rules import LONGEST_EVIDENCE, judge, parts_of
from vltool.audit.targets import Records
from vltool.data.conversation import Prompts
from vltool.data.tokens import TextCounter


def reading(**changes: Any) -> dict[str, Any]:
    return {
        "prompts": Prompts("describe"), "emit_norm": "norm1000", "use_summary": False, "max_pixels": None,
        "sample_limit": None, "root": None,
    } | changes  # fmt: skip


def caption(**changes: Any) -> dict[str, Any]:
    box = {"desc": "cat", "bbox_2d": [1, 2, 30, 20]}
    return {"images": ["a.png"], "width": 64, "height": 32, "objects": [box]} | changes


def records(folder: Path, *lines: Any, **changes: Any) -> Records:
    Image.new("RGB", (64, 32), "red").save(folder / "a.png")
    Image.new("RGB", (300, 1), "red").save(folder / "thin.png")
    (folder / "text.png").write_text("<html>")
    path = folder / "t.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return Records(**({"jsonl": path, "split": "train", "reading": reading()} | changes))


def obj(**changes: Any) -> dict[str, Any]:
    return caption(objects=[{"desc": "cat", "bbox_2d": [1, 2, 30, 20]} | changes])


CASES: list[tuple[Any, str]] = [
    ("{", "record-json"),
    ("[1]", "record-json"),
    ('{"images": [], "images": []}', "record-json"),
    (caption(objcts=1), "record-field"),
    (caption(images="a.png"), "record-field"),
    (caption(metadata=3), "record-field"),
    (caption(objects=[]), "record-field"),
    (caption(width=0), "record-size"),
    ({key: value for key, value in caption().items() if key != "height"}, "record-size"),
    (caption(width=100), "record-size"),
    (caption(width=32, height=64), "record-size"),
    (obj(bbox_2d=[1, 2, 3, 99]), "record-geometry"),
    (obj(poly=[1, 2, 3, 4, 5, 6]), "record-geometry"),
    (obj(bbox_2d=None), "record-geometry"),
    (obj(bbox_2d=None, line=[1, 2, 3, 4], line_points=9), "record-geometry"),
    (obj(desc=" "), "record-text"),
    (obj(desc="a <|image_pad|>"), "record-text"),
    (caption(images=["gone.png"]), "record-image"),
    (caption(images=["text.png"]), "record-image"),
    (caption(images=["thin.png"], width=300, height=1, objects=[{"desc": "x", "line": [0, 0, 9, 1]}]), "record-image"),
    ({"images": ["a.png"], "summary": "a cat"}, "record-answer"),
]


@pytest.mark.parametrize(("line", "rule"), CASES)
def test_a_problem_has_the_id_of_its_rule(line, rule, tmp_path):
    judged = judge(records(tmp_path, caption(), line))
    assert {(finding.id, finding.severity) for finding in judged.findings} == {(rule, "error")}
    assert {finding.where.line for finding in judged.findings} == {2}
    assert rule in RULES


def test_good_records_have_no_finding(tmp_path):
    judged = judge(records(tmp_path, caption(), obj(desc="dog")))
    assert judged.findings == []
    assert judged.scan.records == 2
    assert judged.summary() == f"{tmp_path}/t.jsonl (train): 2 records, all good"


def counter() -> TextCounter:
    """A tokenizer that gives each byte a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return TextCounter(tokenizer)


def test_lengths_are_shown_as_a_histogram_and_by_their_percentiles(tmp_path):
    lines = [obj(desc="cat" * n) for n in range(1, 9)]
    judged = judge(records(tmp_path, *lines, counter=counter(), max_length=4000))
    seen, document = judged.scan, judged.to_json()
    head, lengths = judged.summary().split("\n")
    assert "all good, the longest" in head
    assert len(lengths) <= 80
    share = f"{seen.supervised / seen.lengths.total:.1%} learnt"
    assert lengths.startswith("  0 █")
    assert lengths.endswith(f"4,000: half ≤ {seen.lengths.percentile(50)}, 99 % ≤ {seen.longest[0]}, {share}")
    assert document["supervised"] == seen.supervised / seen.lengths.total
    assert document["lengths"]["max"] == document["longest"]["tokens"]
    assert (document["lengths"]["end"], sum(document["lengths"]["bins"])) == (4000, 8)
    assert document["answers"]["max"] == seen.longest_answer[0]


def test_without_a_tokenizer_nothing_is_said_of_lengths(tmp_path):
    document = judge(records(tmp_path, caption())).to_json()
    assert [document[name] for name in ("lengths", "answers", "supervised", "longest")] == [None] * 4


def test_the_beginning_of_the_record_is_the_evidence(tmp_path):
    judged = judge(records(tmp_path, caption(), "", caption(width=0), "{" + "x" * 300))
    short, long = (finding.evidence for finding in judged.findings)
    assert short == json.dumps(caption(width=0))
    assert long == "{" + "x" * (LONGEST_EVIDENCE - 2) + "…"


def test_what_training_leaves_out_is_a_warning_until_nothing_is_left(tmp_path):
    judged = judge(records(tmp_path, caption(), caption(width=0), skips_bad=True))
    assert [(finding.id, finding.severity) for finding in judged.findings] == [("record-size", "warning")] * 1
    judged = judge(records(tmp_path, caption(width=0), "{", skips_bad=True))
    assert [(finding.id, finding.severity) for finding in judged.findings][-1] == ("records-unusable", "error")


def test_an_empty_file_is_a_finding(tmp_path):
    judged = judge(records(tmp_path))
    assert [finding.id for finding in judged.findings] == ["records-none"]
    assert parts_of([judged], [], variants=3) == []


def test_what_is_not_listed_is_counted(tmp_path, monkeypatch):
    judged = judge(records(tmp_path, caption(), *[caption(width=0)] * 1002))
    assert len(judged.findings) == 1001
    assert judged.findings[-1].id == "records-unlisted"
    assert judged.findings[-1].what == "2 more problems were counted and are not listed"
