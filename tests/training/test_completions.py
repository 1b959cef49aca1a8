"""The teacher's answers on disk: written once, found by all, told apart by everything that they depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from vltool.errors import RunFailed
from vltool.run.fingerprint import checkpoint_fingerprint
from vltool.run.telemetry import read_rows
from vltool.training.completions import CompletionsCache, prompt_key

SETTINGS = {"teacher": "abc", "temperature": 0.9, "seed": 42}


def prompt(ids=(1, 2, 3), pixel=0.5, grid=(1, 2, 2)):
    return {
        "input_ids": list(ids), "pixel_values": torch.full((4, 6), pixel), "image_grid_thw": torch.tensor([grid]),
        "mm_token_type_ids": torch.zeros(len(ids)),
    }  # fmt: skip


def test_a_prompt_is_known_by_its_tokens_and_its_pixels():
    text = {"input_ids": [1, 2, 3]}
    different = [prompt(), prompt(ids=(1, 2, 4)), prompt(pixel=0.25), prompt(grid=(1, 1, 4)), text]
    different += [prompt() | {"pixel_values": prompt()["pixel_values"].bfloat16()}]
    assert len({prompt_key(one) for one in different}) == len(different)
    assert prompt_key(prompt()) == prompt_key(prompt())


def test_what_one_writes_all_find_then_and_later(tmp_path):
    first, second = CompletionsCache(tmp_path, SETTINGS), CompletionsCache(tmp_path, SETTINGS, rank=1)
    assert first.find(["a", "b"]) == {}
    first.add({"a": [5, 6]})
    second.add({"b": [7]})
    for cache in (first, second, CompletionsCache(tmp_path, SETTINGS)):
        assert cache.find(["a", "b", "c"]) == {"a": [5, 6], "b": [7]}
    first.add({"c": [70000]})
    assert second.find(["c"]) == {"c": [70000]}
    (settings,) = tmp_path.glob("*/settings.json")
    assert json.loads(settings.read_bytes()) == SETTINGS


def test_an_answer_stays_what_it_was(tmp_path):
    first, second = CompletionsCache(tmp_path, SETTINGS), CompletionsCache(tmp_path, SETTINGS, rank=1)
    first.add({"a": [1]})
    second.add({"a": [2]})
    for cache, own in ((first, [1]), (second, [2])):
        assert cache.find(["a", "b"]) == {"a": own}


@pytest.mark.parametrize("changed", [{"teacher": "abd"}, {"temperature": 1.0}, {"seed": 43}])
def test_other_settings_find_nothing(changed, tmp_path):
    CompletionsCache(tmp_path, SETTINGS).add({"a": [5]})
    assert CompletionsCache(tmp_path, SETTINGS | changed).find(["a"]) == {}


def test_half_a_line_is_read_when_it_is_whole(tmp_path):
    writer, reader = CompletionsCache(tmp_path, SETTINGS), CompletionsCache(tmp_path, SETTINGS)
    writer.add({"a": [5], "b": [6, 7]})
    (file,) = tmp_path.glob("*/rank-*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert reader.find(["a", "b"]) == {"a": [5]}
    file.write_bytes(whole)
    assert reader.find(["a", "b"]) == {"a": [5], "b": [6, 7]}


@pytest.mark.parametrize("broken", ["", "\0\0", "{}", "[1]", '{"prompt": "b", "tokens": [-1]}', '{"prompt": "b"}'])
def test_a_broken_line_is_passed_over(broken, tmp_path):
    CompletionsCache(tmp_path, SETTINGS).add({"a": [5]})
    (file,) = tmp_path.glob("*/rank-*.jsonl")
    file.write_text(f"{broken}\n{file.read_text()}")
    assert CompletionsCache(tmp_path, SETTINGS).find(["a", "b"]) == {"a": [5]}


def test_a_folder_that_keeps_nothing_ends_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match="cannot be kept there") as caught:
        CompletionsCache(tmp_path / "file", SETTINGS)
    assert "teacher_completions_cache" in caught.value.problems[0].do
    cache = CompletionsCache(tmp_path / "gone", SETTINGS)
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(RunFailed, match="cannot be kept there"):
        cache.add({"a": [5]})


def test_a_checkpoint_is_known_by_every_tensor_and_not_by_its_place(tiny, tmp_path):
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    want = checkpoint_fingerprint(tiny)
    assert checkpoint_fingerprint(copy) == want
    file = copy / "model.safetensors"
    tensors = load_file(file)
    middle = sorted(tensors)[len(tensors) // 2]
    tensors[middle] = tensors[middle] + 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    assert checkpoint_fingerprint(copy) != want
    shutil.copy(tiny / "model.safetensors", file)
    assert checkpoint_fingerprint(copy) == want
    config = json.loads((copy / "config.json").read_bytes())
    (copy / "config.json").write_text(json.dumps(config | {"x": 1}))
    assert checkpoint_fingerprint(copy) != want


@pytest.mark.slow
def test_a_second_epoch_and_a_second_run_read_what_the_first_wrote(overlay, train, tmp_path):
    cache = tmp_path / "answers"
    rlhf = {"lmbda": 0.0, "seq_kd_ratio": 1.0, "max_completion_length": 8, "teacher_completions_cache": str(cache)}
    # Two of the four records in each step: four steps are two epochs.
    training = {"max_steps": 4, "effective_batch_size": 2, "per_device_train_batch_size": 2, "eval_strategy": "no"}

    def run(name, **changes):
        more = training | {"output_dir": str(tmp_path / name)} | changes
        done = train(overlay("stage3_gkd", name, training=more, rlhf=rlhf, custom={"train_sample_limit": 4}))
        texts = [json.loads(line)["text"] for line in (done.run_dir / "completions.jsonl").read_text().splitlines()]
        rows = [row for row in read_rows(done.run_dir) if "train/loss" in row]
        return [row["train/teacher_cached"] for row in rows], texts, rows

    shares, texts, rows = run("first")
    assert shares == [0.0, 0.0, 1.0, 1.0]
    files = {path: path.stat().st_size for path in cache.rglob("*") if path.is_file()}
    again, same_texts, same_rows = run("second")
    assert again == [1.0] * 4
    assert same_texts == texts
    for got, want in zip(same_rows, rows, strict=True):
        assert got["train/loss"] == pytest.approx(want["train/loss"], abs=1e-6)
    assert {path: path.stat().st_size for path in cache.rglob("*") if path.is_file()} == files
    assert run("third", seed=7, max_steps=1)[0] == [0.0]


@pytest.mark.slow
def test_a_teacher_in_other_arithmetic_does_not_answer_from_the_cache(overlay, train, tmp_path):
    pytest.importorskip("bitsandbytes")
    cache = tmp_path / "answers"
    rlhf = {"lmbda": 0.0, "seq_kd_ratio": 1.0, "max_completion_length": 4, "teacher_completions_cache": str(cache)}
    training = {"max_steps": 1, "eval_strategy": "no"}
    ways = [{}, {"training": {"bf16": True}}, {"quantization": {"quant_method": "bnb", "quant_bits": 4}}]
    for number, way in enumerate(ways):
        more = training | {"output_dir": str(tmp_path / f"{number}")} | way.get("training", {})
        sections = way | {"training": more, "rlhf": rlhf, "custom": {"train_sample_limit": 2}}
        done = train(overlay("stage3_gkd", f"{number}", **sections))
        (share,) = [row["train/teacher_cached"] for row in read_rows(done.run_dir) if "train/loss" in row]
        assert share == 0.0
    assert len(list(cache.iterdir())) == len(ways)
