"""What a recipe shows by itself: each finding appears where it should, and nowhere else."""

from __future__ import annotations

import pytest
from planning import WHOLE, House

from vltool.audit.recipe_rules import RULES, judge_recipe, said
from vltool.audit.target_rules import RULES as TARGET_RULES

NO_WARM_UP = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": None}
GKD = {"rlhf_type": "gkd", "lmbda": 0.0, "sft_alpha": 1.0}
FEATURES = {"enabled": True, "vit": {"enabled": True}, "aligner": {"enabled": True}}
TWO = {"nproc_per_node": 2}
BEST = {"metric_for_best_model": "eval_token_acc", "eval_strategy": "steps"}

SEEN = {
    "rate-unusual": [
        ("base", {"training": {"learning_rate": 1.0e-3}}, "10 times the usual 0.0001 of tuner_type: lora"),
        ("base", {"training": {"learning_rate": 2.0e-6}}, "1/50 of the usual"),
        (["base", "full"], {"training": {"learning_rate": 1.0e-3}}, "20 times the usual 5e-05"),
        ("stage3", {"training": {"vit_lr": 1.0e-2}}, "training.vit_lr: 0.01 is 100 times"),
    ],
    "rate-zero": [
        ("base", {"training": {"learning_rate": 0.0, "lr_scheduler_kwargs": {"min_lr": 0}}}, "at 0 nothing"),
        ("stage3", {"training": {"vit_lr": 0.0}}, "training.vit_lr"),
    ],
    "rate-warmup": [
        ("base", {"training": {"warmup_ratio": None}}, "none is written"),
        ("base", {"training": {"warmup_ratio": 0}}, "none is written"),
        ("base", {"training": {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None}}, "constant has none"),
    ],
    "rate-floor": [
        ("base", {"training": NO_WARM_UP}, "lr_scheduler_type: cosine lets"),
        ("base", {"training": {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": None}}, "linear lets"),
    ],
    "batch-small": [("base", {"training": {"effective_batch_size": 2}}, "sees 2 samples")],
    "loader-workers": [
        ("base", {"data": {"dataloader_num_workers": 0}}, "no worker decodes"),
        ("base", {"data": {"dataloader_num_workers": None}}, "one worker alone"),
        ("base", {"data": {"dataloader_num_workers": 3}}, "3 workers of each process"),
    ],
    "loader-pinned": [("base", {"data": {"dataloader_pin_memory": False}}, "not pinned")],
    "best-ranks": [("base", {"training": BEST, "launch": TWO}, "over all 2 processes")],
    "best-direction": [
        ("base", {"training": BEST | {"greater_is_better": False}}, "keeps the checkpoint of the lowest token_acc"),
        (
            "base", {"training": {"metric_for_best_model": "loss", "greater_is_better": True}},
            "keeps the checkpoint of the highest loss",
        ),
    ],
    "precision-half": [
        (["base", "full"], {}, "of all that trains are in bf16 alone"),
        (
            "base", {"tuner": {"modules_to_save": ["model.visual.merger"]}, "training": {"bf16": False}},
            "of the copies of modules_to_save",
        ),
    ],
    "kd-nothing-learnt": [("base", {"rlhf": GKD | {"sft_alpha": 0.0}}, "they agree at the start")],
    "kd-beta-zero": [("base", {"rlhf": GKD | {"beta": 0}}, "the full forward KL")],
    "kd-captions-unseen": [
        ("base", {"rlhf": GKD | {"seq_kd": True}}, "replaces every caption"),
        ("base", {"rlhf": GKD | {"lmbda": 1}}, "the student's own text alone"),
    ],
    "kd-term-zero": [
        (
            "base", {"rlhf": GKD, "custom": {"visual_kd": FEATURES}, "tuner": {"freeze_aligner": False}},
            "custom.visual_kd.vit is always zero",
        ),
    ],
    "tuner-flags": [
        ("base", {"tuner": {"target_regex": r".*visual\.merger\.linear_fc1", "freeze_aligner": True}}, "reaches it"),
    ],
    "tuner-saves-more": [("base", {"tuner": {"modules_to_save": ["norm"]}}, "also saves")],
    "tuner-merge": [(["base", "boft"], {"tuner": {"modules_to_save": ["model.visual.merger"]}}, "cannot be merged")],
    "tuner-dropout": [("base", {"tuner": {"lora_dropout": None}}, "default is 0.05")],
}  # fmt: skip
UNSEEN = {
    "rate-unusual": [
        ("base", {"training": {"learning_rate": 5.0e-4}}),
        ("base", {"training": {"learning_rate": 1.0e-5}}),
        (["base", "full"], {"training": {"learning_rate": None, "lr_scheduler_kwargs": {"min_lr": 0}}}),
        (["base", "fourierft"], {"training": {"learning_rate": 1.0e-2}}),
    ],
    "rate-zero": [("stage3", {})],
    "rate-warmup": [
        ("base", {"training": {"warmup_ratio": None, "warmup_steps": 50}}),
        ("base", {"training": {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": None}}),
    ],
    "rate-floor": [
        ("base", {}),
        (
            "base",
            {"training": {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {
                "min_lr_ratio": 0.1, "num_decay_steps": 5, "min_lr": None}}},
        ),
    ],
    "batch-small": [
        ("base", {"training": {"effective_batch_size": None, "gradient_accumulation_steps": 4}, "launch": TWO}),
    ],
    "loader-workers": [("base", {"data": {"dataloader_num_workers": 16}})],
    "loader-pinned": [
        ("base", {"data": {"dataloader_pin_memory": None}}),
        ("base", {"data": {"dataloader_pin_memory": False}, "training": {"use_cpu": True}}),
    ],
    "best-ranks": [
        ("base", {"training": BEST}),
        ("base", {"training": {"metric_for_best_model": "eval_loss"}, "launch": TWO}),
    ],
    "best-direction": [("base", {"training": BEST | {"greater_is_better": True}})],
    "precision-half": [
        (["base", "full", "zero2"], {}),
        (["base", "full"], {"model": {"torch_dtype": "float32"}, "training": {"bf16": True}}),
        ("stage1_aligner_full", {}),
    ],
    "kd-nothing-learnt": [("base", {"rlhf": GKD}), (["base", "fourierft"], {"rlhf": GKD | {"sft_alpha": 0.0}})],
    "kd-beta-zero": [("base", {"rlhf": GKD | {"beta": 0.1}})],
    "kd-captions-unseen": [("base", {"rlhf": GKD | {"seq_kd": True, "seq_kd_ratio": 0.5}})],
    "kd-term-zero": [("stage3_gkd_visual", {})],
    "tuner-flags": [("base", {"tuner": {"target_regex": r"model\.visual\.merger\.linear_fc1", "freeze_aligner": False,
                                        "freeze_llm": True}})],
    "tuner-saves-more": [("base", {"tuner": {"modules_to_save": ["model.visual.merger"]}})],
    "tuner-merge": [(["base", "adalora"], {"tuner": {"modules_to_save": ["model.visual.merger"]}})],
    "tuner-dropout": [("base", {"tuner": {"lora_dropout": 0.05}}), (["base", "full"], {})],
}  # fmt: skip


@pytest.fixture
def found(tmp_path):
    house = House(tmp_path)
    env = {"VLTOOL_VAL_JSONL": str(house.val)}

    def findings(source, sections):
        recipe = house.recipe(source, env=env, **sections)
        return said(recipe) + judge_recipe(house.plan_of(recipe), recipe), recipe

    return findings


def pairs(table):
    return [(rule, *case) for rule, cases in table.items() for case in cases]


@pytest.mark.parametrize(("rule", "source", "sections", "words"), pairs(SEEN))
def test_a_rule_speaks(found, rule, source, sections, words):
    findings, recipe = found(source, sections)
    told = [finding for finding in findings if finding.id == rule]
    assert any(words in finding.what for finding in told), [finding.what for finding in findings]
    assert all(finding.where and finding.where.file in recipe.files and finding.remedy for finding in told)


@pytest.mark.parametrize(("rule", "source", "sections"), pairs(UNSEEN))
def test_a_rule_is_silent(found, rule, source, sections):
    findings, _ = found(source, sections)
    assert [finding for finding in findings if finding.id == rule] == []


def test_every_rule_is_tried_both_ways():
    ids = [rule.id for rule in RULES]
    assert set(ids) == SEEN.keys() == UNSEEN.keys()
    assert len({*ids, *(rule.id for rule in TARGET_RULES)}) == len(RULES) + len(TARGET_RULES)


def test_a_rule_reports_nothing_worse_than_it_says(found):
    worst = {rule.id: rule.severity for rule in RULES}
    order = ("error", "warning", "note")
    seen = {}
    for rule, source, sections, _ in pairs(SEEN):
        told = [finding.severity for finding in found(source, sections)[0] if finding.id == rule]
        seen[rule] = min([*told, seen.get(rule, "note")], key=order.index)
    assert seen == worst


def test_places_are_the_lines_that_were_written(found, tmp_path):
    findings, recipe = found("base", {"training": {"learning_rate": 1.0e-3}})
    (told,) = [finding for finding in findings if finding.id == "rate-unusual"]
    assert str(told.where) == str(recipe.where("training.learning_rate"))
    assert told.where.line == 1


@pytest.mark.parametrize("name", WHOLE)
def test_shipped_recipes_are_good(found, name):
    findings, _ = found(name, {})
    assert findings == []


def test_the_overlay_full_asks_for_deepspeed(found):
    findings, _ = found(["stage3", "full"], {"tuner": {"last_vit_blocks": None}})
    (warning,) = [finding for finding in findings if finding.severity != "note"]
    assert warning.id == "precision-half"
    assert "zero2" in warning.remedy
    assert "1/400" in warning.evidence
