"""All processes of a run read the same plan and the same data, or none of them starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from vltool.errors import InvalidInput, Problem
from vltool.run.fingerprint import fingerprint
from vltool.run.plan import RunPlan
from vltool.training.ranks import Ranks

_OWN = (
    "run_dir", "arguments.output_dir", "dump_conversation", "launch.node_rank",
)  # fmt: skip
"""What processes may say differently: the time in a run folder's name, a node's number."""
SHOWN = 10


def agree(plan: RunPlan, ranks: Ranks) -> RunPlan:
    """The first process's plan, if all others' are equal to it and their records are the same.

    Raises InvalidInput, the same on every process, with what differs and where.
    """
    mine = dict(_leaves(msgspec.to_builtins(_unaudited(plan)))) | _data(plan)
    together = ranks.gather((mine, plan))
    first, agreed = together[0]
    problems = []
    for rank, (theirs, _) in enumerate(together[1:], 1):
        for key in [key for key in first | theirs if key not in _OWN]:
            if first.get(key) != theirs.get(key):
                what = f"process {rank} has {key}: {theirs.get(key)!r}, process 0 {first.get(key)!r}"
                problems.append(Problem(what, "give all processes the same recipe, the same files and versions"))
    if problems:
        more = len(problems) - SHOWN
        raise InvalidInput(problems[:SHOWN] + [Problem(f"and {more} more differences")] * (more > 0))
    return msgspec.structs.replace(agreed, launch=plan.launch)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar and list of a document, by its dotted key."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _unaudited(plan: RunPlan) -> RunPlan:
    """The plan without what the first process's audit found: records that are left out, warnings."""
    train, val = (
        tuple(msgspec.structs.replace(part, skip=()) for part in parts) for parts in (plan.data.train, plan.data.val)
    )
    return msgspec.structs.replace(plan, data=msgspec.structs.replace(plan.data, train=train, val=val), warnings=())


def _data(plan: RunPlan) -> dict[str, str]:
    """What the records' files hold, whatever their dates are."""
    found = {}
    for split, parts in (("train", plan.data.train), ("val", plan.data.val)):
        for number, part in enumerate(parts):
            seen = fingerprint(Path(part.jsonl))
            found[f"data.{split}.{number} (its content)"] = f"{seen['bytes']} bytes, {seen['sha256_of_edges'][:12]}"
    return found
