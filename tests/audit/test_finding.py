"""Findings: their order, the choice among them, and what fails a check."""

from __future__ import annotations

import pytest

from vltool.audit.finding import Finding, Rule, arranged, by_id, by_severity, chosen, failed, known_rule
from vltool.errors import InvalidInput, Where

ERROR = Finding(id="record-json", severity="error", what="no JSON", where=Where("a.jsonl", 7), remedy="mend it")
WARNING = Finding(id="record-length", severity="warning", what="long", where=Where("a.jsonl", 2), evidence="{")
NOTE = Finding(id="recipe-note", severity="note", what="old name")
KNOWN = ("record-json", "record-length", "recipe-note")


def test_the_worst_come_first_and_rules_stay_together():
    early = Finding(id="record-json", severity="error", what="no JSON", where=Where("a.jsonl", 3))
    other = Finding(id="record-field", severity="error", what="odd", where=Where("a.jsonl", 5))
    assert arranged([NOTE, WARNING, ERROR, other, early]) == [other, early, ERROR, WARNING, NOTE]


def test_rules_are_chosen_and_left_out_by_id():
    every = [ERROR, WARNING, NOTE]
    assert chosen(every, known=KNOWN) == every
    assert chosen(every, known=KNOWN, only=["record-json", "recipe-note"]) == [ERROR, NOTE]
    assert chosen(every, known=KNOWN, ignore=["record-json"]) == [WARNING, NOTE]
    assert chosen(every, known=KNOWN, only=["record-json"], ignore=["record-json"]) == []


def test_an_unknown_id_is_refused_with_the_nearest():
    with pytest.raises(InvalidInput) as caught:
        chosen([], known=KNOWN, only=["record-jsn"], ignore=["zzz"])
    first, second = caught.value.problems
    assert (first.what, first.do) == ("no rule has the id record-jsn", "did you mean record-json?")
    assert "recipe-note, record-json, record-length" in second.do


@pytest.mark.parametrize(
    ("findings", "plain", "strict"),
    [([], False, False), ([NOTE], False, False), ([NOTE, WARNING], False, True), ([ERROR], True, True)],
)
def test_what_fails(findings, plain, strict):
    assert failed(findings, strict=False) is plain
    assert failed(findings, strict=True) is strict


def test_json_is_flat_and_null_where_nothing_is_known():
    assert NOTE.to_json() == {
        "id": "recipe-note", "severity": "note", "what": "old name", "evidence": None, "remedy": None,
        "file": None, "line": None, "column": None, "docs": "docs/findings/recipe-note.md",
    }  # fmt: skip
    assert (WARNING.to_json()["line"], WARNING.to_json()["evidence"]) == (2, "{")
    assert by_severity([ERROR, ERROR, NOTE]) == {"error": 2, "warning": 0, "note": 1}


def test_an_id_belongs_to_one_rule():
    rule = Rule(id="record-json", severity="error", means="x", why="x", remedy="x")
    assert by_id([rule]) == {"record-json": rule}
    assert rule.page == "docs/findings/record-json.md"
    with pytest.raises(AssertionError, match="two rules have the id record-json"):
        by_id([rule, rule])
    with pytest.raises(InvalidInput, match="did you mean record-json"):
        known_rule("record-jsn", by_id([rule]))
