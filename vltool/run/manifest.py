"""What a run was made with: versions, revision, data, seed, host."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vltool import __version__
from vltool.run.fingerprint import fingerprint
from vltool.run.plan import RunPlan

PACKAGES = ("torch", "torchvision", "transformers", "peft", "accelerate", "trl", "ms-swift", "deepspeed", "flash-attn")
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "PYTORCH_CUDA_ALLOC_CONF")


def make_manifest(plan: RunPlan) -> dict[str, Any]:
    """The manifest of a run that starts now."""
    return {
        "vltool": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_revision": _git_revision(),
        "seed": plan.arguments.get("seed", 42),
        "data": {
            split: [fingerprint(Path(part.jsonl)) for part in parts]
            for split, parts in (("train", plan.data.train), ("val", plan.data.val))
        },
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "environment": {name: os.environ[name] for name in sorted({*ENVIRONMENT, *plan.env}) if name in os.environ},
    }


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
