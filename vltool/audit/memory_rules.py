"""Findings on memory: the plan of each recipe that was named, for a GPU of a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vltool.audit.data_rules import Judged
from vltool.audit.finding import Finding, Rule
from vltool.audit.host import Host
from vltool.audit.memory_knobs import Knob, knobs
from vltool.audit.memory_plan import GIB, GPU_GIB, MFU_RANGE, MemoryPlan, plan_memory
from vltool.data.fusion import plan_mixture
from vltool.errors import BadContent, InvalidInput, OutOfMemory, Problem
from vltool.run.plan import RunPlan

DRIVER_BYTES = int(0.6 * GIB)
"""What CUDA does not offer of the memory that nvidia-smi tells (79.1 of 79.6 GiB on an H100)."""
SHOWN_KNOBS = 3
_SMALLER = 0.9

RULES: tuple[Rule, ...] = (
    Rule(
        id="memory-fit",
        severity="warning",
        means="a step needs more memory than the GPU has",
        why="The run ends in CUDA's out of memory at the first batch of long records, which may come hours after the "
        "start. The plan counts weights, adapters, optimizer, gradients, activations, the loss and the teacher for "
        "the longest record.",
        remedy="Write one of the settings that the finding names, the nearest that makes the step fit: gradient "
        "checkpointing, fewer rows a GPU, ZeRO, a shorter length. `--gpu-gib` says which GPU the run will get.",
        covers="troubleshooting: OOM",
        source="https://arxiv.org/abs/2205.05198",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A recipe's memory and time, and what would make it fit."""

    recipe: str
    gpu_gib: float
    memory: MemoryPlan | None
    """None where nothing could be planned."""
    why: str = ""
    """Why not."""
    knobs: tuple[Knob, ...] = ()
    """Empty where the step fits, or where no single setting helps."""
    records: int = 0
    """Samples of an epoch."""
    mean_tokens: float | None = None
    """Of a training record."""

    @property
    def fits(self) -> bool:
        """Whether the step fits, as far as is known."""
        return self.memory is None or self.memory.fits(self.gpu_gib)

    @property
    def epoch_hours(self) -> tuple[float, float] | None:
        """At both ends of `MFU_RANGE`; None where no record was counted."""
        if self.memory is None or not self.records or not self.mean_tokens:
            return None
        return self.memory.time.epoch_hours(self.records, share=self.mean_tokens / self.memory.batch.tokens)

    @property
    def findings(self) -> list[Finding]:
        """A warning for a step that does not fit."""
        if self.memory is None or self.fits:
            return []
        needed = f"a step needs {self.memory.needed / GIB:.1f} GiB on each GPU, which has {self.gpu_gib:g}"
        remedy = "no single setting makes it fit: change several, or use a larger GPU"
        if self.knobs:
            remedy = f"write {_told(self.knobs)}"
        return [
            Finding(
                id="memory-fit",
                severity="warning",
                what=f"{self.recipe}: {needed}",
                evidence=self.memory.largest.name,
                remedy=remedy,
            )
        ]

    def summary(self) -> list[str]:
        """Lines on the batch, the time, and what is not counted."""
        if self.memory is None:
            return []
        batch, time = self.memory.batch, self.memory.time
        low, high = time.seconds
        lines = [
            f"planned for {batch.rows} row{'s' * (batch.rows != 1)} of {batch.tokens:,} tokens on each GPU; "
            f"{time.tokens:,} tokens and {time.samples} samples a step",
            f"{time.flops / 1e12:,.0f} TFLOP a step and GPU: {low:.1f} to {high:.1f} s on an H100 "
            f"at {MFU_RANGE[1]:.0%} to {MFU_RANGE[0]:.0%} MFU",
        ]
        if (hours := self.epoch_hours) is not None:
            lines.append(
                f"{hours[0]:.2g} to {hours[1]:.2g} hours an epoch of {self.records:,} samples of "
                f"{self.mean_tokens:,.0f} tokens on average"
            )
        return [*lines, *self.memory.notes]

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {
            "recipe": self.recipe,
            "gpu_gib": self.gpu_gib,
            "fits": None if self.memory is None else self.fits,
            "why_not_planned": self.why or None,
            "epoch_hours": self.epoch_hours,
            "knobs": [
                {"key": knob.key, "value": knob.value, "needed": knob.memory.needed, "price": knob.price}
                for knob in self.knobs
            ],
            "plan": None if self.memory is None else self.memory.to_json(),
        }


