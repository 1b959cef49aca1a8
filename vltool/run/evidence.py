"""What a worker saw of its own run, written as it goes, so that a judge can tell what was reached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from vltool.checkpoint.architecture import Tower

FILE_NAME = "evidence.json"
PROBE_FILE_NAME = "probe.safetensors"


class TowerRow(Struct, kw_only=True):
    """One line of the audit's table."""

    tower: Tower
    should_train: bool
    trainable: int = 0
    """Elements that require a gradient."""
    frozen: int = 0
    got_gradient: bool | None = None
    """Whether each of its parts got a finite, non-zero gradient; None where that was not seen (yet)."""
    problem: str | None = None


class CarriedRow(Struct, kw_only=True):
    """What an earlier stage left in one tower, by numbers of modules."""

    tower: Tower
    adapted: int = 0
    """Modules whose LoRA goes on in this stage's."""
    copied: int = 0
    """Modules tuned in full, whose copies go on."""
    folded: int = 0
    """Modules whose LoRA went into a copy that is tuned in full from here on."""


class Evidence(Struct, kw_only=True):
    """Everything is None until the run has come to it."""

    towers: list[TowerRow] | None = None
    carried: list[CarriedRow] | None = None
    """What came from an earlier stage; None without one."""
    tower_problems: list[str] | None = None
    """Audit before step 1; empty: nothing wrong."""
    quantization: dict[str, Any] | None = None
    """How the base was packed into 4 bits, in transformers' words; None where it was not."""
    loss_backend: str | None = None
    """`triton`, or `eager` and why: what computes the loss."""
    kd_at_start: float | None = None
    """Divergence of student and teacher per label token of the fixed batch, before step 1."""
    gradient_problems: list[str] | None = None
    """Audit of the first steps; None until every part has shown its gradient."""
    frozen_tensors: int | None = None
    frozen_changed: list[str] | None = None
    """Frozen tensors whose bits differ from those before step 1, at the last look."""
    ranks_differ: list[str] | None = None
    """Trained tensors of which processes hold different copies after the last step; None where there is one copy."""
    ce_before: float | None = None
    """Cross entropy per label token of the fixed batch of captions, before step 1."""
    ce_after: float | None = None
    vision_gradients: dict[Tower, float] | None = None
    """Norm of the gradient that vision-feature distillation alone brings each tower that trains, after training."""
    last_checkpoint: str | None = None
    finished: bool = False
    failure: str | None = None
    """The first line of the error that ended the run."""
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        """Write evidence.json into the run folder, atomically."""
        write_atomically(run_dir / FILE_NAME, to_json(self))

    @staticmethod
    def read(run_dir: Path) -> Evidence:
        """What the worker wrote; an empty one if it did not come that far."""
        path = run_dir / FILE_NAME
        return msgspec.json.decode(path.read_bytes(), type=Evidence) if path.is_file() else Evidence()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the whole new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def to_json(document: Any) -> bytes:
    """Indented JSON with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
