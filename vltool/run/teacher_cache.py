"""What a cache of the teacher's log-probabilities was made of, and whether a run may read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from vltool.errors import Problem, Where
from vltool.run.data import DatasetPlan
from vltool.run.evidence import to_json, write_atomically
from vltool.run.fingerprint import checkpoint_fingerprint, fingerprint

if TYPE_CHECKING:
    from vltool.run.plan import RunPlan

FILE_NAME = "teacher_cache.json"
_ARGUMENTS = (
    "template", "max_length", "max_pixels", "truncation_strategy", "loss_scale", "torch_dtype", "bf16", "quant_method",
    "quant_bits", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
)  # fmt: skip
"""ms-swift's arguments on which a sample's tokens, or the teacher's arithmetic, depend."""


class CachePlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the teacher's likeliest tokens lie, and how many of them a position has."""

    folder: str
    topk: int


def cache_key(plan: RunPlan) -> dict[str, Any]:
    """Everything that the teacher's word on a record depends on, but for the record's own content."""
    kd, data = plan.distillation, plan.data
    assert kd is not None
    assert kd.cache is not None
    return {
        "topk": kd.cache.topk,
        "kd_temperature": kd.kd_temperature,
        "teacher": checkpoint_fingerprint(Path(kd.teacher_model)),
        "arguments": {name: plan.arguments.get(name) for name in _ARGUMENTS},
        "prompts": {"user": data.user_prompt, "system": data.system_prompt},
        "emit_norm": data.emit_norm,
        "use_summary": data.use_summary,
        "records": {split: [_content(part) for part in getattr(data, split)] for split in ("train", "val")},
        "skipped": {split: [list(part.skip) for part in getattr(data, split)] for split in ("train", "val")},
    }


def _content(part: DatasetPlan) -> dict[str, Any]:
    marks = fingerprint(Path(part.jsonl))
    return {name: marks[name] for name in ("bytes", "sha256_of_edges")} | {"limit": part.limit}


def check_cache(plan: RunPlan, problems: list[Problem], at: Where | None, *, audited: bool) -> None:
    """Append to `problems` a folder that was made of something else, or is no cache.

    audited: whether the plan knows by now which records it skips.
    """
    if plan.distillation is None or plan.distillation.cache is None:
        return
    folder = Path(plan.distillation.cache.folder)
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return
        found = msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        what = f"rlhf.teacher_cache: {folder} is no cache of a teacher's: {error}"
        problems.append(Problem(what, "name a folder that is empty or does not exist", at))
        return
    wanted = cache_key(plan)
    changed = [
        f"{name}: {_short(found.get(name))}, now {_short(value)}"
        for name, value in wanted.items()
        if found.get(name) != value and (audited or name != "skipped")
    ]
    if changed:
        what = f"rlhf.teacher_cache: {folder} was made of something else ({'; '.join(changed)})"
        problems.append(Problem(what, "name another folder, or delete this one: it is made anew", at))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def begin_cache(plan: RunPlan) -> None:
    """Make the folder of a run that has a cache, and say in it what it is made of."""
    if plan.distillation is None or plan.distillation.cache is None:
        return
    folder = Path(plan.distillation.cache.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FILE_NAME).is_file():
        write_atomically(folder / FILE_NAME, to_json(cache_key(plan)))
