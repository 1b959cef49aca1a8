"""How long samples are once they are augmented, which the records themselves do not tell; from sizes, not pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vltool.data.samples import Draw, Samples
from vltool.data.scan import COUNTED_AT_ONCE
from vltool.data.tokens import TextCounter
from vltool.errors import Where

MOST_LOOKED_AT = 20_000
"""Samples of an epoch that are drawn; of a longer one, so many at even distances."""


@dataclass(frozen=True, slots=True)
class AugmentedLengths:
    """What the samples of an epoch came to."""

    looked_at: int
    """Samples, those among them that augmentation leaves as they are."""
    too_long: int
    """Those that became longer than the limit."""
    longest: tuple[int, Where] | None
    """Tokens of the longest of these and the line that it came from."""
    most: int
    """Tokens of the longest of all that augmentation changes; 0 where it changes none."""


def augmented_lengths(
    samples: Samples,
    counter: TextCounter,
    *,
    shown: int,
    max_length: int,
    max_pixels: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> AugmentedLengths:
    """Draw the first epoch as training does, and count the tokens of what it shows.

    samples: of records that fit as they are. shown: samples of the epoch that the run comes to. max_pixels: as for
    `seen_size`. progress is told how many samples of how many are done. Raises BadContent with file:line for a record
    that cannot be used.
    """
    places = range(0, shown, max(1, -(-shown // MOST_LOOKED_AT)))
    too_long, most = 0, 0
    longest: tuple[int, Where] | None = None
    for start in range(0, len(places), COUNTED_AT_ONCE):
        if progress is not None:
            progress(start, len(places))
        batch = places[start : start + COUNTED_AT_ONCE]
        drawn = [moved for place in batch if (moved := samples.moved(Draw(0, place))) is not None]
        lengths = counter.count_many([messages for messages, _ in drawn], max_pixels=max_pixels)
        for length, (_, where) in zip(lengths, drawn, strict=True):
            too_long, most = too_long + (length > max_length), max(most, length)
            if length > max_length and (longest is None or length > longest[0]):
                longest = length, where
    return AugmentedLengths(len(places), too_long, longest, most)
