"""Which records make which batch on which process: a function of seed, epoch and position alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class Batches(Sampler[list[int]]):
    """The batches of one process.

    All records are put in order, by seed and epoch; batches are cut from it one after the other and dealt
    out in turn, so that one optimizer step sees the same records however many processes share it. Every
    process gets as many batches, of the same sizes: what the last round lacks is filled with `records` and
    the numbers after it, which stand for records that no loss sees.
    """

    def __init__(
        self, records: int, *, batch_size: int, rank: int, ranks: int, seed: int | None, drop_last: bool = False
    ) -> None:
        """seed: None keeps the records' own order."""
        self._records = records
        self._batch_size = batch_size
        self._rank = rank
        self._ranks = ranks
        self._seed = seed
        self._rest = 0 if drop_last else records % (batch_size * ranks)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._records // (self._batch_size * self._ranks) + (self._rest > 0)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        round_size = self._batch_size * self._ranks
        whole = self._records // round_size * round_size
        for start in range(self._rank * self._batch_size, whole, round_size):
            yield [int(record) for record in order[start : start + self._batch_size]]
        if self._rest:
            size = min(self._batch_size, self._rest)
            start = whole + self._rank * size
            batch = [int(record) for record in order[start : start + size]]
            yield batch + list(range(self._records, self._records + size - len(batch)))

    def _order(self) -> Sequence[int] | torch.Tensor:
        if self._seed is None:
            return range(self._records)
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        return torch.randperm(self._records, generator=generator)
