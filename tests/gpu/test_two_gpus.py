"""Two GPUs under NCCL, in bf16: what only they can show. `pytest tests/gpu tests/training/test_ranks.py` there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from vltool.audit.run_rules import Judge
from vltool.run import launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

STRATEGIES = {
    "DDP": {},
    "ZeRO-2": {"deepspeed": {"enabled": True, "config": "zero2"}},
    "ZeRO-2, optimizer on the host": {"deepspeed": {"enabled": True, "config": "zero2_offload"}},
    "ZeRO-3": {"deepspeed": {"enabled": True, "config": "zero3"}},
}
RECIPES = {
    "SFT": "stage2_llm_lora",
    "aligner in full": "stage1_aligner_full",
    "GKD": "stage3_gkd_forward",
    "full": ["stage3_gkd_forward", "full"],
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_in_bf16_proves_itself(recipe, strategy, overlay, train):
    training = {"bf16": True, "effective_batch_size": 4, "per_device_train_batch_size": 1, "max_steps": 4}
    path = overlay(
        RECIPES[recipe], model={"torch_dtype": "bfloat16"}, training=training, launch={"nproc_per_node": 2},
        **STRATEGIES[strategy],
    )  # fmt: skip
    run = train(path, probe=True)
    verdicts = {verdict.id: verdict for verdict in Judge(run.plan, launch.reload).verdicts()}
    for verdict in verdicts.values():
        print(f"{verdict.status:<12} {verdict.id:<11} {verdict.evidence}")
    # At the shipped rates four steps of the aligner alone may not be seen in bf16.
    assert {name for name, verdict in verdicts.items() if verdict.status not in ("pass", "not asked")} <= {"learning"}


@pytest.mark.parametrize("strategy", ["DDP", "ZeRO-2"])
def test_a_stage_goes_on_in_bf16(strategy, overlay, train, tmp_path):
    common = {"model": {"torch_dtype": "bfloat16"}, "launch": {"nproc_per_node": 2}} | STRATEGIES[strategy]
    training = {"bf16": True, "effective_batch_size": 4, "per_device_train_batch_size": 1, "eval_on_start": True}
    earlier = train(overlay("stage1_aligner_full", "earlier", training=training, **common))
    checkpoint = earlier.outcome["last_checkpoint"]
    assert Path(checkpoint).is_dir()
    later = overlay(
        "stage2_llm_lora",
        "later",
        training=training | {"output_dir": str(tmp_path / "later")},
        tuner={"resume_from_checkpoint": checkpoint},
        **common,
    )
    ended, began = (
        [row["eval/sft_loss"] for row in map(json.loads, (run.run_dir / "logging.jsonl").open()) if "eval/loss" in row]
        for run in (earlier, train(later))
    )
    assert began[0] == pytest.approx(ended[-1], abs=2e-3)
