"""What rules see of a recipe: values, defaults, places, and nothing of what is itself wrong."""

from __future__ import annotations

import msgspec
import pytest
from planning import MINIMAL, problems_of

from vltool.errors import Where
from vltool.recipe.schema import OWN
from vltool.recipe.settings import Settings, Undecided
from vltool.recipe.swift_keys import swift_table

VALUES = {
    "tuner": {"freeze_llm": True, "lora_rank": 8},
    "custom": {"visual_kd": {"enabled": True, "vit": {"weight": 0.5}}},
    "training": {"lr_scheduler_kwargs": {"min_lr": 1e-6}},
    "rlhf": {},
}
ORIGINS = {
    "tuner.freeze_llm": Where("base.yaml", 3, 5), "tuner.lora_rank": Where("r.yaml", 7, 9),
    "custom.visual_kd.enabled": Where("r.yaml", 2, 4), "training.lr_scheduler_kwargs": Where("base.yaml", 9, 9),
}  # fmt: skip
CLEARED = {"tuner.last_vit_blocks": Where("r.yaml", 8, 9)}


def settings(wrong=()):
    return Settings("r.yaml", ["base.yaml", "r.yaml"], VALUES, ORIGINS, CLEARED, set(wrong))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tuner.freeze_llm", True),
        ("tuner.freeze_vit", True),
        ("tuner.tuner_type", "lora"),
        ("tuner.lora_rank", 8),
        ("tuner.lora_alpha", 32),
        ("custom.visual_kd.enabled", True),
        ("custom.visual_kd.vit.weight", 0.5),
        ("custom.visual_kd.vit.enabled", False),
        ("custom.visual_kd.aligner.distance", "mse"),
        ("custom.augmentation.enabled", False),
        ("training.lr_scheduler_kwargs", {"min_lr": 1e-6}),
        ("training.save_steps", 500),
        ("training.learning_rate", None),
        ("data.lazy_tokenize", None),
        ("launch.nproc_per_node", 1),
        ("deepspeed.config", None),
        ("rlhf.rlhf_type", None),
    ],
)
def test_a_value_is_what_was_written_or_its_default(key, value):
    assert settings()[key] == value


def test_every_key_has_a_value_without_a_line():
    empty = Settings("r.yaml", ["r.yaml"], {}, {}, {}, set())
    for section, struct in OWN.items():
        for name, default in msgspec.to_builtins(struct()).items():
            assert empty[f"{section}.{name}"] == default
    for name, key in swift_table().keys.items():
        if name not in {field for struct in OWN.values() for field in struct.__struct_fields__}:
            assert empty[f"{key.section}.{name}"] == key.default


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ("tuner.lora_rank", "tuner.lora_rank"),
        ("tuner.lora_alpha", "tuner.lora_alpha"),
        ("custom.visual_kd", "custom.visual_kd.enabled"),
        ("custom.visual_kd", "custom.visual_kd.vit.weight"),
        ("training.lr_scheduler_kwargs", "training.lr_scheduler_kwargs"),
    ],
)
def test_what_is_wrong_is_undecided(wrong, key):
    with pytest.raises(Undecided):
        settings([wrong])[key]
    assert settings(["custom.visual", "tuner.lora", "training.lr_scheduler"])[key] == settings()[key]


def test_keys_that_were_written():
    assert settings().keys("tuner") == ["freeze_llm", "lora_rank"]
    assert settings().keys("rlhf") == settings().keys("launch") == []
    assert settings().swift_keys() == ["tuner.lora_rank", "training.lr_scheduler_kwargs"]
    assert settings().written("tuner.freeze_llm")
    assert not settings().written("tuner.freeze_vit")


def test_places_are_those_of_the_lines():
    assert settings().where("tuner.lora_rank") == Where("r.yaml", 7, 9)
    assert settings().where("tuner.last_vit_blocks") == Where("r.yaml", 8, 9), "where null cleared it"
    assert settings().where("tuner.lora_alpha") == Where("r.yaml")


def test_what_rules_report_stands_at_its_key():
    seen = settings()
    seen.problem("tuner.lora_rank", "too small", "raise it")
    seen.note("tuner.freeze_llm", "it is frozen")
    assert [str(problem) for problem in seen.problems] == ["r.yaml:7:9: too small\n  raise it"]
    assert [str(note) for note in seen.notes] == ["base.yaml:3:5: it is frozen"]
    assert seen["tuner.freeze_llm"] is True
    with pytest.raises(Undecided):
        seen["tuner.lora_rank"]


def test_a_conflict_belongs_to_the_file_that_was_merged_last():
    seen = settings()
    assert seen.latest("tuner.freeze_llm", "tuner.lora_rank") == "tuner.lora_rank"
    assert seen.latest("tuner.lora_rank", "tuner.freeze_llm") == "tuner.lora_rank"
    assert seen.latest("tuner.lora_rank", "custom.visual_kd.enabled") == "tuner.lora_rank", "the first of one file"
    assert seen.latest("tuner.freeze_vit", "tuner.freeze_llm") == "tuner.freeze_llm", "defaults are in no file"
    assert seen.latest("tuner.freeze_llm", "tuner.last_vit_blocks") == "tuner.last_vit_blocks", "cleared above it"


def test_a_key_is_settled_by_what_was_written_with_it_or_below():
    seen = settings()
    assert seen.settled_by("tuner.lora_rank", "tuner.freeze_llm")
    assert seen.settled_by("tuner.lora_rank", "custom.visual_kd.enabled")
    assert not seen.settled_by("tuner.freeze_llm", "tuner.freeze_vit", "tuner.lora_rank")


def test_a_wrong_value_keeps_no_other_rule_from_speaking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = problems_of(f"{MINIMAL}training: {{bf16: x, warmup_steps: 5, warmup_ratio: 0.5, fp16: true}}\n")
    assert [problem.partition(": ")[0] for problem in told] == ["r.yaml:5:18", "r.yaml:5:35"]
