"""Lines of a dataset become lines of the mixture: its policy added, image paths rewritten, objects drawn.

Bytes that need no change are copied. Most lines need but two splices, the policy before the last brace and the
way to the images before the first path; others are taken apart one level deep, their values staying as written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw

from vltool.data.fusion import with_policy
from vltool.data.images import is_path
from vltool.errors import BadContent, InvalidInput, Problem, Where

LEAST_OBJECT_BYTES = len('{"desc":"a","line":[0,0,1,1]}')
_HEADS = (b'{"images": ["', b'{"images":["')
_ONE_IMAGE = re.compile(rb'[^"\\:/][^"\\:]*"\]')
"""One relative path: without a colon it is no URL, without a backslash it needs no decoding."""
_ONE_ELSEWHERE = re.compile(rb'(?:/|https?://)[^"\\]*"\]')
"""One absolute path or URL, which means the same from anywhere."""
_ASCII_ESCAPE = re.compile(rb"\\u00[4-7]")
"""A key may be spelt with them: "\\u006detadata"."""
_STRIDE = 1 << 17

Kept = Callable[[int, int], tuple[int, ...] | None]
"""(objects of a record, position in the mixture) -> those that stay; None for all."""


@dataclass(frozen=True, slots=True)
class Spliced:
    """Lines that all begin and end alike: each is head + middle + tail."""

    head: bytes
    middles: list[bytes]
    tail: bytes


@dataclass(frozen=True, slots=True)
class Rewriter:
    """What is done to the lines of one dataset."""

    policy: dict[str, Any]
    way: str
    """From the output's folder to that of the JSONL, with a slash at its end; empty where it is the same."""
    most: int | None
    """Objects a record may have; None: any number."""
    kept: Kept

    def tail(self) -> bytes:
        """What stands in place of a line's last brace."""
        return b',"metadata":' + msgspec.json.encode({"fusion": self.policy}) + b"}"

    def middles(self, data: bytes, lines: int) -> tuple[bytes, list[bytes]] | None:
        """What all lines of a text begin with, and each without that and its last brace; None if they differ.

        lines: how many there are, none of them blank.
        """
        for head in _HEADS if self.way else (b'{"',):
            if data.startswith(head):
                end = len(data) - data.endswith(b"\n")
                # As many pieces as lines: what separates them stands between every two, since lines hold no newline.
                middles = data[len(head) : end].split(b"}\n" + head)
                if len(middles) == lines and middles[-1].endswith(b"}") and self._plain(data):
                    middles[-1] = middles[-1][:-1]
                    return head, middles
        return None

    def spliced(self, head: bytes, middles: list[bytes]) -> Spliced | None:
        """Some lines of a dataset, as `middles` gives them, as lines of the mixture; None if that takes more."""
        way = self.way
        if way and not all(map(_ONE_IMAGE.match, middles)):
            if not all(map(_ONE_ELSEWHERE.match, middles)):
                return None
            way = ""
        most = self.most
        if most is not None and max(map(len, middles)) >= LEAST_OBJECT_BYTES * (most + 1):  # few are that long
            splices_do = not any(_may_exceed(middle, most) for middle in middles)
            if not splices_do:
                return None
        return Spliced(head + _inner(way), middles, self.tail())

    def lines(self, lines: Sequence[bytes], positions: Sequence[int], where: Callable[[int], Where]) -> Spliced:
        """Some lines of a dataset as lines of the mixture, whatever they look like.

        positions: theirs in the mixture. where: a line's place, by its number here. Raises BadContent for a line
        that has to be taken apart and cannot be.
        """
        tail = self.tail()
        out = [
            self._spliced(line, tail) or self.rewritten(line, positions[i], where(i)) for i, line in enumerate(lines)
        ]
        return Spliced(b"", out, b"")

    def _plain(self, data: bytes) -> bool:
        """Whether no line can have metadata already, nor, where paths are rewritten, images elsewhere than in front."""
        if b"\\" in data and b"\\u00" in data and _ASCII_ESCAPE.search(data):
            return False
        keys = [b"meta", b"mess"] if self.way else [b"meta"]
        words = [np.uint32(int.from_bytes(key, "little")) for key in keys]
        # Four strides over 4-byte words: three times as fast as bytes.find, whose needle has JSON's own letters.
        for begin in range(0, len(data), _STRIDE):
            for shift in range(4):
                size = (min(_STRIDE, len(data) - begin - shift)) // 4
                if size > 0:
                    view = np.frombuffer(data, "<u4", size, begin + shift)
                    if any((view == word).any() for word in words):
                        return b"metadata" not in data and not (self.way and b"messages" in data)
        return True

    def _spliced(self, line: bytes, tail: bytes) -> bytes | None:
        """One line, if splices are enough for it."""
        if not (line.startswith(b'{"') and line.endswith(b"}")) or b"metadata" in line:
            return None
        if b"\\u00" in line and _ASCII_ESCAPE.search(line):
            return None
        if self.most is not None and _may_exceed(line, self.most):
            return None
        if self.way and b"messages" in line:
            return None
        begin = next((len(head) for head in _HEADS if line.startswith(head)), None)
        if not self.way or (begin and _ONE_ELSEWHERE.match(line, begin)):
            return line[:-1] + tail
        if not begin or not _ONE_IMAGE.match(line, begin):
            return None
        return line[:begin] + _inner(self.way) + line[begin:-1] + tail

    def rewritten(self, line: bytes, position: int, where: Where) -> bytes:
        """One line, taken apart; what is not changed keeps its bytes. Raises BadContent."""
        try:
            fields = msgspec.json.decode(line, type=dict[str, Raw])
            metadata = msgspec.json.decode(fields.get("metadata", b"null"), type=dict[str, Any] | None)
            if self.way:
                for name, change in (("images", self._images), ("messages", self._messages)):
                    if name in fields:
                        fields[name] = _changed(fields[name], change)
            if self.most is not None and "objects" in fields:
                objects = msgspec.json.decode(fields["objects"], type=list[Raw] | None)
                kept = self.kept(len(objects or ()), position)
                if objects is not None and kept is not None:
                    fields["objects"] = Raw(msgspec.json.encode([objects[i] for i in kept]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            what = f"the line cannot be taken apart: {error}"
            raise BadContent(Problem(what, "without --no-validate, vltool fuse says what is wrong", where)) from error
        fields["metadata"] = Raw(msgspec.json.encode(with_policy(metadata, self.policy)))
        return msgspec.json.encode(fields)

    def _reference(self, value: Any) -> Any:
        """An image reference as it has to be written in the mixture."""
        return f"{self.way}{value}" if is_path(value) and not value.startswith("/") else value

    def _images(self, value: Any) -> Any:
        return [self._reference(item) for item in value] if isinstance(value, list) else value

    def _messages(self, value: Any) -> Any:
        for message in value if isinstance(value, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            for item in content if isinstance(content, list) else ():
                if isinstance(item, dict) and item.get("type") in ("image", "image_url"):
                    key = item["type"]
                    if isinstance(item.get(key), dict) and "url" in item[key]:
                        item[key]["url"] = self._reference(item[key]["url"])
                    elif key in item:
                        item[key] = self._reference(item[key])
        return value


def _may_exceed(line: bytes, most: int) -> bool:
    """Whether a line may have more objects than that."""
    # A line without its head and tail is still longer than its objects.
    return len(line) >= LEAST_OBJECT_BYTES * (most + 1) and line.count(b'"desc"') > most


def _inner(text: str) -> bytes:
    """A text as it stands between JSON's quotes."""
    return msgspec.json.encode(text)[1:-1]


def _changed(raw: Raw, change: Callable[[Any], Any]) -> Raw:
    """A value after a change; its own bytes if that changed nothing."""
    value, before = msgspec.json.decode(raw), msgspec.json.decode(raw)
    after = change(value)
    return raw if after == before else Raw(msgspec.json.encode(after))


def way_to(folder: Path, out: Path) -> str:
    """The relative path from one folder to another, links followed, with a slash at its end; empty for the same.

    Raises InvalidInput for a name that JSON cannot hold.
    """
    way = os.path.relpath(os.path.realpath(folder), os.path.realpath(out))
    try:
        way.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the name of {folder!a} is not UTF-8", "rename the folder, or fuse beside it") from error
    return "" if way == "." else f"{way}/"
