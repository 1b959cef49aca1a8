"""What an operator is told whose run ended for want of memory: the plan, and the nearest knobs."""

from __future__ import annotations

import pytest
from planning import House
from shapes import write_shapes

from vltool.audit.memory_plan import GIB
from vltool.audit.memory_rules import explained
from vltool.errors import OutOfMemory, Problem


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("house"))
    write_shapes(house.base)
    return house


def died(**sizes):
    return OutOfMemory([Problem("out of memory in step 3", "lower something"), Problem("besides")], **sizes)


LARGE = {"training": {"gradient_checkpointing": False, "per_device_train_batch_size": 4}}


def test_a_run_that_was_planned_too_large_is_told_what_makes_it_fit(house):
    plan = house.plan(**LARGE)
    planned, error = explained(plan, died(peak_bytes=int(78.5 * GIB), gpu_bytes=int(79.2 * GIB)))
    assert not planned.fits
    assert planned.gpu_gib == pytest.approx(79.2)
    first, second = error.problems
    assert first.what == "out of memory in step 3"
    assert f"needs {planned.memory.needed / GIB:.1f} GiB; write training.per_device_train_batch_size: 2" in first.do
    assert "another process" not in first.do
    assert second.what == "besides"
    assert error.peak_bytes == int(78.5 * GIB)


def test_where_the_plan_fits_something_else_took_the_memory(house):
    planned, error = explained(house.plan(training={"gradient_checkpointing": False}), died(gpu_bytes=80 * GIB))
    assert planned.fits
    assert "another process" in error.problems[0].do
    assert all(knob.memory.needed <= 0.9 * planned.memory.needed for knob in planned.knobs)
    assert planned.knobs


def test_a_run_that_cannot_be_planned_keeps_its_remedy(tmp_path):
    planned, error = explained(House(tmp_path).plan(), died())
    assert planned.memory is None
    assert error.problems[0].do == "lower something"
