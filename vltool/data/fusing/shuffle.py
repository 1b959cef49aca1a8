"""Lines go from the order of the inputs to that of the mixture, through buckets on disk.

Reading records one by one in random order costs a cache miss, a fault or a system call each. So inputs are read
once, front to back, and their lines are sorted into buckets, stretches of the output that fit into memory; then
each bucket is put in order. Everything on disk is read and written in long runs, and memory does not grow with
the text: only the plan, 12 bytes a record.
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vltool.data.fusing.inputs import Table, changed, filled, nameless, zstandard
from vltool.data.fusing.lines import Rewriter
from vltool.data.fusing.looks import TAKEN_APART
from vltool.data.fusing.workers import spread
from vltool.data.fusion import Mixture
from vltool.errors import Where

BUCKET_BYTES = 4 << 20
"""Lines that are put in order at a time: what the processor's cache holds."""
MOST_BUCKETS = 1024
WAITING_BYTES = 32 << 20
"""Lines that a process gathers before it writes, so that each bucket gets a long run."""
_WRITTEN_AT_ONCE = 1 << 18
"""A larger write makes the page cache look for larger pages, which costs several times as much where they are rare."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of the output: the records from one position of the mixture to another."""

    path: Path
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Written:
    """A shard that is there."""

    number: int
    bytes: int
    waited_s: float = 0.0
    """For the disk to have all of it, where that was waited for apart from writing."""


@dataclass(slots=True)
class Buckets:
    """The lines of the mixture on disk, in stretches of its order; inside each they are in the inputs' order."""

    bounds: NDArray[np.int64]
    """Position at which each begins, and the end of the last."""
    codes_N: NDArray[np.uint32]
    """The record at each position."""
    files: list[IO[bytes]]
    """Of each process, without a name: gone with the processes, however these end."""
    segments: dict[int, tuple[int, NDArray[np.int64]]] = field(default_factory=dict)
    """Of some pieces of input, by the last: which file, and where each bucket's lines begin there, and their end."""
    sizes: NDArray[np.int64] = field(init=False)
    """Bytes of each bucket's lines."""

    def __post_init__(self) -> None:
        self.sizes = np.zeros(len(self.bounds) - 1, np.int64)

    def ordered(self, bucket: int) -> bytes:
        """The lines of a bucket in the mixture's order."""
        begin, end = int(self.bounds[bucket]), int(self.bounds[bucket + 1])
        if begin == end:
            return b""
        lines = self.read(bucket).split(b"\n")
        assert len(lines) == end - begin + 1, (bucket, len(lines), end - begin)
        # They came by record, and by position where a record is drawn more than once.
        came_M = np.argsort(self.codes_N[begin:end], kind="stable")
        place_M = np.empty_like(came_M)
        place_M[came_M] = np.arange(end - begin)
        ordered = [lines[i] for i in place_M.tolist()]
        ordered.append(b"")
        return b"\n".join(ordered)

    def read(self, bucket: int) -> bytes:
        """Its lines, in the inputs' order."""
        parts: list[bytes] = []
        for piece in sorted(self.segments):
            file, at = self.segments[piece]
            start, end = int(at[bucket]), int(at[bucket + 1])
            if start < end:
                parts.append(os.pread(self.files[file].fileno(), end - start, start))
        return b"".join(parts)


