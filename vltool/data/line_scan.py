"""Finds where the lines of a file begin, at a good part of the speed at which it can be read."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 19
"""Read at once: small enough that a core's second-level cache still holds what was read when it is looked at."""

_WHITESPACE = np.zeros(256, dtype=bool)
_WHITESPACE[list(b" \t\n\r\v\f")] = True


class LineScan:
    """One pass over an open file. Iterate it to its end, then ask for `end`, `skips` and `read`.

    descriptor: read by absolute position, so that its own position does not matter. size: bytes to look at.
    Yields, block by block, the offsets (int64, in bytes) at which the lines begin that hold more than whitespace.
    Memory is bounded by the size of a block, however long a line is; `skips` alone grows with the file.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self.read = 0
        """Bytes read: fewer than `size` of a file that was cut meanwhile."""
        self.end = 0
        """One past the newline of the last line that is not blank; past the end of a file where that is missing."""
        self._records = 0
        self._blanks = 0
        self._skips = array("q")

    @property
    def skips(self) -> NDArray[np.int64]:
        """(S, 2) int64: positions of the records that follow blank lines, and the number of all blank lines before."""
        return np.array(self._skips, dtype=np.int64).reshape(-1, 2)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        buffer = bytearray(min(BLOCK_BYTES, max(self._size, 1)))
        view, codes = memoryview(buffer), np.frombuffer(buffer, dtype=np.uint8)
        start, open_is_blank = 0, True
        while self.read < self._size:
            count = os.preadv(self._descriptor, [view[: self._size - self.read]], self.read)
            if not count:
                break
            newlines = np.flatnonzero(codes[:count] == 10)
            if not len(newlines):
                open_is_blank = open_is_blank and buffer[:count].isspace()
                self.read += count
                continue
            starts = np.empty_like(newlines)
            starts[0] = 0
            np.add(newlines[:-1], 1, out=starts[1:])
            blank = _blank(buffer, codes, starts, newlines)
            blank[0] &= open_is_blank
            starts += self.read
            starts[0] = start
            yield self._kept(starts, newlines + self.read, blank)
            tail = int(newlines[-1]) + 1
            start, open_is_blank = self.read + tail, tail == count or buffer[tail:count].isspace()
            self.read += count
        if start < self.read and not open_is_blank:
            yield self._kept(np.array([start]), np.array([self.read]), np.array([False]))

    def _kept(
        self, starts: NDArray[np.int64], newlines: NDArray[np.int64], blank: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        if blank.any():
            kept = ~blank
            before = (self._blanks + np.cumsum(blank))[kept]
            positions = np.arange(self._records, self._records + len(before))
            self._note(positions, before)
            self._blanks += int(np.count_nonzero(blank))
            starts, newlines = starts[kept], newlines[kept]
        elif self._blanks:
            self._note(np.array([self._records]), np.array([self._blanks]))
        if len(starts):
            self._records += len(starts)
            self.end = int(newlines[-1]) + 1
        return starts

    def _note(self, positions: NDArray[np.int64], before: NDArray[np.int64]) -> None:
        """Add the records at which the number of blank lines before them has grown."""
        if not len(positions):
            return
        known = self._skips[-1] if self._skips else 0
        grown = np.diff(before, prepend=known) > 0
        self._skips.frombytes(np.stack((positions[grown], before[grown]), axis=1).astype(np.int64).tobytes())


def _blank(
    buffer: bytearray, codes: NDArray[np.uint8], starts: NDArray[np.int64], newlines: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which lines of a block hold nothing but whitespace; of a first one begun earlier, what the block holds of it."""
    empty: NDArray[np.bool_] = starts == newlines
    suspects: NDArray[np.bool_] = _WHITESPACE[codes[starts]] & ~empty
    for i in np.flatnonzero(suspects):
        first, last = int(starts[i]), int(newlines[i])
        # Most lines that begin with a space show more than spaces soon: what a blank line costs is not paid for them.
        suspects[i] = buffer[first : min(first + 64, last)].isspace() and buffer[first:last].isspace()
    suspects |= empty
    return suspects
