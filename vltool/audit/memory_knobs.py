"""One changed setting that makes a plan fit into a GPU, found by planning again with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vltool.audit.anatomy import Anatomy, read_anatomy
from vltool.audit.memory_plan import GPU_GIB, MemoryPlan, batch_of, plan_memory
from vltool.recipe.swift_keys import swift_table
from vltool.run.arguments import value_of
from vltool.run.deepspeed import zero_stage
from vltool.run.plan import RunPlan

_LENGTH_STEP = 128
_PIXELS_STEP = 64 * 1024
"""64 image tokens of 32 × 32 pixels."""
_FEWEST_PIXELS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Knob:
    """A key of the recipe, the value it would get, and what the step then needs."""

    key: str
    value: str
    memory: MemoryPlan
    price: str
    """What it costs."""

    def __str__(self) -> str:
        return f"{self.key}: {self.value}"


def knobs(plan: RunPlan, *, gpu_gib: float = GPU_GIB, longest: int | None = None) -> list[Knob]:
    """Settings, each of which alone makes the plan fit into a GPU; those that cost the least first.

    Those that change neither what is learnt nor from what come first, then those that leave out or shrink records.
    longest: tokens of the longest record, as for `plan_memory`. Raises as `plan_memory`.
    """
    anatomy = read_anatomy(Path(plan.original), plan.tuner, plan.arguments)
    found = []
    for key, value, changed, price, tokens in _candidates(plan, anatomy, gpu_gib, longest):
        memory = plan_memory(changed, longest=tokens, anatomy=anatomy)
        if memory.fits(gpu_gib):
            found.append(Knob(key, value, memory, price))
    return found


_Candidate = tuple[str, str, RunPlan, str, int | None]


def _candidates(plan: RunPlan, anatomy: Anatomy, gpu_gib: float, longest: int | None) -> Iterator[_Candidate]:
    arguments, distillation = plan.arguments, plan.distillation
    if distillation is not None and distillation.teacher == "copy" and not distillation.offload_teacher:
        changed = msgspec.structs.replace(
            plan, distillation=msgspec.structs.replace(distillation, offload_teacher=True)
        )
        yield "rlhf.offload_teacher_model", "true", changed, "the copy's way to the GPU in every step", longest
    rows = int(value_of(arguments, "per_device_train_batch_size") or 1)

    def fewer(count: int) -> RunPlan:
        accumulation = math.ceil(rows * int(arguments.get("gradient_accumulation_steps") or 1) / count)
        return _with(plan, per_device_train_batch_size=count, gradient_accumulation_steps=accumulation)

    def fits(changed: RunPlan, tokens: int | None) -> bool:
        return plan_memory(changed, longest=tokens, anatomy=anatomy).fits(gpu_gib)

    halves = [count for count in range(rows - 1, 0, -1) if rows % count == 0]
    count = next((count for count in halves if fits(fewer(count), longest)), None)
    if count is not None:
        price = "more accumulation, the same optimizer step"
        yield "training.per_device_train_batch_size", str(count), fewer(count), price, longest
    if not value_of(arguments, "gradient_checkpointing"):
        price = "each layer's forward pass again, about a third of the time"
        changed = _with(plan, gradient_checkpointing=True)
        yield "training.gradient_checkpointing", "true", changed, price, longest
    stage = zero_stage(arguments.get("deepspeed"))
    for name, price in (
        ("zero2", "the processes exchange gradients in shards"),
        ("zero3", "the processes exchange weights in every layer"),
        ("zero2_offload", "the optimizer's step on the CPU"),
        ("zero3_offload", "weights and the optimizer's step by way of the CPU"),
    ):
        shards = plan.launch.processes > 1 or name.endswith("_offload")
        if shards and (zero_stage(name) > stage or (name.endswith("_offload") and zero_stage(name) >= stage)):
            yield "deepspeed.config", name, _with(plan, deepspeed=name), price, longest
    if plan.tuner.tuner_type == "lora" and arguments.get("quant_bits") is None and not plan.tuner.modules_to_save:
        changed = _with(plan, quant_bits=4, quant_method="bnb")
        yield "quantization.quant_bits", "4", changed, "weights of lower precision, unpacked in every layer", longest
    yield from _smaller(plan, anatomy, longest, fits)


def _smaller(
    plan: RunPlan, anatomy: Anatomy, longest: int | None, fits: Callable[[RunPlan, int | None], bool]
) -> Iterator[_Candidate]:
    """The largest images, and the longest rows, with which a step fits."""
    side = anatomy.vision.patch_px * anatomy.vision.merge
    pixels = plan.data.max_pixels or batch_of(plan, anatomy, longest=longest).patches * anatomy.vision.patch_px**2

    def seen(limit: int) -> tuple[RunPlan, int | None]:
        data = msgspec.structs.replace(plan.data, max_pixels=limit)
        changed = msgspec.structs.replace(_with(plan, max_pixels=limit), data=data)
        # Rows get shorter by what their images do; where no record was counted, they stay at the limit.
        return changed, None if longest is None else max(longest - (pixels - limit) // side**2, 1)

    sizes = range(_FEWEST_PIXELS, pixels, _PIXELS_STEP)
    at = _largest(len(sizes), lambda number: fits(*seen(sizes[number])))
    if at is not None:
        changed, tokens = seen(sizes[at])
        yield "template.max_pixels", str(sizes[at]), changed, "smaller images", tokens

    def cut(limit: int) -> RunPlan:
        data = msgspec.structs.replace(plan.data, max_length=limit)
        return msgspec.structs.replace(plan, data=data)

    lengths = range(_LENGTH_STEP, min(plan.data.max_length, longest or plan.data.max_length), _LENGTH_STEP)
    at = _largest(len(lengths), lambda number: fits(cut(lengths[number]), longest))
    if at is not None:
        yield "global_max_length", str(lengths[at]), cut(lengths[at]), "longer records cannot be used", longest


def _largest(count: int, holds: Callable[[int], bool]) -> int | None:
    """The largest number below `count` for which `holds`, which holds for all smaller ones too; None for none."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            low = middle + 1
        else:
            high = middle
    return low - 1 if low else None


def _with(plan: RunPlan, **arguments: object) -> RunPlan:
    unknown = arguments.keys() - swift_table().keys.keys()
    assert not unknown, f"ms-swift has no argument {unknown}"
    return msgspec.structs.replace(plan, arguments=plan.arguments | arguments)
