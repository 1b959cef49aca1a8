"""The headers of many image files, read by several processes, and those that are known from before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vltool.data.fusing.workers import spread
from vltool.data.header_cache import HeaderCache, key_of
from vltool.data.headers import Header
from vltool.data.images import file_header, image_header, is_path
from vltool.data.messages import ImageRef
from vltool.errors import BadContent

FEWEST_SPREAD = 512
"""Files that are worth a process."""
READERS_A_CORE = 4
"""Processes; they wait for the disk more than for the processor."""
MOST_READERS = 8


class HeaderReader:
    """Reads the headers of a JSONL's images, at once those of as many as it is given.

    root: where relative paths start, in place of the JSONL's folder.
    """

    def __init__(self, jsonl: Path, *, root: Path | None) -> None:
        self._folder, self._root = jsonl.parent, root
        self._base = str(root or jsonl.parent)
        self._jsonl = jsonl
        self._cache: HeaderCache | None = None

    def read(self, refs: Iterable[ImageRef]) -> dict[str, Header]:
        """The headers of those that are files and in which nothing is wrong.

        Of any other `image_header` says what is the matter with it. Raises RunFailed if a process was killed.
        """
        wanted = list(dict.fromkeys(ref for ref in refs if is_path(ref)))
        found: dict[str, Header] = {}
        if not wanted:
            return found
        if self._cache is None:  # not before it is of use: it may be large
            self._cache = HeaderCache(self._jsonl)
        cache = self._cache
        if len(cache):
            known = cache.find([self._key(ref) for ref in wanted])
            found = {ref: header for ref, header in zip(wanted, known, strict=True) if header is not None}
            wanted = [ref for ref in wanted if ref not in found]
        for at, header, key in self._spread(wanted):
            found[wanted[at]] = header
            cache.add(key, header)
        return found

    def save(self) -> None:
        """Keep what was read for the next time."""
        if self._cache is not None:
            self._cache.save()

    def _path(self, ref: str) -> str:
        # Several times faster than pathlib, which would be most of the time here.
        return ref if ref.startswith("/") else f"{self._base}/{ref}"

    def _key(self, ref: str) -> bytes:
        """Of a file that this user may read; else one that stands for none."""
        path = self._path(ref)
        try:
            status = os.stat(path)  # noqa: PTH116 a Path would take as long again
            return key_of(path, status) if os.access(path, os.R_OK) else bytes(16)
        except (OSError, ValueError):
            return bytes(16)

    def _spread(self, refs: Sequence[str]) -> Iterator[tuple[int, Header, bytes]]:
        """Position, header and key of each file that has a header."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(min(len(refs) // FEWEST_SPREAD, READERS_A_CORE * cores, MOST_READERS), 1)

        def work(number: int) -> Iterator[list[tuple[int, Header, bytes]]]:
            yield [
                (at, *found) for at in range(number, len(refs), workers) if (found := self._one(refs[at])) is not None
            ]

        for found in spread(work, workers):
            yield from found

    def _one(self, ref: str) -> tuple[Header, bytes] | None:
        path = self._path(ref)
        try:
            found = file_header(path)
            if found is None:
                status = Path(path).stat()
                found = image_header(ref, folder=self._folder, root=self._root), status
        except (BadContent, OSError, ValueError):
            return None
        return found[0], key_of(path, found[1])
