"""The whole audit: what it judges, what it refuses, and what of that is told."""

from __future__ import annotations

import pytest
from conftest import Silent
from planning import House
from weights import write_adapter, write_base

from vltool.audit.audit import Audit, audit
from vltool.audit.finding import Finding
from vltool.errors import InvalidInput, Where

ERROR = Finding(id="record-json", severity="error", what="no JSON", where=Where("a.jsonl", 7))
WARNING = Finding(id="memory-fit", severity="warning", what="large", where=Where("a.yaml", 2))
REFUSED = Finding(id="recipe-invalid", severity="error", what="unknown key", where=Where("a.yaml", 1, 1))


def of(*findings, refused=()):
    return Audit(records=[], trainable=[], memory=[], checkpoints=[], refused=list(refused), findings=list(findings))


def run(*targets, recipe=None, env=()):
    return audit(list(map(str, targets)), recipe=recipe, gpu_gib=79.0, reporter=Silent(), env=dict(env))


def test_what_is_told_decides_the_exit_code():
    assert of(WARNING).exit_code([WARNING], strict=False) == 0
    assert of(WARNING).exit_code([WARNING], strict=True) == 1
    assert of(WARNING, ERROR).told() == [ERROR, WARNING]
    assert of(WARNING, ERROR).told(ignore=["record-json"]) == [WARNING]
    assert of(ERROR).exit_code([], strict=True) == 0


def test_no_choice_of_rules_hides_that_a_target_could_not_be_judged():
    done = of(WARNING, refused=[REFUSED])
    assert done.told(only=["memory-fit"], ignore=["recipe-invalid"]) == [REFUSED, WARNING]
    assert done.exit_code([], strict=False) == 2
    with pytest.raises(InvalidInput, match="no rule has the id record-jsn"):
        done.told(only=["record-jsn"])


def test_every_finding_has_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_adapter(tmp_path / "checkpoint-7", base="Qwen/Nowhere")
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    house = House(tmp_path)
    recipe = house.write("stage2_llm_lora", data={"dataset": ["dummy"]}, model={"model": "gone"})
    house.train.write_text("{\n")
    done = run(recipe, folder, house.train, "gone.jsonl", "stage9", env=house.env)
    found = [*done.refused, *done.findings]
    assert {item.id for item in found} >= {"base-path", "ckpt-header", "record-json", "path-absent"}
    assert [item for item in found if item.where is None] == []


def test_a_recipe_is_judged_once_however_many_files_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    house = House(tmp_path)
    from vltool.recipe.validate import load_recipe

    recipe = str(house.write("stage2_llm_lora", data={"dataset": ["dummy"]}))
    assert load_recipe(recipe, env=house.env).notes
    other = tmp_path / "other.jsonl"
    other.write_text("{\n")
    (house.base / "tokenizer.json").write_text("{}")
    done = run(house.train, other, recipe=recipe, env=house.env)
    assert [item.id for item in done.refused] == ["base-path"]
    assert [item.id for item in done.findings if item.id == "recipe-note"] == ["recipe-note"]


def test_checkpoints_of_every_kind_are_judged_side_by_side(tmp_path):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "run" / "checkpoint-7", base=base)
    done = run(adapter, base)
    assert [one.kind for one in done.checkpoints] == ["adapter", "full"]
    assert (done.refused, done.findings) == ([], [])
    (base / "config.json").write_text("[]")
    assert {item.id for item in run(adapter, base).findings} >= {"ckpt-config", "ckpt-base"}
    done = run(adapter, tmp_path / "run")
    assert [(item.id, item.where) for item in done.refused] == [("target-unknown", Where(str(tmp_path / "run")))]
    assert len(done.checkpoints) == 1
