"""What is gathered of records while a file is scanned, for rules that need more than one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vltool.data.fingerprints import Fingerprints
from vltool.data.record import Object, Record

MOST_KEPT = 100
"""Records of each kind that are kept by their places; the others are counted."""

_JSON = re.compile(r'(\{\s*"|\[\s*[\[{"])')
"""How JSON begins, and text hardly ever."""
_NUMBERS = re.compile(r"\[[\s\d.,eE+-]*")
_FENCE = re.compile(r"^\s{0,3}```", re.MULTILINE)


class RecordFacts:
    """Takes in the records of one file, as `scan` tells them."""

    def __init__(self, jsonl: Path, *, root: Path | None) -> None:
        self.fingerprints = Fingerprints(jsonl, root=root)
        self.repeating: list[tuple[int, str]] = []
        """Positions of records that have an object twice, and which; the first MOST_KEPT."""
        self.repeating_count = 0
        self.cut: list[tuple[int, str]] = []
        """Positions of records whose answers are cut off, and how one sees it; the first MOST_KEPT."""
        self.cut_count = 0

    def add(self, position: int, record: Record, messages: list[dict[str, Any]]) -> None:
        """Take in a record. messages: as `build_messages` makes them."""
        self.fingerprints.add(position, record, messages)
        if len(record.objects) > 1 and (twice := object_twice(record.objects)):
            self.repeating_count += 1
            if len(self.repeating) < MOST_KEPT:
                self.repeating.append((position, twice))
        if not record.objects and (cut := _first_cut(messages)):
            self.cut_count += 1
            if len(self.cut) < MOST_KEPT:
                self.cut.append((position, cut))


def object_twice(objects: tuple[Object, ...]) -> str:
    """Which object of a record has the description, kind and points of an earlier one; empty if none has."""
    first: dict[tuple[Any, ...], int] = {}
    for number, item in enumerate(objects):
        earlier = first.setdefault((item.desc, item.kind, tuple(map(tuple, item.points))), number)
        if earlier != number:
            return f"objects[{number}] is objects[{earlier}] again"
    return ""


def cut_off(text: str) -> str:
    """How one sees that a text breaks off; empty where one cannot tell.

    Only what opens and has to close tells: JSON, and a fenced block of code.
    """
    if len(_FENCE.findall(text)) % 2:
        return "a block of code that ``` opens does not close"
    begun = text.strip()
    if _JSON.match(begun) is None and (_NUMBERS.fullmatch(begun) is None or len(begun) < 2):
        return ""
    try:
        json.loads(begun)
    except ValueError:
        return _unclosed(begun)
    return ""


def _unclosed(text: str) -> str:
    """What of a text that begins as JSON is still open at its end."""
    depth, quoted, escaped = 0, False, False
    for letter in text:
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
            if depth <= 0:  # what follows is text
                return ""
    if quoted:
        return "its JSON ends within a string"
    return f"its JSON ends with {depth} of its brackets open" if depth else ""


def _first_cut(messages: list[dict[str, Any]]) -> str:
    answers = (message["content"] for message in messages if message["role"] == "assistant")
    return next(filter(None, map(cut_off, answers)), "")
