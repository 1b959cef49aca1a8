"""A mixture is the same mixture whichever way it is read, to the last pixel."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("cv2")

from torch.utils.data import DataLoader

from vltool.data.fuse import Options, fuse
from vltool.recipe.fusion import load_fusion
from vltool.recipe.schema import Augmentation
from vltool.recipe.validate import load_recipe
from vltool.run.data import DatasetPlan, training_samples
from vltool.run.plan import make_plan
from vltool.training.loader import Batches

OPS = [
    {"name": "rotate", "params": {"max_deg": 20.0, "prob": 0.7}},
    {"name": "color_jitter", "params": {"brightness": [0.6, 1.4]}},
    {"name": "resize_by_scale", "params": {"align_multiple": None}},
]
PHASES = {"phases": [{"until_percent": 80, "bypass_prob": 0.5, "ops": {"rotate": {"max_deg": 90.0}}}]}


@pytest.fixture
def config(records, tmp_path):
    """A mixture of a target, a source that is drawn from with replacement, and one that is not augmented."""
    lines = records.read_text(encoding="utf-8").splitlines()
    config = tmp_path / "mix.json"
    for name, part in (("own", lines[:4]), ("other", lines[4:7]), ("more", lines)):
        folder = tmp_path / name
        folder.mkdir()
        moved = [json.loads(line) for line in part]
        for record in moved:
            record["images"] = [os.path.relpath(records.parent / image, folder) for image in record["images"]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in moved), encoding="utf-8")
    source = {"user_prompt": "List it.", "system_prompt": "", "augmentation_enabled": True}
    mixture = {
        "target": {"train_jsonl": "own/own.jsonl"},
        "sources": [
            {"train_jsonl": "other/other.jsonl", "ratio": 1.3, "max_objects_per_image": 1, "seed": 5} | source,
            {"train_jsonl": "more/more.jsonl", "ratio": 0.5},
        ],
    }
    config.write_text(json.dumps(mixture))
    return config


@pytest.fixture
def plan(config, overlay, tmp_path):
    """A run over it."""
    custom = {
        "train_jsonl": None, "val_jsonl": None, "fusion_config": str(config),
        "user_prompt": "Describe.", "system_prompt": "Be exact.",
        "augmentation": {"enabled": True, "ops": OPS, "bypass_prob": 0.2, "curriculum": PHASES},
    }  # fmt: skip
    recipe = overlay("stage2_llm_lora", custom=custom, data={"data_seed": 11}, training={"max_steps": 12})
    return make_plan(load_recipe(str(recipe)), cwd=tmp_path)


def told(sample) -> str:
    """All that training sees of a sample."""
    digest = hashlib.sha256()
    for message in sample.messages:
        content = message["content"]
        for item in content if isinstance(content, list) else [{"text": content}]:
            digest.update(item["text"].encode() if "text" in item else item["image"].tobytes())
    prompt = sample.messages[-2]["content"][-1]["text"]
    return f"{[m['role'] for m in sample.messages]} {prompt} {sample.change} {digest.hexdigest()}"


def in_order(samples, *, epoch=0, ranks=1, workers=0):
    """The samples of an epoch as training's batches deal them out, put back into one order."""
    dealt = []
    for rank in range(ranks):
        batches = Batches(len(samples), batch_size=2, rank=rank, ranks=ranks)
        batches.set_epoch(epoch)
        view = Told(samples)
        loader = DataLoader(view, batch_sampler=batches, num_workers=workers, collate_fn=list)
        dealt.append(list(loader))
    return [text for together in zip(*dealt, strict=True) for batch in together for text in batch if text]


class Told:
    def __init__(self, samples):
        self.samples = samples

    def __getitem__(self, draw):
        return told(self.samples[draw]) if draw.place < len(self.samples) else None


