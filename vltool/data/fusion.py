"""Which records an epoch of a mixture has, in which order: a function of the seed and the epoch alone.

Every number comes from PCG64's raw 64-bit words, seeded through SeedSequence; numpy keeps both as they are
(its NEP 19), unlike `Generator.permutation` and its kin. So a mixture is the same on any machine and version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vltool.data.fields import reserved_in
from vltool.data.record import Record
from vltool.errors import InvalidInput, Problem
from vltool.recipe.fusion import Fusion, FusionDataset

Split = Literal["train", "val"]

MOST_RECORDS = 2**32
"""Of all datasets together, and of an epoch: positions are 32-bit numbers."""
_ORDER, _DRAW, _OBJECTS = range(3)
"""What a stream of random words is for."""


@dataclass(frozen=True, slots=True)
class Draws:
    """An epoch: the record at each of its N positions."""

    datasets_N: NDArray[np.uint16]
    """The dataset's number, as in `Fusion.datasets`."""
    records_N: NDArray[np.uint32]
    """The record's position among the usable records of its dataset."""

    def __len__(self) -> int:
        return len(self.records_N)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Epochs of a fusion over datasets of known sizes; holds no array."""

    fusion: Fusion
    counts: tuple[int, ...]
    """Records of each dataset that are drawn from."""
    quotas: tuple[int, ...]
    """Records that each dataset gives an epoch."""
    seed: int
    split: Split = "train"
    notes: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return sum(self.quotas)

    def epoch(self, epoch: int) -> Draws:
        """The records of an epoch (from 0), in order; every evaluation has the same."""
        codes_N = self.codes(epoch)
        starts = self.starts()
        datasets_N = (np.searchsorted(starts, codes_N, side="right") - 1).astype(np.uint16)
        codes_N -= starts.astype(np.uint32)[datasets_N]
        return Draws(datasets_N, codes_N)

    def starts(self) -> NDArray[np.int64]:
        """Of each dataset the number that its record 0 has where the records of all are numbered through."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)

    def codes(self, epoch: int) -> NDArray[np.uint32]:
        """`epoch` in one array: record r of dataset d as `starts()[d] + r`. Costs 12 bytes a record while it works."""
        starts = self.starts()
        codes_N = np.empty(len(self), np.uint32)
        end = 0
        for number, (count, quota) in enumerate(zip(self.counts, self.quotas, strict=True)):
            begin, end = end, end + quota
            passes, rest = divmod(quota, count) if count else (0, 0)
            own = codes_N[begin:end]
            for one in range(passes):
                own[one * count : (one + 1) * count] = np.arange(starts[number], starts[number] + count)
            if rest:
                own[passes * count :] = self._chosen(number, count, rest, epoch) + np.uint32(starts[number])
        if self.split == "val":
            return codes_N
        return shuffled(codes_N, seed=self.seed, epoch=epoch)

    def _chosen(self, number: int, count: int, most: int, epoch: int) -> NDArray[np.uint32]:
        """`most` of the positions 0 … count-1, each at most once, ascending."""
        own = self.fusion.datasets[number].seed
        derived = (self.seed, epoch, _DRAW, number) if own is None else (own, epoch, _DRAW)
        words = _words(count, *derived)
        words &= np.uint64(0xFFFFFFFF00000000)
        words |= np.arange(count, dtype=np.uint64)
        words.partition(most - 1)
        chosen = words[:most].astype(np.uint32)
        chosen.sort()
        return chosen

    def most(self, number: int) -> int | None:
        """Objects that a record of a dataset may keep; None: any number, as in evaluation, which is of all there is."""
        return None if self.split == "val" else self.fusion.datasets[number].max_objects_per_image

    def kept(self, number: int, objects: int, *, epoch: int, position: int) -> tuple[int, ...] | None:
        """Which of so many objects the record at a position of the epoch keeps; None: all.

        number: of its dataset, whose seed counts, and what `most` says of it.
        """
        most, own = self.most(number), self.fusion.datasets[number].seed
        if most is None or objects <= most:
            return None
        seed = self.seed if own is None else own
        return kept_objects(objects, most, seed=seed, epoch=epoch, position=position)


def plan_mixture(fusion: Fusion, counts: Sequence[int], *, seed: int) -> Mixture:
    """The mixture that training sees: every target once an epoch, `round(ratio · N_target)` of each source.

    round is Python's: halves go to the even number. A source gives whole passes over its records, then the rest
    without replacement. counts: usable records of each dataset of `fusion.datasets`; of these the first
    `sample_limit`. Raises InvalidInput with every problem: prompts that cannot be used, targets without records,
    sources that are to give some and have none, too many records.
    """
    problems = list(prompt_problems(fusion))
    notes = list(fusion.notes)
    limited = [_limited(dataset, count) for dataset, count in zip(fusion.datasets, counts, strict=True)]
    targets = sum(limited[: len(fusion.targets)])
    quotas = limited[: len(fusion.targets)]
    if not targets:
        do = "a mixture is measured in records of its targets"
        problems.append(Problem("the targets have no record that can be used", do, fusion.where(fusion.targets[0])))
    for dataset, count in zip(fusion.sources, limited[len(quotas) :], strict=True):
        assert dataset.ratio is not None
        quota = round(dataset.ratio * targets)
        where = fusion.where(dataset, "ratio")
        if quota == 0 and targets:
            what = f"{dataset.name}: ratio {dataset.ratio:g} of {targets} records rounds to none"
            notes.append(Problem(what, f"write at least {_least(targets):.3g}, or take the dataset out", where))
        elif count == 0:
            do = "correct its records, or take it out"
            problems.append(Problem(f"{dataset.name} has no record that can be used", do, where))
        quotas.append(quota)
    return _checked(Mixture(fusion, tuple(limited), tuple(quotas), seed, notes=tuple(notes)), problems)


