"""Shipped recipes and what one makes of them: rendered as the golden files say, round trips, valid to an editor."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from vltool.recipe.json_schema import FILE_NAME, json_schema
from vltool.recipe.render import document, to_yaml
from vltool.recipe.schema import OWN, Recipe
from vltool.recipe.validate import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
GOLDEN = Path(__file__).with_name("golden")
SHIPPED = sorted(RECIPES.glob("*.yaml"))
OVERLAYS = {file.stem for file in SHIPPED if "\n# Overlay: " in file.read_text(encoding="utf-8")}
COMPOSITIONS: dict[str, list[str]] = {
    "three_overlays": ["stage3_gkd", "zero3", "dora"],
    "full_stage3": ["stage3", "full"],
    "full_aligner": ["stage1_aligner_lora", "full"],
    "vision_features_alone": ["stage3", "visual_kd_only"],
    "gkd_without_its_head": ["stage3_gkd", "visual_kd_only"],
    "ranks_of_the_aligner": ["stage1_aligner_lora", "adalora"],
    "rotations": ["stage1_aligner_lora", "boft"],
    "frequencies": ["stage1_aligner_lora", "fourierft"],
    "packed_and_augmented": ["stage2_llm_lora", "packing", "augment_grounding"],
    "visual_on_many_gpus": ["stage3_gkd_visual", "zero2"],
    "two_stages_over_one_base": ["stage2_llm_lora", "summary", "packing"],
    "shortened": ["stage2_llm_lora_gkd", "full", "smoke"],
}
ENV = {"VLTOOL_MODEL": "/models/base", "VLTOOL_TRAIN_JSONL": "/data/train.jsonl", "VLTOOL_VAL_JSONL": "/data/val.jsonl"}
NAMES = [file.stem for file in SHIPPED if file.stem not in OVERLAYS] + list(COMPOSITIONS)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _load(name: str) -> Recipe:
    if name in COMPOSITIONS:
        Path(f"{name}.yaml").write_text(f"extends: [{', '.join(COMPOSITIONS[name])}]\n", encoding="utf-8")
        name = f"{name}.yaml"
    return load_recipe(name, env=ENV)


def _values(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in OWN} | {"swift": recipe.swift, "length": recipe.global_max_length}


def _read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(io.StringIO(text))


def test_there_are_recipes_and_ten_compositions() -> None:
    assert len(SHIPPED) > 20
    assert len(COMPOSITIONS) >= 10
    assert {
        "adalora", "augment_grounding", "boft", "dora", "fourierft", "full", "packing", "smoke", "visual_kd_only",
        "zero2", "zero3",
    } == OVERLAYS  # fmt: skip
    assert {name for names in COMPOSITIONS.values() for name in names} >= OVERLAYS


@pytest.mark.parametrize("name", NAMES)
def test_rendered_as_the_golden_file_says(name: str, update_golden: bool) -> None:
    text = to_yaml(_load(name))
    file = GOLDEN / f"{name}.yaml"
    if update_golden:
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "pytest --update-golden writes what is rendered today"


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(NAMES)


@pytest.mark.parametrize("provenance", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_rendered_resolves_to_itself(name: str, provenance: bool) -> None:
    recipe = _load(name)
    text = to_yaml(recipe, provenance=provenance)
    assert ("#" in text) == provenance
    Path("rendered.yaml").write_text(text, encoding="utf-8")
    again = load_recipe("rendered.yaml", env={})
    assert _values(again) == _values(recipe)
    assert to_yaml(again, provenance=False) == to_yaml(recipe, provenance=False)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_rendered_is_valid_to_the_schema(name: str) -> None:
    recipe = _load(name)
    rendered = _read(to_yaml(recipe))
    jsonschema.validate(rendered, json_schema(), cls=jsonschema.Draft202012Validator)
    assert rendered == json.loads(json.dumps(document(recipe)))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_file_is_valid_to_the_schema(file: Path) -> None:
    jsonschema.validate(_read(file.read_text(encoding="utf-8")), json_schema(), cls=jsonschema.Draft202012Validator)


def test_the_schema_is_one_and_lies_beside_the_recipes() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    text = json.dumps(json_schema(), indent=2) + "\n"
    written = (RECIPES / FILE_NAME).read_text(encoding="utf-8")
    assert written == text, "vltool render-config --schema > recipes/recipe.schema.json"


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        ({"tuner": {"lora_rnak": 8}}, "tuner"),
        ({"training": {"lora_rank": 8}}, "training"),
        ({"tunner": {}}, ""),
        ({"tuner": {"lora_rank": "8"}}, "tuner.lora_rank"),
        ({"training": {"lr_scheduler_type": "cosin"}}, "training.lr_scheduler_type"),
        ({"training": {"remove_unused_columns": True}}, "training"),
        ({"custom": {"visual_kd": {"vit": {"wieght": 1}}}}, "custom.visual_kd"),
        ({"custom": {"augmentation": {"ops": [{"name": "flip"}]}}}, "custom.augmentation"),
        ({"rlhf": {"beta": 2}}, "rlhf.beta"),
        ({"global_max_length": 0}, "global_max_length"),
        ({"model": "base"}, "model"),
        ([], ""),
    ],
)
def test_what_an_editor_would_underline(recipe: Any, place: str) -> None:
    (error,) = jsonschema.Draft202012Validator(json_schema()).iter_errors(recipe)
    assert ".".join(map(str, error.absolute_path)) == place


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"extends": "base"},
        {"extends": ["base", "full"], "tuner": None},
        {"tuner": {"lora_rank": "${RANK:-8}", "train_type": "lora", "target_modules": None}},
        {"training": {"learning_rate": 1, "lr_scheduler_kwargs": {"min_lr": 1e-6}}},
        {"custom": {"visual_kd": {"vit": {"weight": None, "enabled": "${VIT}"}}}},
        {"deepspeed": {"enabled": True, "config": {"zero_optimization": {"stage": 2}}}},
        {"launch": {"env": {"A": None}}, "training": {"report_to": ["${LOGGER}"]}, "extends": ["base", None]},
    ],
)
def test_what_an_editor_accepts(recipe: Any) -> None:
    jsonschema.validate(recipe, json_schema(), cls=jsonschema.Draft202012Validator)


def test_an_editor_explains_every_key() -> None:
    schema = json_schema()
    sections = {name: part for name, part in schema["properties"].items() if "properties" in part}
    assert sections.keys() == {
        "model", "template", "data", "tuner", "training", "rlhf", "deepspeed", "quantization", "launch", "custom",
    }  # fmt: skip
    bare = [
        f"{section}.{key}"
        for section, part in sections.items()
        for key, value in part["properties"].items()
        if not value.get("description")
    ]
    assert not bare
    lora_rank = sections["tuner"]["properties"]["lora_rank"]
    assert lora_rank["default"] == 8
    assert sections["tuner"]["properties"]["train_type"]["deprecated"] is True
    assert sections["rlhf"]["properties"]["beta"]["default"] == 0.5
