"""Assertions on checkpoints: by a file, and by the recipe of the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from weights import ATTENTION, adapter_tensors, write_adapter, write_base, write_weights

from vltool.audit.catalogue import RULES
from vltool.audit.expectations import hold, read_assertions
from vltool.checkpoint.inspection import inspect
from vltool.checkpoint.values import survey
from vltool.errors import InvalidInput


@pytest.fixture
def folder(tmp_path):
    return write_adapter(tmp_path / "checkpoint-7", base=write_base(tmp_path / "base"))


def broken(folder, text, tmp_path, env=()):
    path = tmp_path / "want.yaml"
    path.write_text(text)
    inspection = inspect(folder)
    said = read_assertions(str(path), inspection, env=dict(env))
    found = hold(said, inspection, survey(inspection.tensors) if said.need_values else None, "want.yaml")
    assert all(finding.severity == "error" and finding.id in RULES for finding in found)
    return [finding.id for finding in found]


HELD = """
kind: adapter
full_weights: false
towers: {present: [language, aligner], absent: [vision, deepstack]}
rank: 2
alpha: 4
base: /elsewhere/base
modules_to_save: [merger]
dtypes: [F32]
finite: true
trained: true
max_size_mb: 0.01
min_step: 7
"""


def test_what_holds_is_not_told(folder, tmp_path):
    assert broken(folder, HELD, tmp_path) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("kind: full", "expect-kind"),
        ("towers: {present: [vision]}", "expect-tower"),
        ("towers: {absent: [aligner]}", "expect-tower"),
        ("rank: 3", "expect-rank"),
        ("alpha: 8", "expect-rank"),
        ("base: /elsewhere/other", "expect-base"),
        ("modules_to_save: []", "expect-modules"),
        ("modules_to_save: [merger, lm_head]", "expect-modules"),
        ("dtypes: [BF16]", "expect-dtype"),
        ("max_size_mb: 0.0001", "expect-size"),
        ("min_step: 8", "expect-step"),
    ],
)
def test_what_does_not_hold_is_told_by_its_id(text, rule, folder, tmp_path):
    assert broken(folder, text, tmp_path) == [rule]


def test_whole_weights_beside_an_adapter(folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert broken(folder, "full_weights: false", tmp_path) == ["expect-kind"]
    (folder / "pytorch_model.bin").unlink()
    write_weights(folder / "model.safetensors", {"model.language_model.norm.weight": (8,)})
    assert broken(folder, "full_weights: false", tmp_path) == ["expect-kind"]
    assert broken(folder, "full_weights: true", tmp_path) == []


def test_values_are_asserted_from_values(folder, tmp_path):
    up = f"base_model.model.{ATTENTION}.lora_B.weight"
    bad = np.ones((12, 2), np.float32)
    bad[0, 0] = np.inf
    for array, text in ((bad, "finite: true"), (np.zeros((12, 2), np.float32), "trained: true")):
        write_weights(folder / "adapter_model.safetensors", adapter_tensors() | {up: array})
        assert broken(folder, text, tmp_path) == ["expect-values"]
        assert broken(folder, text.replace("true", "false"), tmp_path) == []
    write_weights(folder / "adapter_model.safetensors", {"a.lora_A.weight": np.ones(16, np.uint8)}, dtype="F8_E8M0")
    assert broken(folder, "finite: true", tmp_path) == ["expect-values"]
    assert broken(folder, "trained: true", tmp_path) == ["expect-values"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("finit: true", "unknown assertion finit"),
        ("rank: two", "rank"),
        ("rank: 0", "rank"),
        ("max_size_mb: -1", "max_size_mb"),
        ("towers: {present: [langage]}", "towers.present"),
        ("towers: {there: [language]}", "towers.there"),
        ("towers: {present: [vision], absent: [vision]}", "cannot be present and absent"),
        ("{}", "no assertion"),
        ("a: [", "want.yaml"),
    ],
)
def test_a_bad_assertion_is_named_with_its_place(text, words, folder, tmp_path):
    with pytest.raises(InvalidInput) as caught:
        broken(folder, text, tmp_path)
    assert words in str(caught.value)
    assert all(problem.where is not None for problem in caught.value.problems)


def test_neither_a_file_nor_a_recipe(folder):
    with pytest.raises(InvalidInput):
        read_assertions("no_such_recipe", inspect(folder), env={})


RECIPE = {
    "global_max_length": 64,
    "model": {"model": "/models/base"},
    "tuner": {"freeze_aligner": True, "target_modules": ["q_proj"], "modules_to_save": ["visual.merger"],
              "lora_rank": 2, "lora_alpha": 4},
    "custom": {"train_jsonl": "/t.jsonl"},
}  # fmt: skip


def recipe(**tuner):
    return json.dumps(RECIPE | {"tuner": RECIPE["tuner"] | tuner})


def test_a_recipe_asserts_what_its_run_would_have_saved(folder, tmp_path):
    assert broken(folder, recipe(), tmp_path) == []
    assert broken(folder, recipe(lora_rank=3), tmp_path) == ["expect-rank"]
    assert broken(folder, recipe(modules_to_save=[]), tmp_path) == ["expect-tower", "expect-modules"]
    assert broken(folder, recipe(target_modules=["q_proj", "qkv"]), tmp_path) == ["expect-tower"]
    full = broken(folder, json.dumps(RECIPE | {"tuner": {"tuner_type": "full"}}), tmp_path)
    assert full[0] == "expect-kind"


def test_a_recipe_that_goes_on_from_a_stage_allows_what_that_one_trained(folder, tmp_path):
    text = recipe(modules_to_save=[], resume_from_checkpoint="/stage1")
    assert broken(folder, text, tmp_path) == []


def test_a_shipped_recipe_needs_no_variables(folder):
    said = read_assertions("base", inspect(folder), env={})
    assert (said.kind, said.full_weights) == ("adapter", False)
    assert said.base == str(Path(inspect(folder).base_name))
