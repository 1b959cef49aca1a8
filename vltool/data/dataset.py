"""A position in a JSONL becomes a training sample: its messages with the pixels in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vltool.data.conversation import Prompts, answers_with_objects, build_messages
from vltool.data.fusion import capped
from vltool.data.geometry import Grid, Kind
from vltool.data.geometry_spans import Span, geometry_spans
from vltool.data.images import image_header, load_image
from vltool.data.index import JsonlIndex
from vltool.data.policy import Policy, policy_of
from vltool.data.record import Record, parse_record
from vltool.data.sizes import check_size, seen
from vltool.data.tokens import seen_size
from vltool.errors import BadContent, Problem, Where

if TYPE_CHECKING:
    from vltool.data.augment.policy import Augmenter


@dataclass(frozen=True, slots=True)
class Change:
    """What augmentation came to in a sample."""

    objects: tuple[Kind, ...]
    """The geometries of the record."""
    dropped: tuple[Kind, ...] = ()
    """Those of them that fell outside."""
    bypassed: bool = False
    """Left as it was, as `bypass_prob` has it."""
    reverted: bool = False
    """Left as it was, because no object would have stayed or the result could not be used."""
    cropped: bool | None = None
    """Whether a crop that was drawn was taken; None where none was."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Messages whose image items hold RGB PIL images, and the line that they came from."""

    messages: list[dict[str, Any]]
    where: Where
    change: Change | None = None
    """None where nothing augments."""
    geometry: tuple[Span, ...] = ()
    """Where the coordinates stand in the answer; () for one that is not written from objects."""


class Standing(NamedTuple):
    """Where a sample stands in a run; beside a seed, all that is drawn for it depends on this. All from 0."""

    epoch: int
    place: int
    """In the order of its epoch."""
    position: int
    """In the order of the whole run."""


