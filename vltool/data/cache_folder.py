"""Where vltool keeps what it can make again: indices that have no place beside their data, images from URLs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached files, not created here.

    `$VLTOOL_CACHE/KIND`, else `$XDG_CACHE_HOME/vltool/KIND`, else `~/.cache/vltool/KIND`. Nothing in it is ever
    deleted by vltool; all of it may be deleted while nothing runs.
    Source of the second and third: XDG Base Directory Specification 0.8, which ignores relative paths.
    """
    if own := os.environ.get("VLTOOL_CACHE"):
        return Path(own).expanduser() / kind
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # a user without a home: containers with a bare user id
            base = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return base / "vltool" / kind


def cache_places(path: Path, kind: str) -> tuple[Path, Path]:
    """Where what is kept of a file may be, best first: `.NAME.vlKIND` beside it, or in the cache folder."""
    resolved = path.resolve()
    key = hashlib.blake2b(os.fsencode(resolved), digest_size=16).hexdigest()
    return resolved.with_name(f".{resolved.name}.vl{kind}"), cache_folder(kind) / f"{key}.vl{kind}"


def write_cache(place: Path, write: Callable[[IO[bytes]], None]) -> bool:
    """Whether a cache file could be written. Processes that do so at the same time write each its own file."""
    beside: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Its name is cut because a file's may have 255 bytes.
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=place.name[:60], delete=False) as file:
            beside = Path(file.name)
            write(file)
            os.fchmod(file.fileno(), 0o644)  # others who may read the data may read what is kept of it
        # Without fsync: a file that a crash left half on the disk fails its checksum, and is made again.
        beside.replace(place)
    except OSError:
        if beside is not None:
            with contextlib.suppress(OSError):
                beside.unlink()
        return False
    return True
