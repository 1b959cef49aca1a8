"""A run that goes on, held against what it was begun with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vltool.errors import Problem
from vltool.recipe.swift_keys import swift_table
from vltool.run.deepspeed import zero_stage
from vltool.run.folder import PLAN_FILE_NAME

if TYPE_CHECKING:
    from vltool.run.plan import RunPlan

_DO = "go on with the recipe that it was begun with (resolved.yaml in that folder), or begin a new run"


def check_resume(plan: RunPlan, problems: list[Problem]) -> None:
    """Append to `problems` what the checkpoint that `plan` goes on from cannot be loaded into.

    That is another base, another tuner, other weights' dtype, and under DeepSpeed another number of
    processes. Schedule, batch and data may change. A folder without a plan that can be read is taken as it is.
    """
    if plan.resume is None:
        return
    folder = Path(plan.resume).parent
    try:
        begun = type(plan).from_json((folder / PLAN_FILE_NAME).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return
    config = plan.arguments.get("deepspeed")
    if str(plan.arguments.get("init_weights")).startswith("pissa") and zero_stage(config) == 3:
        what = f"{plan.origins.get('deepspeed')}: a PiSSA run cannot go on under ZeRO-3, which has the base in shards"
        problems.append(Problem(what, "begin a new run, or use zero2"))
    for name, was, now in _differences(begun, plan):
        at = plan.origins.get(name)
        what = (
            f"{at}: " * bool(at) + f"the run in {folder} was begun with {name}: {was!r}, and cannot go on with {now!r}"
        )
        problems.append(Problem(what, _DO))


def _differences(begun: RunPlan, plan: RunPlan) -> Iterator[tuple[str, Any, Any]]:
    if Path(begun.model).resolve() != Path(plan.model).resolve():
        yield "model", begun.model, plan.model
    for name, key in swift_table().keys.items():
        tells = key.section in ("tuner", "quantization") or name == "torch_dtype"
        if tells and not name.endswith("dropout"):
            was, now = (run.arguments.get(name, key.default) for run in (begun, plan))
            if was != now:
                yield name, was, now
    for name in begun.tuner.__struct_fields__:
        was, now = getattr(begun.tuner, name), getattr(plan.tuner, name)
        # Some are arguments of ms-swift's too, in its words.
        if was != now and name not in swift_table().keys:
            yield f"tuner.{name}", was, now
    was, now = (_sharding(run) for run in (begun, plan))
    if was != now:
        yield "deepspeed", was, now
    elif "deepspeed" in plan.arguments and begun.launch.processes != plan.launch.processes:
        yield "processes", begun.launch.processes, plan.launch.processes


def _sharding(plan: RunPlan) -> str:
    """How the optimizer's state is laid out in a checkpoint."""
    config = plan.arguments.get("deepspeed")
    return "none" if config is None else f"ZeRO-{zero_stage(config)}"
