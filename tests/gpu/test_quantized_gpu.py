"""A base packed into 4 bits on a GPU, where bitsandbytes has kernels of its own: bf16, distillation, checkpoint."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

import torch

from vltool.audit.run_rules import Judge
from vltool.run import launch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_distillation_over_a_packed_base(half, overlay, train):
    training = {"max_steps": 4, "bf16": half, "learning_rate": 5e-3}
    model = {"torch_dtype": "bfloat16" if half else "float32"}
    packed = {"quant_method": "bnb", "quant_bits": 4}
    recipe = overlay("stage3_gkd_forward", quantization=packed, training=training, model=model)
    run = train(recipe, probe=True)
    for verdict in Judge(run.plan, launch.reload).verdicts():
        assert verdict.status in ("pass", "not asked"), verdict
