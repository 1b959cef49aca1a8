"""The examples for CI: they parse, and what they run is what the commands take."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from weights import write_adapter, write_base

import vltool.data

ROOT = Path(__file__).parents[2]
DEMO = Path(vltool.data.__file__).parent / "demo" / "photos.jsonl"


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


WORKFLOW = read(ROOT / "docs" / "ci" / "vltool.yml")
CONFIG = read(ROOT / "docs" / "ci" / "pre-commit-config.yaml")["repos"][0]["hooks"]
HOOKS = {hook["id"]: hook for hook in read(ROOT / ".pre-commit-hooks.yaml")}


def steps(job: str) -> list[dict[str, Any]]:
    return WORKFLOW["jobs"][job]["steps"]


def commands(job: str) -> list[list[str]]:
    """What a job runs of vltool, its variables replaced."""
    found = []
    for step in steps(job):
        text = re.sub(r"\$(\w+)", lambda name: WORKFLOW["env"][name[1]], step.get("run", ""))
        if text.startswith("vltool "):
            found.append(shlex.split(text)[1:])
    return found


def test_the_workflow_installs_the_light_package_and_uploads_what_it_writes():
    assert set(WORKFLOW["jobs"]) == {"records", "checkpoint"}
    assert WORKFLOW["permissions"]["security-events"] == "write"
    for job in WORKFLOW["jobs"]:
        assert "pip install vltool" in [step.get("run") for step in steps(job)]
        ((*_, written),) = commands(job)
        (upload,) = [step for step in steps(job) if "upload-sarif" in step.get("uses", "")]
        assert upload["with"]["sarif_file"] == written
        assert upload["if"].startswith("always()"), "findings make the step before it fail"


def test_the_workflow_s_commands_run(vltool, tmp_path):
    (check,), (inspect,) = commands("records"), commands("checkpoint")
    records = tmp_path / WORKFLOW["env"]["RECORDS"]
    records.parent.mkdir()
    (records.parent / "images").symlink_to(DEMO.parent / "images")
    records.write_text(DEMO.read_text())
    assert vltool(*check)[0] == 0
    assert json.loads((tmp_path / "check.sarif").read_text())["runs"][0]["results"] == []
    records.write_text("{\n")
    assert vltool(*check)[0] == 1
    (result, *_) = json.loads((tmp_path / "check.sarif").read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == WORKFLOW["env"]["RECORDS"]

    recipe = tmp_path / WORKFLOW["env"]["RECIPE"]
    recipe.parent.mkdir()
    recipe.write_text("extends: stage1_aligner_lora\nmodel: {model: ../base}\n")
    write_adapter(tmp_path / WORKFLOW["env"]["CHECKPOINT"], base=write_base(tmp_path / "base"))
    assert vltool(*inspect)[0] == 1
    found = json.loads((tmp_path / "checkpoint.sarif").read_text())["runs"][0]["results"]
    assert {one["ruleId"] for one in found} >= {"expect-rank", "expect-tower"}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=lambda hook: hook["id"])
def test_a_hook_is_a_command_of_the_light_package(hook, vltool):
    assert hook["language"] == "python"
    assert "additional_dependencies" not in hook
    command, name = shlex.split(hook["entry"])
    assert command == "vltool"
    assert vltool(name, "--help")[0] == 0
    re.compile(hook["files"])


def test_hooks_look_at_what_they_are_for():
    records = re.compile(HOOKS["vltool-check"]["files"])
    for path in ("train.jsonl", "data/a.jsonl", "recipes/mine.yaml", "ml/recipes/mine.yml"):
        assert records.search(path)
    for path in ("a.json", "docker-compose.yaml", "recipes/deep/helm.yaml", "xrecipes/mine.yaml"):
        assert not records.search(path)
    weights = re.compile(HOOKS["vltool-inspect-ckpt"]["files"])
    assert weights.search("export/adapter_config.json")
    assert not weights.search("tsconfig.json")


def test_the_check_hook_fails_on_files_that_are_wrong(vltool, tmp_path):
    entry = shlex.split(HOOKS["vltool-check"]["entry"])[1:]
    assert vltool(*entry, str(DEMO))[0] == 0
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "bad.yaml").write_text("extends: stage3\ntuner: {lora_rnak: 8}\n")
    assert vltool(*entry, str(DEMO), "bad.jsonl")[0] == 1
    code, out, _ = vltool(*entry, str(DEMO), "bad.jsonl", "bad.yaml")
    assert code == 2
    assert "bad.yaml:2:9" in out
    assert "record-json" in out


def test_the_checkpoint_hook_takes_its_folder_from_args(vltool, tmp_path):
    hook = HOOKS["vltool-inspect-ckpt"]
    assert hook["pass_filenames"] is False
    entry = shlex.split(hook["entry"])[1:]
    folder = write_adapter(tmp_path / "export", base=write_base(tmp_path / "base"))
    assert vltool(*entry, "export")[0] == 0
    (folder / "adapter_config.json").unlink()
    assert vltool(*entry, "export")[0] == 1


def test_the_example_of_a_pre_commit_config_uses_the_hooks(vltool, tmp_path):
    assert [used["id"] for used in CONFIG] == list(HOOKS)
    check, inspect = (shlex.split(HOOKS[used["id"]]["entry"])[1:] + used["args"] for used in CONFIG)
    assert vltool(*check, str(DEMO))[0] == 0
    folder = tmp_path / CONFIG[1]["args"][0]
    recipe = tmp_path / CONFIG[1]["args"][2]
    recipe.parent.mkdir()
    recipe.write_text("extends: stage1_aligner_lora\nmodel: {model: ../base}\n")
    write_adapter(folder, base=write_base(tmp_path / "base"))
    code, out, _ = vltool(*inspect)
    assert code == 1
    assert "expect-rank" in out
