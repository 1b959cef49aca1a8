"""Geometry: what is refused, and where points land on the grids."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vltool.data.geometry import FEWEST_POINTS, KINDS, Grid, Kind, read_points, shown, to_grid

SIDES = st.integers(1, 20_000)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Kind, list[float], int, int]:
    """A kind, a valid flat list of numbers, and the image that holds it."""
    kind, width, height = draw(st.sampled_from(KINDS)), draw(SIDES), draw(SIDES)
    count = 2 if kind == "bbox_2d" else draw(st.integers(FEWEST_POINTS[kind], 12))
    xs = draw(st.lists(st.floats(0, width), min_size=count, max_size=count, unique=kind == "bbox_2d"))
    ys = draw(st.lists(st.floats(0, height), min_size=count, max_size=count, unique=kind == "bbox_2d"))
    if kind == "bbox_2d":
        xs, ys = sorted(xs), sorted(ys)
    return kind, [value for point in zip(xs, ys, strict=True) for value in point], width, height


@given(shapes())
def test_reading_keeps_every_number_in_its_place(shape: tuple[Kind, list[float], int, int]) -> None:
    kind, numbers, width, height = shape
    points, problems = read_points(numbers, kind=kind, field="f", width=width, height=height)
    assert not problems
    assert [value for point in points for value in point] == numbers


@given(shapes(), st.sampled_from(["norm100", "norm1000"]))
def test_norm_grids_hold_every_point_within_half_a_step(shape: tuple[Kind, list[float], int, int], grid: Grid) -> None:
    kind, numbers, width, height = shape
    steps = int(grid.removeprefix("norm"))
    points, _ = read_points(numbers, kind=kind, field="f", width=width, height=height)
    on_grid = to_grid(points, width=width, height=height, grid=grid)
    assert len(on_grid) == len(points)
    for (x, y), (i, j) in zip(points, on_grid, strict=True):
        assert type(i) is int
        assert 0 <= i <= steps
        assert 0 <= j <= steps
        assert abs(i / steps * width - x) <= width / steps / 2 * (1 + 1e-9)
        assert abs(j / steps * height - y) <= height / steps / 2 * (1 + 1e-9)


@given(shapes(), st.sampled_from(["none", "norm100", "norm1000"]), SIDES, SIDES)
def test_the_order_along_each_axis_survives(
    shape: tuple[Kind, list[float], int, int], grid: Grid, seen_width: int, seen_height: int
) -> None:
    kind, numbers, width, height = shape
    points, _ = read_points(numbers, kind=kind, field="f", width=width, height=height)
    on_grid = to_grid(points, width=width, height=height, grid=grid, seen_size=(seen_width, seen_height))
    for axis in (0, 1):
        ranked = [pair[axis] for _, pair in sorted(zip([p[axis] for p in points], on_grid, strict=True))]
        assert ranked == sorted(ranked)


@pytest.mark.parametrize(
    ("x", "width", "grid", "expected"),
    [
        (0.5, 1000, "norm1000", 0),  # a half goes to the even neighbour
        (1.5, 1000, "norm1000", 2),
        (2.5, 1000, "norm1000", 2),
        (512, 512, "norm1000", 1000),
        (512, 512, "norm100", 100),
        (153, 512, "norm1000", 299),
        (600.0001, 600, "norm1000", 1000),  # clamped, for callers whose arithmetic overshoots
        (-0.4, 600, "norm1000", 0),
        (300, 600, "none", 128),
        (600, 600, "none", 256),
    ],
)
def test_grid_values(x: float, width: int, grid: Grid, expected: int) -> None:
    ((found, _),) = to_grid(((x, 0.0),), width=width, height=10, grid=grid, seen_size=(256, 32))
    assert found == expected


def test_none_gives_pixels_of_the_seen_image_on_both_axes() -> None:
    points = ((0.0, 0.0), (450.0, 150.0), (900.0, 300.0))
    assert to_grid(points, width=900, height=300, grid="none", seen_size=(896, 288)) == [[0, 0], [448, 144], [896, 288]]


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("bbox_2d", "1,2,3,4", ["not a list", "[x1, y1, x2, y2]"]),
        ("bbox_2d", {"x": 1}, ["not a list"]),
        ("bbox_2d", [1, 2, 3], ["3 numbers, not 4"]),
        ("bbox_2d", [1, 2, 3, 4, 5, 6], ["6 numbers, not 4"]),
        ("bbox_2d", [], ["0 numbers"]),
        ("bbox_2d", [5, 2, 5, 9], ["x1 = 5 is not smaller than x2 = 5"]),
        ("bbox_2d", [1, 9, 5, 2], ["y1 = 9 is not smaller than y2 = 2", "top left"]),
        ("bbox_2d", [1, 2, 101, 9], ["f[2] is 101", "x lies outside 0…100", "width"]),
        ("bbox_2d", [1, 2, 9, 51], ["f[3] is 51", "y lies outside 0…50", "height"]),
        ("bbox_2d", [-0.5, 2, 9, 9], ["f[0] is -0.5", "outside"]),
        ("bbox_2d", [[1, 2], [3, 4]], ["nested pairs", "[1, 2, 3, 4]"]),
        ("bbox_2d", [1, 2, "3", 4], ['f[2] is "3"', "not a number"]),
        ("bbox_2d", [1, 2, None, 4], ["f[2] is null"]),
        ("bbox_2d", [True, 2, 3, 4], ["f[0] is true"]),
        ("poly", [1, 2, 3, 4], ["4 numbers, fewer than 6"]),
        ("poly", [1, 2, 3, 4, 5, 6, 7], ["7 numbers, an odd count"]),
        ("poly", [[1, 2], [3, 4], [5, 6]], ["nested pairs", "[1, 2, 3, 4, 5, 6]"]),
        ("poly", [1, 2, 3, 4, 500, 600], ["f[4] is 500", "1 more beyond"]),
        ("line", [1, 2], ["2 numbers, fewer than 4"]),
        ("line", [1, 2, 3, 4, 5], ["an odd count"]),
        ("line", [1, 2, 10**400, 4], ["outside"]),
    ],
)
def test_refused(kind: Kind, value: Any, words: list[str]) -> None:
    points, problems = read_points(value, kind=kind, field="f", width=100, height=50)
    assert points == ()
    text = "\n".join(map(str, problems))
    assert not [word for word in words if word not in text], text
    assert all(problem.do for problem in problems)


def test_all_that_is_wrong_with_a_box_is_said_at_once() -> None:
    _, problems = read_points([90, 40, 10, 60], kind="bbox_2d", field="f", width=100, height=50)
    assert len(problems) == 2


def test_without_a_size_the_form_is_still_judged() -> None:
    _, problems = read_points([1, 2, 3], kind="line", field="f", width=None, height=None)
    assert len(problems) == 1


def test_long_values_are_cut_in_messages() -> None:
    assert len(shown("x" * 500)) == 60
    assert shown("é") == '"é"'


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_a_number_that_is_none_is_outside_wherever_it_stands(value: float, place: int) -> None:
    numbers = [1, 2, 30, 4, 5, 60.0]
    numbers[place] = value
    points, problems = read_points(numbers, kind="poly", field="poly", width=100, height=100)
    assert points == ()
    assert f"poly[{place}] is" in problems[0].what


def test_numbers_of_numpy_are_numbers() -> None:
    numbers = [np.float64(1), 2, 30, 40.5]
    assert read_points(numbers, kind="bbox_2d", field="b", width=100, height=50) == (((1.0, 2.0), (30.0, 40.5)), [])
