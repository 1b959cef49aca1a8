"""A teacher that was asked once: what it leaves on disk, and runs that read it in place of a teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from vltool.errors import BadContent, InvalidInput
from vltool.training import teacher_cache
from vltool.training.chunks import TopK
from vltool.training.losses import IGNORE
from vltool.training.teacher_cache import Taught, TeacherCache, likeliest, split_by_record

GKD = {"beta": 0.3, "sft_alpha": 0.5, "kd_temperature": 2.0}


def settings(run_dir, **more):
    return {
        "output_dir": str(run_dir), "bf16": False, "max_steps": 3, "save_steps": 3, "eval_steps": 3,
        "learning_rate": 5e-3, "per_device_train_batch_size": 2, "effective_batch_size": 4,
    } | more  # fmt: skip


def weights(run):
    return load_file(next(Path(run.run_dir).glob("checkpoint-3")) / "adapter_model.safetensors")


def numbers(rows):
    names = ("train/loss", "train/llm_kd_loss", "train/grad_norm", "eval/loss", "eval/llm_kd_loss")
    names += ("train/sft_loss_bbox", "eval/sft_loss_poly")
    return {(row["step"], name): row[name] for row in rows for name in names if name in row}


@pytest.fixture
def trained(overlay, train, tmp_path):
    def run(name, **rlhf):
        return train(overlay("stage3_gkd_forward", name, training=settings(tmp_path / name), rlhf=GKD | rlhf))

    return run


def test_shared_separate_and_cached_teachers_train_the_same_weights(trained, tiny, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "teacher")
    cache = str(tmp_path / "cache")
    shared = trained("shared")
    runs = {
        "separate": trained("separate", teacher_model=str(other)),
        "cached": trained("cached", teacher_cache=cache, teacher_cache_topk=10**6),
        "read": trained("read", teacher_cache=cache, teacher_cache_topk=10**6),
    }
    wanted = weights(shared)
    assert max(float(tensor.abs().max()) for tensor in wanted.values()) > 1e-2, "nothing was trained"
    for name, run in runs.items():
        got = weights(run)
        assert got.keys() == wanted.keys()
        for key, tensor in got.items():
            torch.testing.assert_close(tensor, wanted[key], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert numbers(run.rows) == pytest.approx(numbers(shared.rows), abs=1e-5), name
    assert len(numbers(shared.rows)) == 15


def test_a_cache_is_written_once_and_needs_no_teacher_then(trained, tmp_path, monkeypatch):
    from vltool.training import make_teacher

    cache = str(tmp_path / "cache")
    first = trained("first", teacher_cache=cache, teacher_cache_topk=8)
    files = {file: file.stat().st_mtime_ns for file in Path(cache).iterdir()}
    assert {file.name for file in files} == {
        "teacher_cache.json", "train-000000.safetensors", "val-000000.safetensors",
    }  # fmt: skip

    def no_teacher(*args, **kwargs):
        raise AssertionError("a teacher was made")

    monkeypatch.setattr(make_teacher, "AdaptersOff", no_teacher)
    second = trained("second", teacher_cache=cache, teacher_cache_topk=8)
    assert {file: file.stat().st_mtime_ns for file in Path(cache).iterdir()} == files
    assert numbers(second.rows) == pytest.approx(numbers(first.rows), abs=1e-6)


def test_a_cache_of_something_else_is_refused(trained, tmp_path):
    cache = str(tmp_path / "cache")
    trained("first", teacher_cache=cache)
    with pytest.raises(InvalidInput, match=r"mine|second.*teacher_cache.*kd_temperature: 2\.0, now 1\.0"):
        trained("second", teacher_cache=cache, kd_temperature=1.0)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").touch()
    with pytest.raises(InvalidInput, match="is no cache of a teacher's"):
        trained("third", teacher_cache=str(tmp_path / "notes"))


def test_text_that_is_sampled_is_not_in_a_cache(overlay, train, tmp_path):
    with pytest.raises(InvalidInput, match=r"knows your captions, not text that is sampled"):
        train(overlay("stage3_gkd", rlhf={"teacher_cache": str(tmp_path / "cache")}))


def rows_of(counts, k=3, vocabulary=7):
    generator = torch.Generator().manual_seed(0)
    for number, count in enumerate(counts):
        logits = torch.randn(count, vocabulary, generator=generator)
        known, ids = logits.log_softmax(-1).topk(k)
        yield Taught(number, TopK(known, ids.int(), torch.zeros(count)))


def test_records_come_back_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD", 2)
    rows = list(rows_of([3, 0, 5]))
    cache = TeacherCache(tmp_path, "train", 3)
    assert cache.missing() == [0, 1]
    cache.write(1, rows[2:])
    assert cache.missing() == [0]
    cache.write(0, rows[:2])
    assert cache.missing() == []
    for index, row in enumerate(rows):
        got = cache.read(index)
        assert got.content == row.content
        assert all(torch.equal(*pair) for pair in zip(got.topk, row.topk, strict=True))
    assert cache.read(3) is None
    assert TeacherCache(tmp_path, "train", 4).missing() == [1], "a shard that lacks a record is asked again"
    (tmp_path / "train-000001.safetensors").write_bytes(b"torn")
    assert TeacherCache(tmp_path, "train", 3).missing() == [1]


def test_another_image_of_the_same_record_is_told(tmp_path):
    sample = {"input_ids": [1, 2], "labels": [IGNORE, 2], "pixel_values": torch.zeros(4, 6)}
    (row,) = rows_of([1])
    cache = TeacherCache(tmp_path, "train", 1)
    cache.write(0, [Taught(teacher_cache.content_of(sample), row.topk)])
    assert torch.equal(cache.read_for(0, sample).ids_NK, row.topk.ids_NK)
    for changed in ({"pixel_values": torch.ones(4, 6)}, {"input_ids": [3, 2]}, {"labels": [1, 2]}):
        with pytest.raises(BadContent, match="another text or image"):
            cache.read_for(0, sample | changed)


def test_the_likeliest_tokens_and_the_rest_are_one(tmp_path):
    hidden, head = torch.randn(300, 4), torch.randn(50, 4)
    topk = likeliest(hidden, head, k=5, temperature=2.0)
    wanted = torch.log_softmax((hidden @ head.T).double() / 2.0, -1)
    torch.testing.assert_close(topk.logprobs_NK.double(), wanted.gather(-1, topk.ids_NK.long()), rtol=0, atol=1e-5)
    assert bool((topk.logprobs_NK[:, -1:] >= wanted.scatter(-1, topk.ids_NK.long(), -torch.inf).float() - 1e-5).all())
    mass = topk.logprobs_NK.double().exp().sum(-1) + topk.tail_N.double().exp()
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-6)
    labels_BS = torch.tensor([[IGNORE, 1, IGNORE, 1], [1, IGNORE, IGNORE, 1]])
    parts = list(split_by_record(TopK(*(tensor[:3] for tensor in topk)), labels_BS))
    assert [len(part.ids_NK) for part in parts] == [2, 1]
