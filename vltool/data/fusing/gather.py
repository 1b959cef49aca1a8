"""Lines in the order of the mixture, straight from inputs that the page cache holds.

What a stretch of the output needs of an input is copied from window to window of it, in the order in which it lies
there. Nothing waits on disk on the way (as it does in `shuffle`), and no more of an input is mapped than a window.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vltool.data.fusing.inputs import Input, Table, changed
from vltool.data.fusing.lines import Rewriter
from vltool.data.fusing.looks import TAKEN_APART
from vltool.data.fusion import Mixture
from vltool.errors import Where

SHARE_OF_MEMORY = 0.4
"""Of what is available, the most that inputs may have to be read in any order; their output takes as much again."""
STRETCH_BYTES = 64 << 20
"""Of the output, put together at a time; every stretch goes through all inputs."""
WINDOW_BYTES = 32 << 20
"""Of an input, mapped at a time."""

_POPULATED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)


class Gathered:
    """The lines of the mixture by stretches of its order, each put together when it is asked for."""

    def __init__(
        self,
        table: Table,
        mixture: Mixture,
        codes_N: NDArray[np.uint32],
        rewriters: Sequence[Rewriter],
        bounds: NDArray[np.int64],
    ) -> None:
        """table: with what its lines look like. bounds: where stretches begin, and their end."""
        self.bounds = bounds
        self._table, self._rewriters = table, rewriters
        self._starts, self._codes_N = mixture.starts(), codes_N
        self._datasets = [_Dataset(table, number) for number in range(len(rewriters))]
        # Memory is given page by page, at a cost: what was had once is kept.
        self._out_B = np.empty(0, np.uint8)
        self.sizes = self._sizes()
        """Bytes of each stretch; None where a line has to be taken apart, and its size is not known beforehand."""

    def _sizes(self) -> NDArray[np.int64] | None:
        sizes = []
        for dataset, rewriter in zip(self._datasets, self._rewriters, strict=True):
            if dataset.kinds_N.size and not dataset.kinds_N.all():
                return None
            sizes.append(rewriter.sizes(dataset.sizes_N.astype(np.int64), dataset.kinds_N).astype(np.uint32))
        # A dataset's sample_limit leaves out its last records.
        ends = [*self._starts[1:].tolist(), self._starts[-1] + len(sizes[-1])]
        of_all = np.concatenate(
            [own[: end - start] for own, start, end in zip(sizes, self._starts.tolist(), ends, strict=True)]
        )
        return np.array(
            [
                int(of_all[self._codes_N[begin:end]].sum(dtype=np.int64))
                for begin, end in pairwise(self.bounds.tolist())
            ],
            np.int64,
        )

    def ordered(self, stretch: int) -> memoryview:
        """The lines of a stretch in order, until the next one is asked for.

        Raises BadContent for lines that cannot be rewritten.
        """
        begin, end = int(self.bounds[stretch]), int(self.bounds[stretch + 1])
        keys_M = self._codes_N[begin:end].astype(np.uint64) << np.uint64(32)
        keys_M |= np.arange(end - begin, dtype=np.uint64)
        keys_M.sort()
        records_M = (keys_M >> np.uint64(32)).astype(np.int64)
        places_M = (keys_M & np.uint64(0xFFFFFFFF)).astype(np.int64)
        cuts = [*np.searchsorted(records_M, self._starts).tolist(), len(records_M)]
        parts = [
            _Part(dataset, rewriter, records_M[low:high] - start, places_M[low:high] + begin)
            for dataset, rewriter, start, low, high in zip(
                self._datasets, self._rewriters, self._starts.tolist(), cuts[:-1], cuts[1:], strict=True
            )
        ]
        sizes_M = np.empty(end - begin, np.int64)
        for part, low, high in zip(parts, cuts[:-1], cuts[1:], strict=True):
            sizes_M[places_M[low:high]] = part.sizes()
        ends_M = np.cumsum(sizes_M)
        size = int(ends_M[-1]) if len(ends_M) else 0
        if len(self._out_B) < size:
            self._out_B = np.empty(size + size // 8, np.uint8)
        out_B = self._out_B[:size]
        to_M = (ends_M - sizes_M)[places_M]
        for part, low, high in zip(parts, cuts[:-1], cuts[1:], strict=True):
            part.put(out_B, to_M[low:high])
        return out_B.data


class _Dataset:
    """The records of one input, in its order."""

    def __init__(self, table: Table, number: int) -> None:
        assert table.lines is not None
        lines = table.lines[number]
        self.at_N, self.sizes_N, self.kinds_N = lines.at_N, lines.sizes_N, lines.kinds_N
        self.input = table.inputs[number]
        pieces = [i for i, (own, _) in enumerate(table.pieces) if own == number]
        self.first_record, self.first_line = table.first_record[pieces], table.first_line[pieces]
        self.begins = np.array([table.pieces[i][1].start for i in pieces], np.int64)

    def where(self, at: int) -> Where:
        """The place of the line that begins at a byte."""
        assert self.input is not None
        piece = int(np.searchsorted(self.begins, at, side="right")) - 1
        before = self.input.read(int(self.begins[piece]), at).count(b"\n")
        return Where(str(self.input.path), int(self.first_line[piece]) + before + 1)

    def windows(self, records_M: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Ranges of ascending records, one for each window of the input that they lie in, with where they begin."""
        if not len(records_M):
            return
        pieces_M = np.searchsorted(self.first_record, records_M, side="right") - 1
        at_M = self.begins[pieces_M] + self.at_N[records_M]
        ends_M = at_M + self.sizes_N[records_M]
        low = 0
        while low < len(at_M):
            high = max(int(np.searchsorted(ends_M, at_M[low] + WINDOW_BYTES, side="right")), low + 1)
            yield low, high, at_M[low:high]
            low = high

    @contextmanager
    def mapped(self, start: int, end: int) -> Iterator[NDArray[np.uint8]]:
        """Some bytes of the input, where they lie."""
        assert self.input is not None
        if os.fstat(self.input.descriptor).st_size < end:
            # Reading beyond the end of a mapped file kills the process.
            raise changed(self.input.path)
        before = start % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(
            self.input.descriptor, end - start + before, flags=_POPULATED, prot=mmap.PROT_READ, offset=start - before
        ) as pages:
            data_B = np.frombuffer(pages, np.uint8)
            try:
                yield data_B[before:]
            finally:
                del data_B


