"""Records -> model inputs, in dataloader workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vltool.data.dataset import Change, Sample, placed
from vltool.data.geometry_spans import Span
from vltool.data.samples import Draw, Samples
from vltool.errors import BadContent, Problem, Where
from vltool.training.chunks import TopK
from vltool.training.generate import prompt_of
from vltool.training.geometry_tokens import GEOMETRY, collated
from vltool.training.losses import IGNORE
from vltool.training.teacher_cache import TeacherCache

FACTS = "vltool_facts"
"""Key of a batch under which its `BatchFacts` lie."""


TAUGHT = dict(zip(TopK._fields, ("taught_logprobs", "taught_ids", "taught_tail"), strict=True))
"""Part of a cached teacher's word -> the key under which it lies in a batch, for all its label positions in order."""

PROMPTS = "vltool_prompts"
"""Key of a batch under which its samples lie without their answers, where some steps sample their own."""
PLACE = "vltool_place"
"""Key of a sample under which the `Where` of its record lies; a filler has none."""
_SKIPPED = "vltool_skipped"
"""Key of a filler under which the problems of the record lie that it stands for."""
_CHANGE = "vltool_change"
"""Key of a sample under which its `Change` lies."""

_TAUGHT = "taught"
"""The same of one sample, before it is in a batch."""
_NOT_FOR_THE_MODEL = {
    FACTS, PROMPTS, GEOMETRY, "labels", "compute_loss_func", "loss_scale", "text_position_ids", "channel",
    *TAUGHT.values(),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What a batch comes to, known without looking at its tensors, which may lie on a GPU."""

    label_tokens: int = 0
    """Tokens that the loss sees."""
    patches: int = 0
    """Patches of its records' images, before the merger."""
    records: tuple[Where, ...] = ()
    """The places of its records."""
    changes: tuple[Change, ...] = ()
    """What augmentation came to in each of them."""
    skipped: tuple[Problem, ...] = ()
    """Why records are missing in it, where the recipe has bad ones left out."""
    problems: tuple[Problem, ...] = ()
    """Why the batch could not be made; it holds nothing else then."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Samples without their answers; in a class of their own, which nothing moves to a device."""

    samples: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class BlankImage:
    """A black image of one token, for batches without any.

    The vision tower has to run on every process and in every step: where another process's does, its
    parameters are gathered and their gradients averaged by all. The image follows the last token of a
    record, so no other token attends to it, and its own are no labels: it changes no loss, and the gradient
    that it brings the tower is zero.
    """

    token_ids: tuple[int, ...]
    """Start of vision, placeholder, end of vision."""
    kinds: tuple[int, ...]
    """The same as `mm_token_type_ids`."""
    pixel_values: Tensor
    image_grid_thw: Tensor

    def filler(self) -> dict[str, Any]:
        """A sample of one token, without an image, that no loss sees."""
        return {"input_ids": [self.token_ids[-1]], "labels": [IGNORE], "length": 1, "lengths": [1]}

    def after(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The text-only sample with this image at its end."""
        count = len(self.token_ids)
        longer = sample | {
            "input_ids": [*sample["input_ids"], *self.token_ids],
            "labels": [*sample["labels"], *(IGNORE,) * count],
            "mm_token_type_ids": torch.tensor([0] * len(sample["input_ids"]) + list(self.kinds)),
            "pixel_values": self.pixel_values,
            "image_grid_thw": self.image_grid_thw,
        }
        if sample.get("loss_scale") is not None:
            longer["loss_scale"] = [*sample["loss_scale"], *(0.0,) * count]
        return longer


class Encode(Protocol):
    """Messages -> input ids, labels, pixel values of one sample."""

    def __call__(self, messages: list[dict[str, Any]], geometry: Sequence[Span] = ()) -> dict[str, Any]:
        """geometry: where coordinates stand in the last message. Raises BadContent without a place."""


class EncodedRecords(Dataset[dict[str, Any]]):
    """The samples of a run, encoded where they are asked for.

    A record that cannot be encoded becomes a sample that holds its problems: an exception raised in a
    worker would reach the user wrapped in that worker's traceback.
    """

    def __init__(
        self,
        samples: Samples,
        encode: Encode,
        blank: BlankImage,
        cache: TeacherCache | None = None,
        *,
        skips_bad: bool = False,
    ) -> None:
        """cache: what a teacher said of the records of the only file, which samples hold once `reads_cache` is set.
        skips_bad: put a filler in the place of a record that cannot be encoded.
        """
        self._skips_bad = skips_bad
        self.cache = cache
        self.reads_cache = False
        self._samples = samples
        self._blank = blank
        self._encode = encode
        self._deaf = False
        self._over = multiprocessing.RawValue("b", 0)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self._samples)

    @property
    def records(self) -> int:
        """Records of the files."""
        return self._samples.records

    def __getitem__(self, at: Draw | int) -> dict[str, Any]:
        """The sample of a draw, or record `at` as the files have it.

        One past the last fills a batch, and nothing in it counts.
        """
        self._leave_signals_to_the_trainer()
        if at >= self.records if isinstance(at, int) else at.place >= len(self):
            return self._blank.filler()
        try:
            return self._encoded(at)
        except BadContent as error:
            if self._skips_bad:
                return self._blank.filler() | {_SKIPPED: error.problems}
            return {FACTS: BatchFacts(problems=error.problems)}

    def _encoded(self, at: Draw | int) -> dict[str, Any]:
        """Raises BadContent, with a place."""
        if isinstance(at, int):
            sample = self._samples.written(at)
            encoded = self._as_it_is(sample)
        else:
            try:
                sample = self._samples[at]
                encoded = self._as_it_is(sample)
            except BadContent:
                # The audit knows that the record fits as it is; a draw that made it too long ends no run.
                sample = self._samples.plain(at)
                encoded = self._as_it_is(sample)
        encoded |= {PLACE: sample.where} | ({} if sample.change is None else {_CHANGE: sample.change})
        if self.cache is not None and self.reads_cache:
            record = at if isinstance(at, int) else self._samples.drawn(at)[1]
            encoded[_TAUGHT] = self.cache.read_for(record, encoded)
        return encoded

    def _as_it_is(self, sample: Sample) -> dict[str, Any]:
        try:
            return self._encode(sample.messages, sample.geometry)
        except BadContent as error:
            raise BadContent(placed(error, sample.where)) from error

    def close(self) -> None:
        """The run is over: workers may be ended by a signal again."""
        self._over.value = 1

    def _leave_signals_to_the_trainer(self) -> None:
        """In a worker, ignore Ctrl-C and SIGTERM during the run: they reach the whole process group."""
        if not self._deaf and get_worker_info() is not None:
            self._deaf = True
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if self._over.value else None)


class Collator:
    """Pads samples into a batch with its facts; a failed sample makes the batch a failure."""

    def __init__(
        self, pad: Callable[[list[dict[str, Any]]], dict[str, Any]], blank: BlankImage, *, keeps_prompts: bool = False
    ) -> None:
        """keeps_prompts: put the samples without their answers beside the batch."""
        self._pad = pad
        self._blank = blank
        self._keeps_prompts = keeps_prompts

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        problems = tuple(problem for sample in samples if FACTS in sample for problem in sample[FACTS].problems)
        if problems:
            return {FACTS: BatchFacts(problems=problems)}
        facts = BatchFacts(
            label_tokens=sum(label != IGNORE for sample in samples for label in sample["labels"][1:]),
            patches=sum(len(sample["pixel_values"]) for sample in samples if sample.get("pixel_values") is not None),
            records=tuple(sample[PLACE] for sample in samples if PLACE in sample),
            changes=tuple(sample[_CHANGE] for sample in samples if _CHANGE in sample),
            skipped=tuple(problem for sample in samples for problem in sample.pop(_SKIPPED, ())),
        )
        # Prompts first: padding works on the samples themselves.
        prompts = {PROMPTS: Prompts(tuple(map(_placed_prompt, samples)))} if self._keeps_prompts else {}
        beside = prompts | _taught(samples) | collated(samples)
        if not facts.patches:
            samples = [self._blank.after(samples[0]), *samples[1:]]
        return self._pad(samples) | {FACTS: facts} | beside


def for_the_model(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the model takes."""
    return {name: value for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}


def taught_in(batch: Mapping[str, Any]) -> TopK | None:
    """What a cached teacher says at a batch's label positions; None where it was not asked."""
    return TopK(*(batch[key] for key in TAUGHT.values())) if TAUGHT["ids_NK"] in batch else None


def _taught(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """What a cached teacher says of these samples, taken out of them; nothing unless it knows all that have labels."""
    taught = [(sample, sample.pop(_TAUGHT, None)) for sample in samples]
    known = [topk for _, topk in taught if topk is not None]
    if not known or any(topk is None and set(sample["labels"]) != {IGNORE} for sample, topk in taught):
        return {}
    return {key: torch.cat([getattr(topk, name) for topk in known]) for name, key in TAUGHT.items()}


def _placed_prompt(sample: dict[str, Any]) -> dict[str, Any]:
    # An answer that is sampled later still belongs to the record's place, and its image is the same.
    return prompt_of(sample) | {name: sample[name] for name in (PLACE, _CHANGE) if name in sample}


def raise_failure(batch: dict[str, Any]) -> None:
    """Raise BadContent for a batch that holds problems; otherwise do nothing."""
    if problems := batch[FACTS].problems:
        raise BadContent(problems)
