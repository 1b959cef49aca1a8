"""Records that are the same as others are found by paths, by contents and by texts, and others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vltool.data.fingerprints import Fingerprints
from vltool.data.record import parse_record
from vltool.data.twins import answered_otherwise, leaked, said_again
from vltool.errors import BadContent, Where


@pytest.fixture
def prints(tmp_path):
    """Makes the fingerprints of a file of records, each (images, question, answer)."""
    for name, data in {"a": b"one", "copy": b"one", "b": b"two", "c": b"three", "long": b"x" * 9000}.items():
        (tmp_path / name).write_bytes(data)

    def make(name, *records):
        path = tmp_path / name
        items = [[{"type": "image", "image": image} for image in images] for images, _, _ in records]
        messages = [
            [{"role": "user", "content": [*shown, {"type": "text", "text": question}]},
             {"role": "assistant", "content": answer}]
            for shown, (_, question, answer) in zip(items, records, strict=True)
        ]  # fmt: skip
        path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in messages))
        made = Fingerprints(path, root=None)
        for position, line in enumerate(path.read_bytes().splitlines()):
            made.add(position, parse_record(line, Where(name)), messages[position])
        return made

    return make


def lines(twins):
    return [(Path(a.file).name, a.line, Path(b.file).name, b.line) for a, b in twins]


def test_the_same_again_is_found_by_paths_and_by_contents(prints):
    one = prints(
        "t", (["a"], "?", "cat"), (["b"], "?", "cat"), (["a"], "?", "cat"), (["copy"], "?", "cat"),
        (["copy"], "?", "dog"), (["c"], "?", "cat"), ([], "?", "cat"), ([], "?", "cat"), (["copy"], "?", "cat"),
    )  # fmt: skip
    assert lines(said_again([one])) == [("t", 3, "t", 1), ("t", 4, "t", 1), ("t", 8, "t", 7), ("t", 9, "t", 4)]


def test_several_images_are_the_same_in_the_same_order(prints):
    one = prints("t", (["a", "b"], "?", "x"), (["copy", "b"], "?", "x"), (["b", "a"], "?", "x"))
    assert lines(said_again([one])) == [("t", 2, "t", 1)]


def test_the_same_is_found_from_file_to_file(prints):
    first = prints("t", (["c"], "?", "cow"), (["a"], "?", "cat"))
    second = prints("u", (["b"], "?", "dog"), (["a"], "?", "cat"), (["copy"], "?", "cat"))
    assert lines(said_again([first, second])) == [("u", 2, "t", 2), ("u", 3, "t", 2)]
    assert said_again([]) == answered_otherwise([]) == []


def test_another_answer_to_the_same_question_of_the_same_image(prints):
    one = prints(
        "t", (["a"], "?", "cat"), (["a"], "?", "cat"), (["a"], "?", "dog"), (["a"], "!", "dog"), (["b"], "?", "dog"),
        ([], "?", "cat"), ([], "?", "dog"),
    )  # fmt: skip
    assert lines(answered_otherwise([one])) == [("t", 3, "t", 1)]


def test_leaks_are_found_by_paths_by_contents_and_by_texts(prints):
    train = prints("t", (["a"], "?", "cat"), (["c"], "?", "x"), ([], "hi", "yes"), (["long"], "?", "l"))
    more = prints("u", (["b", "c"], "?", "both"))
    val = prints(
        "v", (["a"], "?", "other"), (["copy"], "?", "other"), (["b"], "?", "x"), ([], "hi", "yes"), ([], "hi", "no"),
        (["new", "copy"], "?", "x"), (["new"], "?", "x"),
    )  # fmt: skip
    assert lines(leaked(val, [train, more])) == [
        ("v", 1, "t", 1), ("v", 2, "t", 1), ("v", 3, "u", 1), ("v", 4, "t", 3), ("v", 6, "t", 1),
    ]  # fmt: skip
    assert leaked(val, []) == []
    assert leaked(prints("w", (["new"], "hi", "yes")), [train, more]) == []


def test_a_file_as_large_as_another_is_no_leak(prints, tmp_path):
    (tmp_path / "other").write_bytes(b"x" * 4500 + b"y" + b"x" * 4499)
    assert leaked(prints("v", (["other"], "?", "l")), [prints("t", (["long"], "?", "l"))]) == []


def test_a_file_of_records_that_was_replaced_is_noticed(prints, tmp_path):
    one = prints("t", (["a"], "?", "cat"), (["copy"], "?", "cat"))
    (tmp_path / "t").write_text("{}\n")
    with pytest.raises(BadContent, match="in use"):
        said_again([one])
