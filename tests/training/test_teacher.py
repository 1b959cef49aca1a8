"""The teacher inside the student, and what of the vision tower it takes over, against passes of its own."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from vltool.training.shared_vision import SharedBlocks, common_blocks, visual_of
from vltool.training.teacher import AdaptersOff, FrozenCopy, HeadTap
from vltool.training.vision_kd import FeatureTap

TARGETS = {
    "language": (r".*language_model.*\.(q_proj|down_proj)", 4),
    "aligner": (r".*(language_model.*\.q_proj|visual\.(merger|deepstack_merger_list\.\d)\.linear_fc1)", 4),
    "last block": (r".*visual\.blocks\.3\.attn\.qkv", 3),
    "middle block": (r".*visual\.blocks\.[12]\.attn\.qkv", 1),
    "all blocks": (r".*visual\.blocks\.\d\.attn\.qkv", 0),
}
"""What an adapter changes -> the pattern of its targets, and how many leading vision blocks of four stay common."""


def adapted(tiny, pattern, **settings):
    """The tiny checkpoint with an adapter that changes what it does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=pattern, init_lora_weights=False, **settings))
    return model.train()


@pytest.fixture(scope="module")
def inputs(tiny):
    """Two rows: an image of eight tokens, and one of four."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny)
    start, image, end = config.vision_start_token_id, config.image_token_id, config.vision_end_token_id
    rows = [[5, start, *[image] * count, end, *range(6, 14 - count + 6)] for count in (8, 4)]
    ids = torch.tensor(rows)
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image).int(),
        "pixel_values": torch.randn(48, 1536, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 8], [1, 4, 4]]),
    }


def asked(model, inputs, blocks):
    """What the teacher inside `model` says after the student's pass."""
    tap, features = HeadTap(model), FeatureTap(model)
    teacher = AdaptersOff(model, tap, features, SharedBlocks(model, blocks) if blocks else None)
    with teacher.watching():
        student_BSH = tap.hidden(model, inputs)
    return student_BSH, *teacher.all(inputs)


@pytest.mark.parametrize("adapter", TARGETS)
def test_shared_blocks_change_nothing_of_what_the_teacher_says(adapter, tiny, inputs):
    pattern, common = TARGETS[adapter]
    model = adapted(tiny, pattern)
    assert common_blocks(model) == common
    runs = []
    visual_of(model).blocks[0].register_forward_hook(lambda *_: runs.append(1))
    _, hidden_BSH, _, features = asked(model, inputs, common)
    assert len(runs) == (1 if common else 2), "shared blocks run once"
    with torch.no_grad(), model.disable_adapter():
        tap, listens = HeadTap(model.eval()), FeatureTap(model)
        with listens.listening() as wanted:
            torch.testing.assert_close(hidden_BSH, tap.hidden(model, inputs), rtol=0, atol=1e-6)
    for name, tensors in wanted.items():
        for got, want in zip(features[name], tensors, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_the_teacher_leaves_the_student_as_it_was(tiny, inputs):
    model = adapted(tiny, r".*language_model.*\.q_proj", modules_to_save=["visual.merger"])
    frozen = next(p for name, p in model.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    student_BSH, teacher_BSH, _, _ = asked(model, inputs, 4)
    assert not torch.equal(student_BSH, teacher_BSH)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(module.training for module in model.modules())
    assert torch.equal(HeadTap(model).hidden(model, inputs), student_BSH)


def test_a_copy_that_goes_on_from_the_students_blocks(tiny, inputs):
    """Its own vision blocks are wrecked here: they are not asked."""
    from transformers import AutoModelForImageTextToText

    model = adapted(tiny, TARGETS["language"][0])
    copy = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32).eval()
    wanted_BSH = asked(model, inputs, 0)[1]
    with torch.no_grad():
        copy.model.visual.blocks[0].attn.qkv.weight.zero_()
    teacher = FrozenCopy(copy, SharedBlocks(model, 4), offload=True)
    with teacher.watching():
        HeadTap(model).hidden(model, inputs)
    hidden_BSH, head_VH = teacher.hidden_and_head(inputs)
    torch.testing.assert_close(hidden_BSH, wanted_BSH, rtol=0, atol=1e-6)
    assert head_VH.shape[1] == hidden_BSH.shape[-1]
