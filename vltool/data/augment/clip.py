"""What of a geometry a canvas holds; nothing is squashed onto its border.

Points are x, y in continuous pixels; a canvas is the rectangle [0, width] × [0, height].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import shapely
from shapely.geometry import MultiPolygon, Polygon

from vltool.data.geometry import Points
from vltool.data.record import Object

SMALLEST_AREA = 1.0
"""Square pixels of a box or polygon below which nothing of it can be seen."""
SHORTEST_LINE = 1.0
"""Pixels."""


class Kept(NamedTuple):
    """What is left of an object, and the share of its area or length that this is."""

    object: Object
    coverage: float


def clipped(item: Object, width: float, height: float) -> Kept | None:
    """An object cut to the canvas; None where next to nothing of it is inside.

    A box is cut to a box, a polygon to its largest piece, with its winding; a polyline to its longest run.
    """
    xs, ys = zip(*item.points, strict=True)
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    if right < 0.0 or left > width or bottom < 0.0 or top > height:
        return None
    inside = left >= 0.0 and right <= width and top >= 0.0 and bottom <= height
    if item.kind == "line":
        return _clipped_line(item, width, height, inside=inside)
    if inside:
        # Of the box around it; not of what it encloses, which may cross itself.
        return Kept(item, 1.0) if (right - left) * (bottom - top) >= SMALLEST_AREA else None
    return _clipped_box(item, width, height) if item.kind == "bbox_2d" else _clipped_polygon(item, width, height)


def signed_area(points: Points) -> float:
    """Square pixels of a polygon, positive where it runs clockwise on screen."""
    following = points[1:] + points[:1]
    return math.fsum(x * b - a * y for (x, y), (a, b) in zip(points, following, strict=True)) / 2


def _clipped_box(item: Object, width: float, height: float) -> Kept | None:
    (x1, y1), (x2, y2) = item.points
    corners = ((max(x1, 0.0), max(y1, 0.0)), (min(x2, width), min(y2, height)))
    sides = [high - low for low, high in zip(*corners, strict=True)]
    if min(sides) <= 0 or sides[0] * sides[1] < SMALLEST_AREA:
        return None
    return Kept(Object(item.desc, item.kind, corners), sides[0] * sides[1] / ((x2 - x1) * (y2 - y1)))


def _clipped_polygon(item: Object, width: float, height: float) -> Kept | None:
    whole = Polygon(item.points)
    if not whole.is_valid:
        # A ring that crosses itself has no inside to agree on; its largest simple part stands for it.
        whole = _largest(shapely.make_valid(whole))
    piece = _largest(whole.intersection(shapely.box(0.0, 0.0, width, height)))
    if piece.area < SMALLEST_AREA:
        return None
    ring = [(min(max(float(x), 0.0), width), min(max(float(y), 0.0), height)) for x, y in piece.exterior.coords[:-1]]
    if (signed_area(tuple(ring)) > 0) != (signed_area(item.points) > 0):
        ring.reverse()
    # From the corner that was the first, where it is still there.
    corner = next((point for point in item.points if point in ring), None)
    start = ring.index(corner) if corner is not None else 0
    return Kept(Object(item.desc, item.kind, tuple(ring[start:] + ring[:start])), float(piece.area / whole.area))


def _largest(shape: shapely.Geometry) -> Polygon:
    """The largest polygon of a shape, without holes; an empty one where there is none."""
    if isinstance(shape, Polygon):
        return Polygon(shape.exterior)
    parts = getattr(shape, "geoms", ())
    polygons = [_largest(part) for part in parts if isinstance(part, Polygon | MultiPolygon)]
    return max(polygons, key=lambda polygon: float(polygon.area), default=Polygon())


def _clipped_line(item: Object, width: float, height: float, *, inside: bool) -> Kept | None:
    longest = item.points if inside else max(_runs(item.points, width, height), key=_length, default=())
    length = _length(longest)
    if length < SHORTEST_LINE:
        return None
    return Kept(Object(item.desc, item.kind, longest), length / _length(item.points))


def _length(points: Points) -> float:
    return sum(math.dist(one, other) for one, other in pairwise(points))


def _runs(points: Points, width: float, height: float) -> Iterator[Points]:
    """The parts of a polyline that the canvas holds, each without a gap."""
    run: list[tuple[float, float]] = []
    for start, end in pairwise(points):
        part = _segment(start, end, width, height)
        if part is None or (run and run[-1] != part[0]):
            if len(run) > 1:
                yield tuple(run)
            run = []
        if part is not None:
            run = [*(run or [part[0]]), part[1]]
    if len(run) > 1:
        yield tuple(run)


def _segment(
    start: tuple[float, float], end: tuple[float, float], width: float, height: float
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The part of a segment that the canvas holds; None for none, or one point of it.

    Source: Liang and Barsky, A New Concept and Method for Line Clipping, ACM TOG 3 (1984).
    """
    enters, leaves = 0.0, 1.0
    for begin, finish, side in zip(start, end, (width, height), strict=True):
        way = finish - begin
        for towards, distance in ((-way, begin), (way, side - begin)):
            if towards == 0.0:
                if distance < 0.0:
                    return None
            elif towards < 0.0:
                enters = max(enters, distance / towards)
            else:
                leaves = min(leaves, distance / towards)
    if enters > leaves or (enters == leaves and start != end):
        return None

    def at(share: float) -> tuple[float, float]:
        if share in (0.0, 1.0):
            x, y = start if share == 0.0 else end
        else:
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
        # An end may lie outside by less than its share can tell.
        return min(max(x, 0.0), width), min(max(y, 0.0), height)

    return at(enters), at(leaves)
