"""The JSONL files of a fusion, plain or compressed, cut into pieces of whole lines."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vltool.data.fusing.looks import Look, places
from vltool.data.fusing.workers import spread
from vltool.data.fusion import Mixture
from vltool.errors import BadContent, InvalidInput, MissingOnHost, Problem, Where

PIECE_BYTES = 4 << 20
"""What a process holds of an input at a time; a longer line is held whole."""
_STEP = 1 << 20
COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some whole lines of an input."""

    start: int
    end: int
    """Bytes, of the decompressed file."""
    lines: int
    records: int
    """Lines that are not blank."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Where some records lie, and what becomes of each."""

    at_N: NDArray[np.uint32]
    """Bytes from the beginning of the record's piece."""
    sizes_N: NDArray[np.uint32]
    """Bytes of each, newline included."""
    kinds_N: NDArray[np.uint8]
    """As `Look.kinds` says."""


class Input:
    """An open file; a compressed one is decompressed once, into a file without a name beside the output.

    files: closes it.
    """

    def __init__(self, path: Path, beside: Path, files: ExitStack) -> None:
        self.path = path
        file = files.enter_context(nameless(beside) if path.suffix in COMPRESSED else path.open("rb"))
        if path.suffix in COMPRESSED:
            file.writelines(decompressed(path))
            file.flush()
        self.descriptor = file.fileno()
        self.bytes = os.fstat(self.descriptor).st_size
        self.stat = path.stat()

    def pieces(self) -> int:
        """How many there are; some may be empty."""
        return -(-self.bytes // PIECE_BYTES)

    def piece(self, number: int, look: Look | None) -> tuple[Piece, Lines | None]:
        """The lines that begin in one stretch of PIECE_BYTES; with a look at them, what they look like."""
        start = self._line_from(number * PIECE_BYTES)
        end = self._line_from(min((number + 1) * PIECE_BYTES, self.bytes))
        if start == end:
            return Piece(start, end, 0, 0), None
        data, begins_N, ends_N = self.text(start, end)
        lines = len(begins_N)
        records = np.flatnonzero(filled(data, begins_N, ends_N))
        if len(records) < lines:
            begins_N, ends_N = begins_N[records], ends_N[records]
        found = None
        if look is not None:
            sizes_N = np.minimum(ends_N + 1, len(data)) - begins_N
            kinds_N = look.kinds(data, begins_N, ends_N)
            found = Lines(begins_N.astype(np.uint32), sizes_N.astype(np.uint32), kinds_N)
        return Piece(start, end, lines, len(records)), found

    def text(self, start: int, end: int) -> tuple[bytes, NDArray[np.int64], NDArray[np.int64]]:
        """Some bytes, and where their lines begin and end: at their newlines, or after the last byte."""
        data = self.read(start, end)
        ends_N = places(np.frombuffer(data, np.uint8), ord("\n"))
        if not data.endswith(b"\n"):
            ends_N = np.append(ends_N, len(data))
        return data, np.concatenate([[0], ends_N[:-1] + 1]), ends_N

    def lines(self, start: int, end: int) -> list[bytes]:
        """The lines of a piece, blank ones too, without their newlines."""
        lines = self.read(start, end).split(b"\n")
        if not lines[-1]:
            lines.pop()
        return lines

    def read(self, start: int, end: int) -> bytes:
        """Some bytes; raises BadContent if the file was cut since it was opened."""
        parts = []
        while start < end:  # one pread gives at most 2 GiB
            part = os.pread(self.descriptor, end - start, start)
            if not part:
                raise changed(self.path)
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _line_from(self, offset: int) -> int:
        """Where the first line begins at or after an offset."""
        if offset == 0:
            return 0
        at = offset - 1
        while at < self.bytes:
            part = os.pread(self.descriptor, 1 << 16, at)
            if not part:
                raise changed(self.path)
            newline = part.find(b"\n")
            if newline >= 0:
                return at + newline + 1
            at += len(part)
        return self.bytes

    def unchanged(self) -> None:
        """Raises BadContent if the file is no longer the one that was opened."""
        now = self.path.stat()
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (self.stat.st_size, self.stat.st_mtime_ns, self.stat.st_ino):
            raise changed(self.path)


def filled(data: bytes, begins_N: NDArray[np.int64], ends_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which lines of a text are not blank."""
    # A blank line begins with whitespace, which hardly any other does.
    filled_N: NDArray[np.bool_] = np.frombuffer(data, np.uint8)[begins_N] > ord(" ")
    for i in np.flatnonzero(~filled_N).tolist():
        line = data[begins_N[i] : ends_N[i]]
        filled_N[i] = bool(line) and not line.isspace()
    return filled_N


def changed(path: Path) -> BadContent:
    """The error of a file that someone writes to while it is read."""
    do = "leave data in place until the command ends, or write it beside and rename it"
    return BadContent(Problem("the file changed while it was in use", do, Where(str(path))))


@dataclass(frozen=True, slots=True)
class Table:
    """The pieces of all inputs, in order, and the records before each."""

    inputs: tuple[Input | None, ...]
    """Of each dataset; None where it has no file."""
    pieces: tuple[tuple[int, Piece], ...]
    """Dataset's number and piece."""
    first_record: NDArray[np.int64]
    """Of each piece, counted within its dataset."""
    first_line: NDArray[np.int64]
    lines: tuple[Lines, ...] | None = None
    """Of each dataset; None where nobody looked."""

    def drawn(self, i: int, entries_N: NDArray[np.uint64], mixture: Mixture) -> tuple[int, NDArray[np.uint64]]:
        """The number of a piece's first record, and the entries of those of its records that are drawn.

        entries_N: `record << 32 | position` of all draws, ascending; records are numbered as `Mixture.starts` does.
        """
        number, piece = self.pieces[i]
        start = int(mixture.starts()[number])
        first = start + int(self.first_record[i])
        # Beyond a dataset's sample_limit the numbers are those of the next dataset.
        end = max(min(first + piece.records, start + mixture.counts[number]), first)
        low, high = np.searchsorted(entries_N, np.array([first << 32, end << 32], np.uint64)).tolist()
        return first, entries_N[low:high]

    def counts(self) -> list[int]:
        """Records of each dataset."""
        counts = [0] * len(self.inputs)
        for number, piece in self.pieces:
            counts[number] += piece.records
        return counts


def survey(
    inputs: Sequence[Input | None], workers: int, told: Callable[[int], None], looks: Sequence[Look] | None = None
) -> Table:
    """Count lines and records of all inputs, and look at them, for 9 bytes of memory a record.

    told: bytes that were looked at.
    """
    todo = [(number, i) for number, one in enumerate(inputs) if one for i in range(one.pieces())]

    def work(worker: int) -> Iterator[tuple[int, Piece, Lines | None]]:
        for at in range(worker, len(todo), workers):
            number, i = todo[at]
            one = inputs[number]
            assert one is not None
            yield at, *one.piece(i, looks[number] if looks else None)

    found: dict[int, tuple[Piece, Lines | None]] = {}
    for at, piece, seen in spread(work, workers):
        found[at] = piece, seen
        told(piece.end - piece.start)
    pieces = tuple((todo[at][0], found[at][0]) for at in range(len(todo)) if found[at][0].lines)
    records, lines = np.zeros(len(pieces), np.int64), np.zeros(len(pieces), np.int64)
    for i in range(1, len(pieces)):
        if pieces[i][0] == pieces[i - 1][0]:
            records[i] = records[i - 1] + pieces[i - 1][1].records
            lines[i] = lines[i - 1] + pieces[i - 1][1].lines
    joined = None
    if looks:
        parts: list[list[Lines]] = [[] for _ in inputs]
        for at, (number, _) in enumerate(todo):
            if (part := found.pop(at)[1]) is not None:
                parts[number].append(part)
        joined = tuple(_joined(own) for own in parts)
    return Table(tuple(inputs), pieces, records, lines, joined)


def _joined(parts: list[Lines]) -> Lines:
    columns = (("at_N", np.uint32), ("sizes_N", np.uint32), ("kinds_N", np.uint8))
    return Lines(
        *(np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)]) for name, dtype in columns)
    )


