"""Headers of the images of a JSONL, kept from one look at them to the next, beside it or in the cache folder."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vltool.data.cache_folder import cache_places, write_cache
from vltool.data.headers import Header

KIND = "headers"
SMALLEST_KEPT = 1000
"""Headers; fewer are read again in less time than it takes to look for them."""
MOST_KEPT = 1 << 23
"""24 bytes each: 200 MB."""

_MAGIC = b"vlheads1"
_START = struct.Struct("<8sQII")
"""Magic, entries, CRC-32 of the entries and of the start before it."""
_STAMP = struct.Struct("<qqq")
_SIDE = 28
"""Bits of a side in pixels."""


def key_of(path: str, status: os.stat_result) -> bytes:
    """16 bytes that stand for a file as it is: its path, its size in bytes, when it was written and when changed.

    The last tells of files that were replaced by others as old, as tools do that copy times as well.
    """
    stamp = _STAMP.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.blake2b(os.fsencode(path) + stamp, digest_size=16).digest()


class HeaderCache:
    """Headers by `key_of` their files.

    A key never comes to stand for another file, so that nothing in here goes out of date; what is no longer asked
    for is dropped once it is the larger part. A cache that is absent, damaged or of another version is empty.
    """

    def __init__(self, jsonl: Path) -> None:
        self._places = cache_places(jsonl, KIND)
        self._known_K3 = next((found for place in self._places if (found := _read(place)) is not None), _none())
        self._used_K = np.zeros(len(self._known_K3), dtype=bool)
        self._fresh: list[tuple[bytes, Header]] = []

    def __len__(self) -> int:
        """Headers that were found when it was opened."""
        return len(self._known_K3)

    def find(self, keys: Sequence[bytes]) -> list[Header | None]:
        """The header of each key; None for one that is not known."""
        if not len(self) or not keys:
            return [None] * len(keys)
        keys_N2 = _as_numbers(keys)
        at_N = np.minimum(self._known_K3[:, 0].searchsorted(keys_N2[:, 0]), len(self) - 1)
        # Of two keys with the same first half only one is found, and the other read again: one in 2⁶⁴ pairs.
        hit_N = (self._known_K3[at_N, :2] == keys_N2).all(axis=1)
        self._used_K[at_N[hit_N]] = True
        values = self._known_K3[at_N, 2].tolist()
        return [_unpacked(value) if hit else None for value, hit in zip(values, hit_N.tolist(), strict=True)]

    def add(self, key: bytes, header: Header) -> None:
        """Remember a header that was not known."""
        if max(header[:2]) < 1 << _SIDE:
            self._fresh.append((key, header))

    def save(self) -> None:
        """Write what is new, if it is worth it, where it can be written."""
        if not self._fresh or len(self._fresh) + int(self._used_K.sum()) < SMALLEST_KEPT:
            return
        fresh_F3 = np.empty((len(self._fresh), 3), dtype="<u8")
        fresh_F3[:, :2] = _as_numbers([key for key, _ in self._fresh])
        fresh_F3[:, 2] = [_packed(header) for _, header in self._fresh]
        used_K3, unused_K3 = self._known_K3[self._used_K], self._known_K3[~self._used_K]
        parts = [fresh_F3, used_K3]
        if len(unused_K3) <= len(fresh_F3) + len(used_K3):
            parts.append(unused_K3)
        kept_K3 = np.concatenate(parts)[:MOST_KEPT]
        body = kept_K3[np.unique(kept_K3[:, 0], return_index=True)[1]].astype("<u8").tobytes()

        def write(file: IO[bytes]) -> None:
            start = _START.pack(_MAGIC, len(body) // 24, zlib.crc32(body), 0)[:-4]
            file.write(start + struct.pack("<I", zlib.crc32(start)) + body)

        any(write_cache(place, write) for place in self._places)


def _none() -> NDArray[np.uint64]:
    return np.empty((0, 3), dtype="<u8")


def _read(place: Path) -> NDArray[np.uint64] | None:
    """(K, 3) of a cache file: both halves of a key, ascending by the first, and a packed header; None if damaged."""
    try:
        data = place.read_bytes()
    except OSError:
        return None
    if len(data) < _START.size:
        return None
    magic, entries, body_check, check = _START.unpack_from(data)
    body = memoryview(data)[_START.size :]
    if magic != _MAGIC or check != zlib.crc32(data[: _START.size - 4]) or len(body) != 24 * entries:
        return None
    if body_check != zlib.crc32(body):
        return None
    return np.frombuffer(body, dtype="<u8").reshape(-1, 3)


def _as_numbers(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)


def _packed(header: Header) -> int:
    return header.width << (_SIDE + 4) | header.height << 4 | header.orientation


def _unpacked(value: int) -> Header:
    return Header(value >> (_SIDE + 4), value >> 4 & ((1 << _SIDE) - 1), value & 15)
