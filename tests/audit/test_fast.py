"""The rules that train asks before its worker starts, and what their findings do to a run."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from planning import House
from shapes import write_shapes

from vltool.audit import preflight as module
from vltool.audit.fast import as_error, as_problem, fast_findings
from vltool.audit.finding import Finding
from vltool.audit.host import Gpu, Host
from vltool.audit.preflight import preflight
from vltool.errors import BadContent, InvalidInput, MissingOnHost, Where


def finding(rule, severity="error"):
    return Finding(id=rule, severity=severity, what=f"{rule} is wrong", where=Where("r.yaml", 3), remedy="mend it")


@pytest.mark.parametrize(
    ("rules", "kind"),
    [
        (["host-gpus"], MissingOnHost),
        (["host-gpus", "base-shards"], MissingOnHost),
        (["base-shards"], BadContent),
        (["recipe-length"], InvalidInput),
        (["host-gpus", "recipe-length", "base-shards"], InvalidInput),
    ],
)
def test_errors_end_a_run_with_the_exit_code_of_what_has_to_be_changed_first(rules, kind):
    error = as_error([finding("host-workers", "warning"), *map(finding, rules)])
    assert type(error) is kind
    assert [problem.id for problem in error.problems] == rules
    assert str(error.problems[0]) == f"r.yaml:3: {rules[0]} is wrong ({rules[0]})\n  mend it"


def test_warnings_and_notes_end_none():
    assert as_error([finding("host-workers", "warning"), finding("host-gpu", "note")]) is None
    assert as_problem(finding("host-workers", "warning")).do == "mend it"


class Reporter:
    """Keeps what it is told."""

    def __init__(self):
        self.stages, self.warnings = [], []

    def stage(self, text):
        self.stages.append(text)

    def warn(self, problem):
        self.warnings.append(problem)


@pytest.fixture
def house(tmp_path, tiny, monkeypatch):
    """A recipe over a whole checkpoint; bases and records are not looked at after the rules."""
    monkeypatch.setattr(module, "_read", lambda plan, reporter: (plan, None))
    monkeypatch.setattr(module, "audited", lambda plan, reporter: plan)
    house = House(tmp_path)
    shutil.copytree(tiny, house.base, dirs_exist_ok=True)
    return house


def looked_at(house, host, monkeypatch, **sections):
    recipe = house.recipe("base", **sections)
    monkeypatch.setattr(module, "read_host", lambda folders: host)
    reporter = Reporter()
    return preflight(house.plan("base", **sections), recipe, reporter), reporter


BARE = Host(packages={"torch": "2.11.0"}, cpus=2)
MANY = {"data": {"dataloader_num_workers": 16}}


def test_warnings_are_told_and_kept_for_the_run_folder(house, monkeypatch):
    plan, reporter = looked_at(house, replace(small(80 * GIB), cpus=2), monkeypatch, **MANY)
    (warned,) = reporter.warnings
    assert warned.id == "host-workers"
    assert warned.where.file.endswith("mine.yaml")
    assert plan.warnings == (str(warned),)


GIB = 2**30
LARGE = {"training": {"gradient_checkpointing": False, "per_device_train_batch_size": 4}}


def small(memory, used=0):
    gpu = Gpu(index=0, name="GPU", memory=memory, used=used, capability=(9, 0))
    return Host(packages={"torch": "2.11.0"}, cpus=64, gpus=(gpu,))


def test_a_step_that_does_not_fit_into_the_gpu_of_this_host_is_told(house, monkeypatch):
    write_shapes(house.base)
    plan, reporter = looked_at(house, small(24 * GIB), monkeypatch, **LARGE)
    (warned,) = reporter.warnings
    assert warned.id == "memory-fit"
    assert "on each GPU, which has 23.4" in warned.what
    assert "write training.gradient_checkpointing: true" in warned.do
    assert plan.warnings == (str(warned),)
    assert looked_at(house, small(80 * GIB), monkeypatch)[1].warnings == []


def test_what_others_use_of_a_gpu_is_not_there(house, monkeypatch):
    write_shapes(house.base)
    _, reporter = looked_at(house, small(80 * GIB, used=70 * GIB), monkeypatch)
    assert [warned.id for warned in reporter.warnings] == ["host-gpu-busy", "memory-fit"]


def test_notes_are_not_told(house, monkeypatch):
    host = Host(packages={"torch": "2.11.0"}, cpus=64)
    assert {f.id for f in fast_findings(house.plan(), house.recipe(), host)} == {"host-gpu"}
    plan, reporter = looked_at(house, host, monkeypatch)
    assert (plan.warnings, reporter.warnings) == ((), [])


def test_an_error_ends_the_run(house, monkeypatch):
    with pytest.raises(MissingOnHost, match="host-flash-attn"):
        looked_at(house, BARE, monkeypatch, model={"attn_impl": "flash_attention_2"})


def test_nothing_is_asked_where_the_recipe_says_so(house, monkeypatch):
    plan, reporter = looked_at(house, BARE, monkeypatch, **MANY, custom={"preflight": False})
    assert (plan.warnings, reporter.warnings, reporter.stages) == ((), [], [])


def test_the_rules_start_no_torch(tmp_path):
    house = House(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from vltool.recipe.validate import load_recipe\n"
        "from vltool.run.plan import make_plan\n"
        "from vltool.audit.fast import fast_findings\n"
        "from vltool.audit.host import read_host\n"
        f"recipe = load_recipe({str(house.write())!r}); plan = make_plan(recipe, cwd=Path({str(tmp_path)!r}))\n"
        "fast_findings(plan, recipe, read_host())\n"
        "assert not {'torch', 'transformers', 'swift', 'peft', 'deepspeed'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | house.env, cwd=Path(__file__).parents[2])


def test_train_stops_for_a_host_that_lacks_what_the_recipe_asks_for(vltool, overlay):
    pytest.importorskip("torch")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        recipe = overlay(
            "stage2_llm_lora", model={"attn_impl": "flash_attention_2"}, data={"dataloader_num_workers": 8}
        )
        code, out, err = vltool("train", str(recipe))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert code == 3
    assert out == ""
    assert "flash-attn is not installed (host-flash-attn)" in err
    assert "host-open-files" not in err, "an error ends the run, whatever else was found"
    assert not Path("run").exists()


def test_a_run_keeps_its_warnings_in_its_folder(overlay, tmp_path, vltool):
    pytest.importorskip("torch")
    short = {"max_steps": 1, "save_steps": 1, "eval_steps": 1, "effective_batch_size": 2}
    code, _, err = vltool("train", str(overlay("stage2_llm_lora", training=short)))
    assert code == 0
    assert "an optimizer step sees 2 samples: its gradient is noisy (batch-small)" in err
    assert "(batch-small)" in (tmp_path / "run" / "warnings.jsonl").read_text()
