"""What a plan takes from an earlier stage's adapter, from its config and headers alone."""

from __future__ import annotations

import re

import pytest
from planning import QUERY, House, write_adapter

from vltool.run.arguments import PEFT_NO_TARGETS, tuner_arguments
from vltool.run.chain import read_chain


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return House(tmp_path)


MERGER = "model.visual.merger"


def chained(house, name="stage2_llm_lora", **tuner):
    plan = house.plan(name, tuner={"resume_from_checkpoint": str(house.folder / "earlier")} | tuner)
    return plan, plan.tuner.carried


def test_names_rank_and_scaling_come_from_the_adapter(house):
    write_adapter(house.folder / "earlier", house.base, adapted=[QUERY, f"{MERGER}.linear_fc1"], saved=["lm_head"])
    _, carried = chained(house)
    assert carried.adapted == (QUERY, f"{MERGER}.linear_fc1")
    assert carried.saved == ("lm_head",)
    assert (carried.rank, carried.scaling) == (8, 2.0)


def test_rslora_scales_by_the_root(house):
    write_adapter(house.folder / "earlier", house.base, use_rslora=True, r=4)
    assert chained(house)[1].scaling == 8.0


def test_the_adapter_covers_both_stages(house):
    write_adapter(house.folder / "earlier", house.base, adapted=[f"{MERGER}.linear_fc1"])
    plan, _ = chained(house, freeze_aligner=True)
    regex = plan.arguments["target_regex"]
    assert re.fullmatch(regex, QUERY)
    assert re.fullmatch(regex, f"{MERGER}.linear_fc1")
    assert not re.fullmatch(regex, f"{MERGER}.linear_fc2")
    assert not re.fullmatch(regex, "model.visual.blocks.3.attn.qkv")


def test_what_is_kept_in_full_gets_no_lora(house):
    write_adapter(house.folder / "earlier", house.base, adapted=[], saved=[MERGER])
    plan, _ = chained(house)
    regex = plan.arguments["target_regex"]
    assert plan.arguments["modules_to_save"] == [MERGER]
    assert re.fullmatch(regex, QUERY)
    assert not re.fullmatch(regex, f"{MERGER}.linear_fc1")
    assert re.fullmatch(regex, "model.visual.deepstack_merger_list.0.linear_fc1")


def test_a_lora_below_what_is_tuned_in_full_now_is_none_of_the_targets(house):
    write_adapter(house.folder / "earlier", house.base, adapted=[f"{MERGER}.linear_fc1"])
    plan, _ = chained(house, "stage1_aligner_full")
    assert plan.arguments["target_regex"] == PEFT_NO_TARGETS
    assert MERGER in plan.arguments["modules_to_save"]


def test_own_suffixes_stay_suffixes(house):
    write_adapter(house.folder / "earlier", house.base, adapted=[f"{MERGER}.linear_fc1"])
    plan, _ = chained(house, target_modules=["k_proj"])
    regex = plan.arguments["target_regex"]
    assert re.fullmatch(regex, QUERY.replace("q_proj", "k_proj"))
    assert not re.fullmatch(regex, QUERY)


def test_without_an_earlier_stage_nothing_changes(house):
    plan = house.plan("stage2_llm_lora")
    assert plan.tuner.carried is None
    assert "target_regex" not in tuner_arguments(plan.tuner)


REFUSED = {
    "another kind": ({"peft_type": "BOFT"}, {}, "its adapter is BOFT, this stage's is LORA"),
    "DoRA now": ({}, {"use_dora": True}, "its adapter is LORA, this stage's is DORA"),
    "DoRA then": ({"use_dora": True}, {}, "its adapter is DORA, this stage's is LORA"),
    "a larger rank": ({"r": 64}, {}, "its rank is 64, this stage's only 32"),
    "ranks that differ": ({"rank_pattern": {"x": 4}}, {}, "its ranks differ between modules"),
    "over a changed base": ({"init_lora_weights": "pissa"}, {}, "it lies over a base that init_lora_weights: pissa"),
    "another base": ({"base_model_name_or_path": "/elsewhere"}, {}, "its base is /elsewhere, the recipe's is "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_is_refused_at_its_line(name, house):
    config, tuner, what = REFUSED[name]
    earlier = write_adapter(house.folder / "earlier", house.base, **config)
    (problem,) = house.refused("stage2_llm_lora", tuner={"resume_from_checkpoint": str(earlier)} | tuner)
    assert problem.what.startswith(f"tuner.resume_from_checkpoint: {what}")
    assert problem.do
    assert str(problem.where).startswith("mine.yaml:1:")


def test_pissa_carries_nothing(house):
    earlier = write_adapter(house.folder / "earlier", house.base)
    tuner = {"resume_from_checkpoint": str(earlier), "init_weights": "pissa"}
    (problem,) = house.refused("stage2_llm_lora", tuner=tuner)
    assert problem.what.startswith("tuner.init_weights: PiSSA starts from the base's own weights")
    assert "tuner.merge_previous" in problem.do
    assert str(problem.where).startswith("mine.yaml:1:")


def test_a_folder_without_an_adapter_is_refused(house):
    (house.folder / "empty").mkdir()
    for name, words in (("empty", "holds no weights"), ("absent", "no such checkpoint folder")):
        (problem,) = house.refused(tuner={"resume_from_checkpoint": str(house.folder / name)})
        assert words in problem.what


def test_reading_needs_no_recipe(house):
    earlier = write_adapter(house.folder / "earlier", house.base)
    carried = read_chain(earlier, base=house.base, tuner_type="lora", rank=8, use_dora=False, where=None)
    assert carried.checkpoint == str(earlier)
