"""A plan and its base's headers -> bytes a GPU needs in each phase of a step, and how long a step takes.

The largest phase is the peak. Every number is derived from what is stored, kept or made; none is fitted to a
configuration. `benchmarks/README.md` holds the plan against measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltool.audit.activations import FP32
from vltool.audit.anatomy import Anatomy, read_anatomy
from vltool.audit.memory_phases import phases
from vltool.audit.memory_resident import resident
from vltool.audit.memory_terms import Row, Terms
from vltool.audit.model_flops import PEAK_FLOPS, Batch, step_flops
from vltool.run.arguments import value_of
from vltool.run.plan import RunPlan

GIB = 2**30
GPU_GIB = 79.0
"""What CUDA offers of an H100 with 80 GB."""
CONTEXT_BYTES = int(0.6 * GIB)
"""CUDA's context with the kernels of torch and Triton, which no allocator counts (an H100 under CUDA 13)."""
ALLOCATOR_SLACK = 0.03
"""What the caching allocator reserves beyond what is used at once: 1.0 to 2.5 % in `benchmarks/distillation.py`."""
MFU_RANGE = (0.15, 0.30)
"""Share of the data sheet's rate that training reached in `benchmarks/distillation.py`: SFT with checkpointing at the
lower end, GKD without at the higher.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """What an optimizer step computes, and how long that takes at a share of the hardware's rate."""

    flops: float
    """Of one process."""
    tokens: int
    """Of all processes."""
    samples: int
    seconds: tuple[float, float]
    """At the higher and at the lower end of `MFU_RANGE`, on a GPU of `PEAK_FLOPS`; without sampling."""

    def epoch_hours(self, records: int, *, share: float = 1.0) -> tuple[float, float]:
        """Hours for so many records. share: mean length of a record over the length that was planned for."""
        steps = records / self.samples
        return (steps * self.seconds[0] * share / 3600, steps * self.seconds[1] * share / 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes on each GPU, and the time of a step."""

    batch: Batch
    resident: tuple[Row, ...]
    """What stays on the GPU for the whole run."""
    phases: tuple[Row, ...]
    """Of each phase of a step, all that is on the GPU at its worst, the resident part included."""
    peak: tuple[Row, ...]
    """What the largest phase consists of, beside the resident part."""
    on_host: tuple[Row, ...]
    """What is kept in the host's memory, for each process."""
    time: StepTime
    notes: tuple[str, ...]
    """What the numbers leave out."""

    @property
    def largest(self) -> Row:
        """The phase that decides."""
        return max(self.phases, key=lambda row: row.bytes)

    @property
    def allocated(self) -> int:
        """The peak of allocated bytes, as torch's `max_memory_allocated` tells it."""
        return self.largest.bytes

    @property
    def needed(self) -> int:
        """What the GPU has to offer: the peak, the allocator's slack and CUDA's context."""
        return int(self.allocated * (1 + ALLOCATOR_SLACK)) + CONTEXT_BYTES

    def fits(self, gpu_gib: float = GPU_GIB) -> bool:
        """Whether a GPU of this size is enough."""
        return self.needed <= gpu_gib * GIB

    def rows(self) -> list[Row]:
        """All of it, from the weights to what the GPU has to offer."""
        slack = Row("allocator and CUDA", self.needed - self.allocated, f"{ALLOCATOR_SLACK:.0%} and the context")
        return [*self.resident, *self.peak, slack, Row("needed on each GPU", self.needed, self.largest.name)]

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object; sizes in bytes."""

        def told(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
            return [{"name": row.name, "bytes": row.bytes, "note": row.note or None} for row in rows]

        return {
            "allocated": self.allocated,
            "needed": self.needed,
            "rows": told(tuple(self.rows())),
            "phases": told(self.phases),
            "on_host": told(self.on_host),
            "step": {
                "flops": self.time.flops, "tokens": self.time.tokens, "samples": self.time.samples,
                "seconds": list(self.time.seconds), "mfu": list(MFU_RANGE),
            },
            "notes": list(self.notes),
        }  # fmt: skip


def batch_of(plan: RunPlan, anatomy: Anatomy, *, longest: int | None = None) -> Batch:
    """The largest batch that the plan allows: every row as long as the length knob, or as the longest record.

    An image is as large as `max_pixels`, or as fits into the row; all of the rest is label tokens.
    """
    rows = int(value_of(plan.arguments, "per_device_train_batch_size") or 1)
    tokens = plan.data.max_length if longest is None else min(longest, plan.data.max_length)
    area = anatomy.vision.merge**2
    patches = tokens * area
    if plan.data.max_pixels:
        patches = min(patches, plan.data.max_pixels // anatomy.vision.patch_px**2)
    labels = max(tokens - patches // area, 1)
    packs = bool(plan.arguments.get("packing") or plan.arguments.get("padding_free"))
    return Batch(rows=rows, tokens=tokens, labels=labels, patches=patches, padded=rows > 1 and not packs)


def plan_memory(
    plan: RunPlan, *, batch: Batch | None = None, longest: int | None = None, anatomy: Anatomy | None = None
) -> MemoryPlan:
    """Memory and time of a plan's training step.

    batch: what one process reads at once; by default as `batch_of`, for which `longest` is the longest record's
    tokens. anatomy: what `read_anatomy` makes of the plan's base, where it is known. Raises as `read_anatomy`.
    """
    if anatomy is None:
        anatomy = read_anatomy(Path(plan.original), plan.tuner, plan.arguments)
    batch = batch or batch_of(plan, anatomy, longest=longest)
    terms = Terms(plan, anatomy, batch)
    here, on_host = resident(terms)
    passed = phases(terms)
    held = sum(row.bytes for row in here)
    return MemoryPlan(
        batch=batch,
        resident=tuple(here),
        phases=tuple(Row(phase.name, held + phase.bytes) for phase in passed),
        peak=max(passed, key=lambda phase: phase.bytes).rows,
        on_host=tuple(on_host),
        time=_time(terms),
        notes=tuple(_notes(terms)),
    )


def _time(terms: Terms) -> StepTime:
    plan = terms.run.distillation
    apart = terms.runs_teacher and plan is not None and plan.teacher == "copy"
    once = step_flops(terms.anatomy, terms.batch, teacher=terms.runs_teacher, teacher_sees=apart)
    samples = terms.accumulation * terms.batch.rows * terms.processes
    flops = terms.accumulation * once
    low, high = MFU_RANGE
    return StepTime(
        flops=flops,
        tokens=samples * terms.batch.tokens,
        samples=samples,
        seconds=(flops / (high * PEAK_FLOPS), flops / (low * PEAK_FLOPS)),
    )


def _notes(terms: Terms) -> list[str]:
    """What the numbers leave out."""
    arguments, plan = terms.run.arguments, terms.run.distillation
    notes = []
    if arguments.get("attn_impl") == "eager":
        notes.append("attn_impl: eager keeps the attention matrix, which is not counted")
    if arguments.get("use_dora"):
        notes.append("use_dora keeps more activations than are counted")
    if terms.anatomy.text.experts_a_token:
        notes.append("experts are counted as if every one got the same share of the tokens")
    if plan is not None and plan.sampling is not None:
        notes.append("sampling text is not counted, neither its time nor its cache")
    if plan is not None and plan.teacher == "copy" and terms.runs_teacher:
        notes.append("a teacher's pass is counted as that of a model of the student's size")
    if terms.stream == FP32 and not terms.how.autocast:
        notes.append("the time is that of 16-bit products; those of fp32 take longer")
    return notes
