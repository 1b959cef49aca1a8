"""What a canvas keeps of a geometry, against shapely on the plain cases and by hand on the odd ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("shapely")

import shapely

from vltool.data.augment.clip import clipped, signed_area
from vltool.data.record import Object

numbers = st.floats(-60, 160).map(lambda v: round(v, 3))
points = st.tuples(numbers, numbers)


def polygon(*corners):
    return Object("p", "poly", corners)


@settings(max_examples=200, deadline=None)
@given(points, points, points)
def test_a_polyline_keeps_its_longest_run(a, b, c):
    line = Object("l", "line", (a, b, c))
    inside = shapely.LineString(line.points).intersection(shapely.box(0, 0, 100, 80))
    merged = inside if inside.geom_type != "MultiLineString" else shapely.line_merge(inside)
    parts = [part.length for part in getattr(merged, "geoms", [merged])]
    kept = clipped(line, 100, 80)
    if kept is None:
        assert max(parts) <= 1.0 + 1e-6
        return
    length = shapely.LineString(kept.object.points).length
    # shapely joins runs that touch, and cuts where a line crosses itself: three points do neither, but for overlaps.
    if shapely.LineString(line.points).is_simple:
        assert length == pytest.approx(max(parts), abs=1e-6)
    assert kept.coverage == pytest.approx(length / shapely.LineString(line.points).length)


def test_a_polyline_that_leaves_and_comes_back_is_not_joined():
    line = Object("l", "line", ((10.0, 10.0), (10.0, -5.0), (30.0, -5.0), (30.0, 60.0)))
    kept = clipped(line, 100, 80)
    assert kept is not None
    assert kept.object.points == ((30.0, 0.0), (30.0, 60.0))


def test_a_polyline_that_crosses_itself_stays_one():
    cross = Object("l", "line", ((10.0, 10.0), (50.0, 50.0), (50.0, 10.0), (10.0, 50.0)))
    assert clipped(cross, 100, 80).object == cross


@settings(max_examples=200, deadline=None)
@given(points, points, points)
def test_a_polygon_keeps_its_share_and_its_winding(a, b, c):
    item = polygon(a, b, c)
    whole = shapely.Polygon(item.points)
    if whole.area < 2:
        return
    inside = whole.intersection(shapely.box(0, 0, 100, 80))
    kept = clipped(item, 100, 80)
    if kept is None:
        assert inside.area < 1.0
        return
    assert abs(signed_area(kept.object.points)) == pytest.approx(inside.area, rel=1e-6)
    assert kept.coverage == pytest.approx(inside.area / whole.area, rel=1e-6)
    assert (signed_area(kept.object.points) > 0) == (signed_area(item.points) > 0)


def test_a_polygon_in_two_pieces_keeps_the_larger_one_from_its_first_corner():
    # A U whose bottom lies below the canvas: two arms are left, of 10 and of 20 pixels' width.
    item = polygon((10, 10), (20, 10), (20, 90), (40, 90), (40, 10), (60, 10), (60, 100), (10, 100))
    kept = clipped(item, 100, 80)
    assert kept.object.points == ((40.0, 10.0), (60.0, 10.0), (60.0, 80.0), (40.0, 80.0))


def test_a_polygon_that_crosses_itself_crashes_nothing_and_comes_out_simple():
    bow = polygon((-10, 10), (50, 60), (50, 10), (-10, 60))
    kept = clipped(bow, 100, 80)
    assert shapely.Polygon(kept.object.points).is_valid
    inside = polygon((0, 10), (50, 60), (50, 10), (0, 60))
    assert clipped(inside, 100, 80).object == inside, "what is not cut is not touched"


def test_nothing_is_squashed_onto_the_border():
    for item in (
        Object("b", "bbox_2d", ((-20.0, 5.0), (-1.0, 20.0))),
        Object("b", "bbox_2d", ((-20.0, 5.0), (0.01, 20.0))),
        polygon((-20, 0), (-5, 0), (-5, 30)),
        Object("l", "line", ((-5.0, 0.0), (-5.0, 70.0))),
        Object("l", "line", ((0.0, 90.0), (70.0, 90.0))),
    ):
        assert clipped(item, 100, 80) is None


def test_a_box_stays_a_box():
    kept = clipped(Object("b", "bbox_2d", ((-10.0, 20.0), (30.0, 100.0))), 100, 80)
    assert kept.object == Object("b", "bbox_2d", ((0.0, 20.0), (30.0, 80.0)))
    assert kept.coverage == pytest.approx(30 * 60 / (40 * 80))


def test_a_point_beside_the_border_by_a_rounding_is_put_on_it():
    line = Object("rope", "line", ((36.0, 28.0), (-4.440892098500626e-16, 63.0)))
    assert clipped(line, 100.0, 100.0).object.points == ((36.0, 28.0), (0.0, 63.0))
