"""Line beginnings: those of a plain split, wherever the blocks are cut."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vltool.data import line_scan
from vltool.data.line_scan import LineScan


def _reference(data: bytes) -> tuple[list[int], list[tuple[int, int]], int]:
    """Beginnings, (position, blank lines before it) where that grows, and one past the newline of the last record."""
    starts: list[int] = []
    skips: list[tuple[int, int]] = []
    place = blanks = end = 0
    for line in data.split(b"\n"):
        if line.strip():
            if blanks > (skips[-1][1] if skips else 0):
                skips.append((len(starts), blanks))
            starts.append(place)
            end = place + len(line) + 1
        else:
            blanks += 1
        place += len(line) + 1
    return starts, skips, end


def _scanned(path: Path) -> tuple[list[int], list[tuple[int, int]], int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        scan = LineScan(descriptor, path.stat().st_size)
        starts = [int(start) for block in scan for start in block]
        assert scan.read == path.stat().st_size
        return starts, [(int(position), int(blanks)) for position, blanks in scan.skips], scan.end
    finally:
        os.close(descriptor)


@settings(deadline=None, max_examples=400)
@example(data=b" \n" * 70 + b" " * 70 + b"x\n", block=16)
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.lists(st.sampled_from([b"\n", b" ", b"\r", b"\t", b"\v", b"\f", b"\x1c", b"\x85", b"{}", b"x"]), max_size=60)
        .map(b"".join),
    ),
    block=st.integers(1, 40),
)  # fmt: skip
def test_any_bytes_in_blocks_of_any_size(tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "scanned"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_scan, "BLOCK_BYTES", block)
        assert _scanned(path) == _reference(data)


def test_a_line_longer_than_many_blocks_costs_one_block(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b" " * 30_000_000 + b"x" * 30_000_000 + b"\n" + b" " * 30_000_000 + b"\n{}")
    tracemalloc.start()
    assert _scanned(path) == ([0, 90_000_002], [(1, 1)], 90_000_005)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * line_scan.BLOCK_BYTES


def test_blank_lines_by_the_million_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "blank"
    path.write_bytes(b"\n" * 3_000_000 + b"{}\n" + b" \n" * 100_000 + b"{}\n")
    assert _scanned(path) == ([3_000_000, 3_200_003], [(0, 3_000_000), (1, 3_100_000)], 3_200_006)


def test_a_file_that_ends_before_its_size_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(b"{}\n{}\n")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        scan = LineScan(descriptor, 100)
        assert np.concatenate(list(scan)).tolist() == [0, 3]
        assert scan.read == 6
    finally:
        os.close(descriptor)
