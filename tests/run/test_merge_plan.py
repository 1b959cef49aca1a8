"""What a plan says of an earlier stage that is merged into the base, from configs, headers and fingerprints alone."""

from __future__ import annotations

import json
import os

import msgspec
import pytest
from planning import QUERY, House, write_adapter, write_config, write_weights

from vltool.errors import RunFailed
from vltool.run import launch
from vltool.run.evidence import to_json
from vltool.run.merge import FILE_NAME, is_merged
from vltool.run.plan import RunPlan, make_plan

FORWARD = {"rlhf_type": "gkd", "sft_alpha": 1.0, "beta": 0.1, "lmbda": 0.0, "seq_kd": False}


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    house = House(tmp_path)
    write_weights(house.base / "model.safetensors", [f"{QUERY}.weight"])
    write_adapter(house.folder / "earlier", house.base)
    return house


def merging(house, **tuner):
    return {
        "resume_from_checkpoint": str(house.folder / "earlier"),
        "merge_previous": str(house.folder / "merged"),
    } | tuner


def as_merged(house, plan):
    """Write what a merge leaves, as far as a plan looks at it."""
    (write_config(house.folder / "merged") / FILE_NAME).write_bytes(to_json(plan.merge))


def test_the_merged_folder_is_this_runs_base_and_nothing_is_carried(house):
    plan = house.plan("stage2_llm_lora", tuner=merging(house, lora_rank=2))
    assert plan.model == plan.arguments["model"] == str(house.folder / "merged")
    assert plan.original == plan.merge.base == str(house.base)
    assert plan.merge.checkpoint == str(house.folder / "earlier")
    assert plan.tuner.carried is None
    assert "target_regex" not in plan.arguments
    assert plan.model_type == "qwen3_vl"
    assert plan.origins["model"].startswith("mine.yaml:1:")
    assert RunPlan.from_json(plan.to_json()) == plan
    assert not (house.folder / "merged").exists()


def test_without_it_nothing_is_merged(house):
    plan = house.plan("stage2_llm_lora")
    assert plan.merge is None
    assert plan.original == plan.model == str(house.base)


