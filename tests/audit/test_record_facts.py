"""Answers that break off, and objects that a record names twice."""

from __future__ import annotations

import json

import pytest

from vltool.audit import record_facts
from vltool.audit.record_facts import RecordFacts, cut_off, object_twice
from vltool.data.record import Object, Record

CAPTION = json.dumps({"object_1": {"desc": 'a "cat"', "bbox_2d": [1, 2, 3, 4]}, "object_2": {"desc": "\\"}})


@pytest.mark.parametrize(
    "text",
    [
        CAPTION, f" {CAPTION}\n", "", "a cat", "a cat {", "[a", "{name} is missing", "[0, 1) is half open", "[", "{",
        '{"a": 1} is what it says, and "b', '{"a": 1,}', "[1, 2]", f"```json\n{CAPTION}\n```", '["a"], ["b"',
    ],
)  # fmt: skip
def test_what_closes_or_need_not_is_whole(text):
    assert cut_off(text) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": {"b": [1, 2', "3 of its brackets open"),
        ('{"a": "b', "within a string"),
        ('{"a": "b\\"}', "within a string"),
        ('[{"a": "}]"}, ', "1 of its brackets open"),
        ("[[1, 2], [3", "2 of its brackets open"),
        ("[1, 2, ", "1 of its brackets open"),
        ("```json\n{}\n", "a block of code"),
    ],
)
def test_what_opens_and_does_not_close_is_cut_off(text, words):
    assert words in cut_off(text)


def test_every_beginning_of_a_caption_is_cut_off():
    assert all(cut_off(CAPTION[:end]) for end in range(2, len(CAPTION)))


def test_an_object_is_the_same_by_its_words_and_its_geometry():
    cat = Object("cat", "bbox_2d", ((1, 2), (3, 4)))
    others = (Object("dog", "bbox_2d", ((1, 2), (3, 4))), Object("cat", "line", ((1, 2), (3, 4))))
    assert object_twice((cat, *others, Object("cat", "bbox_2d", ((1, 2), (3, 5))))) == ""
    assert object_twice((*others, cat, cat)) == "objects[3] is objects[2] again"


def test_so_many_are_kept_and_all_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(record_facts, "MOST_KEPT", 2)
    (tmp_path / "t.jsonl").write_text("{}\n")
    facts = RecordFacts(tmp_path / "t.jsonl", root=None)
    cat = Object("cat", "bbox_2d", ((1, 2), (3, 4)))
    for position in range(4):
        told = [{"role": "user", "content": "?"}, {"role": "assistant", "content": '{"a": '}]
        facts.add(position, Record(summary="x"), told)
        facts.add(position, Record(objects=(cat, cat)), [told[0], {"role": "assistant", "content": CAPTION}])
    assert ([at for at, _ in facts.cut], facts.cut_count) == ([0, 1], 4)
    assert ([at for at, _ in facts.repeating], facts.repeating_count) == ([0, 1], 4)
    assert len(facts.fingerprints) == 8
