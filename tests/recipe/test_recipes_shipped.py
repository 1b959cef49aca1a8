"""The recipes that come with vltool: they resolve, carry the playbook's numbers, and say how to run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from planning import WHOLE

from vltool.recipe.resolve import shipped_recipes
from vltool.recipe.schema import OWN, Recipe
from vltool.recipe.validate import load_recipe

FILES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
OVERLAYS = [file.stem for file in FILES if file.stem not in WHOLE]
"""Merged over another recipe, and none by themselves."""
DATA = {"VLTOOL_MODEL": "/models/base", "VLTOOL_TRAIN_JSONL": "/data/train.jsonl"}
CHAIN = {"VLTOOL_VAL_JSONL": "/data/val.jsonl", "VLTOOL_STAGE1": "/runs/stage1", "VLTOOL_STAGE2": "/runs/stage2"}
GKD = {
    "stage2_llm_lora_gkd": "stage2_llm_lora", "stage3_gkd": "stage3", "stage3_gkd_forward": "stage3",
    "stage3_gkd_visual": "stage3",
}  # fmt: skip
"""Distilling recipe -> the vanilla stage that it anchors."""


def _values(recipe: Recipe) -> dict[str, Any]:
    """`section.key` -> value, ours and ms-swift's."""
    own = {section: msgspec.structs.asdict(getattr(recipe, section)) for section in OWN}
    return {
        f"{section}.{key}": value
        for sections in (own, recipe.swift)
        for section, keys in sections.items()
        for key, value in keys.items()
    }


def _load(name: str, *overlays: str) -> Recipe:
    return load_recipe(name, overlays=overlays, env=DATA)


def test_all_files_are_found_by_their_bare_names() -> None:
    assert FILES
    assert {file.stem for file in FILES} == {*WHOLE, *OVERLAYS}
    assert shipped_recipes() == {file.stem: file for file in FILES}
    assert set(WHOLE) == {
        "base", "stage1_aligner_lora", "stage1_aligner_full", "stage2_llm_lora", "stage2_llm_lora_gkd", "stage3",
        "stage3_gkd", "stage3_gkd_forward", "stage3_gkd_visual", "summary",
    }  # fmt: skip
    assert "smoke" in OVERLAYS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_headers_say_what_it_is_for_and_how_to_run_it(file: Path) -> None:
    header = file.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "Trains:" in header
    assert "loss sees:" in header
    if file.stem == "smoke":
        assert "vltool smoke recipes/" in header
    else:
        assert f"vltool train recipes/{'mine' if file.stem in OVERLAYS else file.stem}.yaml" in header


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "smoke"])
def test_an_overlay_says_what_it_goes_over_and_can_be_extended_so(name: str, tmp_path: Path) -> None:
    header = shipped_recipes()[name].read_text().split("\n\n")[0]
    (bases,) = re.findall(r"(?m)^#   extends: \[(.+)\]  ", header)
    assert bases.split(", ")[-1] == name
    (tmp_path / "mine.yaml").write_text(f"extends: [{bases}]\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"), env=DATA)
    assert recipe.notes == ()
    assert _values(recipe) == _values(_load(bases.split(", ")[0], *bases.split(", ")[1:]))
    assert _values(recipe) != _values(_load(bases.split(", ")[0]))


@pytest.mark.parametrize("name", WHOLE)
def test_recipes_run_as_they_are_once_model_and_data_are_set(name: str) -> None:
    recipe = _load(name)
    assert recipe.notes == ()
    assert (recipe.model.model, recipe.custom.train_jsonl) == ("/models/base", "/data/train.jsonl")
    assert recipe.custom.val_jsonl is None
    assert recipe.tuner.resume_from_checkpoint is None
    assert recipe.rlhf.teacher_model is None
    assert recipe.swift["tuner"]["lora_dropout"] == 0


@pytest.mark.parametrize(("name", "stage"), [("stage2_llm_lora", "/runs/stage1"), ("stage3", "/runs/stage2")])
def test_later_stages_start_from_earlier_ones(name: str, stage: str) -> None:
    recipe = load_recipe(name, env=DATA | CHAIN)
    assert recipe.tuner.resume_from_checkpoint == stage
    assert recipe.custom.val_jsonl == "/data/val.jsonl"


