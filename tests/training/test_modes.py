"""Every mode of tuning: it trains, saves, merges where merging exists, and a new process loads it again.

`pytest -s tests/training/test_modes.py` prints the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from vltool.audit.preflight import audited
from vltool.checkpoint.architecture import plain_name
from vltool.checkpoint.census import take_census
from vltool.recipe.validate import load_recipe
from vltool.run import launch
from vltool.run.evidence import Evidence
from vltool.run.plan import make_plan
from vltool.training.probe import load_probe, logits_at
from vltool.training.tiny import make_tiny

pytestmark = pytest.mark.slow

SMALL_RANKS = {"adalora_init_r": 4, "adalora_target_r": 2}
FORWARD = {"rlhf_type": "gkd", "sft_alpha": 1.0, "beta": 0.1, "lmbda": 0.0, "seq_kd": False}
ALL = {"aligner", "deepstack", "language", "vision"}
EVERYWHERE = {"freeze_llm": False, "freeze_vit": False, "freeze_aligner": False}
MODES = {
    "LoRA, language": (["base"], {}, "dense", False, {"language"}),
    "LoRA, vision": (["base"], EVERYWHERE | {"freeze_llm": True, "freeze_aligner": True}, "moe", True, {"vision"}),
    "LoRA, aligner": (["stage1_aligner_lora"], {}, "moe", False, {"aligner", "deepstack"}),
    "LoRA, all, three rates": (["stage3"], {}, "moe", True, ALL),
    "LoRA + modules_to_save": (
        ["stage2_llm_lora"], {"freeze_aligner": True, "modules_to_save": ["model.visual.merger"]}, "dense", True,
        {"language", "aligner"},
    ),
    "the aligner in full": (["stage1_aligner_full"], {}, "dense", False, {"aligner", "deepstack"}),
    "rsLoRA": (["base"], {"use_rslora": True}, "dense", True, {"language"}),
    "DoRA": (["stage2_llm_lora", "dora"], {}, "dense", True, {"language", "aligner", "deepstack"}),
    "PiSSA": (["stage2_llm_lora"], {"init_weights": "pissa"}, "dense", True, {"language", "aligner", "deepstack"}),
    "PiSSA, drawn, rsLoRA": (
        ["stage3"], {"init_weights": "pissa_niter_4", "lora_rank": 4, "use_rslora": True}, "moe", True, ALL,
    ),
    "PiSSA, DoRA + modules_to_save": (
        ["base"], {"init_weights": "pissa", "use_dora": True, "modules_to_save": ["model.visual.merger"]}, "dense",
        True, {"language", "aligner"},
    ),
    "AdaLoRA": (["stage1_aligner_lora", "adalora"], SMALL_RANKS, "dense", True, {"aligner", "deepstack"}),
    "BOFT": (["stage2_llm_lora", "boft"], {}, "moe", False, {"language", "aligner", "deepstack"}),
    "FourierFT": (["stage1_aligner_lora", "fourierft"], {"fourier_n_frequency": 16}, "dense", True,
                  {"aligner", "deepstack"}),
    "full, aligner": (["stage1_aligner_lora", "full"], {}, "moe", True, {"aligner", "deepstack"}),
    "full, all": (["stage3", "full"], {"last_vit_blocks": None}, "dense", False, ALL),
}  # fmt: skip
"""Mode -> what it extends and changes, on which tiny checkpoint, with distillation or not, and what trains."""
MERGED = {"LoRA, language", "LoRA, all, three rates", "LoRA + modules_to_save", "rsLoRA", "DoRA", "AdaLoRA", "BOFT",
          "FourierFT", "PiSSA", "PiSSA, drawn, rsLoRA", "PiSSA, DoRA + modules_to_save"}  # fmt: skip


class Quiet:
    """A reporter that says nothing."""

    def __getattr__(self, _):
        return lambda *args, **kwargs: None


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny):
    moe = tmp_path_factory.mktemp("moe")
    return {"dense": Path(tiny), "moe": make_tiny(moe, texts=("a red square",), moe=True)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, bases, records):
    """Trains every mode for three steps; mode -> its plan."""
    folder = tmp_path_factory.mktemp("modes")
    plans = {}
    for number, (name, (extends, tuner, kind, distils, _)) in enumerate(MODES.items()):
        document = {
            "extends": extends,
            "model": {"model": str(bases[kind]), "torch_dtype": "float32"},
            "data": {"dataloader_num_workers": 0},
            "tuner": {"resume_from_checkpoint": None} | tuner,
            "training": {
                "bf16": False, "learning_rate": 3e-3, "max_steps": 3, "logging_steps": 1, "save_steps": 3,
                "effective_batch_size": 2, "per_device_train_batch_size": 2, "output_dir": str(folder / f"run{number}"),
            },
            "custom": {"train_jsonl": str(records)},
        }  # fmt: skip
        if distils:
            document["rlhf"] = FORWARD
        recipe = folder / f"{number}.yaml"
        recipe.write_text(json.dumps(document))
        resolved = load_recipe(str(recipe), env={})
        plans[name] = audited(make_plan(resolved, cwd=folder, probe=True), Quiet())
        launch.train(plans[name], Quiet(), resolved=resolved)
    return plans


@pytest.mark.parametrize("name", MODES)
def test_a_mode_trains_what_it_says_and_nothing_else(name, runs):
    plan, trains = runs[name], MODES[name][4]
    seen = Evidence.read(Path(plan.run_dir))
    assert {row.tower for row in seen.towers if row.trainable} == trains
    assert seen.tower_problems == seen.gradient_problems == seen.frozen_changed == []
    assert seen.frozen_tensors > 0 or name == "full, all"
    assert seen.finished
    assert seen.ce_after != seen.ce_before


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode[3]])
def test_the_teacher_is_shared_where_switching_the_adapter_off_gives_it(name, runs):
    moves_the_base = name.startswith(("full", "PiSSA"))
    assert runs[name].distillation.teacher == ("copy" if moves_the_base else "adapters_off")
    at_start = Evidence.read(Path(runs[name].run_dir)).kd_at_start
    if name.startswith("PiSSA"):
        # The base is taken apart and put together again, in floating point.
        assert 0.0 <= at_start < 1e-9
    else:
        assert (at_start > 0.0) == (name == "FourierFT")


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode[1].get("modules_to_save")
                                  or name in ("the aligner in full", "full, all")])  # fmt: skip
def test_what_is_tuned_in_full_is_in_the_checkpoint(name, runs):
    held = {plain_name(tensor) for tensor in take_census(Path(runs[name].run_dir) / "checkpoint-3").tensors}
    assert "model.visual.merger.linear_fc1.weight" in held


def test_a_new_process_loads_them_all_and_gives_the_same_logits(runs):
    pairs = [path for plan in runs.values() for path in (plan.run_dir, f"{plan.run_dir}/checkpoint-3")]
    done = subprocess.run(
        [sys.executable, "-m", "vltool.training.reload", *pairs], capture_output=True, text=True, check=True
    )
    results = [json.loads(line) for line in done.stdout.splitlines()[-len(runs) :]]
    print(f"\n{'mode':24} {'base':6} {'teacher':13} {'largest difference of logits':>28}")
    for (name, plan), result in zip(runs.items(), results, strict=True):
        teacher = plan.distillation.teacher if plan.distillation else ""
        print(f"{name:24} {MODES[name][2]:6} {teacher:13} {result['difference']:28.2g}")
        assert result["difference"] <= 1e-5 * result["scale"], name


@pytest.mark.parametrize("name", sorted(MERGED))
def test_a_merged_model_gives_the_trained_models_logits(name, runs):
    plan = runs[name]
    inputs, at_P2, want = load_probe(Path(plan.run_dir))
    base = AutoModelForImageTextToText.from_pretrained(plan.model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, f"{plan.run_dir}/checkpoint-3")
    merged = adapted.merge_and_unload().eval()
    with torch.no_grad():
        got = logits_at(merged, inputs, at_P2)
    assert torch.allclose(got, want, atol=1e-5 * float(want.abs().max()), rtol=1e-5)
