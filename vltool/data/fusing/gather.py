"""Lines in the order of the mixture, straight from inputs that memory can hold.

Each record is read where it lies, which costs a system call and no disk, as long as the page cache holds the inputs:
a fraction of what it takes to sort them through buckets (see `shuffle`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vltool.data.fusing.inputs import Input, changed
from vltool.data.fusing.lines import Rewriter
from vltool.data.fusion import Mixture
from vltool.data.line_scan import LineScan
from vltool.errors import Where

SHARE_OF_MEMORY = 0.4
"""Of what is available, the most that inputs may have to be read in any order; their output takes as much again."""


class Gathered:
    """The lines of the mixture by stretches of its order, each put together when it is asked for."""

    sizes: NDArray[np.int64] | None = None
    """Bytes of each stretch: not known beforehand."""

    def __init__(
        self,
        inputs: Sequence[Input | None],
        offsets: Sequence[NDArray[np.int64]],
        mixture: Mixture,
        codes_N: NDArray[np.uint32],
        rewriters: Sequence[Rewriter],
        bounds: NDArray[np.int64],
    ) -> None:
        """offsets: of each input's records, and the end of the last. bounds: where stretches begin, and their end."""
        self.bounds = bounds
        self._inputs, self._offsets, self._rewriters = inputs, offsets, rewriters
        self._starts, self._codes_N = mixture.starts(), codes_N

    def ordered(self, stretch: int) -> bytes:
        """The lines of a stretch in order. Raises BadContent for lines that cannot be rewritten."""
        begin, end = int(self.bounds[stretch]), int(self.bounds[stretch + 1])
        codes_M = self._codes_N[begin:end].astype(np.int64)
        numbers_M = np.searchsorted(self._starts, codes_M, side="right") - 1
        lines = [b""] * (end - begin)
        for number in np.unique(numbers_M).tolist():
            places_M = np.flatnonzero(numbers_M == number)
            records_M = codes_M[places_M] - self._starts[number]
            places = places_M.tolist()
            for place, line in zip(places, self._rewritten(number, records_M, places_M + begin), strict=True):
                lines[place] = line
        return b"".join(lines)

    def _rewritten(self, number: int, records_M: NDArray[np.int64], positions_M: NDArray[np.int64]) -> list[bytes]:
        """Some records of a dataset as lines of the mixture."""
        one, offsets, rewriter = self._inputs[number], self._offsets[number], self._rewriters[number]
        assert one is not None
        starts, lengths = offsets[records_M], offsets[records_M + 1] - offsets[records_M]
        descriptor, read = one.descriptor, os.pread
        raw = [read(descriptor, n, at) for n, at in zip(lengths.tolist(), starts.tolist(), strict=True)]
        if sum(map(len, raw)) != int(lengths.sum()):
            raise changed(one.path)
        # Only the last record of a file may lack its newline, and it need not be the last one here.
        data = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in raw)
        done = None
        if alike := rewriter.middles(data, len(raw)):
            done = rewriter.spliced(*alike)
        if done is None:

            def where(i: int) -> Where:
                return Where(str(one.path), int(records_M[i]) + 1)

            done = rewriter.lines([line.removesuffix(b"\n") for line in raw], positions_M.tolist(), where)
        head, tail = done.head, done.tail + b"\n"
        return [b"".join((head, middle, tail)) for middle in done.middles]


def offsets_of(inputs: Sequence[Input | None]) -> list[NDArray[np.int64]] | None:
    """Where the records of each input begin, and where the last ends; None where that is not all there is to know.

    Files with blank lines have lines that are no records, and inputs that memory cannot hold are not for reading
    here and there.
    """
    if sum(one.bytes for one in inputs if one) > SHARE_OF_MEMORY * _available():
        return None
    found: list[NDArray[np.int64]] = []
    for one in inputs:
        if one is None:
            found.append(np.zeros(1, np.int64))
            continue
        scan = LineScan(one.descriptor, one.bytes)
        blocks = list(scan)
        if len(scan.skips):
            return None
        found.append(np.concatenate([*blocks, [min(scan.end, one.bytes)]]).astype(np.int64))
    return found


def _available() -> int:
    """Bytes of memory that are free or hold what can be read again; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(next(found, "0")) * 1024
