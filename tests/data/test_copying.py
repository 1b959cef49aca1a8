"""Many strings copied at once are the strings copied one by one."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vltool.data.fusing import copying


@given(st.lists(st.integers(0, 300) | st.integers(0, 40_000), max_size=40), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_length_arrives_whole_and_touches_nothing_else(lens, seed):
    draw = random.Random(seed)
    texts = [draw.randbytes(size) for size in lens]
    source, at = b"", []
    for text in texts:
        gap = bytes(draw.randrange(4))
        at.append(len(source) + len(gap))
        source += gap + text
    order = list(range(len(texts)))
    draw.shuffle(order)
    expected, to = b"", [0] * len(texts)
    for i in order:
        expected += b"|"
        to[i] = len(expected)
        expected += texts[i]
    out_B = np.full(len(expected), ord("|"), np.uint8)
    copying.copy(np.frombuffer(source, np.uint8), *(np.array(a, np.int64) for a in (at, lens)), out_B, np.array(to))
    assert out_B.tobytes() == expected


def test_one_string_is_written_to_many_places():
    out_B = np.zeros(20, np.uint8)
    copying.fill(b"abc", out_B, np.array([0, 5, 17]))
    assert out_B.tobytes() == b"abc\0\0abc" + bytes(9) + b"abc"
    copying.fill(b"", out_B, np.array([3]))
    copying.fill(b"longer than what is there", out_B[:4], np.array([], np.int64))
    assert out_B[3] == 0
