"""What a run reads: its files, how their records become samples, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset
from vltool.data.fusion import plan_mixture
from vltool.data.policy import Policy
from vltool.data.samples import OneAfterTheOther, Order, Samples
from vltool.errors import MissingOnHost, Problem
from vltool.recipe.fusion import Fusion
from vltool.recipe.schema import Augmentation

if TYPE_CHECKING:
    from vltool.data.augment.policy import Augmenter


_AUGMENT = {"cv2": "OpenCV", "shapely": "shapely"}
"""What augmentation imports, and how it is called."""


class DatasetPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a run."""

    jsonl: str
    limit: int | None
    """The first records that are used."""
    policy: Policy = Policy()
    skip: tuple[int, ...] = ()
    """Positions of records that the audit found bad and the recipe allows to skip."""


class DataPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records, how they become messages, and the limits they must keep."""

    train: tuple[DatasetPlan, ...]
    val: tuple[DatasetPlan, ...]
    """Empty for no evaluation."""
    user_prompt: str
    system_prompt: str | None
    emit_norm: Literal["none", "norm100", "norm1000"]
    use_summary: bool
    max_length: int
    max_pixels: int | None
    image_root: str | None
    fusion: Fusion | None = None
    """How the training files are mixed; None: one after the other."""
    augmentation: Augmentation | None = None
    """None for none; of training samples only."""
    on_bad_record: Literal["error", "skip"]
    preflight: bool

    def reading(self, dataset: DatasetPlan) -> dict[str, Any]:
        """How records of a file are read: arguments of `vltool.data.scan.scan` and `CaptionDataset`."""
        return {
            "prompts": Prompts(user=self.user_prompt, system=self.system_prompt),
            "emit_norm": self.emit_norm,
            "use_summary": self.use_summary,
            "max_pixels": self.max_pixels,
            "sample_limit": dataset.limit,
            "root": None if self.image_root is None else Path(self.image_root),
            "policy": dataset.policy,
        }


def training_samples(data: DataPlan, arguments: dict[str, Any], *, processes: int) -> Samples:
    """The training samples of a run with these arguments of ms-swift's. Raises as `JsonlIndex` and `plan_mixture`."""
    seed = arguments.get("data_seed") or 0
    parts = [CaptionDataset(Path(part.jsonl), **data.reading(part), skip=part.skip, seed=seed) for part in data.train]
    counts = [len(part) for part in parts]
    order: Order
    notes: Sequence[Problem] = ()
    if data.fusion is None:
        shuffled = arguments.get("train_dataloader_shuffle", True)
        order = OneAfterTheOther(counts, seed=seed if shuffled else None)
    else:
        order = mixture = plan_mixture(data.fusion, counts, seed=seed)
        notes = mixture.notes
    augmenter = augmenter_of(data, arguments, epoch=len(order), processes=processes)
    for part in parts:
        part.augmenter = augmenter
    return Samples(parts, order, notes)


def augmenter_of(data: DataPlan, arguments: dict[str, Any], *, epoch: int, processes: int) -> Augmenter | None:
    """What augments the training samples of a run, an epoch of which has so many; None where nothing does.

    Raises MissingOnHost without the packages that it needs.
    """
    if data.augmentation is None:
        return None
    # A light install has neither, and does not need them until here.
    if missing := [name for module, name in _AUGMENT.items() if find_spec(module) is None]:
        what = f"custom.augmentation needs {' and '.join(missing)}, which this host lacks"
        raise MissingOnHost(what, "pip install 'vltool[augment]', or write augmentation: {enabled: false}")
    from vltool.data.augment.policy import Augmenter

    samples, a_step = run_length(arguments, epoch, processes)
    return Augmenter(data.augmentation, seed=arguments.get("data_seed") or 0, samples=samples, samples_a_step=a_step)


def validation_samples(data: DataPlan) -> Samples | None:
    """The validation samples, file after file; None without any. Raises as `JsonlIndex`."""
    parts = [CaptionDataset(Path(part.jsonl), **data.reading(part), skip=part.skip) for part in data.val]
    return Samples(parts, OneAfterTheOther([len(part) for part in parts], seed=None)) if parts else None


def run_length(arguments: dict[str, Any], epoch: int, processes: int) -> tuple[int, float]:
    """Samples of the whole run, and of an optimizer step, where an epoch has so many.

    Of a step on average: an epoch's last one is smaller where its samples do not come out even, and what
    `dataloader_drop_last` leaves out counts as passed.
    """
    together = arguments.get("per_device_train_batch_size", 1) * processes
    batches = epoch // together if arguments.get("dataloader_drop_last") else math.ceil(epoch / together)
    steps_an_epoch = max(math.ceil(batches / arguments.get("gradient_accumulation_steps", 1)), 1)
    if (steps := arguments.get("max_steps", -1)) > 0:
        return math.ceil(Fraction(steps * epoch, steps_an_epoch)), epoch / steps_an_epoch
    return math.ceil(arguments.get("num_train_epochs", 3.0) * epoch), epoch / steps_an_epoch