def bounds(shards: Sequence[Shard], total_bytes: int, each_bytes: int) -> NDArray[np.int64]:
    """Where stretches of the output begin, and the end of the last: about `each_bytes` each, none across shards."""
    records = sum(shard.end - shard.begin for shard in shards)
    wanted = min(max(-(-total_bytes // each_bytes), 1), MOST_BUCKETS)
    each = max(-(-records // wanted), 1)
    starts = [start for shard in shards for start in _even(shard.begin, shard.end, each)]
    return np.array([*starts, shards[-1].end if shards else 0], np.int64)


def _even(begin: int, end: int, each: int) -> list[int]:
    count = max(-(-(end - begin) // each), 1)
    return [begin + (end - begin) * i // count for i in range(count)]


def sort_in(
    table: Table,
    entries_N: NDArray[np.uint64],
    buckets: Buckets,
    rewriters: Sequence[Rewriter],
    mixture: Mixture,
    told: Callable[[int], None],
) -> None:
    """Read all inputs once, and put every line that is drawn, as it has to be in the output, into its bucket.

    entries_N: as for `Table.drawn`. told: lines that were put.
    Raises BadContent for lines that cannot be rewritten, OSError without space.
    """
    workers = len(buckets.files)
    # In runs of about equal bytes, so that a process writes few and long segments.
    total = sum(piece.end - piece.start for _, piece in table.pieces)
    before = np.cumsum([0, *(piece.end - piece.start for _, piece in table.pieces)])[:-1]
    owners = np.minimum(before * workers // max(total, 1), workers - 1)

    def work(worker: int) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.int64], int]]:
        out = buckets.files[worker].fileno()
        waiting: list[list[bytes]] = [[] for _ in buckets.sizes]
        written = size = count = 0
        own = np.flatnonzero(owners == worker).tolist()
        for i in own:
            first, entries_M = table.drawn(i, entries_N, mixture)
            if len(entries_M):
                parts = _sorted_piece(table, i, entries_M, first, buckets.bounds, rewriters[table.pieces[i][0]])
                for part, before in zip(parts, waiting, strict=True):
                    if part:
                        before.append(part)
                        size += len(part)
                count += len(entries_M)
            if size > WAITING_BYTES or (i == own[-1] and size):
                sizes = np.array([sum(map(len, parts)) for parts in waiting])
                _write(out, b"".join(part for parts in waiting for part in parts), written)
                at = np.cumsum([written, *sizes.tolist()])
                yield i, worker, at, sizes, count
                waiting = [[] for _ in buckets.sizes]
                written, size, count = int(at[-1]), 0, 0

    for last, worker, at, sizes, count in spread(work, workers):
        buckets.segments[last] = worker, at
        buckets.sizes += sizes
        told(count)


def _sorted_piece(
    table: Table,
    i: int,
    entries_M: NDArray[np.uint64],
    first: int,
    bounds: NDArray[np.int64],
    rewriter: Rewriter,
) -> list[bytes]:
    """The drawn lines of a piece for each bucket."""
    number, piece = table.pieces[i]
    one = table.inputs[number]
    assert one is not None
    data, begins_N, ends_N = one.text(piece.start, piece.end)
    numbers_N = np.flatnonzero(filled(data, begins_N, ends_N))
    if len(numbers_N) != piece.records:
        raise changed(one.path)
    records_M = (entries_M >> np.uint64(32)).astype(np.int64) - first
    positions_M = (entries_M & np.uint64(0xFFFFFFFF)).astype(np.int64)
    which_M = np.searchsorted(bounds, positions_M, side="right") - 1
    order_M = np.argsort(which_M, kind="stable")
    lines_M = numbers_N[records_M[order_M]]
    at_M, lens_M = begins_N[lines_M], np.minimum(ends_N[lines_M] + 1, len(data)) - begins_N[lines_M]
    kinds_M = rewriter.look.kinds(data, begins_N, ends_N)[lines_M]
    sizes_M = rewriter.sizes(lens_M, kinds_M)
    apart: dict[int, bytes] = {}
    for k in np.flatnonzero(kinds_M == TAKEN_APART).tolist():
        line = data[at_M[k] : at_M[k] + lens_M[k]].removesuffix(b"\n")
        where = partial(Where, str(one.path), int(table.first_line[i] + lines_M[k]) + 1)
        apart[k] = rewriter.rewritten(line, int(positions_M[order_M[k]]), where)
        sizes_M[k] = len(apart[k])
    ends_M = np.cumsum(sizes_M)
    out_B = np.empty(int(ends_M[-1]), np.uint8)
    rewriter.put(np.frombuffer(data, np.uint8), at_M, lens_M, kinds_M, out_B, ends_M - sizes_M)
    for k, line in apart.items():
        out_B[ends_M[k] - len(line) : ends_M[k]] = np.frombuffer(line, np.uint8)
    cuts = np.searchsorted(which_M[order_M], np.arange(len(bounds)))
    at = np.concatenate([[0], ends_M])[cuts].tolist()
    return [out_B[low:high].tobytes() for low, high in pairwise(at)]


class Source(Protocol):
    """The mixture's lines, by stretches of its order."""

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Position at which each begins, and the end of the last."""

    @property
    def sizes(self) -> NDArray[np.int64] | None:
        """Bytes of each; None where they are not known beforehand."""

    def ordered(self, stretch: int, /) -> bytes | memoryview:
        """The lines of one, in order."""


def write_out(
    source: Source, shards: Sequence[Shard], skip: Sequence[int], told: Callable[[int], None], *, workers: int
) -> Iterator[Written]:
    """Write the shards, beside their paths, but those whose numbers are in `skip`.

    Yields a shard once it is complete and renamed. told: lines written.
    """
    first = np.searchsorted(source.bounds[:-1], [shard.begin for shard in shards]).tolist()
    last = [*first[1:], len(source.bounds) - 1]
    if len(shards) == 1 and not skip and shards[0].path.suffix not in OPENERS:
        one = _one_in_parts if source.sizes is None else _one_plain
        yield one(source, shards[0], told, workers)
        return
    todo = [number for number in range(len(shards)) if number not in set(skip)]

    def work(worker: int) -> Iterator[Written | int]:
        for number in todo[worker::workers]:
            with written_beside(shards[number].path) as beside:
                with opened(beside, shards[number].path.suffix) as out:
                    for bucket in range(first[number], last[number]):
                        out.write(source.ordered(bucket))
                        yield int(source.bounds[bucket + 1] - source.bounds[bucket])
                size = beside.stat().st_size
            yield Written(number, size)

    for item in spread(work, min(workers, max(len(todo), 1))):
        if isinstance(item, Written):
            yield item
        else:
            told(item)


def _one_plain(source: Source, shard: Shard, told: Callable[[int], None], workers: int) -> Written:
    """One file, written by all processes at once: where each bucket goes is known beforehand."""
    assert source.sizes is not None
    offsets = [0, *source.sizes.cumsum().tolist()]
    with written_beside(shard.path) as beside, beside.open("wb") as file:

        def work(worker: int) -> Iterator[int]:
            for bucket in range(worker, len(offsets) - 1, workers):
                _write(file.fileno(), source.ordered(bucket), offsets[bucket])
                yield int(source.bounds[bucket + 1] - source.bounds[bucket])

        for count in spread(work, workers):
            told(count)
        began = time.perf_counter()
        os.fsync(file.fileno())
        waited_s = time.perf_counter() - began
    return Written(0, offsets[-1], waited_s)


def _one_in_parts(source: Source, shard: Shard, told: Callable[[int], None], workers: int) -> Written:
    """One file, to whose first part, which one process writes, the parts of the others are added."""
    stretches = len(source.bounds) - 1
    cuts = [stretches * worker // workers for worker in range(workers + 1)]
    with written_beside(shard.path) as beside, ExitStack() as files:
        parts: list[IO[bytes]] = [files.enter_context(beside.open("wb+"))]
        parts += [files.enter_context(nameless(beside.parent)) for _ in range(1, workers)]

        def work(worker: int) -> Iterator[int]:
            size = 0
            for stretch in range(cuts[worker], cuts[worker + 1]):
                data = source.ordered(stretch)
                _write(parts[worker].fileno(), data, size)
                size += len(data)
                yield int(source.bounds[stretch + 1] - source.bounds[stretch])

        for count in spread(work, workers):
            told(count)
        whole = parts[0].fileno()
        size = os.fstat(whole).st_size
        for part in parts[1:]:
            rest, at = os.fstat(part.fileno()).st_size, 0
            while at < rest:
                at += os.copy_file_range(part.fileno(), whole, rest - at, at, size + at)
            size += rest
        began = time.perf_counter()
        os.fsync(whole)
        waited_s = time.perf_counter() - began
    return Written(0, size, waited_s)


def _write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view[:_WRITTEN_AT_ONCE], offset)
        view, offset = view[count:], offset + count


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path`, all bytes on the disk, unless an error ends the block."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def opened(path: Path, suffix: str) -> Iterator[IO[bytes] | Any]:
    """A file to write to, compressed if the suffix is that of a compressed file."""
    with path.open("wb") as file:
        if suffix not in OPENERS:
            yield file
            return
        with OPENERS[suffix](file) as stream:
            yield stream


OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    # Without a name and a time in the header equal content makes equal files.
    ".gz": lambda file: gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0),
    ".zst": lambda file: zstandard().ZstdCompressor(level=3).stream_writer(file, closefd=False),
}
