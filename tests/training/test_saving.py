"""Which steps leave a checkpoint, and that the end is evaluated once."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.slow

SHORT = {"max_steps": 5, "effective_batch_size": 2, "save_steps": 2, "eval_strategy": "no"}


def checkpoints(run):
    return sorted(int(path.name.rpartition("-")[2]) for path in run.run_dir.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({}, [2, 4, 5]),
        ({"save_last_epoch": False}, [2, 4]),
        ({"save_delay_steps": 4}, [4, 5]),
        ({"save_delay_steps": 9}, [5]),
        ({"save_delay_steps": 9, "save_last_epoch": False}, []),
        ({"save_total_limit": 1}, [5]),
    ],
)
def test_steps_that_are_saved(training, steps, overlay, train):
    run = train(overlay("stage1_aligner_lora", training=SHORT | training))
    assert checkpoints(run) == steps
    assert (run.outcome["last_checkpoint"] is not None) == bool(steps)


def test_the_best_checkpoint_outlives_the_limit(overlay, train):
    training = {
        "save_steps": 1, "eval_steps": 1, "eval_strategy": "steps", "save_total_limit": 1, "max_steps": 4,
        "metric_for_best_model": "eval_loss",
        # What is learnt in the first steps is ruined in the later ones.
        "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_ratio": None, "learning_rate": 30.0,
    }  # fmt: skip
    run = train(overlay("stage1_aligner_lora", training=training))
    losses = {row["step"]: row["eval/loss"] for row in run.rows if "eval/loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert best < 4, losses
    assert checkpoints(run) == [best, 4]
    state = json.loads((run.run_dir / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(run.run_dir / f"checkpoint-{best}")


@pytest.mark.parametrize(("last", "saved"), [(True, [2, 4]), (False, [2])])
def test_by_epochs_the_end_is_evaluated_and_saved_once(last, saved, overlay, train):
    training = {
        "max_steps": -1, "num_train_epochs": 2, "effective_batch_size": 4, "save_strategy": "epoch",
        "eval_strategy": "epoch", "save_last_epoch": last,
    }  # fmt: skip
    run = train(overlay("stage1_aligner_lora", training=training))
    assert [row["step"] for row in run.rows if "eval/loss" in row] == [2, 4]
    assert checkpoints(run) == saved