def plan_evaluation(fusion: Fusion, counts: Sequence[int]) -> Mixture:
    """The mixture that evaluation sees: all records of every dataset's val_jsonl, in order.

    counts: usable records of each dataset, 0 where it has no val_jsonl. Raises InvalidInput as `plan_mixture` does.
    """
    problems = list(prompt_problems(fusion))
    return _checked(Mixture(fusion, tuple(counts), tuple(counts), 0, "val", fusion.notes), problems)


def _checked(mixture: Mixture, problems: list[Problem]) -> Mixture:
    if max(sum(mixture.counts), len(mixture)) >= MOST_RECORDS:
        what = f"{max(sum(mixture.counts), len(mixture)):,} records are more than a mixture can have"
        problems.append(Problem(what, f"at most {MOST_RECORDS - 1:,}: lower a ratio, or set sample_limit"))
    if problems:
        raise InvalidInput(problems)
    return mixture


def _limited(dataset: FusionDataset, count: int) -> int:
    return count if dataset.sample_limit is None else min(count, dataset.sample_limit)


def _least(targets: int) -> float:
    """The least ratio, in three digits, that rounds to a record."""
    ratio = 0.5 / targets
    while round(float(f"{ratio:.3g}") * targets) == 0:
        ratio *= 1.005
    return ratio


def shuffled(codes_N: NDArray[np.uint32], *, seed: int, epoch: int) -> NDArray[np.uint32]:
    """Numbers in a random order, the same for a seed and an epoch."""
    words_N = _words(len(codes_N), seed, epoch, _ORDER)
    words_N &= np.uint64(0xFFFFFFFF00000000)
    words_N |= codes_N
    words_N.sort()
    return words_N.astype(np.uint32)


def _words(count: int, *entropy: int) -> NDArray[np.uint64]:
    return np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(count)


def kept_objects(objects: int, most: int, *, seed: int, epoch: int, position: int) -> tuple[int, ...]:
    """`most` of the numbers 0 … objects-1, ascending; drawn anew at every position of every epoch."""
    words = _words(objects, seed, epoch, _OBJECTS, position)
    return tuple(sorted(np.argsort(words, kind="stable")[:most].tolist()))


def capped(record: Record, most: int, *, seed: int, epoch: int, position: int) -> Record:
    """The record with at most `most` of its objects, in their order (see `kept_objects`)."""
    if len(record.objects) <= most:
        return record
    return _with_objects(record, kept_objects(len(record.objects), most, seed=seed, epoch=epoch, position=position))


def _with_objects(record: Record, kept: tuple[int, ...] | None) -> Record:
    if kept is None:
        return record
    return msgspec.structs.replace(record, objects=tuple(record.objects[i] for i in kept))


def policy(dataset: FusionDataset, split: Split = "train") -> dict[str, Any]:
    """What `metadata.fusion` says of a dataset's records; nothing is augmented in evaluation."""
    train = split == "train"
    prompts = {"user_prompt": dataset.user_prompt, "system_prompt": dataset.system_prompt}
    return {
        "dataset": dataset.name,
        **{name: text for name, text in prompts.items() if text is not None},
        "augmentation_enabled": train and dataset.augmentation_enabled,
        "curriculum_enabled": train and dataset.curriculum_enabled,
    }


def with_policy(metadata: Mapping[str, Any] | None, added: Mapping[str, Any]) -> dict[str, Any]:
    """A record's metadata with a dataset's policy in it.

    A record that was fused before keeps the prompts it has where the dataset brings none.
    """
    before = (metadata or {}).get("fusion")
    return {**(metadata or {}), "fusion": {**(before if isinstance(before, Mapping) else {}), **added}}


def prompt_problems(fusion: Fusion) -> list[Problem]:
    """Prompts that the model's template would take for instructions, each at its place."""
    problems = []
    for dataset in fusion.datasets:
        for name, text in (("user_prompt", dataset.user_prompt), ("system_prompt", dataset.system_prompt)):
            if found := reserved_in(text or ""):
                what = f"{dataset.key}.{name} contains {found}, which the model's template takes for an instruction"
                do = "remove it from the prompt; images are placed by vltool"
                problems.append(Problem(what, do, fusion.where(dataset, name), id="fusion-invalid"))
    return problems
