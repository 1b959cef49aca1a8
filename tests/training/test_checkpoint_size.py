"""Checkpoints are as large as they were counted from the base's headers before the run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from vltool.audit.anatomy import read_anatomy
from vltool.audit.disk_rules import checkpoint_size
from vltool.audit.memory_plan import batch_of
from vltool.audit.memory_terms import Terms

RECIPES = [("stage2_llm_lora", {}), ("stage1_aligner_full", {}), (["stage2_llm_lora", "full"], {"freeze_vit": True})]


@pytest.mark.parametrize(("recipe", "tuner"), RECIPES, ids=["lora", "modules_to_save", "full"])
def test_a_checkpoint_is_as_large_as_counted(recipe, tuner, overlay, train):
    short = {"max_steps": 1, "save_steps": 1, "eval_steps": 1}
    run = train(overlay(recipe, tuner=tuner, training=short))
    anatomy = read_anatomy(Path(run.plan.original), run.plan.tuner, run.plan.arguments)
    size = checkpoint_size(Terms(run.plan, anatomy, batch_of(run.plan, anatomy)))
    folder = run.run_dir / "checkpoint-1"
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    # Headers, and what torch.save writes around each tensor.
    overhead = 1024 * len(anatomy.weights)
    assert size.weights <= weights <= size.weights + overhead
    assert size.optimizer <= (folder / "optimizer.pt").stat().st_size <= size.optimizer + 2 * overhead


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_so_is_one_of_deepspeed_with_all_processes_shares(dtype, overlay, train):
    pytest.importorskip("deepspeed")
    short = {"max_steps": 1, "save_steps": 1, "eval_steps": 1, "bf16": dtype == "bfloat16"}
    launch = {"nproc_per_node": 2}
    run = train(overlay(["stage2_llm_lora", "zero2"], training=short, launch=launch, model={"torch_dtype": dtype}))
    anatomy = read_anatomy(Path(run.plan.original), run.plan.tuner, run.plan.arguments)
    size = checkpoint_size(Terms(run.plan, anatomy, batch_of(run.plan, anatomy)))
    folder = run.run_dir / "checkpoint-1"
    shares = sum(file.stat().st_size for file in folder.rglob("global_step*/*.pt"))
    assert size.optimizer <= shares <= size.optimizer + 2 * 1024 * len(anatomy.weights)
