"""Geometry and pixels change together: drawings of geometries go where geometries go."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("cv2")
pytest.importorskip("shapely")

import shapely

from vltool.data.augment.clip import signed_area
from vltool.data.augment.pipeline import Pipeline
from vltool.data.record import Object
from vltool.errors import InvalidInput
from vltool.recipe.augmentation import OPS

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FINE = 6
"""Steps a pixel is drawn in."""


def drawn(item: Object, width: int, height: int) -> np.ndarray:
    """How much of each pixel a box or polygon covers, 0 to 1, by fine steps."""
    points = item.points
    if item.kind == "bbox_2d":
        (x1, y1), (x2, y2) = points
        points = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    shape = shapely.Polygon(points)
    shapely.prepare(shape)
    steps = (np.arange(0, max(width, height) * FINE) + 0.5) / FINE
    xs, ys = np.meshgrid(steps[: width * FINE], steps[: height * FINE])
    inside = shapely.contains_xy(shape, xs.ravel(), ys.ravel()).reshape(height * FINE, width * FINE)
    return inside.reshape(height, FINE, width, FINE).mean((1, 3))


def iou(seen: np.ndarray, want: np.ndarray) -> float:
    """Over the pixels that a shape covers or does not; a pixel that it halves may fall on either side."""
    covered, decided = want > 0.5, abs(want - 0.5) > 0.2
    return float((seen & covered & decided).sum() / ((seen | covered) & decided).sum())


sides = st.integers(72, 128)


@st.composite
def shapes(draw, width: int, height: int):
    """A box or a star-shaped polygon of at least 36 pixels, anywhere on the canvas."""
    w, h = draw(st.integers(36, width)), draw(st.integers(36, height))
    x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
    if draw(st.booleans()):
        return Object("box", "bbox_2d", ((x, y), (x + w, y + h)))
    corners = draw(st.integers(3, 9))
    turns = [2 * math.pi * i / corners + draw(st.floats(0, 0.3)) for i in range(corners)]
    radii = [draw(st.floats(0.75, 1.0)) for _ in turns]
    points = [
        (x + w / 2 + r * w / 2 * math.cos(t), y + h / 2 + r * h / 2 * math.sin(t))
        for t, r in zip(turns, radii, strict=True)
    ]
    if draw(st.booleans()):
        points.reverse()
    return Object("poly", "poly", tuple((min(max(a, 0.0), width), min(max(b, 0.0), height)) for a, b in points))


@st.composite
def points_of_line(draw, width: int, height: int, margin: int = 0):
    xs, ys = st.floats(margin, width - margin), st.floats(margin, height - margin)
    return Object("line", "line", tuple((draw(xs), draw(ys)) for _ in range(draw(st.integers(2, 6)))))


span = st.tuples(st.floats(0.8, 1.25), st.floats(0.8, 1.25)).map(sorted).map(list)
PARAMS = {
    "hflip": st.just({}),
    "vflip": st.just({}),
    "rotate": st.one_of(
        st.builds(lambda d: {"max_deg": d}, st.floats(0, 180)),
        st.builds(lambda d: {"deg": [d, d]}, st.sampled_from([-180.0, -90.0, 0.0, 33.0, 90.0])),
    ),
    "scale": st.builds(lambda s: {"lo": s[0], "hi": s[1]}, span),
    "resize_by_scale": st.builds(
        lambda s, a: {"lo": s[0], "hi": s[1], "align_multiple": a}, span, st.sampled_from([None, 1, 16, 32])
    ),
    "random_crop": st.builds(
        lambda lo, cover, skip: {"scale": [lo, 1.0], "min_coverage": cover, "skip_if_line": skip},
        st.floats(0.3, 1.0), st.floats(0, 1), st.booleans(),
    ),
    "pad_to_multiple": st.builds(lambda m: {"multiple": m}, st.sampled_from([1, 28, 32])),
    "expand_to_fit_affine": st.builds(
        lambda m, most: {"multiple": m, "max_pixels": most},
        st.sampled_from([1, 16, 32]), st.sampled_from([None, 64 * 96, 128 * 128]),
    ),
}  # fmt: skip
COLOUR = sorted(set(OPS) - set(PARAMS))


def op(name, **params):
    always = {} if name in ("pad_to_multiple", "expand_to_fit_affine") else {"prob": 1.0}
    return {"name": name, "params": always | params}


@st.composite
def chains(draw, names, most=4):
    """Operations of these names, in any order."""
    chosen = draw(st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=most))
    return [op(name, **draw(PARAMS.get(name, st.just({})))) for name in chosen]


def rng(seed=0):
    return np.random.default_rng(seed)


def image_of(item, width, height):
    """Red: the drawing. Blue: nothing, but for the grey that padding mixes in."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = (drawn(item, width, height) * 255).round()
    return image


