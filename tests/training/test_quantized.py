"""A base packed into 4 bits under an adapter, whose teacher it is as well."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

from vltool.audit.run_rules import Judge
from vltool.errors import InvalidInput
from vltool.run import launch
from vltool.run.evidence import Evidence

FOUR_BIT = {"quant_method": "bnb", "quant_bits": 4}


def test_distillation_over_a_packed_base_is_proved_as_any_other(overlay, train):
    plain = train(overlay("stage3_gkd_forward", "plain", training={"max_steps": 1, "bf16": False}))
    training = {"max_steps": 3, "bf16": False, "learning_rate": 5e-3, "output_dir": f"{plain.run_dir}-packed"}
    run = train(overlay("stage3_gkd_forward", "packed", quantization=FOUR_BIT, training=training), probe=True)
    seen = Evidence.read(run.run_dir)
    verdicts = {verdict.id: verdict for verdict in Judge(run.plan, launch.reload).verdicts()}
    for row in ("towers", "teacher", "gradients", "frozen", "metrics", "learning", "checkpoint", "reload"):
        assert verdicts[row].status == "pass", verdicts[row]
    assert seen.quantization["load_in_4bit"]
    assert [(row.tower, row.trainable, row.frozen) for row in seen.towers] == [
        (row.tower, row.trainable, row.frozen) for row in Evidence.read(plain.run_dir).towers
    ], "packed weights count as what they are"


def test_what_is_packed_cannot_train_in_full(overlay, train):
    tuner = {"modules_to_save": ["down_proj"], "target_regex": r".*language_model.*q_proj"}
    with pytest.raises(InvalidInput, match=r"modules_to_save: .*down_proj.* are packed into 4 bits"):
        train(overlay("stage2_llm_lora", quantization=FOUR_BIT, tuner=tuner))


def test_two_changed_bytes_do_not_cancel_in_a_fingerprint():
    """As bytes they would: torch's hash folds a tensor's elements into one of them."""
    import torch

    from vltool.training.freeze import fingerprints

    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.arange(30, dtype=torch.uint8), requires_grad=False)
    before = fingerprints(layer)
    layer.weight[[3, 4]] ^= 1
    assert fingerprints(layer) != before
