"""Where vltool keeps what it can make again: indices that have no place beside their data, images from URLs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


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
