"""A run that goes on: what must be as it was, and what may change."""

from __future__ import annotations

import json

import pytest
from planning import House, write_adapter, write_config

from vltool.run.folder import PLAN_FILE_NAME

RESUMED = {"training": {"output_dir": "run", "resume_from_checkpoint": "auto", "effective_batch_size": 16}}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A house in which a run was begun by a recipe with some sections; it has one checkpoint."""
    monkeypatch.chdir(tmp_path)
    house = House(tmp_path)

    def begin(**sections):
        plan = house.plan(**{"training": {"output_dir": "run", "effective_batch_size": 16}} | sections)
        run = house.folder / "run"
        write_adapter(run / "checkpoint-3", house.base)
        (run / "checkpoint-3" / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
        (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
        (run / PLAN_FILE_NAME).write_bytes(plan.to_json())
        return house

    return begin


def test_the_same_recipe_goes_on(begun):
    plan = begun().plan(**RESUMED)
    assert plan.resume is not None
    assert plan.resume.endswith("checkpoint-3")


@pytest.mark.parametrize(
    "sections",
    [
        {"training": RESUMED["training"] | {"learning_rate": 1e-5, "effective_batch_size": 32, "max_steps": 9}},
        {"tuner": {"lora_dropout": 0.1}},
        {"launch": {"nproc_per_node": 2}},
    ],
)
def test_schedule_batch_dropout_and_processes_may_change(sections, begun):
    assert begun().plan(**RESUMED | sections).resume is not None


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"tuner": {"lora_rank": 16}}, "was begun with lora_rank: 32, and cannot go on with 16"),
        ({"tuner": {"freeze_aligner": False}}, "freeze_aligner: True, and cannot go on with False"),
        ({"tuner": {"target_regex": ".*q_proj"}}, "target_regex: None, and cannot go on with '.*q_proj'"),
        ({"model": {"torch_dtype": "float32"}}, "torch_dtype: 'bfloat16', and cannot go on with 'float32'"),
        ({"deepspeed": {"enabled": True, "config": "zero3"}}, "deepspeed: 'none', and cannot go on with 'ZeRO-3'"),
        ({"deepspeed": {"enabled": True, "config": "zero0"}}, "deepspeed: 'none', and cannot go on with 'ZeRO-0'"),
    ],
)
def test_what_a_checkpoint_cannot_be_loaded_into_is_refused(sections, said, begun):
    house = begun()
    (problem,) = house.refused(**RESUMED | sections)
    assert said in problem.what
    assert str(house.folder / "run") in problem.what
    assert "resolved.yaml" in problem.do
    name = next(iter(next(iter(sections.values()))))
    if name != "enabled":
        assert problem.what.startswith("mine.yaml:1:"), problem.what


def test_another_base_is_refused(begun):
    house = begun()
    write_config(house.folder / "other")
    (problem,) = house.refused(**RESUMED, model={"model": "other"})
    assert "was begun with model: " in problem.what


def test_sharded_states_want_as_many_processes(begun):
    zero = {"deepspeed": {"enabled": True, "config": "zero2"}, "launch": {"nproc_per_node": 2}}
    house = begun(**zero)
    assert house.plan(**RESUMED | zero).resume is not None
    (problem,) = house.refused(**RESUMED | zero | {"launch": {"nproc_per_node": 4}})
    assert "begun with processes: 2, and cannot go on with 4" in problem.what


def test_pissa_goes_on_but_not_in_shards(begun):
    pissa = {"tuner": {"init_weights": "pissa"}}
    assert begun(**pissa).plan(**RESUMED | pissa).resume is not None


def test_pissa_in_shards_is_told(begun):
    sections = {"tuner": {"init_weights": "pissa"}, "deepspeed": {"enabled": True, "config": "zero3"}}
    (problem,) = begun(**sections).refused(**RESUMED | sections)
    assert "a PiSSA run cannot go on under ZeRO-3" in problem.what


def test_a_folder_without_a_plan_is_taken_as_it_is(begun):
    house = begun()
    (house.folder / "run" / PLAN_FILE_NAME).write_text('{"of": "another version"}')
    assert house.plan(**RESUMED, tuner={"lora_rank": 16}).resume is not None
