"""Lines of a dataset become lines of the mixture: its policy added, image paths rewritten, objects drawn.

Bytes that need no change are copied. Most lines need but two splices, the policy before the last brace and the
way to the images before the first path; others are taken apart one level deep, their values staying as written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from vltool.data.fusing.copying import copy, fill
from vltool.data.fusing.looks import HEADS, KEPT, TAKEN_APART, Look
from vltool.data.fusion import with_policy
from vltool.data.images import is_path
from vltool.errors import BadContent, InvalidInput, Problem, Where

_LAST = len(b"}\n")

Kept = Callable[[int, int], tuple[int, ...] | None]
"""(objects of a record, position in the mixture) -> those that stay; None for all."""


@dataclass(frozen=True, slots=True)
class Rewriter:
    """What is done to the lines of one dataset."""

    policy: dict[str, Any]
    way: str
    """From the output's folder to that of the JSONL, with a slash at its end; empty where it is the same."""
    most: int | None
    """Objects a record may have; None: any number."""
    kept: Kept

    @property
    def look(self) -> Look:
        """What matters in the lines."""
        return Look(bool(self.way), self.most)

    def sizes(self, lens_M: NDArray[np.int64], kinds_M: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Bytes that lines come to, newlines included before and after; of those that are taken apart, 0."""
        way, tail = self._spliced_in()
        more = np.zeros(len(HEADS) + 2, np.int64)
        for kind in (KEPT, *HEADS):
            more[kind] = len(way if kind in HEADS else b"") + len(tail) - _LAST
        sizes_M = lens_M + more[kinds_M]
        sizes_M[kinds_M == TAKEN_APART] = 0
        return sizes_M

    def put(
        self,
        data_B: NDArray[np.uint8],
        at_M: NDArray[np.int64],
        lens_M: NDArray[np.int64],
        kinds_M: NDArray[np.uint8],
        out_B: NDArray[np.uint8],
        to_M: NDArray[np.int64],
    ) -> None:
        """Write lines of a text to where they begin in the output, but those that are taken apart.

        at_M: where they begin in the text. lens_M: their bytes, newlines included. kinds_M: as `Look.kinds` says.
        """
        way, tail = self._spliced_in()
        for kind in (KEPT, *HEADS):
            group = np.flatnonzero(kinds_M == kind)
            if len(group):
                head = HEADS.get(kind, b"")
                lens_K = lens_M[group] - len(head) - _LAST
                begin = head + way if head else b""
                fill(begin, out_B, to_M[group])
                copy(data_B, at_M[group] + len(head), lens_K, out_B, to_M[group] + len(begin))
                fill(tail, out_B, to_M[group] + len(begin) + lens_K)

    def _spliced_in(self) -> tuple[bytes, bytes]:
        """The way as it stands in JSON, and what stands in place of a line's last brace and its newline."""
        return _inner(self.way), b',"metadata":' + msgspec.json.encode({"fusion": self.policy}) + b"}\n"

    def rewritten(self, line: bytes, position: int, where: Callable[[], Where]) -> bytes:
        """One line without its newline, taken apart; what is not changed keeps its bytes. Raises BadContent."""
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
            raise BadContent(Problem(what, "without --no-validate, vltool fuse says what is wrong", where())) from error
        fields["metadata"] = Raw(msgspec.json.encode(with_policy(metadata, self.policy)))
        return msgspec.json.encode(fields) + b"\n"

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
