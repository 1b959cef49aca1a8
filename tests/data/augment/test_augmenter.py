"""A run's augmentation: what a sample gets depends on where it stands alone, and follows the curriculum."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("shapely")

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from vltool.data.augment.curriculum import Schedule
from vltool.data.augment.policy import Augmenter
from vltool.data.record import Object
from vltool.recipe.schema import Augmentation

BOX = Object("b", "bbox_2d", ((20.0, 20.0), (60.0, 60.0)))
IMAGE = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def augmentation(ops, curriculum=None, bypass_prob=0.0):
    document = {"enabled": True, "ops": ops, "bypass_prob": bypass_prob, "curriculum": curriculum}
    return msgspec.convert(document, Augmentation)


def rotate(**params):
    return {"name": "rotate", "params": params}


PHASES = {
    "phases": [
        {"until_percent": 20, "bypass_prob": 0.5, "ops": {"rotate": {"max_deg": 2.0, "prob": 0.4}}},
        {"until_percent": 60, "ops": {"rotate": {"max_deg": 12.0}, "gamma": {"gamma": [0.5, 2.0]}}},
    ]
}
OPS = [rotate(max_deg=10.0, prob=0.0), {"name": "gamma", "params": {"gamma": [1.0, 1.0]}}, rotate(max_deg=1.0)]


def test_a_curriculum_goes_in_straight_lines_and_its_ends_are_exact():
    schedule = Schedule(augmentation(OPS, PHASES, bypass_prob=0.9), samples=1000, samples_a_step=8)

    def at(position):
        pipeline, bypass = schedule.at(position)
        first, gamma, last = (op.params for op in pipeline._ops)
        return bypass, first.max_deg, first.prob, *gamma.gamma, last.max_deg

    assert at(0) == (0.9, 10.0, 0.0, 1.0, 1.0, 1.0)
    assert at(100) == pytest.approx((0.7, 6.0, 0.2, 1.0, 1.0, 1.5))
    assert at(200) == (0.5, 2.0, 0.4, 1.0, 1.0, 2.0)
    assert at(400) == pytest.approx((0.5, 7.0, 0.4, 0.75, 1.5, 7.0))
    for past in (600, 601, 10**9):
        assert at(past) == (0.5, 12.0, 0.4, 0.5, 2.0, 12.0)


def test_steps_are_counted_in_samples_of_all_processes():
    phases = {"phases": [{"until_step": 10, "ops": {"rotate": {"prob": 1.0}}}]}
    schedule = Schedule(augmentation([rotate(max_deg=1.0, prob=0.0)], phases), samples=10**6, samples_a_step=8)
    probabilities = [schedule.at(position)[0]._ops[0].params.prob for position in (0, 40, 80, 81)]
    assert probabilities == [0.0, 0.5, 1.0, 1.0]


def test_without_the_curriculum_the_recipes_own_parameters_hold():
    augmenter = Augmenter(
        augmentation([rotate(deg=[0.0, 0.0], prob=1.0)], {"phases": [{"until_step": 1, "bypass_prob": 1.0}]}),
        seed=0, samples=10, samples_a_step=1,
    )  # fmt: skip
    where = {"epoch": 0, "index": 5, "position": 5}
    assert augmenter.place(100, 80, [BOX], **where).bypassed
    assert not augmenter.place(100, 80, [BOX], **where, curriculum=False).bypassed


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_a_sample_is_the_same_whoever_draws_it_and_with_or_without_pixels(epoch, index, seed):
    setting = augmentation([rotate(max_deg=90.0, prob=0.7), {"name": "random_crop"}, {"name": "hsv"}], None, 0.3)
    where = {"epoch": epoch, "index": index, "position": 100 * epoch + index}
    one, other = (Augmenter(setting, seed=seed, samples=600, samples_a_step=2) for _ in range(2))
    other.apply(IMAGE, [BOX], epoch=9, index=9, position=9)
    first, second = (augmenter.apply(IMAGE, [BOX], **where) for augmenter in (one, other))
    assert np.array_equal(first.image, second.image)
    placed = one.place(100, 80, [BOX], **where)
    for name in ("width", "height", "objects", "dropped", "cropped", "bypassed", "reverted"):
        assert getattr(first, name) == getattr(second, name) == getattr(placed, name)


def test_places_and_epochs_draw_anew():
    augmenter = Augmenter(augmentation([rotate(max_deg=90.0, prob=1.0)]), seed=0, samples=100, samples_a_step=1)
    seen = {
        augmenter.place(100, 80, [BOX], epoch=epoch, index=index, position=0).objects
        for epoch in range(3)
        for index in range(3)
    }
    assert len(seen) == 9


def test_bypass_prob_is_the_share_of_samples_left_as_they_are():
    augmenter = Augmenter(augmentation([{"name": "vflip"}], None, 0.25), seed=3, samples=2000, samples_a_step=1)
    bypassed = sum(augmenter.place(9, 9, [], epoch=0, index=i, position=i).bypassed for i in range(2000))
    assert bypassed == pytest.approx(500, abs=80)


def test_a_record_keeps_its_image_where_every_object_would_go():
    corner = Object("c", "bbox_2d", ((0.0, 0.0), (4.0, 4.0)))
    augmenter = Augmenter(augmentation([rotate(deg=[45.0, 45.0], prob=1.0)]), seed=0, samples=9, samples_a_step=1)
    where = {"epoch": 0, "index": 0, "position": 0}
    done = augmenter.apply(IMAGE, [corner], **where)
    assert done.reverted
    assert done.objects == (corner,)
    assert np.array_equal(done.image, IMAGE)
    assert not augmenter.apply(IMAGE, [], **where).reverted, "nothing is lost where nothing was"
    kept = augmenter.apply(IMAGE, [corner, BOX], **where)
    assert (kept.reverted, kept.dropped, len(kept.objects)) == (False, (corner,), 1)