TEACHERS = {
    "none named": (None, "base", "copy"),
    "the recipe's base": ("base", "base", "copy"),
    "the merged base": ("merged", "merged", "adapters_off"),
    "another": ("other", "other", "copy"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_is_the_original_base_unless_the_recipe_says_otherwise(name, house):
    named, folder, how = TEACHERS[name]
    write_config(house.folder / "other")
    teacher = {} if named is None else {"teacher_model": str(house.folder / named)}
    plan = house.plan("stage2_llm_lora", tuner=merging(house), rlhf=FORWARD | teacher)
    assert plan.distillation.teacher_model == str(house.folder / folder)
    assert plan.distillation.teacher == how
    assert plan.distillation.teacher_model_type == "qwen3_vl"


KINDS = {
    "LoRA of any rank": {"r": 64, "rank_pattern": {"x": 4}},
    "DoRA": {"use_dora": True},
    "AdaLoRA": {"peft_type": "ADALORA"},
    "BOFT": {"peft_type": "BOFT"},
    "FourierFT": {"peft_type": "FOURIERFT"},
}


@pytest.mark.parametrize("name", KINDS)
def test_any_kind_that_can_be_merged_goes_before_any_other(name, house):
    write_adapter(house.folder / "one", house.base, **KINDS[name])
    for tuner in ({}, {"use_dora": True}, {"init_weights": "pissa"}):
        chosen = merging(house, resume_from_checkpoint=str(house.folder / "one"), **tuner)
        assert house.plan("stage2_llm_lora", tuner=chosen).merge is not None


REFUSED = {
    "another base": ({"base_model_name_or_path": "/elsewhere"}, "its base is /elsewhere, the recipe's is "),
    "no base": ({"base_model_name_or_path": None}, "its base is None"),
    "BOFT with copies": ({"peft_type": "BOFT", "saved": ["model.visual.merger"]}, "its adapter is BOFT with modules"),
    "FourierFT with copies": ({"peft_type": "FOURIERFT", "saved": ["lm_head"]}, "its adapter is FOURIERFT with"),
    "a kind that is not merged": ({"peft_type": "PROMPT_TUNING"}, "its adapter is PROMPT_TUNING"),
    "PiSSA that was not converted": ({"init_lora_weights": "pissa_niter_4"}, "its adapter lies over a base that"),
    "one side of a tied matrix": ({"saved": ["lm_head"]}, "it changes lm_head, and the base keeps one matrix"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_at_its_line(name, house):
    config, what = REFUSED[name]
    earlier = write_adapter(house.folder / "one", house.base, **config)
    problems = house.refused("stage2_llm_lora", tuner=merging(house, resume_from_checkpoint=str(earlier)))
    assert problems[0].what.startswith(f"tuner.resume_from_checkpoint: {what}")
    for problem in problems:
        assert problem.do
        assert str(problem.where).startswith("mine.yaml:1:")


def test_a_whole_model_is_refused(house):
    write_weights(write_config(house.folder / "full") / "model.safetensors", ["lm_head.weight"])
    (problem,) = house.refused(tuner=merging(house, resume_from_checkpoint=str(house.folder / "full")))
    assert "is a whole model, there is nothing to merge" in problem.what
    assert "model.model" in problem.do


def test_a_folder_without_an_adapter_is_refused(house):
    (problem,) = house.refused(tuner=merging(house, resume_from_checkpoint=str(house.folder / "absent")))
    assert problem.what.startswith("tuner.resume_from_checkpoint: no such checkpoint folder")


def test_a_quantized_base_is_refused(house):
    write_weights(house.base / "model.safetensors", [f"{QUERY}.weight"], dtype="I8")
    (problem,) = house.refused(tuner=merging(house))
    assert problem.what == "tuner.merge_previous: the base holds I8 weights, which cannot be merged into"


def test_the_run_folder_cannot_lie_in_the_merged_base(house):
    run_dir = house.folder / "merged" / "run"
    (problem,) = house.refused(tuner=merging(house), training={"output_dir": str(run_dir)})
    assert "needs a folder of its own" in problem.do


def test_an_empty_folder_is_taken_and_any_other_refused_at_its_line(house):
    (house.folder / "merged").mkdir()
    assert not is_merged(house.plan(tuner=merging(house)).merge)
    (house.folder / "merged" / "notes.txt").write_text("mine")
    (problem,) = house.refused(tuner=merging(house))
    assert problem.what.startswith(f"tuner.merge_previous: {house.folder / 'merged'} is there already")
    assert "name a new folder" in problem.do
    assert str(problem.where).startswith("mine.yaml:1:")


def test_what_was_merged_before_is_taken_without_a_process(house, monkeypatch):
    plan = house.plan(tuner=merging(house))
    as_merged(house, plan)
    again = house.plan(tuner=merging(house))
    assert again.merge == plan.merge
    assert is_merged(again.merge)
    monkeypatch.setattr(launch.subprocess, "run", None)
    launch.merge(again)


CHANGES = {
    "the adapter's weights": lambda house: write_weights(
        house.folder / "earlier" / "adapter_model.safetensors",
        [f"base_model.model.{QUERY}.lora_{part}.weight" for part in "AB"], fill=1,
    ),
    "the adapter's alpha": lambda house: (house.folder / "earlier" / "adapter_config.json").write_text(
        json.dumps(json.loads((house.folder / "earlier" / "adapter_config.json").read_text()) | {"lora_alpha": 8})
    ),
    "the base's weights": lambda house: write_weights(house.base / "model.safetensors", [f"{QUERY}.weight"], fill=1),
    "the base's time": lambda house: os.utime(house.base / "model.safetensors", (1, 1)),
    "a broken record": lambda house: (house.folder / "merged" / FILE_NAME).write_text("{"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_merge_of_something_else_is_not_taken(name, house):
    as_merged(house, house.plan(tuner=merging(house)))
    CHANGES[name](house)
    (problem,) = house.refused(tuner=merging(house))
    assert "is there already, and is not" in problem.what


def test_a_plan_to_look_at_merges_nothing(house):
    before = sorted(house.folder.rglob("*"))
    plan = make_plan(house.recipe(tuner=merging(house)), cwd=house.folder, env={}, to_show=True)
    assert plan.merge is not None
    assert sorted({*house.folder.rglob("*")} - {house.folder / "mine.yaml"}) == before


@pytest.mark.slow
def test_a_failing_process_says_why(house):
    plan = house.plan(tuner=merging(house))
    broken = msgspec.structs.replace(plan, merge=msgspec.structs.replace(plan.merge, folder="/dev/null/merged"))
    with pytest.raises(RunFailed, match="cannot be merged into"):
        launch.merge(broken)
    assert sorted(path.name for path in house.folder.glob(".*")) == []