def seen(image):
    """The drawing in an image that `image_of` made, wherever it went: more than half of a pixel."""
    return image[..., 0].astype(int) - image[..., 2] > 127


@pytest.mark.parametrize("name", sorted(PARAMS))
@quick
@given(st.data())
def test_a_drawing_goes_where_its_geometry_goes(name, data):
    width, height = data.draw(sides), data.draw(sides)
    item = data.draw(shapes(width, height))
    before = [op("rotate", deg=[20.0, 20.0])] if name == "expand_to_fit_affine" else []
    pipeline = Pipeline.from_ops([*before, op(name, **data.draw(PARAMS[name]))])
    done = pipeline.apply(image_of(item, width, height), [item], rng=rng(data.draw(st.integers(0, 99))))
    moved = seen(done.image)
    if done.objects:
        want = drawn(done.objects[0], done.width, done.height)
        if want.sum() >= 32 * 32:
            assert iou(moved, want) >= 0.98
    elif name != "random_crop":  # which drops what it cuts too far
        assert moved.sum() <= 2


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_comes_together_geometries_stay_whole_and_inside(data):
    width, height = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    wide, tall = max(width, 36), max(height, 36)
    items = data.draw(st.lists(st.one_of(shapes(wide, tall), points_of_line(wide, tall)), max_size=4))
    done = Pipeline.from_ops(data.draw(chains(PARAMS))).place(wide, tall, items, rng=rng(data.draw(st.integers(0, 99))))
    assert len(done.objects) + len(done.dropped) == len(items)
    for item in done.objects:
        assert all(0 <= x <= done.width and 0 <= y <= done.height for x, y in item.points)
        if item.kind == "bbox_2d":
            (x1, y1), (x2, y2) = item.points
            assert x1 < x2
            assert y1 < y2
        elif item.kind == "poly":
            assert len(item.points) >= 3
            assert shapely.Polygon(item.points).is_valid
        else:
            assert len(item.points) >= 2


@quick
@given(st.data())
def test_without_pixels_everything_is_placed_the_same(data):
    width, height = data.draw(st.integers(36, 90)), data.draw(st.integers(36, 90))
    items = data.draw(st.lists(st.one_of(shapes(width, height), points_of_line(width, height)), max_size=3))
    pipeline = Pipeline.from_ops(data.draw(chains(OPS)))
    seed = data.draw(st.integers(0, 99))
    placed = pipeline.place(width, height, items, rng=rng(seed))
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    kept = image.copy()
    done = pipeline.apply(image, items, rng=rng(seed))
    assert done.image.shape == (placed.height, placed.width, 3) == (done.height, done.width, 3)
    assert (done.objects, done.dropped, done.cropped) == (placed.objects, placed.dropped, placed.cropped)
    assert np.array_equal(image, kept), "the image that was given is left as it is"
    again = pipeline.apply(image, items, rng=rng(seed))
    assert np.array_equal(again.image, done.image)


@quick
@given(st.data())
def test_sizes_are_aligned_and_within_their_limit(data):
    width, height = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700))
    multiple = data.draw(st.sampled_from([1, 28, 32]))
    most = data.draw(st.integers(max(multiple**2, 1024), 200_000))
    seed = rng(data.draw(st.integers(0, 99)))
    before = data.draw(chains({"hflip", "rotate", "scale"}))
    expand = op("expand_to_fit_affine", multiple=multiple, max_pixels=most)
    done = Pipeline.from_ops([*before, expand]).place(width, height, [], rng=seed)
    assert done.width % multiple == done.height % multiple == 0
    assert done.width * done.height <= most
    padded = Pipeline.from_ops([op("pad_to_multiple", multiple=multiple)]).place(width, height, [], rng=seed)
    assert padded.width % multiple == padded.height % multiple == 0
    assert 0 <= padded.width - width < multiple
    assert 0 <= padded.height - height < multiple


