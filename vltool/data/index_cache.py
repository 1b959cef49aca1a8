"""The index of a large JSONL on disk, beside it or in the cache folder, mapped into memory by whoever reads it."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vltool.data.cache_folder import cache_places, write_cache
from vltool.data.line_scan import LineScan

SMALLEST_CACHED = 4 << 20
"""Bytes of a JSONL; a smaller one is read again in less time than it takes to look for its cache."""
EDGE_BYTES = 64 << 10

_MAGIC = b"vlindex1"
_HEADER = struct.Struct("<8sqq16sqqqII")
"""Magic, the Stamp's three fields, records, skips, bytes read, CRC-32 of the body and of the header before it."""


class Stamp(NamedTuple):
    """What tells the file that was indexed from another of its name."""

    size: int
    mtime_ns: int
    edges: bytes
    """BLAKE2b, 16 bytes, of the first and the last EDGE_BYTES."""


class Offsets(NamedTuple):
    """What an index knows: int64, 8 bytes a record."""

    starts: NDArray[np.int64]
    """(N + 1,) bytes: where each record begins, then one past the newline of the last."""
    skips: NDArray[np.int64]
    """(S, 2): as `LineScan.skips` has them."""
    read: int
    """Bytes of the file that were there to be read."""


def stamp(descriptor: int, *, size: int | None = None) -> Stamp:
    """The stamp of an open file, or of its first `size` bytes."""
    status = os.fstat(descriptor)
    size = status.st_size if size is None else size
    first = os.pread(descriptor, min(EDGE_BYTES, size), 0)
    last_at = max(size - EDGE_BYTES, 0)
    last = os.pread(descriptor, size - last_at, last_at)
    return Stamp(size, status.st_mtime_ns, hashlib.blake2b(first + last, digest_size=16).digest())


def offsets_of(path: Path, descriptor: int, of: Stamp) -> tuple[Offsets, Path | None]:
    """The offsets of an open JSONL, from a cache if one fits, else made, and cached where the file is large.

    With them comes the file that they are mapped from; None where they are in memory.
    """
    if of.size < SMALLEST_CACHED:
        return _in_memory(descriptor, of), None
    places = cache_places(path, "index")
    for place in places:
        if (cached := mapped(place, of)) is not None:
            return cached, place
    for place in places:
        written = write_cache(place, lambda file: _stream(file, LineScan(descriptor, of.size), of))
        if written and (cached := mapped(place, of)) is not None:
            return cached, place
    return _in_memory(descriptor, of), None


def mapped(place: Path, of: Stamp) -> Offsets | None:
    """The offsets in a cache file, shared in memory with all who map it; None if it is absent, stale or damaged."""
    try:
        with place.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _HEADER.size:
                return None
            body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    *fields, check = _HEADER.unpack_from(body)
    magic, bytes_, mtime_ns, edges, records, skips, read, body_check = fields
    if check != zlib.crc32(body[: _HEADER.size - 4]) or magic != _MAGIC or Stamp(bytes_, mtime_ns, edges) != of:
        return None
    if size != _HEADER.size + 8 * (records + 1 + 2 * skips):
        return None
    if body_check != zlib.crc32(memoryview(body)[_HEADER.size :]):
        return None
    numbers = np.frombuffer(body, dtype="<i8", offset=_HEADER.size)
    return Offsets(numbers[: records + 1], numbers[records + 1 :].reshape(-1, 2), read)


def _in_memory(descriptor: int, of: Stamp) -> Offsets:
    scan = LineScan(descriptor, of.size)
    starts = bytearray()
    for block in scan:
        starts += block.tobytes()
    starts += struct.pack("=q", scan.end)
    return Offsets(np.frombuffer(starts, dtype=np.int64), scan.skips, scan.read)


def _stream(file: IO[bytes], scan: LineScan, of: Stamp) -> None:
    """Write offsets as they are found, so that memory does not grow with the number of records."""
    file.write(bytes(_HEADER.size))
    records, check = 0, 0
    for block in scan:
        records += len(block)
        check = zlib.crc32(data := block.astype("<i8").tobytes(), check)
        file.write(data)
    skips = scan.skips
    check = zlib.crc32(data := struct.pack("<q", scan.end) + skips.astype("<i8").tobytes(), check)
    file.write(data)
    header = _HEADER.pack(_MAGIC, *of, records, len(skips), scan.read, check, 0)
    file.seek(0)
    file.write(header[:-4] + struct.pack("<I", zlib.crc32(header[:-4])))