EVERYWHERE = {
    "tuner.lora_rank": 32, "tuner.lora_alpha": 64, "tuner.lora_dropout": 0.0, "custom.emit_norm": "norm1000",
    "training.lr_scheduler_type": "cosine_warmup_with_min_lr", "training.lr_scheduler_kwargs": {"min_lr": 1e-6},
    "training.weight_decay": 0.1, "template.template": "qwen3_vl",
}  # fmt: skip
STAGE_1 = {"training.num_train_epochs": 3, "training.learning_rate": 1e-4}
LATER = {"training.num_train_epochs": 2, "training.learning_rate": 5e-5, "training.warmup_ratio": 0.1}
ANCHORED = {
    "rlhf.rlhf_type": "gkd", "rlhf.beta": 0.5, "rlhf.sft_alpha": 0.3, "rlhf.lmbda": 0.5, "rlhf.seq_kd": True,
    "rlhf.seq_kd_ratio": 0.5, "rlhf.max_completion_length": 256, "rlhf.temperature": 0.9, "rlhf.llm_kd_weight": 1.0,
    "custom.trainer_variant": "gkd_monitor",
}  # fmt: skip
NUMBERS: dict[str, dict[str, Any]] = {
    "stage1_aligner_lora": STAGE_1 | {
        "training.warmup_ratio": 0.1,
        "tuner.freeze_llm": True, "tuner.freeze_vit": True, "tuner.freeze_aligner": False,
    },
    "stage1_aligner_full": STAGE_1 | {
        "training.warmup_ratio": 0.3, "training.aligner_lr": 1e-4, "training.optimizer": "multimodal",
        "tuner.freeze_llm": True, "tuner.freeze_vit": True, "tuner.freeze_aligner": True, "tuner.target_regex": "^$",
        "tuner.modules_to_save": (
            "model.visual.merger", *(f"model.visual.deepstack_merger_list.{level}" for level in range(3)),
        ),
    },
    "stage2_llm_lora": LATER | {
        "tuner.freeze_llm": False, "tuner.freeze_vit": True, "tuner.freeze_aligner": False,
    },
    "stage3": LATER | {
        "training.optimizer": "multimodal", "training.aligner_lr": 1e-4, "training.vit_lr": 1e-5,
        "tuner.freeze_llm": False, "tuner.freeze_vit": False, "tuner.freeze_aligner": False,
        "tuner.last_vit_blocks": 6,
    },
    "stage2_llm_lora_gkd": LATER | ANCHORED,
    "stage3_gkd": LATER | ANCHORED,
    "stage3_gkd_forward": LATER | {
        "rlhf.rlhf_type": "gkd", "rlhf.beta": 0.1, "rlhf.sft_alpha": 1.0, "rlhf.lmbda": 0.0, "rlhf.seq_kd": False,
        "custom.trainer_variant": "gkd_monitor",
    },
}  # fmt: skip
"""The playbook's numbers."""


@pytest.mark.parametrize("name", NUMBERS)
def test_the_playbooks_numbers(name: str) -> None:
    expected = EVERYWHERE | NUMBERS[name]
    values = _values(_load(name))
    assert {key: values.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", [name for name in WHOLE if "gkd" in name])
def test_gkd_recipes_differ_from_their_stage_only_in_distillation(name: str) -> None:
    vanilla, gkd = _values(_load(GKD[name])), _values(_load(name))
    differing = {key for key in vanilla.keys() | gkd.keys() if vanilla.get(key) != gkd.get(key)}
    assert "rlhf.rlhf_type" in differing
    visual = {"custom.visual_kd"} if name.endswith("_visual") else set()
    assert {key for key in differing if not key.startswith("rlhf.")} == {"custom.trainer_variant"} | visual


@pytest.mark.parametrize("name", WHOLE)
def test_smoke_shortens_and_changes_nothing_else(name: str) -> None:
    whole, short = _values(_load(name)), _values(_load(name, "smoke"))
    changed = {key: short[key] for key in short if whole.get(key) != short[key]}
    assert changed == {
        "custom.sample_limit": 32, "training.max_steps": 8, "training.save_steps": 4, "training.eval_steps": 4,
        "training.logging_steps": 1, "training.effective_batch_size": None, "training.gradient_accumulation_steps": 2,
        "training.save_total_limit": 2, "data.dataloader_num_workers": 2,
    }  # fmt: skip


def test_smoke_can_be_extended_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: [stage3_gkd, smoke]\n")
    mine, smoked = load_recipe(str(tmp_path / "mine.yaml"), env=DATA), _load("stage3_gkd", "smoke")
    assert _values(mine) == _values(smoked)
    assert smoked.name == "stage3_gkd"


def test_vision_terms_weigh_a_tenth() -> None:
    visual = _load("stage3_gkd_visual").custom.visual_kd
    assert visual.enabled
    for term in (visual.vit, visual.aligner, visual.deepstack):
        assert (term.enabled, term.weight, term.distance) == (True, 0.1, "mse")
    only = load_recipe("stage3", overlays=["visual_kd_only"], env=DATA)
    assert only.rlhf.llm_kd_weight == 0.0
    assert (only.custom.visual_kd.vit.enabled, only.custom.visual_kd.aligner.weight) == (False, 0.1)
