"""One step is one step, however many processes share it: DDP, ZeRO-2 and ZeRO-3 against one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from vltool.run.evidence import Evidence

pytestmark = pytest.mark.slow

STRATEGIES = {
    "DDP": {},
    "ZeRO-2": {"deepspeed": {"enabled": True, "config": "zero2"}},
    "ZeRO-3": {"deepspeed": {"enabled": True, "config": "zero3"}},
}
TWO = {"launch": {"nproc_per_node": 2}}
IN_ORDER = {"train_dataloader_shuffle": False}
NO_METRICS = ("runtime", "per_second")
TOLERANCE = 1e-5


def long_and_short(records: Path, folder: Path) -> Path:
    """The records with many objects and with one, two of each in turn: batches of two differ in their labels."""
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    for number, record in enumerate(lines):
        record["objects"] = record["objects"][:1] * (1 if number // 2 % 2 else 8)
        record["images"] = [str(records.parent / image) for image in record["images"]]
    answers = [len(json.dumps(record["objects"])) for record in lines]
    assert min(answers[:2]) > 3 * max(answers[2:4])
    path = folder / "skewed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def with_text(records: Path, folder: Path) -> Path:
    """The records, and as many conversations without an image, two of each in turn."""
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    mixed = []
    for number in range(0, len(lines), 2):
        for record in lines[number : number + 2]:
            record["images"] = [str(records.parent / image) for image in record["images"]]
            mixed.append(record)
        for place in range(2):
            answer = "a box, a bar and a dot " * (1 + place)
            turns = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": answer}]
            mixed.append({"messages": turns})
    path = folder / "mixed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in mixed), encoding="utf-8")
    return path


def metrics(run) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run.run_dir / "logging.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith(NO_METRICS)} for row in rows]


def weights(run) -> dict[str, torch.Tensor]:
    checkpoint = Path(run.outcome["last_checkpoint"])
    return {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(got, want, tolerance=TOLERANCE) -> None:
    assert len(metrics(got)) == len(metrics(want))
    for mine, theirs in zip(metrics(got), metrics(want), strict=True):
        assert mine == pytest.approx(theirs, abs=tolerance)
    mine, theirs = weights(got), weights(want)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=tolerance, rtol=0, msg=name)


@pytest.fixture
def runs(overlay, train, tmp_path):
    """Trains a recipe under a name of its own."""

    def run(recipe, name, *, probe=False, **sections):
        training = {"output_dir": str(tmp_path / name)} | sections.pop("training", {})
        return train(overlay(recipe, name, training=training, **sections), probe=probe)

    return run


TERM = {"enabled": True, "weight": 1.0}
VISUAL = {"visual_kd": {"enabled": True, "vit": TERM, "aligner": TERM | {"distance": "cosine"}, "deepstack": TERM}}
RECIPES = {"SFT": "stage2_llm_lora", "GKD": "stage3_gkd_forward", "full": ["stage3_gkd_forward", "full"]}


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_take_the_steps_of_one(recipe, runs, records, tmp_path):
    data = {"train_jsonl": str(long_and_short(records, tmp_path)), "val_jsonl": str(records), "val_sample_limit": 5}
    training = {
        "effective_batch_size": 8, "eval_steps": 2, "save_steps": 2, "max_steps": 4,
        "per_device_eval_batch_size": 2,
    }  # fmt: skip

    def run(name, per_device, **sections):
        wanted = training | {"per_device_train_batch_size": per_device}
        return runs(RECIPES[recipe], name, training=wanted, data=IN_ORDER, custom=data, **sections)

    one = run("one", 4)
    for split in ("train", "eval"):
        by_geometry = {
            f"{split}/{name}_{kind}" for name in ("sft_loss", "token_acc") for kind in ("bbox", "poly", "line")
        }
        assert any(by_geometry <= row.keys() for row in metrics(one)), "what follows compares what rows hold"
    # Everything under every strategy; full tuning, whose head trains, where parameters are in shards.
    for name, strategy in STRATEGIES.items():
        if recipe != "full" or name == "ZeRO-3":
            two = run(name, 2, **TWO, **strategy)
            assert_same(two, one)
            seen = Evidence.read(two.run_dir)
            assert seen.finished
            assert seen.tower_problems == seen.gradient_problems == seen.frozen_changed == []
            assert [row.trainable for row in seen.towers] == [
                row.trainable for row in Evidence.read(one.run_dir).towers
            ]


def test_a_teacher_in_shards_is_asked_once(runs, records, tmp_path):
    """All records lie in one shard: while one process asks, the other keeps step."""
    training = {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "effective_batch_size": 4}
    cached = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_topk": 10**6}

    def run(name, per_device, **sections):
        wanted = training | {"per_device_train_batch_size": per_device}
        return runs("stage3_gkd_forward", name, training=wanted, data=IN_ORDER, **sections)

    two = run("two", 2, **TWO, **STRATEGIES["ZeRO-3"], rlhf=cached)
    assert_same(two, run("one", 4))
    assert_same(run("reads", 4, rlhf=cached), two)


ALONE: dict[str, Any] = {}
"""What one process, or DDP, comes to, once for all strategies."""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("vision", "steps"), [("frozen", 8), ("training", 20)])
def test_steps_of_images_beside_text(vision, steps, strategy, runs, records, tmp_path):
    data = {"train_jsonl": str(with_text(records, tmp_path)), "val_jsonl": None}
    if vision == "training":
        data |= VISUAL
    training = {
        "max_steps": steps, "effective_batch_size": 4, "save_steps": steps,
        "learning_rate": 1e-3, "aligner_lr": None, "vit_lr": None, "optimizer": None,
    }  # fmt: skip

    def run(name, per_device, **sections):
        wanted = training | {"per_device_train_batch_size": per_device}
        tuner = {"freeze_vit": vision == "frozen", "freeze_aligner": vision == "frozen", "last_vit_blocks": None}
        return runs("stage3_gkd_forward", name, training=wanted, data=IN_ORDER, custom=data, tuner=tuner, **sections)

    two = run("two", 2, **TWO, **STRATEGIES[strategy])
    assert two.outcome["step"] == steps
    if vision not in ALONE:
        ALONE[vision] = run("one", 4)
    assert_same(two, ALONE[vision], tolerance=1e-4)


def test_the_best_checkpoint_is_that_of_all_processes(runs, records, tmp_path):
    """The accuracy of one process's records and of the other's move apart."""
    training = {
        "effective_batch_size": 4, "per_device_eval_batch_size": 2, "max_steps": 5, "save_steps": 1, "eval_steps": 1,
        "eval_strategy": "steps", "save_total_limit": 2, "metric_for_best_model": "eval/token_acc",
        "greater_is_better": True, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_ratio": None,
        "learning_rate": 0.3,
    }  # fmt: skip
    data = {"val_jsonl": str(long_and_short(records, tmp_path)), "val_sample_limit": None}
    run = runs("stage2_llm_lora", "two", training=training, custom=data, **TWO)
    accuracies = {row["step"]: row["eval/token_acc"] for row in metrics(run) if "eval/token_acc" in row}
    assert len(accuracies) == 5
    assert len(set(accuracies.values())) > 2, accuracies
    best = max(accuracies, key=accuracies.__getitem__)
    kept = {path.name for path in run.run_dir.glob("checkpoint-*") if path.is_dir()}
    last_two = {"checkpoint-4", "checkpoint-5"}
    assert kept == ({f"checkpoint-{best}", "checkpoint-5"} if best < 5 else last_two)
    state = json.loads((run.run_dir / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(run.run_dir / f"checkpoint-{best}")
    assert state["best_metric"] == pytest.approx(accuracies[best], abs=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_on_two_processes_goes_on(strategy, runs, tmp_path):
    training = {"effective_batch_size": 4, "max_steps": 4, "save_steps": 2, "eval_strategy": "no"}
    common = TWO | STRATEGIES[strategy]
    whole = runs("stage3_gkd_forward", "run", training=training, **common)
    rows, tensors = metrics(whole), weights(whole)
    on = training | {"resume_from_checkpoint": str(whole.run_dir / "checkpoint-2")}
    resumed = runs("stage3_gkd_forward", "run", training=on, **common)
    assert [row["step"] for row in metrics(resumed)] == [1, 2, 3, 4]
    for got, want in zip(metrics(resumed), rows, strict=True):
        assert got == pytest.approx(want, abs=1e-6)
    for name, tensor in weights(resumed).items():
        torch.testing.assert_close(tensor, tensors[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_sample_text(strategy, runs, tmp_path):
    training = {"max_steps": 3, "save_steps": 3, "eval_strategy": "no", "effective_batch_size": 4}
    # Of the six records the second step leaves the second process none.
    custom = {"train_sample_limit": 6}
    rlhf = {"max_completion_length": 8}

    def run(strategy):
        cache = {"teacher_completions_cache": str(tmp_path / f"{strategy} answers")}
        sections = {"training": training, "custom": custom, "rlhf": rlhf | cache}
        return runs("stage3_gkd", strategy, probe=True, **sections, **TWO, **STRATEGIES[strategy])

    two = run(strategy)
    sources = [name for row in metrics(two) for name in row if name.startswith("train/source/")]
    assert sources == ["train/source/dataset", "train/source/student", "train/source/teacher"]
    seen = Evidence.read(two.run_dir)
    assert seen.finished
    assert seen.gradient_problems == seen.frozen_changed == []
    assert not seen.ranks_differ
    kept = [path.read_text() for path in (tmp_path / f"{strategy} answers").glob("*/rank-*.jsonl")]
    assert [text.count("\n") for text in kept] == [2, 2]
    # Whoever holds the weights, and however, the same answers are drawn from them.
    if "sampled" not in ALONE:
        ALONE["sampled"] = two if strategy == "DDP" else run("DDP")
    assert_same(two, ALONE["sampled"])


def test_a_module_in_full_trains_in_bf16_in_shards(runs):
    """DeepSpeed keeps fp32 copies of what trains; in the model itself everything is bf16."""
    training = {"bf16": True, "max_steps": 2, "save_steps": 2, "eval_strategy": "no"}
    run = runs(
        "stage1_aligner_full",
        "run",
        model={"torch_dtype": "bfloat16"},
        training=training,
        **TWO,
        **STRATEGIES["ZeRO-3"],
    )
    seen = Evidence.read(run.run_dir)
    assert seen.gradient_problems == seen.frozen_changed == []
    assert {name.split(".")[4] for name in weights(run)} == {"merger", "deepstack_merger_list"}
