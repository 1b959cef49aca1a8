"""Findings on the disks that a run writes to: whether its checkpoints fit, and whether other nodes see them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vltool.audit.activations import FP32
from vltool.audit.finding import Finding, Rule
from vltool.audit.host import Host, gib
from vltool.audit.memory_resident import optimizer_states
from vltool.audit.memory_terms import Terms
from vltool.errors import Where
from vltool.run.arguments import value_of
from vltool.run.data import run_length
from vltool.run.merge import is_merged
from vltool.run.plan import RunPlan

_TOPK_BYTES = 8
"""Of each of the teacher's likeliest tokens in a cache: a logarithm in fp32 and an id in int32."""
_FEW = 20
"""Checkpoints for which there should be room where none is ever deleted."""

ROOM = Rule(
    id="host-disk",
    severity="error",
    means="what the run will save does not fit on the disk",
    why=(
        "A checkpoint holds the trained weights and the optimizer's state, which is larger. Each is written beside "
        "the older ones before one of those is deleted. On a full disk the run ends, with what it has learnt since "
        "the last checkpoint lost."
    ),
    remedy=(
        "Free the disk, name another in training.output_dir, or keep fewer checkpoints with training.save_total_limit."
    ),
)
FOLDER = Rule(
    id="host-run-folder",
    severity="error",
    means="the run folder cannot be written to, or lies where it will be lost or other nodes do not see it",
    why=(
        "Without the right to write a run ends before its first step. Checkpoints of several nodes come together in "
        "one folder; a run whose nodes do not all see it ends once the model is loaded. A folder in memory is gone "
        "when the host or its container is."
    ),
    remedy="Name a folder on a disk that all nodes share in training.output_dir.",
)
RULES: tuple[Rule, ...] = (ROOM, FOLDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSize:
    """Bytes of one checkpoint."""

    weights: int
    optimizer: int
    """The optimizer's state; under DeepSpeed with its copies of the weights."""

    @property
    def total(self) -> int:
        """All of it; configuration and tokenizer are small beside it."""
        return self.weights + self.optimizer


def checkpoint_size(terms: Terms) -> CheckpointSize:
    """What a checkpoint of a plan holds, from the base's headers: all processes' shares together."""
    anatomy, how = terms.anatomy, terms.how
    everything = anatomy.size(trained=True) + anatomy.size(trained=False)
    weights = everything * terms.stream
    if terms.run.tuner.tuner_type != "full":
        weights = (anatomy.adapters + anatomy.carried) * how.adapter + anatomy.copied * terms.copy
    shares = terms.processes if terms.stage >= 1 else 1
    optimizer = shares * sum(row.bytes for row in optimizer_states(terms))
    if terms.deepspeed is not None:
        # Its own file of the module, for an adapter without what is frozen.
        optimizer += terms.trained_bytes if terms.run.tuner.tuner_type != "full" else weights
        if terms.stream == FP32 and terms.stage >= 1:
            optimizer += terms.trained * FP32  # copies of what trains, in fp32 as in 16 bits
    return CheckpointSize(weights=weights, optimizer=optimizer)


def checkpoints_at_once(plan: RunPlan, *, records: int | None = None) -> int | None:
    """How many checkpoints lie on the disk at the worst; None for as many as the run saves, where that is not known.

    records: samples of an epoch, if they were counted. The one that is written lies beside those that are kept
    (`vltool.training.checkpoints`).
    """
    limit = value_of(plan.arguments, "save_total_limit")
    saves = _saves(plan, records)
    if limit is None or int(limit) <= 0:
        return saves
    kept = int(limit)
    if kept == 1 and plan.arguments.get("metric_for_best_model"):
        kept = 2  # the best, and the last
    return kept + 1 if saves is None else min(kept + 1, saves)


def _saves(plan: RunPlan, records: int | None) -> int | None:
    """Checkpoints that the whole run writes; None where its length is not known."""
    arguments = plan.arguments
    steps = int(arguments.get("max_steps") or -1)
    epochs = float(arguments.get("num_train_epochs") or 3.0)
    if steps <= 0 and records:
        samples, a_step = run_length(arguments, records, plan.launch.processes)
        steps = math.ceil(samples / a_step)
    if arguments.get("save_strategy") == "epoch":
        return math.ceil(epochs) if int(arguments.get("max_steps") or -1) <= 0 else None
    every = float(value_of(arguments, "save_steps") or 500)
    if every < 1:
        return math.ceil(1 / every)  # a share of the run
    return max(math.ceil(steps / every), 1) if steps > 0 else None


def folders_of(plan: RunPlan) -> list[Path]:
    """The folders that a run writes to, whose disks have to be read."""
    found = [plan.run_dir]
    if plan.merge is not None:
        found.append(plan.merge.folder)
    if plan.distillation is not None and plan.distillation.cache is not None:
        found.append(plan.distillation.cache.folder)
    return [Path(folder) for folder in dict.fromkeys(found)]


def judge_disks(plan: RunPlan, host: Host, terms: Terms | None, *, records: int | None = None) -> Iterator[Finding]:
    """What does not fit, or lies in the wrong place.

    terms: None where the base's headers say too little to count; then nothing is said of sizes.
    """
    if terms is not None:
        yield from _room(plan, host, terms, records)
    disk = host.disks.get(plan.run_dir)
    if disk is None:
        return
    where = place(plan, "output_dir")
    if not disk.writable:
        yield FOLDER.finds(f"the run folder {plan.run_dir} cannot be written to", where=where)
    if not disk.kind:
        return
    if disk.in_memory:
        yield FOLDER.finds(
            f"the run folder {plan.run_dir} lies in memory ({disk.kind})", where=where, severity="warning"
        )
    elif plan.launch.nnodes > 1 and not disk.network:
        what = (
            f"the run folder {plan.run_dir} lies on this node's own disk ({disk.kind}), and the run has "
            f"{plan.launch.nnodes} nodes"
        )
        yield FOLDER.finds(what, where=where, severity="warning")


def _room(plan: RunPlan, host: Host, terms: Terms, records: int | None) -> Iterator[Finding]:
    """Hold what is written to each disk against its room."""
    size = checkpoint_size(terms)
    count = checkpoints_at_once(plan, records=records)
    several = count if count is not None else 2
    if plan.resume is not None:
        several = 1  # the others lie there already
    words = f"{several} checkpoint{'s' * (several != 1)} of {gib(size.total)}"
    parts: list[tuple[str, int, str]] = [(plan.run_dir, several * size.total, words)]
    if plan.merge is not None and not is_merged(plan.merge):
        base = sum(weight.size for weight in terms.anatomy.weights) * terms.stream
        parts.append((plan.merge.folder, base, f"a merged base of {gib(base)}"))
    kd = plan.distillation
    if kd is not None and kd.cache is not None and records:
        cache = records * terms.batch.labels * (kd.cache.topk * _TOPK_BYTES + 4)
        parts.append((kd.cache.folder, cache, f"at most {gib(cache)} of the teacher's log-probabilities"))
    wanted: dict[int, list[tuple[str, int, str]]] = defaultdict(list)
    for part in parts:
        if part[0] in host.disks:
            wanted[host.disks[part[0]].device].append(part)
    for together in wanted.values():
        free = host.disks[together[0][0]].free
        needed = sum(part[1] for part in together)
        if needed > free:
            told = " and ".join(part[2] for part in together)
            what = f"{told} need {gib(needed)}, and the disk of {together[0][0]} has {gib(free)} free"
            evidence = f"a checkpoint: {gib(size.weights)} of weights, {gib(size.optimizer)} of the optimizer's state"
            where = place(plan, "save_total_limit") or place(plan, "output_dir")
            yield ROOM.finds(what, where=where, evidence=evidence)
        elif count is None and together[0][0] == plan.run_dir and (fit := free // max(size.total, 1)) < _FEW:
            what = f"every checkpoint is kept, and the disk of {plan.run_dir} has room for {fit} of {gib(size.total)}"
            yield ROOM.finds(what, where=place(plan, "output_dir"), severity="warning")


def place(plan: RunPlan, name: str) -> Where | None:
    """The recipe's line that set one of ms-swift's arguments."""
    origin = plan.origins.get(name)
    if origin is None:
        return None
    file, *numbers = origin.rsplit(":", 2)
    if len(numbers) == 2 and all(part.isdecimal() for part in numbers):
        return Where(file, *map(int, numbers))
    return Where(origin)
