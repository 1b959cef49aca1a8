"""Byte offsets of a JSONL file: any record by its position, for a few bytes of memory each."""

from __future__ import annotations

import os
import weakref
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vltool.errors import BadContent, InvalidInput, Problem, Where


class JsonlIndex:
    """Positions 0…n-1 of a JSONL's records; blank lines are no records but count as lines.

    Costs 8 bytes a record, in one numpy buffer that forked workers share. The file is opened where
    it is first read, and read by absolute position, so copies of an index never disturb each other.
    Raises InvalidInput if the file is absent, BadContent if it holds no record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._offsets, self._blanks = _scan(path)
        if len(self) == 0:
            raise BadContent(Problem("the file holds no record", "write one JSON object a line", Where(str(path))))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def where(self, position: int) -> Where:
        """The line of a record in the file, counted from 1."""
        return Where(str(self.path), position + 1 + bisect_right(self._blanks, position))

    def read(self, position: int) -> tuple[bytes, Where]:
        """The bytes of one record, without its newline, and its place.

        Raises IndexError beyond the last record, BadContent if the file was cut since it was indexed.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)} in {self.path}")
        start, end = int(self._offsets[position]), int(self._offsets[position + 1])
        parts: list[bytes] = []
        while start < end:  # one pread gives at most 2 GiB
            part = os.pread(self._open(), end - start, start)
            if not part:
                raise BadContent(
                    Problem(
                        "the file became shorter while it was in use",
                        "leave data in place until the run ends, or write it beside and rename it",
                        self.where(position),
                    )
                )
            parts.append(part)
            start += len(part)
        return b"".join(parts).partition(b"\n")[0], self.where(position)

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}


def _scan(path: Path) -> tuple[NDArray[np.int64], list[int]]:
    """Offsets of all records and of the end of the last; for each blank line the records before it."""
    offsets, blanks, end = array("q"), [], 0
    try:
        with path.open("rb") as file:
            for line in file:
                if line.isspace():
                    blanks.append(len(offsets))
                else:
                    offsets.append(end)
                end += len(line)
    except FileNotFoundError:
        raise InvalidInput(f"no such file: {path}", "give the path of a JSONL file") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", "give the path of a readable JSONL file") from error
    offsets.append(end)
    return np.frombuffer(offsets, dtype=np.int64), blanks
