"""Variants of a preview are what a run of the recipe would draw."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from planning import House

from vltool.data.policy import Policy
from vltool.data.record import Object, Record
from vltool.recipe.schema import Augmentation
from vltool.run.variants import variants_of

BOX = Object("cat", "bbox_2d", ((1.0, 2.0), (30.0, 20.0)))
LINE = Object("rope", "line", ((0.0, 0.0), (64.0, 32.0)))
FLIP = {"name": "hflip", "params": {"prob": 1.0}}
RECORD = Record(images=("a.png",), objects=(BOX, LINE), width=64, height=32)


@pytest.fixture
def plan(tmp_path):
    """Makes a plan that augments by these operations."""

    def make(*ops):
        made = House(tmp_path).plan(training={"max_steps": 100})
        augmentation = msgspec.convert({"enabled": True, "ops": ops}, Augmentation) if ops else None
        return msgspec.structs.replace(made, data=msgspec.structs.replace(made.data, augmentation=augmentation))

    return make


def test_a_run_that_augments_nothing_has_none(plan):
    assert variants_of(plan(), Policy(), epoch=6, count=3) is None


def test_variants_lie_between_the_beginning_and_the_end_of_the_run(plan):
    pytest.importorskip("vltool.data.augment.policy")
    draw = variants_of(plan(FLIP), Policy(), epoch=6, count=3)
    image = np.arange(32 * 64 * 3, dtype=np.uint8).reshape(32, 64, 3)
    drawn = draw(image, RECORD, index=4)
    assert [title for title, _ in drawn] == ["at 0 % of the run", "at 49 % of the run", "at 100 % of the run"]
    for _, variant in drawn:
        assert np.array_equal(variant.image, image[:, ::-1])
        assert variant.objects[0] == Object("cat", "bbox_2d", ((34.0, 2.0), (63.0, 20.0)))
        assert variant.dropped == ()


def test_a_dataset_s_policy_is_honoured(plan):
    pytest.importorskip("vltool.data.augment.policy")
    image = np.zeros((32, 64, 3), dtype=np.uint8)
    flipping = plan(FLIP)
    assert variants_of(flipping, Policy(augmentation_enabled=False), epoch=6, count=3)(image, RECORD, index=0) == []
    capped = variants_of(flipping, Policy(max_objects=1), epoch=6, count=3)(image, RECORD, index=0)
    assert [len(variant.objects) for _, variant in capped] == [1, 1, 1]
    own = msgspec.structs.replace(RECORD, metadata={"fusion": {"dataset": "x", "augmentation_enabled": False}})
    assert variants_of(flipping, Policy(), epoch=6, count=3)(image, own, index=0) == []