def test_four_ways_of_reading_a_mixture_give_the_same(plan, config, tmp_path):
    samples = training_samples(plan.data, plan.arguments, processes=1)
    assert len(samples) == 4 + 5 + 2
    here = in_order(samples)
    assert {text.split(".")[0] for text in here} == {
        "['system', 'user', 'assistant'] Describe", "['user', 'assistant'] List it",
    }, "datasets bring prompts of their own"  # fmt: skip
    assert any("reverted=False" in text and "bypassed=False" in text for text in here)
    assert in_order(samples, workers=3) == here
    assert in_order(samples, ranks=2) == here
    assert in_order(samples, epoch=1) != here

    out = tmp_path / "elsewhere" / "fused.jsonl"
    out.parent.mkdir()
    mixture = load_fusion(str(config))
    fuse(mixture, out, Options(seed=11, epoch=0), progress=lambda *_: None)
    offline = msgspec.structs.replace(plan.data, fusion=None, train=(DatasetPlan(jsonl=str(out), limit=None),))
    arguments = plan.arguments | {"train_dataloader_shuffle": False}
    assert in_order(training_samples(offline, arguments, processes=1)) == here


def test_an_epoch_shows_every_target_and_a_restart_shows_the_same(plan):
    samples = training_samples(plan.data, plan.arguments, processes=1)
    for epoch in (3, 0, 3):
        draws = [samples.drawn(draw) for batch in batches_of(samples, epoch) for draw in batch]
        assert sorted(record for dataset, record in draws if dataset == 0) == [0, 1, 2, 3]
        assert [sum(dataset == number for dataset, _ in draws) for number in range(3)] == [4, 5, 2]
    assert (
        in_order(samples, epoch=3)[5:]
        == in_order(training_samples(plan.data, plan.arguments, processes=1), epoch=3)[5:]
    )


def batches_of(samples, epoch):
    batches = Batches(len(samples), batch_size=4, rank=0, ranks=1)
    batches.set_epoch(epoch)
    return batches


def test_a_mixture_that_cannot_be_read_is_told_where_it_says_so(overlay, records, tmp_path):
    from vltool.errors import InvalidInput

    config = tmp_path / "mix.yaml"
    config.write_text("target: {train_jsonl: gone.jsonl}\nsources:\n- {train_jsonl: also.jsonl.gz, ratio: 1}\n")
    (tmp_path / "also.jsonl.gz").write_bytes(b"")
    custom = {"train_jsonl": None, "fusion_config": str(config), "val_jsonl": str(records)}
    with pytest.raises(InvalidInput) as caught:
        make_plan(load_recipe(str(overlay("stage2_llm_lora", custom=custom))), cwd=Path.cwd())
    told = [str(problem) for problem in caught.value.problems]
    assert any("mix.yaml:1:23: target.train_jsonl: no such file" in text for text in told), told
    assert any("mix.yaml:3:17: sources[0].train_jsonl" in text and "is compressed" in text for text in told), told


@pytest.mark.slow
def test_a_run_on_a_mixture_with_augmentation_learns_and_says_what_was_dropped(config, overlay, train):
    mixture = json.loads(config.read_text())
    mixture["target"]["val_jsonl"] = "more/more.jsonl"
    config.write_text(json.dumps(mixture))
    custom = {
        "train_jsonl": None, "val_jsonl": None, "fusion_config": str(config),
        "augmentation": {"enabled": True, "ops": [OPS[0] | {"params": {"deg": [90.0, 90.0], "prob": 1.0}}]},
    }  # fmt: skip
    run = train(overlay("stage2_llm_lora", "mixed", custom=custom, data={"dataloader_num_workers": 2}))
    rows = [row for row in run.rows if "train/loss" in row]
    assert rows
    for row in rows:
        assert 0 < row["train/augment/applied"] <= 1
        assert 0 <= row["train/augment/dropped"] < 1
    (evaluated,) = [row for row in run.rows if "eval/loss" in row]
    assert not [name for name in evaluated if "augment" in name], "validation data is never augmented"


def test_settings_that_augmentation_knows_arrive_in_the_plan(plan):
    assert isinstance(plan.data.augmentation, Augmentation)
    assert type(plan).from_json(plan.to_json()) == plan
