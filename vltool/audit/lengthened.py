"""What augmentation makes longer than a record may be: it ends no run, but is lost as augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vltool.data.augmented_lengths import AugmentedLengths, augmented_lengths
from vltool.data.tokens import TextCounter
from vltool.errors import Problem
from vltool.run.data import augmenter_of, run_length, training_samples
from vltool.run.plan import RunPlan


@dataclass(frozen=True, slots=True)
class Lengthened:
    """The lengths of a run's first epoch as it is augmented."""

    lengths: AugmentedLengths
    shown: int
    """Samples of that epoch that the run comes to."""

    def problem(self, plan: RunPlan) -> Problem | None:
        """What there is to say if some are too long."""
        found = self.lengths
        if found.longest is None:
            return None
        tokens, where = found.longest
        lie = "of" if found.looked_at == self.shown else "spread over"
        what = (
            f"augmentation makes {found.too_long:,} of {found.looked_at:,} samples {lie} the first epoch longer "
            f"than the limit of {plan.data.max_length} tokens (the longest {tokens}): they are shown as the files "
            "have them"
        )
        do = "raise global_max_length, lower template.max_pixels, or weaken what enlarges images in augmentation.ops"
        return Problem(what, do, where, "record-augmented-length")


def lengthened(
    plan: RunPlan,
    counter: TextCounter,
    *,
    stage: Callable[[str], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Lengthened | None:
    """Draw the first epoch as training does and count it; None where augmentation moves nothing.

    plan: with the records to leave out. stage and progress are told what is being done. Raises BadContent as
    `augmented_lengths` does, InvalidInput as `plan_mixture`, MissingOnHost without the packages of augmentation.
    """
    if plan.data.augmentation is None:
        return None
    processes = plan.launch.processes
    samples = training_samples(plan.data, plan.arguments, processes=processes)
    augmenter = augmenter_of(plan.data, plan.arguments, epoch=len(samples), processes=processes)
    if augmenter is None or not augmenter.moves:
        return None
    if stage is not None:
        stage("drawing the augmentation of the first epoch")
    shown = min(len(samples), run_length(plan.arguments, len(samples), processes)[0])
    lengths = augmented_lengths(
        samples,
        counter,
        shown=shown,
        max_length=plan.data.max_length,
        max_pixels=plan.data.max_pixels,
        progress=None if progress is None else lambda done, total: progress("drawing samples", done, total),
    )
    return Lengthened(lengths, shown)
