"""The trainer's own promises: no logits, a fixed count of tokens, the loss it logs is the loss it trains on."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vltool.training.tiny import REAL_VOCAB_SIZE

CHUNK = 128


class WidestTensor(TorchDispatchMode):
    """Notes the largest number of rows of any tensor over the vocabulary that is made inside."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(tensor, torch.Tensor) or tensor.ndim < 2 or tensor.shape[-1] != REAL_VOCAB_SIZE:
                continue
            # [H, V] is the head itself, turned round.
            if tensor.shape != (16, REAL_VOCAB_SIZE):
                self.rows = max(self.rows, tensor.numel() // REAL_VOCAB_SIZE)
        return out


@pytest.mark.parametrize("recipe", ["stage2_llm_lora", "stage3_gkd_forward"])
def test_no_tensor_of_tokens_by_vocabulary_exists(recipe, real_ids, overlay, train, monkeypatch):
    """On the released models' ids and vocabulary size, which no other dimension equals."""
    from vltool.training.trainer import CaptionTrainer

    widest = []
    tokens = []
    real_step, real_loss = CaptionTrainer.training_step, CaptionTrainer._losses

    def watched(self, *args, **kwargs):
        with WidestTensor() as mode:
            result = real_step(self, *args, **kwargs)
        widest.append(mode.rows)
        return result

    def counted(self, *args, **kwargs):
        result = real_loss(self, *args, **kwargs)
        tokens.append(float(result.text.tokens))
        return result

    monkeypatch.setattr(CaptionTrainer, "training_step", watched)
    monkeypatch.setattr(CaptionTrainer, "_losses", counted)
    training = {
        "bf16": False, "max_steps": 2, "save_steps": 2, "effective_batch_size": 8, "per_device_train_batch_size": 8,
    }  # fmt: skip
    training["output_dir"] = str(overlay(recipe).parent / "wide")
    model = {"model": str(real_ids), "torch_dtype": "float32"}
    run = train(overlay(recipe, model=model, training=training))
    assert run.outcome["step"] == 2
    assert max(tokens) > 2 * CHUNK, "a batch must need several chunks for this to mean something"
    assert 0 < max(widest) <= CHUNK


def test_the_teacher_does_not_run_where_nothing_asks_for_it(overlay, train, monkeypatch):
    from vltool.training import make_teacher

    def no_teacher(*args, **kwargs):
        raise AssertionError("the teacher was called")

    for name in ("hidden_and_head", "features", "writing"):
        monkeypatch.setattr(make_teacher.AdaptersOff, name, no_teacher)
    run = train(overlay("stage3_gkd_forward", rlhf={"llm_kd_weight": 0.0}))
    assert not any("llm_kd_loss" in name for row in run.rows for name in row)
    with pytest.raises(AssertionError, match="the teacher was called"):
        train(overlay("stage3_gkd_forward", training={"output_dir": f"{run.run_dir}2", "bf16": False}))


@pytest.mark.parametrize(("batches", "measured"), [(0, False), (1, True), ("all", True)])
def test_evaluation_measures_the_divergence_on_as_many_batches_as_asked(batches, measured, overlay, train, monkeypatch):
    from vltool.training import make_teacher

    calls = []
    real = make_teacher.AdaptersOff.hidden_and_head

    def counted(self, inputs):
        if not self._model.training:
            calls.append(1)
        return real(self, inputs)

    monkeypatch.setattr(make_teacher.AdaptersOff, "hidden_and_head", counted)
    run = train(overlay("stage3_gkd_forward", rlhf={"eval_kd_batches": batches}))
    (row,) = [row for row in run.rows if "eval/loss" in row]
    assert ("eval/llm_kd_loss" in row) is measured
    # Four records, one a batch.
    assert len(calls) == {0: 0, 1: 1, "all": 4}[batches]


def test_evaluation_is_a_mean_over_tokens_not_over_batches(overlay, train, tmp_path):
    losses = []
    for size in (1, 4):
        settings = {
            "bf16": False, "max_steps": 1, "save_steps": 1, "eval_steps": 1, "effective_batch_size": 4,
            "learning_rate": 1e-2, "per_device_eval_batch_size": size, "output_dir": str(tmp_path / str(size)),
        }  # fmt: skip
        run = train(overlay("stage2_llm_lora", f"e{size}", training=settings))
        losses.append(next(row for row in run.rows if "eval/loss" in row))
    for name in ("eval/loss", "eval/sft_loss", "eval/token_acc", "eval/entropy"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-6)


def test_best_checkpoint_is_chosen_by_token_accuracy(overlay, train):
    import json

    settings = {
        "bf16": False, "max_steps": 3, "save_steps": 1, "eval_steps": 1, "logging_steps": 1, "effective_batch_size": 4,
        "learning_rate": 1e-2, "metric_for_best_model": "eval/token_acc", "save_total_limit": 1,
    }  # fmt: skip
    run = train(overlay("stage2_llm_lora", training=settings | {"output_dir": str(overlay("base").parent / "best")}))
    accuracy = {row["step"]: row["eval/token_acc"] for row in run.rows if "eval/token_acc" in row}
    state = json.loads((run.run_dir / "checkpoint-3" / "trainer_state.json").read_text())
    best = max(accuracy.values())
    assert state["best_metric"] == pytest.approx(best)
    first_best = min(step for step, value in accuracy.items() if value == best)
    assert state["best_model_checkpoint"] == str(run.run_dir / f"checkpoint-{first_best}")
    kept = {path.name for path in run.run_dir.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{first_best}", "checkpoint-3"}
