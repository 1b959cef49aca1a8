"""What names and patterns reach in a base's own list of tensors."""

from __future__ import annotations

import pytest
from planning import House
from shapes import TEXT_4B, VISION_4B, write_shapes

from vltool.audit.target_rules import RULES, judge_targets

MERGERS = ["model.visual.merger", *(f"model.visual.deepstack_merger_list.{at}" for at in range(3))]
FOURIER = ["base", "fourierft"]

SEEN = {
    "tuner-target-absent": [
        (
            "base", {"target_regex": r"model\.visual\.blocks\.30\.attn\.qkv"}, "error",
            "tuner.target_regex matches no module of the base",
        ),
        ("base", {"target_modules": ["visual.blocks.30.attn.qkv"]}, "error", "the base has no module visual.blocks.30"),
        ("base", {"target_modules": ["layers.3.self_attn.q_proj", "layers.36.self_attn.q_proj"]}, "warning",
         "no module layers.36.self_attn.q_proj"),
        (
            "base", {"target_regex": r".*visual\.merger\.linear_fc1", "modules_to_save": MERGERS}, "error",
            "only modules that modules_to_save trains in full",
        ),
        (
            "base", {"target_modules": ["merger.linear_fc1"], "modules_to_save": MERGERS}, "error",
            "names only modules that modules_to_save trains in full",
        ),
    ],
    "tuner-target-kind": [
        ("base", {"target_regex": r"model\.visual\.merger.*"}, "error", "merger, model.visual.merger.norm cannot"),
        ("base", {"target_regex": r".*layers\.0\..*norm|.*q_proj"}, "error", "layers.0.input_layernorm"),
        (["base", "adalora"], {"target_modules": ["proj"]}, "error", "patch_embed.proj cannot bear an adapter"),
    ],
    "tuner-save-absent": [
        ("base", {"modules_to_save": ["model.visual.deepstack_merger_list.3"]}, "error", "deepstack_merger_list.3"),
        ("base", {"modules_to_save": ["mlp.experts"]}, "error", "no module mlp.experts"),
    ],
    "tuner-save-partial": [
        ("base", {"modules_to_save": MERGERS[:3]}, "warning", "3 of the aligner's 4 mergers: model.visual.deepstack"),
    ],
    "tuner-save-tied": [
        ("base", {"modules_to_save": ["lm_head"]}, "warning", "lm_head is trained in full, and embed_tokens"),
        ("base", {"modules_to_save": ["embed_tokens"]}, "warning", "embed_tokens is trained in full, and lm_head"),
    ],
    "tuner-adapter-size": [
        (FOURIER, {"fourier_n_frequency": 9_000_000}, "error", "tuner.fourier_n_frequency: 9000000 is more than"),
        (["base", "boft"], {"boft_block_size": 3}, "error", "tuner.boft_block_size: 3 does not divide"),
        (["base", "boft"], {"boft_block_size": 4, "boft_block_num": 4}, "error", "exactly one of the two"),
        (["base", "boft"], {"boft_block_size": 0, "boft_block_num": 0}, "error", "exactly one of the two"),
    ],
    "tuner-saves-all": [(["stage1_aligner_lora", "full"], {}, "note", "full tuning trains 2.5% of the parameters")],
}  # fmt: skip
UNSEEN = {
    "tuner-target-absent": [
        ("base", {}),
        ("stage1_aligner_full", {}),
        ("base", {"target_modules": ["q_proj", "visual.blocks.23.attn.qkv"]}),
        ("base", {"target_regex": r"model\.visual\.blocks\.23\.attn\.qkv"}),
    ],
    "tuner-target-kind": [
        ("base", {"target_regex": r".*merger.*linear_fc[12]"}),
        ("base", {"target_modules": ["proj"]}),
        ("base", {"target_modules": ["lm_head"]}),
    ],
    "tuner-save-absent": [("stage1_aligner_full", {}), ("base", {"modules_to_save": ["embed_tokens", "lm_head"]})],
    "tuner-save-partial": [
        ("stage1_aligner_full", {}),
        ("base", {"modules_to_save": MERGERS[:1], "freeze_aligner": False}),
    ],
    "tuner-save-tied": [("base", {"modules_to_save": ["embed_tokens", "lm_head"]})],
    "tuner-adapter-size": [(FOURIER, {}), (["base", "boft"], {})],
    "tuner-saves-all": [(["base", "full"], {}), ("stage1_aligner_full", {})],
    "tuner-nothing": [("base", {})],
}  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Recipes over a base of the 4B shape."""
    house = House(tmp_path_factory.mktemp("house"))
    write_shapes(house.base)
    return house


def judged(house, source, tuner):
    recipe = house.recipe(source, tuner=tuner)
    return judge_targets(house.plan_of(recipe), recipe)


def pairs(table):
    return [(rule, *case) for rule, cases in table.items() for case in cases]


@pytest.mark.parametrize(("rule", "source", "tuner", "severity", "words"), pairs(SEEN))
def test_a_rule_speaks(house, rule, source, tuner, severity, words):
    found = judged(house, source, tuner)
    told = [finding for finding in found if finding.id == rule and finding.severity == severity]
    assert any(words in finding.what for finding in told), found
    assert all(finding.where and finding.remedy for finding in told)


@pytest.mark.parametrize(("rule", "source", "tuner"), pairs(UNSEEN))
def test_a_rule_is_silent(house, rule, source, tuner):
    assert [finding for finding in judged(house, source, tuner) if finding.id == rule] == []


def test_every_rule_is_tried_both_ways():
    assert {rule.id for rule in RULES} == SEEN.keys() | {"tuner-nothing"} == UNSEEN.keys()


def test_the_nearest_names_and_the_bases_indices_are_told(house):
    (told,) = judged(house, "base", {"target_modules": ["visual.blocks.30.attn.qkv"]})
    assert "did you mean visual.blocks." in told.remedy
    assert "language layers 0 to 35, vision blocks 0 to 23 and deepstack mergers 0 to 2" in told.evidence


def test_nothing_trains(tmp_path):
    """A base without vision blocks, which alone the recipe does not freeze."""
    house = House(tmp_path)
    write_shapes(house.base, TEXT_4B, VISION_4B | {"depth": 0})
    recipe = house.recipe("base", tuner={"freeze_llm": True, "freeze_vit": False})
    plan = house.plan_of(recipe)
    (told,) = [finding for finding in judge_targets(plan, recipe) if finding.id == "tuner-nothing"]
    assert told.severity == "error"


def test_a_base_without_weights_is_left_to_its_own_rules(tmp_path):
    house = House(tmp_path)
    recipe = house.recipe("base", tuner={"target_modules": ["visual.blocks.30.attn.qkv"]})
    assert judge_targets(house.plan_of(recipe), recipe) == []
