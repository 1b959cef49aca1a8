"""How often each of many whole numbers occurs: their mean, percentiles, and a picture of one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Histogram:
    """Whole numbers, not below 0, with how often each occurs: exact, since lengths are few distinct numbers."""

    counts: tuple[tuple[int, int], ...] = ()
    """(number, how often), ascending."""

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> Histogram:
        """The histogram of numbers that are counted already."""
        return cls(tuple(sorted(counts.items())))

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(count for _, count in self.counts)

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(number * count for number, count in self.counts)

    @property
    def mean(self) -> float | None:
        """Their mean; None without any."""
        return self.total / self.count if self.counts else None

    @property
    def most(self) -> int:
        """The largest; 0 without any."""
        return self.counts[-1][0] if self.counts else 0

    def above(self, limit: int) -> int:
        """How many are larger."""
        return sum(count for number, count in self.counts if number > limit)

    def percentile(self, percent: float) -> int:
        """The smallest that so many percent of them do not exceed (the nearest rank); 0 without any."""
        rank, passed = max(math.ceil(self.count * percent / 100), 1), 0
        for number, count in self.counts:
            passed += count
            if passed >= rank:
                return number
        return 0

    def bins(self, number: int, *, end: int) -> list[int]:
        """How many lie in each of so many equal parts of 0…end, its end included; larger ones are in the last."""
        bins = [0] * number
        for value, count in self.counts:
            bins[min(value * number // (end + 1), number - 1)] += count
        return bins

    def bars(self, width: int, *, end: int) -> str:
        """The bins as bars, one character each; what is not empty is never drawn as if it were."""
        bins = self.bins(width, end=end)
        most = max(bins) or 1
        return "".join(BARS[-(-count * len(BARS) // most) - 1] if count else " " for count in bins)
