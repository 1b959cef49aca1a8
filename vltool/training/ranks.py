"""The processes of a run: what they add up, agree on and wait for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vltool.run.ranks import place_in

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""For how long a process waits for another, which may be reading all records or writing a large checkpoint."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all of the run's. Alone, it agrees with itself at once.

    Every method but `is_first` is to be called by all processes, in the same order.
    """

    rank: int = 0
    count: int = 1
    _decisions: Any = None
    """A group over the CPU: what is decided there waits for no GPU."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in float64: the same bits on each."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._decisions)
        result: list[float] = sums.tolist()
        return result

    def most(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.count == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._decisions)
        return int(largest)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._decisions)
        return values

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier(group=self._decisions)

    def end(self) -> None:
        """Leave the others, when all are ready to."""
        self.wait()
        if dist.is_initialized():
            dist.destroy_process_group()


def meet(*, deepspeed: bool = False) -> Ranks:
    """Wait for the other processes that torchrun started, if it started this one.

    deepspeed: whether the run uses it, so that it has to know them too.
    """
    place = place_in(os.environ)
    if place is None:
        return Ranks()
    backend, device = "gloo", None
    if torch.cuda.is_available():
        backend, device = "nccl", torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=PATIENCE, device_id=device)
    if deepspeed:
        # Under ZeRO-3 a model is sharded while it is loaded, by the processes that DeepSpeed knows by then.
        from deepspeed import init_distributed

        init_distributed(backend, auto_mpi_discovery=False)
    decisions = dist.group.WORLD if device is None else dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(place.rank, place.processes, decisions)
