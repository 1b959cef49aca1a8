"""What a run was made with: versions, revision, data, seed, host."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vltool import __version__
from vltool.run.plan import RunPlan

PACKAGES = ("torch", "torchvision", "transformers", "peft", "accelerate", "trl", "ms-swift", "deepspeed", "flash-attn")
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "PYTORCH_CUDA_ALLOC_CONF")
_EDGE_BYTES = 1 << 20


def make_manifest(plan: RunPlan) -> dict[str, Any]:
    """The manifest of a run that starts now."""
    data = {"train_jsonl": plan.data.train_jsonl, "val_jsonl": plan.data.val_jsonl}
    return {
        "vltool": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_revision": _git_revision(),
        "seed": plan.arguments.get("seed", 42),
        "data": {name: fingerprint(Path(path)) for name, path in data.items() if path},
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "environment": {name: os.environ[name] for name in sorted({*ENVIRONMENT, *plan.env}) if name in os.environ},
    }


def fingerprint(path: Path) -> dict[str, Any]:
    """Size, modification time and a hash of the first and last MiB: equal files have equal ones."""
    stat = path.stat()
    digest = hashlib.sha256(str(stat.st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_EDGE_BYTES))
        file.seek(max(stat.st_size - _EDGE_BYTES, 0))
        digest.update(file.read(_EDGE_BYTES))
    return {"path": str(path), "bytes": stat.st_size, "mtime": stat.st_mtime, "sha256_of_edges": digest.hexdigest()}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the checkout that the operator works in; None outside one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