class _Part:
    """The records of one dataset in a stretch, ascending."""

    def __init__(
        self, dataset: _Dataset, rewriter: Rewriter, records_M: NDArray[np.int64], positions_M: NDArray[np.int64]
    ) -> None:
        """positions_M: theirs in the mixture."""
        self._dataset, self._rewriter, self._records_M = dataset, rewriter, records_M
        self._lens_M = dataset.sizes_N[records_M].astype(np.int64)
        self._kinds_M = dataset.kinds_N[records_M]
        self._apart = dict(self._taken_apart(positions_M))

    def _taken_apart(self, positions_M: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        dataset = self._dataset
        which = np.flatnonzero(self._kinds_M == TAKEN_APART)
        for low, high, at_K in dataset.windows(self._records_M[which]):
            for i, at in zip(which[low:high].tolist(), at_K.tolist(), strict=True):
                assert dataset.input is not None
                line = dataset.input.read(at, at + int(self._lens_M[i])).removesuffix(b"\n")
                yield i, self._rewriter.rewritten(line, int(positions_M[i]), partial(dataset.where, at))

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each line."""
        sizes_M = self._rewriter.sizes(self._lens_M, self._kinds_M)
        for i, line in self._apart.items():
            sizes_M[i] = len(line)
        return sizes_M

    def put(self, out_B: NDArray[np.uint8], to_M: NDArray[np.int64]) -> None:
        """Write each line to its place."""
        for low, high, at_K in self._dataset.windows(self._records_M):
            start, end = int(at_K[0]), int(at_K[-1] + self._lens_M[high - 1])
            with self._dataset.mapped(start, end) as data_B:
                self._rewriter.put(
                    data_B, at_K - start, self._lens_M[low:high], self._kinds_M[low:high], out_B, to_M[low:high]
                )
                del data_B
        for i, line in self._apart.items():
            out_B[to_M[i] : to_M[i] + len(line)] = np.frombuffer(line, np.uint8)


def fit_in_memory(inputs: Sequence[Input | None]) -> bool:
    """Whether the page cache can hold inputs and output."""
    return sum(one.bytes for one in inputs if one) <= SHARE_OF_MEMORY * _available()


def _available() -> int:
    """Bytes of memory that are free or hold what can be read again; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(next(found, "0")) * 1024
