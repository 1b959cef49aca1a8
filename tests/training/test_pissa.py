"""PiSSA: its checkpoints are plain LoRA over the base on disk, and a run goes on from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from vltool.errors import InvalidInput
from vltool.run import launch
from vltool.run.evidence import Evidence
from vltool.training import pissa

CONFIG = {"lora_alpha": 6, "target_modules": ["q_proj", "linear_fc1"], "modules_to_save": ["model.visual.merger.norm"]}
INPUTS = {"input_ids": torch.arange(12).reshape(2, 6)}


def adapted(base, *, seed=0, **config):
    """A prepared model whose random decomposition depends on the seed."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(**CONFIG | {"r": 3, "init_lora_weights": "pissa_niter_1"} | config)).eval()


def trained(model):
    """Move what trains, as training would."""
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.05
    return model


def logits(model):
    with torch.no_grad():
        return model(**INPUTS).logits


@pytest.fixture
def saved(tiny, tmp_path):
    """The trained model of a run, its factors at the start, and its checkpoint."""
    model = adapted(tiny)
    started = pissa.start_factors(model)
    trained(model).save_pretrained(tmp_path / "checkpoint-2")
    pissa.make_plain(tmp_path / "checkpoint-2", started)
    return model, started, tmp_path / "checkpoint-2"


@pytest.mark.parametrize("config", [{}, {"r": 40}, {"use_rslora": True}, {"use_dora": True}])
def test_a_checkpoint_over_the_base_is_the_trained_model(config, tiny, tmp_path):
    model = adapted(tiny, **config)
    started = pissa.start_factors(model)
    before = logits(model)
    trained(model).save_pretrained(tmp_path)
    pissa.make_plain(tmp_path, started)
    base = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    again = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert again.peft_config["default"].r == 2 * config.get("r", 3)
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    assert not torch.allclose(before, logits(model), atol=1e-3)
    norm = again.get_base_model().model.visual.merger.norm.modules_to_save["default"].weight
    assert torch.equal(norm, model.get_base_model().model.visual.merger.norm.modules_to_save["default"].weight)


def test_a_run_goes_on_although_the_decomposition_comes_out_otherwise(saved, tiny):
    model, started, checkpoint = saved
    other = adapted(tiny, seed=1)
    assert any(not torch.equal(first, pissa.start_factors(other)[name]) for name, first in started.items())
    pissa.take_up(other, checkpoint, at=None)
    assert all(torch.equal(first, pissa.start_factors(other)[name]) for name, first in started.items())
    pissa.load_trained(other, checkpoint, pissa.start_factors(other))
    assert torch.allclose(logits(other), logits(model), atol=1e-6)
    rest, wanted = (
        dict(m.named_parameters())["base_model.model.model.language_model.layers.0.self_attn.q_proj.base_layer.weight"]
        for m in (other, model)
    )
    assert torch.allclose(rest, wanted, atol=1e-7)


def test_the_same_decomposition_leaves_the_rest_bit_for_bit(saved, tiny):
    _, _, checkpoint = saved
    again, wanted = adapted(tiny), adapted(tiny)
    pissa.take_up(again, checkpoint, at=None)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), wanted.parameters(), strict=True))


@pytest.mark.parametrize("config", [{"r": 6}, {"target_modules": ["q_proj", "k_proj"]}])
def test_another_adapters_checkpoint_is_refused_at_its_line(config, saved, tiny):
    _, _, checkpoint = saved
    with pytest.raises(InvalidInput, match=r"mine\.yaml:1:2: .*is no checkpoint of a PiSSA run"):
        pissa.take_up(adapted(tiny, **config), checkpoint, at="mine.yaml:1:2")


def test_other_adapters_are_left_alone(tiny):
    model = adapted(tiny, init_lora_weights=True)
    assert pissa.start_factors(model) == {}
    pissa.take_up(model, Path("/nowhere"), at=None)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2"])
def test_a_run_goes_on_from_its_own_checkpoint(start, overlay, train, tmp_path):
    tuner = {"init_weights": start, "lora_rank": 4}
    steps = {"max_steps": 4, "save_steps": 2, "eval_steps": 4}
    whole = train(overlay("base", tuner=tuner, training=steps | {"output_dir": str(tmp_path / "whole")}))
    resumed = {"output_dir": str(tmp_path / "again"), "resume_from_checkpoint": str(whole.run_dir / "checkpoint-2")}
    again = train(overlay("base", tuner=tuner, training=steps | resumed), probe=True)
    assert [row["step"] for row in again.rows if "train/loss" in row] == [3, 4]
    assert again.rows[-1]["eval/loss"] == pytest.approx(whole.rows[-1]["eval/loss"], abs=1e-6)
    assert Evidence.read(again.run_dir).frozen_changed == []
    assert not (again.run_dir / "initial_model").exists()
    assert not (again.run_dir / "checkpoint-4" / "converted").exists()
    reloaded = launch.reload(again.run_dir, again.run_dir / "checkpoint-4")
    assert reloaded["difference"] <= 1e-5 * reloaded["scale"]


@pytest.mark.slow
def test_in_bf16_the_rest_is_rounded_and_no_more(overlay, train):
    run = train(
        overlay("base", model={"torch_dtype": "bfloat16"}, training={"bf16": True}, tuner={"init_weights": "pissa"}),
        probe=True,
    )
    checkpoint = run.run_dir / "checkpoint-3"
    assert json.loads((checkpoint / "adapter_config.json").read_text())["init_lora_weights"] is True
    again = launch.reload(run.run_dir, checkpoint)
    assert again["difference"] <= 2e-2 * again["scale"]
