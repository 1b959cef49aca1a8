"""Rules on processes: how a batch is split over them, DeepSpeed, nodes, their environment."""

from __future__ import annotations

import re

from vltool.errors import nearest
from vltool.recipe.batch import accumulation_steps, misfit
from vltool.recipe.settings import Settings

DEEPSPEED_CONFIGS = ("zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
"""Names that ms-swift has a DeepSpeed configuration for."""


def batches_divide(settings: Settings) -> None:
    """`effective_batch_size` is what accumulation comes to, and is said once."""
    effective = settings["training.effective_batch_size"]
    if effective is None:
        return
    key, other = "training.effective_batch_size", "training.gradient_accumulation_steps"
    if settings.written(other):
        places = f"{settings.where(key)} and {settings.where(other)}"
        what = f"{key} and gradient_accumulation_steps say the same thing twice ({places})"
        settings.problem(settings.latest(key, other), what, "write null for one of the two")
        return
    per_device = settings["training.per_device_train_batch_size"]
    on_node = settings["launch.nproc_per_node"]
    # With `auto` the host decides; `train` looks at it there.
    processes = (1 if on_node == "auto" else on_node) * settings["launch.nnodes"]
    if per_device >= 1 and accumulation_steps(effective, per_device, processes) is None:
        parts = ("training.per_device_train_batch_size", "launch.nproc_per_node", "launch.nnodes")
        settings.problem(settings.latest(key, *parts), *misfit(effective, per_device, processes))


def deepspeed_is_configured(settings: Settings) -> None:
    """DeepSpeed needs a configuration, by a name that ms-swift knows or as a file or mapping."""
    enabled, config = settings["deepspeed.enabled"], settings["deepspeed.config"]
    if enabled and config is None:
        what = "deepspeed.enabled is true, but deepspeed.config is missing"
        settings.problem("deepspeed.enabled", what, "write config: zero2, config: zero3 or a JSON file beside it")
    if isinstance(config, str) and "/" not in config and config not in ("", *DEEPSPEED_CONFIGS):
        guess = nearest(config, DEEPSPEED_CONFIGS)
        do = f"did you mean {guess}?" if guess else f"known: {', '.join(DEEPSPEED_CONFIGS)}; or write a path"
        settings.problem("deepspeed.config", f"deepspeed.config: there is no {config}", do)


def nodes_are_numbered(settings: Settings) -> None:
    """`node_rank` counts from 0."""
    rank, nodes = settings["launch.node_rank"], settings["launch.nnodes"]
    if rank >= nodes:
        what = f"launch.node_rank: {rank} is none of {nodes} node{'s' * (nodes > 1)}, which are counted from 0"
        settings.problem("launch.node_rank", what, "write a rank below launch.nnodes")


_MEETING = ("master_addr", "master_port", "rdzv_endpoint", "rdzv_backend", "rdzv_id")


def nodes_can_meet(settings: Settings) -> None:
    """Several nodes need an address that all of them know; one node needs none."""
    nodes = settings["launch.nnodes"]
    address, endpoint = settings["launch.master_addr"], settings["launch.rdzv_endpoint"]
    if nodes > 1 and not (address or endpoint):
        what = f"launch.nnodes: {nodes} nodes have nowhere to meet"
        do = "write launch.master_addr, the first node's address, or launch.rdzv_endpoint: HOST:PORT"
        settings.problem("launch.nnodes", what, do)
    elif nodes > 1 and address and endpoint:
        what = "launch.master_addr and launch.rdzv_endpoint are two ways to meet"
        at = settings.latest("launch.master_addr", "launch.rdzv_endpoint")
        settings.problem(at, what, "write null for one of the two")
    else:
        unread = _MEETING if nodes == 1 else ("rdzv_backend", "rdzv_id") if address else ("master_port",)
        why = "with one node there is nobody to meet" if nodes == 1 else "it belongs to the other way to meet"
        for key in unread:
            if settings[f"launch.{key}"] is not None:
                settings.note(f"launch.{key}", f"launch.{key} has no effect: {why}", "take the line out")


def variables_have_names(settings: Settings) -> None:
    """Names in `launch.env` that no environment can hold."""
    for name in settings["launch.env"]:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            key = f"launch.env.{name}"
            settings.problem(key, f"launch.env: {name!r} is no variable's name", "letters, digits and _ make one")


RULES = (batches_divide, deepspeed_is_configured, nodes_are_numbered, nodes_can_meet, variables_have_names)
