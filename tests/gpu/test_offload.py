"""A teacher's copy that lies in the host's memory between its passes says what one on the GPU says."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_an_offloaded_teacher_trains_the_same_rows(overlay, train, tiny, tmp_path):
    other = str(shutil.copytree(tiny, tmp_path / "teacher"))
    rows = []
    for offload in (False, True):
        training = {"output_dir": str(tmp_path / str(offload)), "bf16": False}
        rlhf = {"teacher_model": other, "offload_teacher_model": offload}
        run = train(overlay("stage3_gkd_forward", str(offload), training=training, rlhf=rlhf))
        rows.append([(row["train/loss"], row["train/llm_kd_loss"]) for row in run.rows if "train/loss" in row])
    assert len(rows[0]) > 1
    assert rows[0] == [pytest.approx(row, rel=1e-5) for row in rows[1]]


def test_its_weights_are_not_on_the_gpu_between_passes(tiny):
    from transformers import AutoModelForImageTextToText

    from vltool.training.teacher import FrozenCopy

    model = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32).to("cuda").eval()
    teacher = FrozenCopy(model, None, offload=True)
    inputs = {"input_ids": torch.arange(5, 15, device="cuda")[None]}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    hidden_BSH, head_VH = teacher.hidden_and_head(inputs)
    assert hidden_BSH.is_cuda
    assert head_VH.is_cuda
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert torch.equal(teacher.hidden_and_head(inputs)[0], hidden_BSH)