@pytest.mark.parametrize("name", ["hflip", "vflip"])
def test_a_flip_is_exact_and_two_give_the_image_back(name):
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    line = Object("l", "line", ((0.0, 1.0), (47.0, 33.0)))
    once = Pipeline.from_ops([op(name)]).apply(image, [line], rng=rng())
    assert np.array_equal(once.image, image[:, ::-1] if name == "hflip" else image[::-1])
    assert once.objects[0].points == ({"hflip": ((47.0, 1.0), (0.0, 33.0)), "vflip": ((0.0, 32.0), (47.0, 0.0))}[name])
    twice = Pipeline.from_ops([op(name)]).apply(once.image, once.objects, rng=rng())
    assert np.array_equal(twice.image, image)
    assert twice.objects == (line,)
    together = Pipeline.from_ops([op(name), op(name)]).apply(image, [line], rng=rng())
    assert np.array_equal(together.image, image)


def test_positive_degrees_turn_clockwise_on_screen():
    box = Object("b", "bbox_2d", ((40.0, 0.0), (60.0, 20.0)))  # at the top
    quarter, little = (Pipeline.from_ops([op("rotate", deg=[d, d])]) for d in (90.0, 10.0))
    done = quarter.place(100, 100, [box], rng=rng())
    assert done.objects == (Object("b", "bbox_2d", ((80.0, 40.0), (100.0, 60.0))),)  # at the right
    (turned,) = little.place(100, 100, [box], rng=rng()).objects
    assert turned.kind == "poly"
    assert sum(x for x, _ in turned.points) / len(turned.points) > 50


def test_a_turned_and_expanded_image_loses_nothing():
    image = np.full((50, 80, 3), 255, dtype=np.uint8)
    box = Object("all", "bbox_2d", ((0.0, 0.0), (80.0, 50.0)))
    pipeline = Pipeline.from_ops([op("rotate", deg=[30.0, 30.0]), op("expand_to_fit_affine", multiple=1)])
    done = pipeline.apply(image, [box], rng=rng())
    assert abs(signed_area(done.objects[0].points)) == pytest.approx(80 * 50)
    white = (done.image.astype(float).mean(-1) - 128).clip(0).sum() / 127
    assert white == pytest.approx(80 * 50, rel=0.01)


def test_parameters_of_one_operation_change_no_other_draw():
    items = [Object("b", "bbox_2d", ((20.0, 20.0), (60.0, 60.0)))]
    ops = [op("rotate", max_deg=30.0), op("gamma", gamma=[1.0, 1.0]), op("resize_by_scale")]
    others = [ops[0], {"name": "gamma", "params": {"gamma": [0.5, 2.0], "prob": 0.0}}, ops[2]]
    for seed in range(5):
        one, other = (Pipeline.from_ops(chosen).place(90, 90, items, rng=rng(seed)) for chosen in (ops, others))
        assert one == other


def test_a_crop_that_would_hurt_is_not_taken():
    line = Object("l", "line", ((0.0, 0.0), (100.0, 100.0)))
    half = {"scale": [0.25, 0.25], "aspect_ratio": [1.0, 1.0]}
    refused = Pipeline.from_ops([op("random_crop", **half)]).place(100, 100, [line], rng=rng())
    assert (refused.cropped, refused.width, refused.objects) == (False, 100, (line,))
    taken = Pipeline.from_ops([op("random_crop", **half, skip_if_line=False, min_coverage=0.1)])
    assert taken.place(100, 100, [line], rng=rng(1)).cropped is True
    corners = [Object("b", "bbox_2d", ((x, y), (x + 5.0, y + 5.0))) for x in (0.0, 95.0) for y in (0.0, 95.0)]
    few = Pipeline.from_ops([op("random_crop", **half, min_objects=2)]).place(100, 100, corners, rng=rng())
    assert (few.cropped, few.objects) == (False, tuple(corners))
    fewer = Pipeline.from_ops([op("random_crop", **half, min_objects=0)]).place(100, 100, corners, rng=rng())
    assert fewer.cropped is True
    assert (fewer.width, fewer.height) == (50, 50)
    assert len(fewer.dropped) >= 3
    assert Pipeline.from_ops([]).place(100, 100, [line], rng=rng()).cropped is None


