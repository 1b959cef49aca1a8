"""Findings on what the environment tells NCCL and CUDA."""

from __future__ import annotations

from collections.abc import Iterator

from vltool.audit.finding import Finding, Rule
from vltool.audit.host import Host, gib
from vltool.run.plan import RunPlan

_NCCL = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html"

OFF = Rule(
    id="host-nccl",
    severity="warning",
    means="the environment turns off a way by which GPUs exchange gradients",
    why=(
        "Without peer-to-peer, shared memory or InfiniBand, NCCL takes a slower way. These variables are for finding "
        "faults, and are often left behind."
    ),
    remedy="Unset the variable, unless this host needs it.",
    source=_NCCL,
)
SLOW = Rule(
    id="host-nccl-debug",
    severity="warning",
    means="the environment makes NCCL or CUDA slower, or wordy",
    why=(
        "NCCL_DEBUG above WARN writes lines for every communicator. CUDA_LAUNCH_BLOCKING and TORCH_NCCL_BLOCKING_WAIT "
        "let the CPU wait for every kernel or exchange."
    ),
    remedy="Unset the variable once the fault is found.",
    source=_NCCL,
)
UNHANDLED = Rule(
    id="host-nccl-errors",
    severity="warning",
    means="the environment keeps torch from ending a run whose processes lost each other",
    why=(
        "With TORCH_NCCL_ASYNC_ERROR_HANDLING=0 no error of NCCL and no timeout ends a process: it waits for the one "
        "that is gone, and its GPU stays taken."
    ),
    remedy="Unset the variable.",
    covers="troubleshooting: NCCL monitoredBarrier after best checkpoint",
    source="https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html",
)
LOCKED = Rule(
    id="host-locked-memory",
    severity="warning",
    means="a process may lock too little memory for InfiniBand",
    why="Network cards use buffers that stay in memory. Where a process may not lock them, NCCL fails when it starts.",
    remedy="Raise the limit: ulimit -l unlimited, docker's --ulimit memlock=-1.",
    source="https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
)
RULES: tuple[Rule, ...] = (OFF, SLOW, UNHANDLED, LOCKED)

_LEAST_LOCKED = 2**30
_WAYS = ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE")
_NO_P2P = ("0", "LOC")
_WORDY = ("INFO", "TRACE")
_BLOCKING = ("CUDA_LAUNCH_BLOCKING", "TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT")
_HANDLING = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING")


def judge_environment(plan: RunPlan, host: Host) -> Iterator[Finding]:
    """What there is to say of the variables that a run would see; of NCCL's, where it has several processes."""
    # The shell's go before the recipe's.
    environment = dict(plan.env) | dict(host.environment)

    def value(name: str) -> str:
        return environment.get(name, "").strip().upper()

    for name in _BLOCKING:
        if value(name) not in ("", "0", "FALSE"):
            yield SLOW.finds(f"{name}={environment[name]} lets the CPU wait for the GPU every time")
    launch = plan.launch
    if launch.processes < 2:
        return
    if value("NCCL_DEBUG") in _WORDY:
        yield SLOW.finds(f"NCCL_DEBUG={environment['NCCL_DEBUG']} writes more than warnings")
    for name in _WAYS:
        used = launch.nnodes > 1 if name == "NCCL_IB_DISABLE" else launch.nproc_per_node > 1
        if used and value(name) not in ("", "0"):
            yield OFF.finds(f"{name}={environment[name]}")
    if launch.nproc_per_node > 1 and value("NCCL_P2P_LEVEL") in _NO_P2P:
        yield OFF.finds(f"NCCL_P2P_LEVEL={environment['NCCL_P2P_LEVEL']} never uses peer-to-peer")
    for name in _HANDLING:
        if value(name) == "0":
            yield UNHANDLED.finds(f"{name}=0 lets processes wait for ever for one that is gone")
    locked = host.locked_memory
    if launch.nnodes > 1 and value("NCCL_IB_DISABLE") in ("", "0") and locked is not None and locked < _LEAST_LOCKED:
        yield LOCKED.finds(f"a process may lock {gib(locked)} of memory (ulimit -l)")
