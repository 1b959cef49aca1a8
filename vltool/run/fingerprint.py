"""A file or a checkpoint -> what tells it from others, without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vltool.checkpoint.header import tensor_offsets

_EDGE_BYTES = 1 << 20
_TENSOR_BYTES = 512


def fingerprint(path: Path) -> dict[str, Any]:
    """Size, modification time and a hash of the first and last MiB: equal files have equal ones."""
    stat = path.stat()
    digest = hashlib.sha256(str(stat.st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_EDGE_BYTES))
        file.seek(max(stat.st_size - _EDGE_BYTES, 0))
        digest.update(file.read(_EDGE_BYTES))
    return {"path": str(path), "bytes": stat.st_size, "mtime": stat.st_mtime, "sha256_of_edges": digest.hexdigest()}


def checkpoint_fingerprint(folder: Path) -> str:
    """A hash of a checkpoint's config, headers and the first bytes of every tensor, wherever it lies.

    Edges of files would not do: a stage that trained towers in the middle leaves them as they were.
    Raises BadContent for a broken file of weights.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("model*.safetensors")):
        offsets = tensor_offsets(path)
        with path.open("rb") as file:
            digest.update(file.read(offsets[0] if offsets else -1))
            for offset in offsets:
                file.seek(offset)
                digest.update(file.read(_TENSOR_BYTES))
    return digest.hexdigest()
