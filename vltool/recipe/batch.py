"""How many micro-batches make an optimizer step."""

from __future__ import annotations


def accumulation_steps(effective: int, per_device: int, processes: int) -> int | None:
    """Micro-batches of an optimizer step of `effective` samples; None when they do not divide it."""
    steps, rest = divmod(effective, per_device * processes)
    return None if rest or not steps else steps


def misfit(effective: int, per_device: int, processes: int) -> tuple[str, str]:
    """What is wrong with an effective batch that cannot be made, and what to write instead."""
    together = per_device * processes
    below = effective // together
    near = " or ".join(str(steps * together) for steps in dict.fromkeys((max(below, 1), below + 1)))
    what = f"training.effective_batch_size: {effective} is no multiple of {together} samples"
    what += f" ({per_device} a process x {processes} process{'es' * (processes > 1)})"
    return what, f"write effective_batch_size: {near}"