class CaptionDataset:
    """Samples of a JSONL by position, each decoded when it is asked for; safe in forked workers.

    sample_limit: only the first so many records. root: where relative image paths start, in place
    of the JSONL's folder. skip: positions of records to leave out. policy: prompts, cap and
    augmentation of its records, but for those that `vltool fuse` wrote, which bring their own.
    augmenter: what augments where the policy allows it. Other arguments as for `build_messages` and
    `seen_size`. Raises as `JsonlIndex` does.
    """

    def __init__(
        self,
        jsonl: Path,
        *,
        prompts: Prompts,
        emit_norm: Grid,
        use_summary: bool | None,
        max_pixels: int | None,
        sample_limit: int | None = None,
        root: Path | None = None,
        skip: Collection[int] = (),
        policy: Policy | None = None,
        seed: int = 0,
        augmenter: Augmenter | None = None,
    ) -> None:
        self._index = JsonlIndex(jsonl)
        self._folder, self._root = jsonl.parent, root
        self._prompts, self._emit_norm, self._use_summary = prompts, emit_norm, use_summary
        self._max_pixels = max_pixels
        self._policy, self._seed = policy or Policy(), seed
        self.augmenter = augmenter
        self._positions = kept(limited(len(self._index), sample_limit), skip)
        if len(self) == 0:
            raise BadContent(Problem("every record is skipped", "correct the records", Where(str(jsonl))))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> Sample:
        """The sample at i as the file has it. Raises BadContent with file:line for a record that cannot be used."""
        return self.sample(i)

    def sample(self, i: int, standing: Standing | None = None, *, augmented: bool = True) -> Sample:
        """The sample at i as a run shows it there; without a standing, as the file has it."""
        record, where, policy = self._read(i, standing)
        try:
            images = [load_image(ref, folder=self._folder, root=self._root) for ref in record.images]
            for ref, image in zip(record.images, images, strict=True):
                check_size(record, image.size, ref, self._folder, self._root)
                seen_size(*image.size, max_pixels=self._max_pixels)
            change = None
            if standing is not None and self._augments(record, policy):
                change = Change(tuple(item.kind for item in record.objects), reverted=not augmented)
                if augmented:
                    record, images, change = self._changed(record, images, standing, policy)
            messages = self._messages(record, policy, images)
        except BadContent as error:
            raise BadContent(placed(error, where)) from error
        described = answers_with_objects(record, use_summary=self._use_summary)
        return Sample(messages, where, change, geometry_spans(messages[-1]["content"]) if described else ())

    def moved(self, i: int, standing: Standing) -> tuple[list[dict[str, Any]], Where] | None:
        """The messages that a run shows there, with (width, height) in place of the image, and their line.

        No pixels are read. None for a sample whose size and objects stay as the record has them.
        Raises BadContent as `sample` does.
        """
        record, where, policy = self._read(i, standing)
        if not self._augments(record, policy):
            return None
        assert self.augmenter is not None
        try:
            width, height = record.width, record.height
            if width is None or height is None:
                header = image_header(record.images[0], folder=self._folder, root=self._root)
                width, height = header.width, header.height
            done = self.augmenter.place(width, height, record.objects, **_draw(standing, policy))
            same = (done.width, done.height, done.objects) == (width, height, record.objects)
            if same or self._too_thin(done.width, done.height):
                return None
            record = msgspec.structs.replace(record, objects=done.objects, width=done.width, height=done.height)
            return self._messages(record, policy, [(done.width, done.height)]), where
        except BadContent as error:
            raise BadContent(placed(error, where)) from error

    def _read(self, i: int, standing: Standing | None) -> tuple[Record, Where, Policy]:
        """The record at i with the objects that it has there, its line and its policy."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        line, where = self._index.read(int(self._positions[i]))
        record = parse_record(line, where)
        try:
            policy = policy_of(record, self._policy)
        except BadContent as error:
            raise BadContent(placed(error, where)) from error
        if standing is not None and policy.max_objects is not None:
            seed = self._seed if policy.seed is None else policy.seed
            record = capped(record, policy.max_objects, seed=seed, epoch=standing.epoch, position=standing.place)
        return record, where, policy

    def _augments(self, record: Record, policy: Policy) -> bool:
        return self.augmenter is not None and policy.augmentation_enabled and can_change(record)

    def _too_thin(self, width: int, height: int) -> bool:
        """Whether an image was made so long and thin that the model cannot see it; its sample stays as it was."""
        try:
            seen_size(width, height, max_pixels=self._max_pixels)
        except BadContent:
            return True
        return False

    def _messages(self, record: Record, policy: Policy, images: Sequence[Any]) -> list[dict[str, Any]]:
        return build_messages(
            record,
            prompts=policy.prompts(self._prompts),
            emit_norm=self._emit_norm,
            use_summary=self._use_summary,
            images=images,
            seen_size=seen(record, self._max_pixels),
        )

    def _changed(
        self, record: Record, images: list[Image.Image], standing: Standing, policy: Policy
    ) -> tuple[Record, list[Image.Image], Change]:
        """The record on its augmented image; as it was where the model could not see that."""
        assert self.augmenter is not None
        done = self.augmenter.apply(np.asarray(images[0]), record.objects, **_draw(standing, policy))
        kinds, dropped = (tuple(item.kind for item in items) for items in (record.objects, done.dropped))
        height, width = done.image.shape[:2]
        if self._too_thin(width, height):
            return record, images, Change(kinds, reverted=True)
        changed = msgspec.structs.replace(record, objects=done.objects, width=width, height=height)
        change = Change(kinds, dropped, done.bypassed, done.reverted, done.cropped)
        return changed, [Image.fromarray(done.image)], change


def _draw(standing: Standing, policy: Policy) -> dict[str, Any]:
    """What an augmenter draws by."""
    return {
        "epoch": standing.epoch,
        "index": standing.place,
        "position": standing.position,
        "curriculum": policy.curriculum_enabled,
    }


def can_change(record: Record) -> bool:
    """Whether one image may be changed: what messages say of theirs is not known."""
    return record.messages is None and len(record.images) == 1


def limited(records: int, sample_limit: int | None) -> int:
    """How many of the records a limit leaves."""
    return records if sample_limit is None else min(records, sample_limit)


def kept(records: int, skip: Collection[int]) -> NDArray[np.int64]:
    """Positions of the records that are not skipped."""
    dropped = np.fromiter(skip, dtype=np.int64, count=len(skip))
    return np.delete(np.arange(records), dropped[dropped < records])


def placed(error: BadContent, where: Where) -> Iterator[Problem]:
    """An error's problems, those without a place at this one."""
    return (Problem(problem.what, problem.do, problem.where or where) for problem in error.problems)
