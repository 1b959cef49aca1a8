"""What a run's augmentation does to a sample: a function of the seed and of where the sample stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vltool.data.augment.curriculum import Schedule
from vltool.data.augment.pipeline import Augmented, Pipeline, Placed
from vltool.data.augment.spatial import SPATIAL
from vltool.data.record import Object
from vltool.recipe.schema import Augmentation


class _Drawn(NamedTuple):
    pipeline: Pipeline
    bypassed: bool
    rng: np.random.Generator


class Augmenter:
    """`custom.augmentation` over a run."""

    def __init__(self, augmentation: Augmentation, *, seed: int, samples: int, samples_a_step: float) -> None:
        """samples: of the whole run. samples_a_step: of an optimizer step, over all processes."""
        self._schedule = Schedule(augmentation, samples=samples, samples_a_step=samples_a_step)
        self._seed = seed
        self.moves = any(op.name in SPATIAL for op in augmentation.ops)
        """Whether sizes and objects may change, and not colours alone."""

    def apply(
        self,
        image_HW3: NDArray[np.uint8],
        objects: Sequence[Object],
        *,
        epoch: int,
        index: int,
        position: int,
        curriculum: bool = True,
    ) -> Augmented:
        """A sample as it is shown there: place `index` of an epoch, `position` of the run.

        image_HW3: uint8 RGB, left as it is. Where every object would fall outside, the sample stays as it was.
        """
        drawn = self._drawn(epoch, index, position, curriculum)
        height, width = image_HW3.shape[:2]
        same = Augmented(width, height, tuple(objects), (), image=image_HW3, bypassed=drawn.bypassed)
        if drawn.bypassed:
            return same
        done = drawn.pipeline.apply(image_HW3, objects, rng=drawn.rng)
        return replace(same, reverted=True) if objects and not done.objects else done

    def place(
        self,
        width: int,
        height: int,
        objects: Sequence[Object],
        *,
        epoch: int,
        index: int,
        position: int,
        curriculum: bool = True,
    ) -> Placed:
        """Size and objects of the same sample, without pixels."""
        drawn = self._drawn(epoch, index, position, curriculum)
        same = Placed(width, height, tuple(objects), (), bypassed=drawn.bypassed)
        if drawn.bypassed:
            return same
        done = drawn.pipeline.place(width, height, objects, rng=drawn.rng)
        return replace(same, reverted=True) if objects and not done.objects else done

    def _drawn(self, epoch: int, index: int, position: int, curriculum: bool) -> _Drawn:
        pipeline, bypass_prob = self._schedule.at(position) if curriculum else self._schedule.start()
        bypass, rng = np.random.default_rng([self._seed, epoch, index]).spawn(2)
        return _Drawn(pipeline, bool(bypass.random() < bypass_prob), rng)
