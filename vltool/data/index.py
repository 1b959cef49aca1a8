"""Byte offsets of a JSONL file: any record by its position, for a few bytes of memory each."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import Any

from vltool.data.index_cache import Offsets, Stamp, mapped, offsets_of, stamp
from vltool.errors import BadContent, InvalidInput, Problem, Where

_LEAVE = "leave data in place until the run ends, or write it beside and rename it"


class JsonlIndex:
    """Positions 0…n-1 of a JSONL's records; blank lines are no records but count as lines.

    Costs 8 bytes a record. Those of a large file are kept on disk, beside it (`.NAME.vlindex`) or in the cache
    folder, and mapped from there: all processes of a host share them, and the next one finds them made. They are
    made again when the file's size, time of modification or edges have changed, or the cache is damaged.

    The file is opened where it is first read, and read by absolute position, so copies of an index, in forked
    and spawned workers too, never disturb each other. Raises InvalidInput if the file is absent or cannot be read
    by position, BadContent if it holds no record or changes while it is indexed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._stamp, self._offsets, self._place = _indexed(path)
        if len(self) == 0:
            raise BadContent(Problem("the file holds no record", "write one JSON object a line", Where(str(path))))

    def __len__(self) -> int:
        return len(self._offsets.starts) - 1

    def where(self, position: int) -> Where:
        """The line of a record in the file, counted from 1."""
        skips = self._offsets.skips
        passed = int(skips[:, 0].searchsorted(position, side="right")) if len(skips) else 0
        return Where(str(self.path), position + 1 + (int(skips[passed - 1, 1]) if passed else 0))

    def read(self, position: int) -> tuple[bytes, Where]:
        """The bytes of one record, without its newline, and its place.

        Raises IndexError beyond the last record, BadContent if the file was cut or replaced since it was indexed.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)} in {self.path}")
        where = self.where(position)
        start, end = int(self._offsets.starts[position]), int(self._offsets.starts[position + 1]) - 1
        if self._descriptor is None:
            self._descriptor = self._opened(where)
        data = os.pread(self._descriptor, end - start, start)
        while len(data) < end - start:  # one pread gives at most 2 GiB
            part = os.pread(self._descriptor, end - start - len(data), start + len(data))
            if not part:
                raise BadContent(Problem("the file became shorter while it was in use", _LEAVE, where))
            data += part
        newline = data.find(b"\n")  # there is one where blank lines follow
        return (data if newline < 0 else data[:newline]), where

    def _opened(self, where: Where) -> int:
        """Open the file that was indexed, and not another of its name.

        One that was only appended to, copied or touched still holds the same records at the same places.
        """
        descriptor = _open(self.path)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != self._stamp[:2]:
            shorter = status.st_size < self._stamp.size
            if shorter or stamp(descriptor, size=self._stamp.size).edges != self._stamp.edges:
                os.close(descriptor)
                how = "became shorter" if shorter else "was replaced by another"
                raise BadContent(Problem(f"the file {how} while it was in use", _LEAVE, where))
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process, and without what another can map itself."""
        return {**self.__dict__, "_descriptor": None} | ({} if self._place is None else {"_offsets": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._place is None:
            return
        if (cached := mapped(self._place, self._stamp)) is not None:
            self._offsets = cached
            return
        known = self._stamp
        self._stamp, self._offsets, self._place = _indexed(self.path)
        if (self._stamp.size, self._stamp.edges) != (known.size, known.edges):
            raise BadContent(Problem("the file was replaced while it was in use", _LEAVE, Where(str(self.path))))


def _indexed(path: Path) -> tuple[Stamp, Offsets, Path | None]:
    """A file's stamp, its offsets, and the cache that they are mapped from, if any."""
    descriptor = _open(path)
    try:
        before = stamp(descriptor)
        offsets, place = offsets_of(path, descriptor, before)
        if offsets.read < before.size or stamp(descriptor) != before:
            raise BadContent(
                Problem("the file changed while it was indexed", "wait until it is complete", Where(str(path)))
            )
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)
    return before, offsets, place


def _open(path: Path) -> int:
    """Raises InvalidInput for what cannot be read by position; a pipe would wait for its other end for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidInput(f"no such file: {path}", "give the path of a JSONL file") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "no regular file"
    raise InvalidInput(f"cannot read {path}: it is {kind}", "give the path of a JSONL file, unpacked on a disk")


def _unreadable(path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(f"cannot read {path}: {error.strerror}", "give the path of a readable JSONL file")