@quick
@given(st.integers(50, 4000), st.integers(50, 4000), st.floats(0.05, 1.0), st.floats(0.05, 20.0), st.integers(0, 99))
def test_a_crop_has_the_share_of_the_area_that_was_asked_for(width, height, share, ratio, seed):
    crop = Pipeline.from_ops([op("random_crop", scale=[share, share], aspect_ratio=[ratio, ratio])])
    done = crop.place(width, height, [], rng=rng(seed))
    # Sides are whole pixels: half of one either way on both.
    assert abs(done.width * done.height - share * width * height) <= (done.width + done.height) / 2 + 1
    if math.sqrt(share * width * height * ratio) <= width and math.sqrt(share * width * height / ratio) <= height:
        assert (done.width - 1) / (done.height + 1) <= ratio <= (done.width + 1) / max(done.height - 1, 1e-9)


@quick
@given(st.data())
def test_affine_operations_add_up_in_their_order(data):
    width, height = data.draw(sides), data.draw(sides)
    item = data.draw(shapes(width, height))
    ops = data.draw(chains({"hflip", "vflip", "rotate", "scale"}))
    if data.draw(st.booleans()):
        ops.append(op("expand_to_fit_affine", multiple=32))
    done = Pipeline.from_ops(ops).apply(image_of(item, width, height), [item], rng=rng(data.draw(st.integers(0, 99))))
    if done.objects:
        want = drawn(done.objects[0], done.width, done.height)
        if want.sum() >= 32 * 32:
            assert iou(seen(done.image), want) >= 0.98


@pytest.mark.parametrize("name", sorted(PARAMS))
@quick
@given(st.data())
def test_a_drawn_line_goes_where_its_points_go(name, data):
    width, height = data.draw(sides), data.draw(sides)
    line = data.draw(points_of_line(width, height, margin=8))  # the whole band is in the image
    band = Object("band", "poly", tuple(shapely.LineString(line.points).buffer(5).exterior.coords))
    pipeline = Pipeline.from_ops([op(name, **data.draw(PARAMS[name]))])
    done = pipeline.apply(image_of(band, width, height), [line], rng=rng(data.draw(st.integers(0, 99))))
    lit = seen(done.image)
    for moved in done.objects:
        path = shapely.LineString(moved.points)
        for share in np.linspace(0.0, 1.0, 60):
            point = path.interpolate(share, normalized=True)
            x, y = min(int(point.x), done.width - 1), min(int(point.y), done.height - 1)
            assert lit[y, x], (point, moved)


def test_operations_are_done_in_the_order_of_the_list():
    box = Object("b", "bbox_2d", ((40.0, 0.0), (60.0, 20.0)))  # at the top
    quarter, flip = op("rotate", deg=[90.0, 90.0]), op("hflip")
    for ops, x in (([quarter, flip], 0.0), ([flip, quarter], 80.0)):
        done = Pipeline.from_ops(ops).apply(image_of(box, 100, 100), [box], rng=rng())
        assert done.objects == (Object("b", "bbox_2d", ((x, 40.0), (x + 20.0, 60.0))),)
        assert seen(done.image)[50, int(x) + 10]


def test_what_is_no_operation_is_refused_with_every_problem():
    with pytest.raises(InvalidInput, match="rotat"):
        Pipeline.from_ops([{"name": "rotat"}])
    with pytest.raises(InvalidInput) as caught:
        Pipeline.from_ops([op("rotate"), op("gamma", gamma=[2.0, 1.0])])
    assert [problem.what for problem in caught.value.problems] == [
        "ops[0]: rotate: no angle", "ops[1].params.gamma: gamma: gamma goes from 2 down to 1",
    ]  # fmt: skip