def nameless(folder: Path) -> IO[bytes]:
    """A file of that folder's disk that has no name, and is gone when its last process is."""
    return tempfile.TemporaryFile(dir=folder, prefix=".vltool-fuse-")


def decompressed(path: Path) -> Iterator[bytes]:
    """A compressed file's content, in pieces; raises BadContent where it is damaged or cut off."""
    if path.suffix == ".gz":
        broken: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error)
        content = _gzipped(path)
    else:
        broken = (zstandard().ZstdError, EOFError)
        content = _zstandard(path)
    try:
        yield from content
    except broken as error:
        do = "get the file anew, or compress it again"
        raise BadContent(Problem(f"damaged: {error}", do, Where(str(path)))) from error


def _gzipped(path: Path) -> Iterator[bytes]:
    with gzip.GzipFile(path, "rb") as stream:
        while part := stream.read(_STEP):
            yield part


def _zstandard(path: Path) -> Iterator[bytes]:
    """All frames of a file. Not with zstandard's stream_reader, which ends in silence where a file is cut off."""
    make = zstandard().ZstdDecompressor().decompressobj
    with path.open("rb") as file:
        frame, begun = make(), False
        while data := file.read(_STEP):
            while data:
                yield frame.decompress(data)
                begun = not frame.eof
                data = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = make()
        if begun:
            raise EOFError("the file ends inside a frame")


def count_compressed(path: Path) -> int:
    """Records of a compressed file."""
    count, rest = 0, b""
    for part in decompressed(path):
        *lines, rest = (rest + part).split(b"\n")
        count += sum(not (not line or line.isspace()) for line in lines)
    return count + bool(rest.strip())


def zstandard() -> Any:
    """The module; raises MissingOnHost without it."""
    try:
        import zstandard as module
    except ImportError as error:
        raise MissingOnHost("files that end in .zst need zstandard", "pip install vltool[zstd]") from error
    return module


def check_files(paths: Sequence[tuple[Path, Where]]) -> None:
    """Raises InvalidInput with every path at which no file can be read."""
    problems = []
    for path, where in paths:
        if not path.exists():
            problems.append(Problem(f"no such file: {path}", "name a JSONL file", where))
        elif not path.is_file():
            problems.append(Problem(f"{path} is no file", "name a JSONL file", where))
        elif not os.access(path, os.R_OK):
            problems.append(Problem(f"{path} cannot be read", "give yourself the right to", where))
    if problems:
        raise InvalidInput(problems)
