"""Boxes, polygons and polylines in pixels, and the grids on which a model reads them.

Pixels are continuous: an image is the rectangle [0, width] × [0, height], origin top left, so a
coordinate that equals the width lies on the right border and belongs to the image.
"""

from __future__ import annotations

import json
import math
from itertools import islice
from typing import Any, Literal

from vltool.errors import Problem

Kind = Literal["bbox_2d", "poly", "line"]
Grid = Literal["none", "norm100", "norm1000"]
Points = tuple[tuple[float, float], ...]

KINDS: tuple[Kind, ...] = ("bbox_2d", "poly", "line")
FEWEST_POINTS: dict[Kind, int] = {"bbox_2d": 2, "poly": 3, "line": 2}
FORM: dict[Kind, str] = {
    "bbox_2d": "[x1, y1, x2, y2]",
    "poly": "[x1, y1, x2, y2, x3, y3, …], three points or more",
    "line": "[x1, y1, x2, y2, …], two points or more",
}
_NUMBERS = frozenset((int, float))
_STEPS: dict[Grid, int] = {"norm100": 100, "norm1000": 1000}


def shown(value: object) -> str:
    """A value of a record as JSON writes it, on one line, cut to 60 characters for a message."""
    text = json.dumps(_cut(value), ensure_ascii=False, default=str)
    return printable(text if len(text) <= 60 else text[:59] + "…")


def printable(text: str) -> str:
    """A text on one line, with what a terminal would act on, or show as nothing, written as JSON escapes it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _cut(value: object) -> object:
    """What 60 characters may show of a value, which can be as long as a line."""
    if isinstance(value, str):
        return value[:61]
    if isinstance(value, list):
        return [_cut(item) for item in value[:31]]
    if isinstance(value, dict):
        return {key[:61]: _cut(item) for key, item in islice(value.items(), 31)}
    return value


def read_points(
    value: object, *, kind: Kind, field: str, width: int | None, height: int | None
) -> tuple[Points, list[Problem]]:
    """Turn the flat list of numbers of one geometry into points, or say all that is wrong with it.

    value: what a record holds, [x1, y1, …] in pixels of the oriented image. Without a valid size
    (None) the bounds are not judged. The points are () when there is a problem; nothing is clamped.
    """
    if points := _plainly_good(value, kind, width, height):
        return points, []
    if not isinstance(value, list):
        return (), [Problem(f"{field} is {shown(value)}, not a list of numbers", f"write {FORM[kind]}, in pixels")]
    if value and all(isinstance(item, list) for item in value):
        flat = [number for item in value for number in item]
        return (), [Problem(f"{field} is written as nested pairs, {shown(value)}", f"write it flat: {shown(flat)}")]
    problems = [
        Problem(f"{field}[{i}] is {shown(item)}, not a number", f"write {FORM[kind]}, in pixels")
        for i, item in enumerate(value)
        if isinstance(item, bool) or not isinstance(item, int | float)
    ]
    if problem := _miscounted(value, kind, field):
        problems.append(problem)
    if problems:
        return (), problems
    problems += _outside(value, field, width, height)
    if kind == "bbox_2d":
        problems += [
            Problem(
                f"{field} is {shown(value)}: {axis}1 = {shown(low)} is not smaller than {axis}2 = {shown(high)}",
                "write the top left corner, then the bottom right one (not x, y, width, height)",
            )
            for axis, low, high in (("x", value[0], value[2]), ("y", value[1], value[3]))
            if low >= high
        ]
    if problems or width is None or height is None:
        return (), problems
    return tuple((float(x), float(y)) for x, y in zip(value[::2], value[1::2], strict=True)), []


def _plainly_good(value: object, kind: Kind, width: int | None, height: int | None) -> Points:
    """The points of a geometry in which nothing is wrong, found several times faster than by naming each problem.

    () for all others, among them good ones whose numbers are of a subclass, as numpy's are.
    """
    if width is None or height is None or type(value) is not list or not _NUMBERS.issuperset(map(type, value)):
        return ()
    xs, ys = value[::2], value[1::2]
    if len(xs) != len(ys) or len(xs) < FEWEST_POINTS[kind] or not (min(xs) >= 0 and max(xs) <= width):
        return ()
    if not (min(ys) >= 0 and max(ys) <= height):
        return ()
    if kind == "bbox_2d" and not (len(xs) == 2 and xs[0] < xs[1] and ys[0] < ys[1]):
        return ()
    if not math.isfinite(sum(value)):  # min and max may overlook a NaN
        return ()
    return tuple(zip(map(float, xs), map(float, ys), strict=True))


def _miscounted(value: list[Any], kind: Kind, field: str) -> Problem | None:
    count, fewest = len(value), 2 * FEWEST_POINTS[kind]
    if kind == "bbox_2d" and count != fewest:
        return Problem(f"{field} holds {count} numbers, not 4: {shown(value)}", f"write {FORM[kind]}")
    if count < fewest:
        return Problem(f"{field} holds {count} numbers, fewer than {fewest}: {shown(value)}", f"write {FORM[kind]}")
    if count % 2:
        return Problem(
            f"{field} holds {count} numbers, an odd count: {shown(value)}",
            f"every point needs an x and a y: {FORM[kind]}",
        )
    return None


def _outside(value: list[Any], field: str, width: int | None, height: int | None) -> list[Problem]:
    """One problem for all coordinates of a geometry that the image does not hold."""
    limits = (width, height)
    beyond = [i for i, v in enumerate(value) if (limit := limits[i % 2]) is not None and not 0 <= v <= limit]
    if not beyond:
        return []
    i = beyond[0]
    axis, side = ("y", "height") if i % 2 else ("x", "width")
    more = f" (and {len(beyond) - 1} more beyond the image)" if len(beyond) > 1 else ""
    return [
        Problem(
            f"{field}[{i}] is {shown(value[i])}: {axis} lies outside 0…{limits[i % 2]}, the image's {side}{more}",
            "write pixels of the image as declared by width and height; "
            "clip what leaves it, and rescale what was drawn on another size or on a grid of 1000",
        )
    ]


def to_grid(
    points: Points, *, width: int, height: int, grid: Grid, seen_size: tuple[int, int] | None = None
) -> list[list[int]]:
    """Put pixel points on the grid in which the model reads and writes them.

    points: x, y in pixels of the oriented image of width × height. norm1000 gives
    round(1000·x/width), clamped to [0, 1000]; norm100 likewise; none gives pixels of the image as
    the model sees it (seen_size: its width, height), round(seen_width·x/width), clamped to it.
    Rounding is Python's round(): a half goes to the even neighbour.
    Source: QwenLM/Qwen3-VL, cookbooks/2d_grounding.ipynb, "Coordinate System".
    """
    assert min(width, height) > 0, (width, height)
    if grid == "none":
        assert seen_size is not None, "the grid `none` needs the size that the model sees"
        x_steps, y_steps = seen_size
    else:
        x_steps = y_steps = _STEPS[grid]
    return [[_step(x, width, x_steps), _step(y, height, y_steps)] for x, y in points]


def _step(value: float, side: int, steps: int) -> int:
    return min(max(round(steps * value / side), 0), steps)
