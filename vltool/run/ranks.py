"""The processes of a run: how many there are, which of them this one is, and the command that starts them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from vltool.errors import InvalidInput, Problem
from vltool.recipe.schema import Recipe

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process that it starts."""
MS_SWIFT_VARIABLES = ("NPROC_PER_NODE", "NNODES", "NODE_RANK")
"""What ms-swift's own launcher reads."""


class LaunchPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Processes and nodes, and how the nodes meet."""

    nproc_per_node: int
    nnodes: int
    node_rank: int
    master_addr: str | None = None
    master_port: int | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None

    @property
    def processes(self) -> int:
        """On all nodes together."""
        return self.nproc_per_node * self.nnodes


@dataclass(frozen=True, slots=True)
class Place:
    """One process among those that torchrun started."""

    rank: int
    local_rank: int
    processes: int
    on_node: int


def place_in(env: Mapping[str, str]) -> Place | None:
    """This process's place, by torchrun's variables; None where nothing says that there are others.

    Raises InvalidInput for an environment with some of the variables only, or with values that are none.
    """
    if not ({"RANK", "LOCAL_RANK"} & env.keys() or env.get("WORLD_SIZE", "1") != "1"):
        return None
    missing = [name for name in VARIABLES if not env.get(name)]
    if missing:
        there = ", ".join(f"{name}={env[name]}" for name in VARIABLES if env.get(name))
        raise InvalidInput(
            f"the environment says that torchrun started this process ({there}), but {', '.join(missing)} is not set",
            "launch with vltool train and launch.nproc_per_node, or with torchrun, or unset these variables",
        )
    try:
        place = Place(*(int(env[name]) for name in VARIABLES[:4]))
    except ValueError:
        numbers = ", ".join(f"{name}={env[name]}" for name in VARIABLES[:4])
        raise InvalidInput(f"torchrun's variables are no numbers: {numbers}", "unset them, or mend them") from None
    if not (0 <= place.rank < place.processes and 0 <= place.local_rank < place.on_node <= place.processes):
        numbers = ", ".join(f"{name}={env[name]}" for name in VARIABLES[:4])
        raise InvalidInput(f"torchrun's variables contradict each other: {numbers}", "unset them, or mend them")
    return place


def visible_gpus(env: Mapping[str, str]) -> list[str]:
    """NVIDIA GPUs that processes on this host may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = env.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def launch_plan(recipe: Recipe, env: Mapping[str, str], problems: list[Problem]) -> LaunchPlan:
    """The recipe's `launch` section on this host; torchrun's variables, where it started this process, go first.

    Appends to `problems` what the environment says against the recipe.
    """
    launch = recipe.launch
    for name in MS_SWIFT_VARIABLES:
        if env.get(name, "1") not in ("0", "1"):
            what = f"the environment sets {name}={env[name]}, which ms-swift's launcher reads and vltool does not"
            problems.append(Problem(what, "unset it, and write launch.nproc_per_node or launch.nnodes in the recipe"))
    wanted = launch.nproc_per_node
    on_node = max(1, len(visible_gpus(env))) if wanted == "auto" else wanted
    nnodes, node_rank = launch.nnodes, launch.node_rank
    try:
        place = place_in(env)
    except InvalidInput as error:
        problems.extend(error.problems)
        place = None
    if place is not None:
        if launch.nproc_per_node not in (1, "auto", place.on_node):
            what = f"launch.nproc_per_node: {on_node}, but torchrun started {place.on_node} on this node"
            problems.append(Problem(what, "say the same in both", recipe.where("launch.nproc_per_node")))
        on_node = place.on_node
        nnodes, rest = divmod(place.processes, on_node)
        node_rank = place.rank // on_node
        if rest or launch.nnodes not in (1, nnodes):
            what = f"launch.nnodes: {launch.nnodes}, but torchrun started {place.processes} processes, {on_node} a node"
            problems.append(Problem(what, "say the same in both", recipe.where("launch.nnodes")))
    return LaunchPlan(
        nproc_per_node=on_node,
        nnodes=nnodes,
        node_rank=node_rank,
        master_addr=launch.master_addr,
        master_port=launch.master_port,
        rdzv_backend=launch.rdzv_backend,
        rdzv_endpoint=launch.rdzv_endpoint,
        rdzv_id=launch.rdzv_id,
    )


def torchrun_command(plan: LaunchPlan, module: str, arguments: list[str], *, logs: Path | None = None) -> list[str]:
    """The command that starts this node's processes, each `python -m MODULE ARGUMENTS`.

    logs: a folder for what they print; None lets it through.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={plan.nproc_per_node}"]
    if plan.nnodes == 1:
        command.append("--standalone")
    elif plan.rdzv_endpoint is not None:
        command += [f"--nnodes={plan.nnodes}", f"--node-rank={plan.node_rank}"]
        command += [f"--rdzv-backend={plan.rdzv_backend or 'c10d'}", f"--rdzv-endpoint={plan.rdzv_endpoint}"]
        command += [f"--rdzv-id={plan.rdzv_id or 'vltool'}"]
    else:
        command += [f"--nnodes={plan.nnodes}", f"--node-rank={plan.node_rank}"]
        command += [f"--master-addr={plan.master_addr}", f"--master-port={plan.master_port or 29500}"]
    if logs is not None:
        command += [f"--log-dir={logs}", "--redirects=3"]
    return [*command, "-m", module, *arguments]