def planned(judged: Sequence[Judged], *, gpu_gib: float) -> list[Planned]:
    """The memory of each plan whose training records were judged.

    Rows are as long as the longest record that can be used; with augmentation, which changes lengths, as the length
    knob allows.
    """
    plans: list[RunPlan] = []
    for one in judged:
        plan = one.records.plan
        if plan is not None and one.records.split == "train" and not any(plan is known for known in plans):
            plans.append(plan)
    return [
        _planned(plan, [one for one in judged if one.records.plan is plan and one.records.split == "train"], gpu_gib)
        for plan in plans
    ]


def _planned(plan: RunPlan, files: Sequence[Judged], gpu_gib: float) -> Planned:
    scans = [one.scan for one in files if one.scan is not None]
    longest = max((scan.longest[0] for scan in scans if scan.longest is not None), default=None)
    if plan.data.augmentation is not None:
        longest = None
    counts = [scan.records - len(scan.bad) for scan in scans]
    means = [(count, scan.mean_tokens) for count, scan in zip(counts, scans, strict=True) if scan.mean_tokens]
    bare = planned_alone(plan, gpu_gib=gpu_gib, longest=longest)
    if bare.memory is None:
        return bare
    samples = sum(counts)
    if plan.data.fusion is not None and len(counts) == len(plan.data.train) and all(counts):
        samples = len(plan_mixture(plan.data.fusion, counts, seed=0))
    return replace(
        bare,
        records=samples,
        mean_tokens=sum(count * mean for count, mean in means) / max(sum(count for count, _ in means), 1) or None,
    )


def planned_alone(plan: RunPlan, *, gpu_gib: float, longest: int | None = None) -> Planned:
    """The memory of a plan, without its records. longest: as for `plan_memory`."""
    try:
        memory = plan_memory(plan, longest=longest)
        found = () if memory.fits(gpu_gib) else tuple(knobs(plan, gpu_gib=gpu_gib, longest=longest))
    except (InvalidInput, BadContent) as error:
        return Planned(recipe=plan.recipe, gpu_gib=gpu_gib, memory=None, why=error.problems[0].what)
    return Planned(recipe=plan.recipe, gpu_gib=gpu_gib, memory=memory, knobs=found)


def judge_memory(plan: RunPlan, host: Host, *, longest: int | None = None) -> list[Finding]:
    """The memory of a step against what is free on the smallest of the GPUs that this host would give a run.

    longest: tokens of the longest training record, where they were counted. Nothing is said without a GPU.
    """
    gpus = host.gpus_of(dict(plan.env) | dict(host.environment), plan.launch.nproc_per_node)
    if not gpus or plan.arguments.get("use_cpu"):
        return []
    free = min(gpu.memory - gpu.used for gpu in gpus) - DRIVER_BYTES
    if plan.data.augmentation is not None:
        longest = None
    return planned_alone(plan, gpu_gib=round(free / GIB, 1), longest=longest).findings


def explained(plan: RunPlan, error: OutOfMemory) -> tuple[Planned, OutOfMemory]:
    """The plan of a run that ended for want of memory, and its error with the nearest knobs.

    Where the plan says that the step fits, something that it does not count took the rest: the knobs are those that
    make it smaller by `_SMALLER`.
    """
    gpu_gib = GPU_GIB if error.gpu_bytes is None else error.gpu_bytes / GIB
    one = planned_alone(plan, gpu_gib=gpu_gib)
    if one.memory is None:
        return one, error
    needed = one.memory.needed / GIB
    if one.fits:
        one = replace(one, knobs=tuple(knobs(plan, gpu_gib=needed * _SMALLER)))
        do = f"the plan of this run needs {needed:.1f} GiB: look for another process on the GPU (nvidia-smi)"
    else:
        do = f"the plan of this run needs {needed:.1f} GiB"
    if one.knobs:
        do = f"{do}; write {_told(one.knobs)}"
    first, *rest = error.problems
    problems = [Problem(first.what, do, first.where), *rest]
    return one, OutOfMemory(problems, peak_bytes=error.peak_bytes, gpu_bytes=error.gpu_bytes)


def _told(found: Sequence[Knob]) -> str:
    """The first of them, and what a step then needs."""
    said = [f"{knob} ({knob.memory.needed / GIB:.1f} GiB; {knob.price})" for knob in found[:SHOWN_KNOBS]]
    return ", or ".join(said)
