"""The samples of every epoch of a run: of one file or a mixture, in the order in which they are shown, augmented."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vltool.data.dataset import CaptionDataset, Sample, Standing
from vltool.data.fusion import Draws, shuffled
from vltool.errors import Problem, Where


class Draw(NamedTuple):
    """A sample of a run by where it stands: its epoch, and its place in the order of that epoch, both from 0."""

    epoch: int
    place: int


class Order(Protocol):
    """Which records an epoch shows; as many in each."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Draws:
        """The records of an epoch, from 0, in order: a function of the epoch and a seed alone."""
        ...


class OneAfterTheOther:
    """All records of all datasets, in their files' order or shuffled anew in every epoch."""

    def __init__(self, counts: Sequence[int], *, seed: int | None) -> None:
        """counts: records of each dataset. seed: of the shuffle; None keeps the files' order."""
        self._counts = counts
        self._seed = seed

    def __len__(self) -> int:
        return sum(self._counts)

    def epoch(self, epoch: int) -> Draws:
        """As `Order.epoch`."""
        codes_N = np.arange(len(self), dtype=np.uint32)
        if self._seed is not None:
            codes_N = shuffled(codes_N, seed=self._seed, epoch=epoch)
        starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]]).astype(np.uint32)
        datasets_N = (np.searchsorted(starts, codes_N, side="right") - 1).astype(np.uint16)
        return Draws(datasets_N, codes_N - starts[datasets_N])


class Samples:
    """The samples of a run by their `Draw`; safe in forked workers.

    A sample depends on its draw and the seeds alone, whatever came before it, in whichever process.
    """

    def __init__(self, datasets: Sequence[CaptionDataset], order: Order, notes: Sequence[Problem] = ()) -> None:
        """notes: what is worth saying of how they are mixed."""
        self.notes = tuple(notes)
        self._datasets = datasets
        self._order = order
        self._epoch: tuple[int, Draws] | None = None

    def __len__(self) -> int:
        """Samples an epoch."""
        return len(self._order)

    def __getitem__(self, draw: Draw) -> Sample:
        """The sample of a draw. Raises BadContent with file:line for a record that cannot be used."""
        return self._sample(draw, augmented=True)

    def plain(self, draw: Draw) -> Sample:
        """The same, left unaugmented."""
        return self._sample(draw, augmented=False)

    def moved(self, draw: Draw) -> tuple[list[dict[str, Any]], Where] | None:
        """Messages and line of the same without pixels, as `CaptionDataset.moved`."""
        dataset, record = self.drawn(draw)
        return self._datasets[dataset].moved(record, self._standing(draw))

    def drawn(self, draw: Draw) -> tuple[int, int]:
        """The dataset of a draw, and the record in it."""
        if self._epoch is None or self._epoch[0] != draw.epoch:
            self._epoch = draw.epoch, self._order.epoch(draw.epoch)
        draws = self._epoch[1]
        return int(draws.datasets_N[draw.place]), int(draws.records_N[draw.place])

    @property
    def records(self) -> int:
        """Records of all datasets together."""
        return sum(map(len, self._datasets))

    def written(self, i: int) -> Sample:
        """Record i of all datasets, one after the other, as the files have it."""
        for dataset in self._datasets:
            if i < len(dataset):
                return dataset[i]
            i -= len(dataset)
        raise IndexError(f"record {i} past the last of all datasets")

    def _sample(self, draw: Draw, *, augmented: bool) -> Sample:
        dataset, record = self.drawn(draw)
        return self._datasets[dataset].sample(record, self._standing(draw), augmented=augmented)

    def _standing(self, draw: Draw) -> Standing:
        return Standing(draw.epoch, draw.place, draw.epoch * len(self) + draw.place)
