"""Many byte strings copied between two buffers at once.

numpy copies elements of one size; so each string is copied as a prefix whose size is one of few, and what is left
as the last bytes of the string, again of one of few sizes, where both may overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 19
"""Bytes that numpy holds on the way: they stay in a core's cache."""
_MOST = 1 << 14
"""Longer strings are copied one by one."""


def copy(
    from_B: NDArray[np.uint8],
    at_M: NDArray[np.int64],
    lens_M: NDArray[np.int64],
    into_B: NDArray[np.uint8],
    to_M: NDArray[np.int64],
) -> None:
    """Copy strings of `lens_M` bytes from `at_M` in one buffer to `to_M` in another."""
    if len(long := np.flatnonzero(lens_M > _MOST)):
        for at, size, to in zip(at_M[long].tolist(), lens_M[long].tolist(), to_M[long].tolist(), strict=True):
            into_B[to : to + size] = from_B[at : at + size]
    short = np.flatnonzero((lens_M > 0) & (lens_M <= _MOST))
    at_M, lens_M, to_M = at_M[short], lens_M[short], to_M[short]
    # The three leading bits of a length leave less than a quarter of it.
    shifts_M = np.maximum(_bits(lens_M) - 3, 0)
    sizes_M = (lens_M >> shifts_M) << shifts_M
    for size, group in _alike(sizes_M):
        _copy(from_B, at_M[group], into_B, to_M[group], size)
    rest_M = np.flatnonzero(lens_M > sizes_M)
    left_M = lens_M[rest_M] - sizes_M[rest_M]
    sizes_M = np.left_shift(1, _bits(left_M - 1))
    begin_M = lens_M[rest_M] - sizes_M
    at_M, to_M = at_M[rest_M] + begin_M, to_M[rest_M] + begin_M
    for size, group in _alike(sizes_M):
        _copy(from_B, at_M[group], into_B, to_M[group], size)


def fill(text: bytes, into_B: NDArray[np.uint8], to_M: NDArray[np.int64]) -> None:
    """Write one string to many places."""
    if text and len(to_M):
        _elements(into_B, len(text))[to_M] = np.frombuffer(text, f"V{len(text)}")[0]


def _copy(
    from_B: NDArray[np.uint8], at_M: NDArray[np.int64], into_B: NDArray[np.uint8], to_M: NDArray[np.int64], size: int
) -> None:
    source, target = _elements(from_B, size), _elements(into_B, size)
    step = max(_AT_ONCE // size, 1)
    for i in range(0, len(at_M), step):
        target[to_M[i : i + step]] = source[at_M[i : i + step]]


def _elements(buffer_B: NDArray[np.uint8], size: int) -> NDArray[np.void]:
    """Overlapping elements, one at each byte that has room for it."""
    return np.ndarray((len(buffer_B) - size + 1,), f"V{size}", buffer_B.data, strides=(1,))


def _bits(values_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Binary digits of each; exact below 2**24."""
    return np.frexp(values_M.astype(np.float32))[1].astype(np.int64)


def _alike(sizes_M: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each size, and where it stands."""
    # A stable sort of 16 bits is a radix sort; _MOST is below that.
    order = np.argsort(sizes_M.astype(np.uint16), kind="stable")
    ordered = sizes_M[order]
    cuts = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(ordered)]
    for begin, end in pairwise(cuts):
        if begin < end:
            yield int(ordered[begin]), order[begin:end]
