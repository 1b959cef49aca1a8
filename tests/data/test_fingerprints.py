"""Fingerprints are equal for what is the same, and different otherwise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vltool.data.fingerprints import EDGE_BYTES, NO_FILE, Fingerprints, repeats, same_contents
from vltool.data.messages import InlineImage
from vltool.data.record import Record


def talk(question, answer, *, images=0):
    shown = [{"type": "image", "image": (1, 1)}] * images
    return [
        {"role": "user", "content": [*shown, {"type": "text", "text": question}]},
        {"role": "assistant", "content": answer},
    ]


@pytest.fixture
def prints(tmp_path):
    for name, data in {"a.png": b"one", "b.png": b"two", "c.png": b"three"}.items():
        (tmp_path / name).write_bytes(data)

    def make(*records):
        lines = [json.dumps({"images": list(images), "summary": "x"}, default=str) for images, *_ in records]
        (tmp_path / "t.jsonl").write_text("\n\n".join([*lines, "{}"]))
        made = Fingerprints(tmp_path / "t.jsonl", root=None)
        for position, (images, question, answer) in enumerate(records):
            made.add(position, Record(images=images), talk(question, answer, images=len(images)))
        return made

    return make


def test_what_is_shown_asked_and_answered_is_told_apart(prints, tmp_path):
    made = prints(
        (("a.png",), "?", "cat"),
        (("./x/../a.png",), "?", "cat"),
        (("a.png",), "?", "dog"),
        (("b.png",), "?", "cat"),
        (("c.png",), "?", "cat"),
        (("a.png",), "!", "cat"),
        ((), "?", "cat"),
        (("a.png", "b.png"), "?", "cat"),
        ((), "?c", "at"),
    )
    assert repeats(made.wholes).tolist() == [-1, 0, -1, -1, -1, -1, -1, -1, -1]
    assert repeats(made.questions).tolist() == [-1, 0, 0, -1, -1, -1, -1, -1, -1]
    assert repeats(made.texts).tolist() == [-1, 0, -1, 0, -1, -1, -1, -1, -1]
    assert [made.where(i).line for i in (0, 7)] == [1, 15]
    assert made.paths(7) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert made.paths(1) == made.paths(0)
    assert made.firsts.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 8]
    assert made.pictured.tolist() == [1, 1, 1, 1, 1, 1, 0, 2, 0]
    assert made.owners.tolist() == [0, 1, 2, 3, 4, 5, 7, 7]
    assert made.sizes.tolist() == [3, 3, 3, 3, 5, 3, 3, 3]


def test_images_that_are_no_files_are_known_by_their_bytes_or_address(prints, tmp_path):
    images = [InlineImage(b"x"), InlineImage(b"x"), InlineImage(b"y"), "https://a.b/c", "data:,x", "gone.png"]
    made = prints(*(((image,), "?", "cat") for image in images))
    assert repeats(made.images).tolist() == [-1, 0, -1, -1, -1, -1]
    assert set(made.sizes.tolist()) == {NO_FILE}


def test_nothing_is_no_repetition(prints):
    assert len(prints()) == 0
    assert repeats(prints().wholes).tolist() == []
    assert repeats(np.array([3, 1, 3, 2, 1, 3])).tolist() == [-1, -1, 0, -1, 1, 0]


def test_files_are_the_same_by_every_byte(tmp_path):
    long = bytes(range(256)) * (EDGE_BYTES // 64)
    middle = len(long) // 2
    contents = {
        "a": long, "b": long, "c": long[:middle] + b"\xff\xff" + long[middle + 2 :], "d": long + b"x", "e": b"1",
        "f": b"1", "g": b"2", "h": b"", "i": b"",
    }  # fmt: skip
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in [*contents, "gone", "a", "."]]
    groups = [["".join(path.rsplit("/", 1)[1:]) for path in group] for group in same_contents(paths)]
    assert sorted(groups) == [["a", "b"], ["e", "f"], ["h", "i"]]
