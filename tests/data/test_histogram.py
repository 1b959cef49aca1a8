"""Percentiles and bars of lengths."""

from __future__ import annotations

import numpy as np
import pytest

from vltool.data.histogram import Histogram

NUMBERS = np.random.default_rng(0).integers(0, 300, 999)


@pytest.fixture
def histogram():
    return Histogram.of({int(number): int((number == NUMBERS).sum()) for number in NUMBERS})


def test_it_is_exact(histogram):
    assert (histogram.count, histogram.total, histogram.most) == (999, NUMBERS.sum(), NUMBERS.max())
    assert histogram.mean == pytest.approx(NUMBERS.mean())
    for limit in (-1, 0, 150, 299, 300):
        assert histogram.above(limit) == np.count_nonzero(limit < NUMBERS)


@pytest.mark.parametrize("percent", [0, 0.1, 1, 50, 90, 99, 99.95, 100])
def test_percentiles_are_of_the_nearest_rank(histogram, percent):
    expected = np.percentile(NUMBERS, percent, method="inverted_cdf")
    assert histogram.percentile(percent) == expected


def test_without_numbers_it_is_empty():
    empty = Histogram()
    assert (empty.count, empty.total, empty.mean, empty.most, empty.percentile(50)) == (0, 0, None, 0, 0)
    assert empty.bars(3, end=9) == "   "


def test_bars_show_what_lies_in_equal_parts():
    histogram = Histogram.of({0: 8, 9: 1, 10: 4, 39: 1, 70: 1})
    assert histogram.bins(4, end=39) == [9, 4, 0, 2]
    assert histogram.bars(4, end=39) == "█▄ ▂"
    assert sum(histogram.bins(7, end=70)) == histogram.count
