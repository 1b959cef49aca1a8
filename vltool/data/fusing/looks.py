"""What lines look like, many at a time: where they end, and what it takes to make lines of the mixture of them.

A look costs a few nanoseconds a line where taking it apart costs microseconds. What it is not sure of it leaves to
`lines.Rewriter`, so that it may be wrong in one direction only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAKEN_APART, KEPT, SPACED, TIGHT = range(4)
"""What becomes of a line: it is taken apart; only its last brace makes room for the policy; or, too, the way to its
image stands before the path, with and without a space after the first colon."""
HEADS = {SPACED: b'{"images": ["', TIGHT: b'{"images":["'}
LEAST_OBJECT_BYTES = len('{"desc":"a","line":[0,0,1,1]}')

ONE_IMAGE = re.compile(rb'[^"\\:/][^"\\:]*"\]')
"""One relative path: without a colon it is no URL, without a backslash it needs no decoding."""
ONE_ELSEWHERE = re.compile(rb'(?:/|https?://)[^"\\]*"\]')
"""One absolute path or URL, which means the same from anywhere."""
ASCII_ESCAPE = re.compile(rb"\\u00[4-7]")
"""A key may be spelt with them: "\\u006detadata"."""

_BLOCK = 1 << 18
"""Elements looked at together: they stay in a core's cache."""
_LEAST = 16
"""Shorter lines are taken apart."""
_WIDTHS = (64, 256)
"""Bytes in which a path should end; what is longer is looked at alone."""
_QUOTE, _COLON, _BACKSLASH, _SLASH, _BRACKET = b'":\\/]'


@dataclass(frozen=True, slots=True)
class Look:
    """What matters in the lines of one dataset."""

    way: bool
    """Whether image paths are rewritten."""
    most: int | None
    """Objects a record may have; None: any number."""

    def kinds(self, data: bytes, begins_N: NDArray[np.int64], ends_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """What becomes of each line of a text. ends_N: where their newlines are, or the text's end."""
        data_B = np.frombuffer(data, np.uint8)
        kinds_N = np.full(len(begins_N), TAKEN_APART, np.uint8)
        good_N = (ends_N - begins_N >= _LEAST) & (ends_N < len(data_B))
        which_M = np.flatnonzero(good_N)
        if not len(which_M):
            return kinds_N
        begins_M, ends_M = begins_N[which_M], ends_N[which_M]
        good_M = (data_B[ends_M - 1] == ord("}")) & (_loads(data_B, "<u2")[begins_M] == _word(b'{"'))
        if len(odd := np.fromiter(self._odd(data), np.int64)):
            # Text before the first line belongs to none.
            lines = np.searchsorted(begins_M, odd, side="right") - 1
            good_M[lines[lines >= 0]] = False
        if self.most is not None:
            for i in np.flatnonzero(ends_M - begins_M >= LEAST_OBJECT_BYTES * (self.most + 1)).tolist():
                good_M[i] &= data.count(b'"desc"', begins_M[i], ends_M[i]) <= self.most
        if not self.way:
            kinds_N[which_M[good_M]] = KEPT
            return kinds_N
        for kind, head in HEADS.items():
            at = np.flatnonzero(good_M)
            at = at[_begin_with(data_B, begins_M[at], head)]
            good_M[at] = False
            kinds_N[which_M[at]] = _references(data, begins_M[at] + len(head), kind)
        return kinds_N

    def _odd(self, data: bytes) -> Iterator[int]:
        """Places of what may be metadata, and, where paths are rewritten, images elsewhere than in front."""
        keys = (b'"metadata"', b'"messages"') if self.way else (b'"metadata"',)
        for shift in (0, 1):
            pairs = np.frombuffer(data, "<u2", (len(data) - shift) // 2, shift)
            for place in (places(pairs, _word(b'"m')) * 2 + shift).tolist():
                if data.startswith(keys, place):
                    yield place
        if b"\\" in data:
            yield from (match.start() for match in ASCII_ESCAPE.finditer(data))


def places(elements_N: NDArray[np.unsignedinteger], value: int) -> NDArray[np.int64]:
    """Where elements have a value: fast where few have."""
    hits = np.zeros(min(_BLOCK, -(-len(elements_N) // 8) * 8), np.bool_)
    words, found = hits.view("<u8"), []
    for begin in range(0, len(elements_N), _BLOCK):
        block = elements_N[begin : begin + _BLOCK]
        hits[len(block) :] = False
        np.equal(block, value, out=hits[: len(block)])
        # Eight at a time: few words hold a hit, and hardly any two of them.
        at = np.flatnonzero(words != 0)
        found.append((at + begin // 8, words[at]))
    at_M = np.concatenate([np.empty(0, np.int64), *(at for at, _ in found)])
    words_M = np.concatenate([np.empty(0, np.uint64), *(word for _, word in found)])
    out = [at_M[:0]]
    while len(at_M):
        lowest_M = words_M & (~words_M + np.uint64(1))
        out.append(at_M * 8 + (np.frexp(lowest_M.astype(np.float64))[1] - 1) // 8)
        words_M &= words_M - np.uint64(1)
        more = np.flatnonzero(words_M)
        at_M, words_M = at_M[more], words_M[more]
    return np.concatenate(out) if len(out) < 3 else np.sort(np.concatenate(out))


def _begin_with(data_B: NDArray[np.uint8], begins_M: NDArray[np.int64], head: bytes) -> NDArray[np.bool_]:
    words = _loads(data_B, "<u8")
    good_M: NDArray[np.bool_] = words[begins_M] == _word(head[:8])
    good_M &= words[begins_M + len(head) - 8] == _word(head[-8:])
    return good_M


def _references(data: bytes, at_M: NDArray[np.int64], relative: int) -> NDArray[np.uint8]:
    """What becomes of lines whose first image begins at those places: `relative`, KEPT or TAKEN_APART."""
    data_B = np.frombuffer(data, np.uint8)
    kinds_M = np.full(len(at_M), TAKEN_APART, np.uint8)
    left = np.arange(len(at_M))
    for width in _WIDTHS:
        left_in = at_M[left] + width < len(data_B)
        if len(inside := left[left_in]):
            rows = _loads(data_B, f"V{width}")[at_M[inside]].view(np.uint8).reshape(-1, width)
            stops = rows == _QUOTE
            stops |= rows == _BACKSLASH
            stops |= rows == _COLON
            ends = stops.argmax(1)
            # Where nothing stops, a row's first byte is looked at, and is no quote unless the path is empty.
            good = (rows[np.arange(len(rows)), ends] == _QUOTE) & (ends > 0)
            good &= data_B[at_M[inside] + ends + 1] == _BRACKET
            kinds_M[inside[good]] = np.where(rows[good, 0] == _SLASH, KEPT, relative)
            # Lists of several images, URLs and longer paths are few, or else short to look at.
            left = np.concatenate([left[~left_in], inside[~good]])
    for i in left.tolist():
        if ONE_IMAGE.match(data, at_M[i]):
            kinds_M[i] = relative
        elif ONE_ELSEWHERE.match(data, at_M[i]):
            kinds_M[i] = KEPT
    return kinds_M


def _loads(data_B: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """A text as overlapping elements, one at each byte that has room for it."""
    size = np.dtype(dtype).itemsize
    return np.ndarray((max(len(data_B) - size + 1, 0),), dtype, data_B.data, strides=(1,))


def _word(text: bytes) -> int:
    return int.from_bytes(text, "little")
