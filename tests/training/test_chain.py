"""Stages one after the other: each goes on exactly where the earlier one ended, over the base alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from vltool.checkpoint.census import take_census
from vltool.run import launch
from vltool.run.evidence import Evidence
from vltool.training.probe import load_probe, logits_at

pytestmark = pytest.mark.slow

CHAINS = {
    "LoRA all the way": ["stage1_aligner_lora", "stage2_llm_lora", "stage3", "stage3_gkd_forward"],
    "the aligner in full, then LoRA asked of it": ["stage1_aligner_full", "stage2_llm_lora", "stage3_gkd_forward"],
    "LoRA, in full, and back": ["stage1_aligner_lora", "stage1_aligner_full", "stage2_llm_lora"],
}


@pytest.fixture
def chain(overlay, train, tmp_path):
    """Trains stages one after the other; returns their runs."""

    def run(stages, **sections):
        runs, checkpoint = [], None
        for number, stage in enumerate(stages):
            changed = {
                "tuner": {"resume_from_checkpoint": checkpoint} | sections.get("tuner", {}),
                "training": {"output_dir": str(tmp_path / f"run{number}"), "eval_on_start": True},
            }
            runs.append(train(overlay(stage, f"stage{number}", **changed), probe=True))
            checkpoint = runs[-1].outcome["last_checkpoint"]
        return runs

    return run


def evaluations(run):
    return [row["eval/sft_loss"] for row in run.rows if "eval/sft_loss" in row]


@pytest.mark.parametrize("name", CHAINS)
def test_each_stage_goes_on_where_the_earlier_one_ended(name, chain, tiny):
    runs = chain(CHAINS[name])
    for earlier, later in itertools.pairwise(runs):
        assert evaluations(later)[0] == pytest.approx(evaluations(earlier)[-1], abs=1e-5)
        assert evaluations(earlier)[0] != pytest.approx(evaluations(earlier)[-1], abs=1e-5)
        seen = Evidence.read(later.run_dir)
        assert seen.carried
        assert seen.tower_problems == seen.gradient_problems == seen.frozen_changed == []
    last = runs[-1]
    checkpoint = Path(last.outcome["last_checkpoint"])
    again = launch.reload(last.run_dir, checkpoint)
    assert Path(again["base"]) == Path(tiny)
    assert again["difference"] <= 1e-5 * again["scale"]

    inputs, at_P2, _ = load_probe(last.run_dir)
    base = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32).eval()
    with torch.no_grad():
        want = logits_at(base, inputs, at_P2)
        adapted = PeftModel.from_pretrained(base, str(checkpoint)).eval()
        with adapted.disable_adapter():
            got = logits_at(adapted, inputs, at_P2)
    assert torch.equal(got, want)


def test_a_chained_run_goes_on_from_its_own_checkpoint(overlay, train, tmp_path):
    earlier = train(overlay("stage1_aligner_lora", "earlier", training={"output_dir": str(tmp_path / "earlier")}))
    tuner = {"resume_from_checkpoint": earlier.outcome["last_checkpoint"], "freeze_aligner": True}
    steps = {"max_steps": 4, "save_steps": 2, "eval_steps": 4}
    whole = train(overlay("stage3_gkd_forward", tuner=tuner, training=steps | {"output_dir": str(tmp_path / "whole")}))
    resumed = {"output_dir": str(tmp_path / "again"), "resume_from_checkpoint": str(whole.run_dir / "checkpoint-2")}
    again = train(overlay("stage3_gkd_forward", tuner=tuner, training=steps | resumed), probe=True)
    assert [row["step"] for row in again.rows if "train/loss" in row] == [3, 4]
    assert again.rows[-1]["eval/loss"] == pytest.approx(whole.rows[-1]["eval/loss"], abs=1e-6)
    assert Evidence.read(again.run_dir).frozen_changed == []
    # The aligner is carried and frozen, although the teacher switched the whole adapter off and on.
    assert {row.tower for row in again.table if row.trainable} == {"language", "vision"}


def test_a_chain_in_bf16_keeps_its_copies_in_fp32(overlay, train, tmp_path):
    checkpoint, ended = None, None
    for stage in ("stage1_aligner_full", "stage2_llm_lora"):
        training = {"bf16": True, "eval_on_start": True, "output_dir": str(tmp_path / stage)}
        tuner = {"resume_from_checkpoint": checkpoint}
        run = train(
            overlay(stage, stage, model={"torch_dtype": "bfloat16"}, tuner=tuner, training=training), probe=True
        )
        assert ended is None or evaluations(run)[0] == pytest.approx(ended, abs=1e-5)
        checkpoint, ended = run.outcome["last_checkpoint"], evaluations(run)[-1]
    tensors = take_census(Path(checkpoint)).tensors
    assert {info.dtype for info in tensors.values()} == {"F32"}
    again = launch.reload(run.run_dir, Path(checkpoint))
    assert again["difference"] <= 2e-2 * again["scale"]
