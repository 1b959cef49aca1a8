"""Which samples make which batch on which process: a function of epoch and place alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from vltool.data.samples import Draw


class Batches(Sampler[list[Draw]]):
    """The batches of one process.

    An epoch's samples are cut into batches one after the other, which are dealt out in turn, so that one
    optimizer step sees the same samples however many processes share it. Every process gets as many batches,
    of the same sizes: what the last round lacks is filled with places past the last sample, which stand for
    samples that no loss sees.
    """

    def __init__(self, samples: int, *, batch_size: int, rank: int, ranks: int, drop_last: bool = False) -> None:
        """samples: of an epoch."""
        self._samples = samples
        self._batch_size = batch_size
        self._rank = rank
        self._ranks = ranks
        self._rest = 0 if drop_last else samples % (batch_size * ranks)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Deal out this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._samples // (self._batch_size * self._ranks) + (self._rest > 0)

    def __iter__(self) -> Iterator[list[Draw]]:
        round_size = self._batch_size * self._ranks
        whole = self._samples // round_size * round_size
        for start in range(self._rank * self._batch_size, whole, round_size):
            yield self._draws(range(start, start + self._batch_size))
        if self._rest:
            size = min(self._batch_size, self._rest)
            start = whole + self._rank * size
            places = list(range(start, min(start + size, self._samples)))
            yield self._draws(places + list(range(self._samples, self._samples + size - len(places))))

    def _draws(self, places: range | list[int]) -> list[Draw]:
        return [Draw(self.epoch, place) for place in places]
