"""Augmented variants of a record, as a run of a recipe would draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vltool.data.dataset import can_change
from vltool.data.fusion import capped
from vltool.data.policy import Policy, policy_of
from vltool.data.record import Record
from vltool.run.data import augmenter_of, run_length
from vltool.run.plan import RunPlan

if TYPE_CHECKING:
    from vltool.data.augment.pipeline import Augmented


class Variants(Protocol):
    """Makes variants of a record."""

    def __call__(self, image: Any, record: Record, *, index: int) -> Sequence[tuple[str, Augmented]]:
        """Each variant with what to call it: how far the run is.

        image: the record's, height × width × 3, uint8, RGB. index: the record's position in its file.
        """


def variants_of(plan: RunPlan, policy: Policy, *, epoch: int, count: int) -> Variants | None:
    """What makes `count` variants of each training record of a dataset; None where the run augments nothing.

    They are drawn at even distances from the beginning of the run to its end, which is what a curriculum goes by.
    policy: the dataset's. epoch: samples of one epoch of the run.
    """
    processes = plan.launch.processes
    augmenter = augmenter_of(plan.data, plan.arguments, epoch=epoch, processes=processes)
    if augmenter is None or count < 1:
        return None
    samples, _ = run_length(plan.arguments, epoch, processes)

    def draw(image: Any, record: Record, *, index: int) -> list[tuple[str, Augmented]]:
        its = policy_of(record, policy)
        drawn: list[tuple[str, Augmented]] = []
        most = its.max_objects or len(record.objects)
        for number in range(count if its.augmentation_enabled and can_change(record) else 0):
            position = number * (samples - 1) // max(count - 1, 1)
            # Another epoch for each, because the draw of a place differs between epochs alone.
            variant = augmenter.apply(
                image,
                capped(record, most, seed=0, epoch=number, position=index).objects,
                epoch=number,
                index=index,
                position=position,
                curriculum=its.curriculum_enabled,
            )
            drawn.append((f"at {100 * position // max(samples - 1, 1)} % of the run", variant))
        return drawn

    return draw
