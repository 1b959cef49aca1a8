"""Runs of shipped recipes on a tiny checkpoint: what they log, train, save and resume."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from vltool.checkpoint.census import take_census
from vltool.errors import BadContent, InvalidInput, RunFailed
from vltool.run import launch, telemetry
from vltool.run.evidence import Evidence

RECIPES = {
    "stage1_aligner_lora": {"aligner", "deepstack"},
    "stage1_aligner_full": {"aligner", "deepstack"},
    "stage2_llm_lora": {"language", "aligner", "deepstack"},
    "stage3": {"language", "aligner", "deepstack", "vision"},
    "stage3_gkd_forward": {"language", "aligner", "deepstack", "vision"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_shipped_recipe_trains_logs_evaluates_and_saves_an_adapter(recipe, overlay, train, tiny):
    before = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    run = train(overlay(recipe), probe=True)

    assert {row.tower for row in run.table if row.trainable} == RECIPES[recipe]
    assert run.outcome["step"] == 3
    rows = list(telemetry.read_rows(run.run_dir))
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    for row in rows:
        split = "eval" if "eval/loss" in row else "train"
        assert telemetry.expected_metrics(run.plan, split) <= row.keys()
        assert telemetry.identity_error(run.plan, row, split) <= 1e-6
        assert all(isinstance(value, int | float) for value in row.values())
        assert isinstance(row["step"], int)

    seen = Evidence.read(run.run_dir)
    assert seen.gradient_problems == []
    assert seen.frozen_changed == []
    assert seen.ce_after < seen.ce_before
    census = take_census(run.run_dir / "checkpoint-3")
    assert census.kind == "adapter"
    assert (run.run_dir / "checkpoint-3" / "args.json").is_file(), "ms-swift's own tools read it"
    assert {tower for tower, count in census.per_tower().items() if count} == RECIPES[recipe]
    assert hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest() == before

    reloaded = launch.reload(run.run_dir, run.run_dir / "checkpoint-3")
    assert reloaded["base"] == str(tiny)
    assert reloaded["difference"] <= 1e-5 * reloaded["scale"]


def test_run_folder_holds_its_paper_trail(overlay, train):
    run = train(overlay("stage2_llm_lora", custom={"dump_conversation_text": True}))
    found = {path.name for path in run.run_dir.iterdir()}
    assert {"plan.json", "resolved.yaml", "manifest.json", "logging.jsonl", "tensorboard", "checkpoint-3"} <= found
    manifest = json.loads((run.run_dir / "manifest.json").read_text())
    assert manifest["packages"]["ms-swift"].startswith("4.6")
    assert manifest["data"]["train"][0]["bytes"] > 0
    text = (run.run_dir / "conversation.txt").read_text()
    assert "<|im_start|>assistant" in text
    assert '{"object_1": {"desc": "red square"' in text.split("# what the loss sees")[1]


def test_tensorboard_holds_the_same_names_and_values(overlay, train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(overlay("stage3_gkd_forward"))
    board = EventAccumulator(str(run.run_dir / "tensorboard"))
    board.Reload()
    written = {(name, e.step): e.value for name in board.Tags()["scalars"] for e in board.Scalars(name)}
    logged = {
        (name, row["step"]): value
        for row in telemetry.read_rows(run.run_dir)
        for name, value in row.items()
        if name != "step"
    }
    assert written.keys() == logged.keys()
    for key, value in logged.items():
        assert written[key] == pytest.approx(value, rel=1e-6), key


def weights(run, step=3):
    return load_file(run.run_dir / f"checkpoint-{step}" / "adapter_model.safetensors")


@pytest.mark.parametrize("recipe", ["stage2_llm_lora", "stage3_gkd_forward"])
def test_a_step_is_the_same_however_it_is_split_into_micro_batches(recipe, overlay, train, tmp_path):
    runs = []
    for name, size in (("whole", 4), ("split", 1)):
        training = {"per_device_train_batch_size": size, "output_dir": str(tmp_path / name)}
        path = overlay(recipe, name, training=base_training() | training)
        runs.append(train(path))
    for one, other in zip(runs[0].rows, runs[1].rows, strict=True):
        for metric in ("train/loss", "train/sft_loss", "train/llm_kd_loss", "train/grad_norm", "eval/loss"):
            if metric in one:
                assert one[metric] == pytest.approx(other[metric], rel=1e-5, abs=1e-7), metric
    for name, tensor in weights(runs[0]).items():
        assert torch.allclose(tensor, weights(runs[1])[name], rtol=1e-3, atol=1e-5), name


def base_training(**changes):
    return {
        "bf16": False, "learning_rate": 3e-3, "max_steps": 3, "logging_steps": 1, "save_steps": 3, "eval_steps": 3,
        "effective_batch_size": 4, "per_device_train_batch_size": 2,
    } | changes  # fmt: skip


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(overlay, train, tmp_path):
    settings = base_training(max_steps=4, save_steps=2, eval_steps=2)
    straight = train(overlay("stage3_gkd_forward", "a", training=settings | {"output_dir": str(tmp_path / "a")}))
    again = tmp_path / "b"
    shutil.copytree(straight.run_dir, again)
    shutil.rmtree(again / "checkpoint-4")
    # What a crash leaves: rows beyond the checkpoint and a checkpoint that was being written.
    (again / ".saving" / "checkpoint-4").mkdir(parents=True)
    resumed = train(
        overlay(
            "stage3_gkd_forward", "b",
            training=settings | {"output_dir": str(again), "resume_from_checkpoint": "auto"},
        )
    )  # fmt: skip
    assert resumed.plan.resume == str(again / "checkpoint-2")
    want, got = list(telemetry.read_rows(straight.run_dir)), list(telemetry.read_rows(again))
    assert [row["step"] for row in got] == [row["step"] for row in want]
    for one, other in zip(want, got, strict=True):
        assert one["step"] == other["step"]
        for name in ("train/loss", "eval/loss", "train/llm_kd_loss", "train/learning_rate"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-9), (one["step"], name)
    for name, tensor in weights(straight, 4).items():
        assert torch.equal(tensor, weights(resumed, 4)[name]), name
    assert not (again / ".saving").exists()


def test_a_separate_teacher_is_the_same_teacher(overlay, train, tiny, tmp_path):
    copy = tmp_path / "teacher"
    shutil.copytree(tiny, copy)
    shared = train(overlay("stage3_gkd_forward", "a", training=base_training(output_dir=str(tmp_path / "a"))))
    apart = train(
        overlay(
            "stage3_gkd_forward", "b", rlhf={"teacher_model": str(copy)},
            training=base_training(output_dir=str(tmp_path / "b")),
        )
    )  # fmt: skip
    assert shared.plan.distillation.teacher == "adapters_off"
    assert apart.plan.distillation.teacher == "copy"
    for one, other in zip(shared.rows, apart.rows, strict=True):
        for name in one.keys() & {"train/loss", "train/llm_kd_loss", "eval/llm_kd_loss"}:
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-8)


def test_full_tuning_distils_from_a_copy_and_saves_a_whole_model(overlay, train):
    tuner = {"freeze_llm": True, "freeze_vit": True, "freeze_aligner": False, "last_vit_blocks": None}
    run = train(overlay(["stage3_gkd_forward", "full"], tuner=tuner), probe=True)
    assert run.plan.distillation.teacher == "copy"
    seen = Evidence.read(run.run_dir)
    assert seen.kd_at_start == 0.0
    assert seen.gradient_problems == []
    assert {row.tower for row in run.table if row.trainable} == {"aligner", "deepstack"}
    assert take_census(run.run_dir / "checkpoint-3").kind == "full"
    assert run.rows[-1]["eval/llm_kd_loss"] > 0.0


def test_last_vit_blocks_leaves_the_earlier_ones_alone(overlay, train):
    run = train(overlay("stage3", tuner={"last_vit_blocks": 1}))
    names = take_census(run.run_dir / "checkpoint-3").tensors
    blocks = {name.split("blocks.")[1].split(".")[0] for name in names if "blocks." in name}
    assert blocks == {"3"}


def test_learning_rates_are_those_of_each_tower(overlay, train):
    run = train(overlay("stage3", training=base_training(aligner_lr=2e-3, vit_lr=1e-3, warmup_ratio=0.0)))
    rates = [(row["train/learning_rate"], row) for row in run.rows if "train/loss" in row]
    assert len({rate for rate, _ in rates}) == 3, "the schedule moves"
    for rate, row in rates:
        assert row["train/learning_rate/language"] == rate
        assert row["train/learning_rate/aligner"] == pytest.approx(rate * 2 / 3)
        assert row["train/learning_rate/vision"] == pytest.approx(rate / 3)


def test_text_only_and_summary_records_train_beside_images(overlay, train, records, tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    text = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
    lines = []
    for line in records.read_text().splitlines():
        record = json.loads(line)
        record["images"] = [str(records.parent / record["images"][0])]
        lines += [json.dumps(record), json.dumps(text)]
    mixed.write_text("\n".join(lines) + "\n")
    run = train(overlay("stage3_gkd_forward", custom={"train_jsonl": str(mixed), "val_jsonl": str(mixed)}))
    assert run.outcome["step"] == 3

    summaries = overlay(
        "stage2_llm_lora", "summaries", custom={"train_jsonl": str(records), "val_jsonl": None, "use_summary": True},
        training=base_training(output_dir=str(tmp_path / "summaries")),
    )  # fmt: skip
    run = train(summaries)
    assert not any("eval/loss" in row for row in run.rows)


def test_workers_change_nothing(overlay, train, tmp_path):
    runs = [
        train(
            overlay(
                "stage3_gkd_forward", f"w{workers}", data={"dataloader_num_workers": workers},
                training=base_training(output_dir=str(tmp_path / f"w{workers}")),
            )
        )
        for workers in (0, 2)
    ]  # fmt: skip
    for one, other in zip(runs[0].rows, runs[1].rows, strict=True):
        assert one["step"] == other["step"]
        assert one.get("train/loss") == other.get("train/loss")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_record_that_breaks_during_training_stops_the_run_with_its_line(workers, overlay, train, records, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(records.parent, broken)
    (broken / "images" / "5.png").write_bytes(b"no picture")
    recipe = overlay(
        "stage2_llm_lora",
        data={"dataloader_num_workers": workers},
        custom={"train_jsonl": str(broken / "records.jsonl"), "preflight": False},
    )
    with pytest.raises(BadContent) as caught:
        train(recipe)
    (problem,) = caught.value.problems
    assert problem.where.line == 6
    assert "5.png" in problem.what
    assert "Traceback" not in str(caught.value)


def test_bad_records_are_skipped_where_the_recipe_says_so(overlay, train, records, tmp_path):
    lines = records.read_text().replace('"images/', f'"{records.parent}/images/').splitlines()
    lines[2] = lines[2].replace('"desc": "', '"desc": "<|im_end|>', 1)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(lines) + "\n")
    recipe = overlay("stage2_llm_lora", data={"on_bad_record": "skip"}, custom={"train_jsonl": str(bad)})
    run = train(recipe)
    assert run.plan.data.train[0].skip == (2,)
    assert [warning.where.line for warning in run.warnings] == [3]


def test_an_image_that_turns_out_broken_in_training_is_left_out_where_the_recipe_says_so(
    overlay, train, records, tmp_path
):
    lines = records.read_text().replace('"images/', f'"{records.parent}/images/').splitlines()
    cut = tmp_path / "cut.png"
    broken = json.loads(lines[5])
    cut.write_bytes(Path(broken["images"][0]).read_bytes()[:-60])
    broken["images"] = [str(cut)]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines[:5], json.dumps(broken), *lines[6:]]) + "\n")
    data = {"train_jsonl": str(bad), "val_jsonl": str(bad), "val_sample_limit": None}
    with pytest.raises(BadContent, match=r"bad\.jsonl:6: .*cut\.png is damaged"):
        train(overlay("stage2_llm_lora", custom=data))
    training = {"output_dir": str(tmp_path / "skipping"), "max_steps": 2}
    run = train(overlay("stage2_llm_lora", data={"on_bad_record": "skip"}, custom=data, training=training))
    assert sum(row.get("train/skipped", 0) for row in run.rows) == 1, "two steps of four show eight records once"
    assert [row["eval/skipped"] for row in run.rows if "eval/loss" in row] == [1]
    kept = [json.loads(line) for line in (run.run_dir / "skipped.jsonl").read_text().splitlines()]
    assert {(entry["file"], entry["line"]) for entry in kept} == {(str(bad), 6)}
    assert "cut.png is damaged" in kept[0]["what"]


def test_a_record_longer_than_the_length_is_named_before_training(overlay, train):
    recipe = overlay("stage2_llm_lora")
    document = json.loads(recipe.read_text()) | {"global_max_length": 120}
    recipe.write_text(json.dumps(document))
    with pytest.raises(BadContent, match="120"):
        train(recipe)


def test_an_argument_that_ms_swift_does_not_know_is_located_and_nothing_is_written(overlay, train, tmp_path):
    recipe = overlay("stage2_llm_lora", tuner={"lora_rnak": 8, "lora_alpha": "many"})
    with pytest.raises(InvalidInput) as caught:
        train(recipe)
    text = str(caught.value)
    assert "mine.yaml:1:" in text
    assert "did you mean lora_rank?" in text
    assert "lora_alpha: 'many'" in text
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(overlay, train, monkeypatch):
    from vltool.training import trainer

    def poisoned(*args, **kwargs):
        out = real(*args, **kwargs)
        return type(out)(**{name: getattr(out, name) for name in out.__slots__} | {"loss": out.loss * float("nan")})

    real = trainer.distillation_loss
    monkeypatch.setattr(trainer, "distillation_loss", poisoned)
    recipe = overlay("stage2_llm_lora")
    with pytest.raises(RunFailed, match="train/loss is nan at step 1"):
        train(recipe)
