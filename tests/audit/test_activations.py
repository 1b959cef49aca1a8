"""What is said to be kept of a layer, against what autograd saves of transformers' own one under peft's LoRA."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3VLForConditionalGeneration

from vltool.audit.activations import Arithmetic, decoder_layer, merger, vision_block
from vltool.audit.anatomy import read_anatomy
from vltool.run.arguments import TunerPlan, own_regex
from vltool.training.tiny import make_tiny

RANK = 8
TRAINED = {
    "lora": {"tuner_type": "lora", "freeze_llm": False},
    "full": {"tuner_type": "full", "freeze_llm": False},
    "frozen": {"tuner_type": "full", "freeze_llm": True},
}
SHAPES = [(1, 64), (2, 96)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("base") / "tiny")


def tuner_of(trained):
    """All towers alike."""
    flags = TRAINED[trained]
    return TunerPlan(
        **flags,
        freeze_vit=flags["freeze_llm"],
        freeze_aligner=flags["freeze_llm"],
        target_modules=("all-linear",),
        target_regex=None,
        modules_to_save=(),
        frozen_vit_blocks=0,
    )


def model_of(checkpoint, trained, dtype):
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
    model.requires_grad_(trained == "full")
    if trained == "lora":
        targets = own_regex(tuner_of(trained))
        model = get_peft_model(model, LoraConfig(r=RANK, target_modules=targets, lora_dropout=0.0))
    model.train()
    return model


def kept(module, run, *, autocast, apart):
    """Bytes of the different storages that autograd saves, but for weights, their casts, and those of `apart`.

    A weight's cast has the weight's shape, which no activation has.
    """
    weights = {tuple(p.shape) for p in module.parameters()} | {tuple(p.T.shape) for p in module.parameters()}
    skip = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *apart)}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skip and not (tensor.ndim == 2 and tuple(tensor.shape) in weights):
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        run()
    return sum(size for size, _ in seen.values())


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True), (torch.float32, False)],
)


def arithmetic(dtype, *, autocast):
    return Arithmetic(stream=dtype.itemsize, adapter=4, autocast=autocast, norms_in_fp32=False)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize(("rows", "length"), SHAPES)
@PRECISIONS
def test_a_decoder_layer_keeps_what_autograd_saves(checkpoint, trained, rows, length, dtype, autocast):
    anatomy = read_anatomy(checkpoint, tuner_of(trained), {"lora_rank": RANK})
    language = _base(model_of(checkpoint, trained, dtype)).model.language_model
    width = anatomy.text.hidden
    hidden = torch.randn(rows, length, width, dtype=dtype, requires_grad=True) * 1
    positions = torch.arange(length).expand(3, rows, length)
    turned = language.rotary_emb(hidden, positions)
    layer = language.layers[1]
    saved = kept(
        layer,
        lambda: layer(hidden, position_embeddings=turned, attention_mask=None),
        autocast=autocast,
        apart=turned,
    )
    told = decoder_layer(anatomy.text, anatomy.layers[1], arithmetic(dtype, autocast=autocast))
    # Angles are the same for all layers.
    assert told * rows * length == pytest.approx(saved, rel=0.02)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize(("images", "patches"), [(2, 64), (3, 96)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_vision_block_and_a_merger_keep_what_autograd_saves(checkpoint, trained, images, patches, dtype):
    anatomy = read_anatomy(checkpoint, tuner_of(trained), {"lora_rank": RANK})
    visual = _base(model_of(checkpoint, trained, dtype)).model.visual
    vision, how = anatomy.vision, arithmetic(dtype, autocast=False)
    count = images * patches
    hidden = torch.randn(count, vision.hidden, dtype=dtype, requires_grad=True) * 1
    ends = torch.arange(images + 1, dtype=torch.int32) * patches
    angles = tuple(torch.randn(count, vision.hidden // vision.heads) for _ in range(2))
    block = visual.blocks[1]
    saved = kept(
        block, lambda: block(hidden, cu_seqlens=ends, position_embeddings=angles), autocast=False, apart=angles
    )
    assert vision_block(vision, anatomy.blocks[1], how) * count == pytest.approx(saved, rel=0.05)
    first, deep = anatomy.mergers[:2]
    for module, weights in ((visual.merger, first), (visual.deepstack_merger_list[0], deep)):
        saved = kept(module, lambda module=module: module(hidden), autocast=False, apart=())
        told = merger(vision, weights, how) * count // vision.merge**2
        assert told == pytest.approx(saved, rel=0.05)


def test_the_config_of_the_tiny_model_is_read(checkpoint):
    anatomy = read_anatomy(checkpoint, tuner_of("lora"), {"lora_rank": RANK})
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    assert (anatomy.text.layers, anatomy.text.hidden) == (text["num_hidden_layers"], text["hidden_size"])
    model = model_of(checkpoint, "lora", torch.float32)
    assert anatomy.adapters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    full = read_anatomy(checkpoint, tuner_of("full"), {})
    assert full.size(trained=True) == sum(p.numel() for p in _base(model_of(checkpoint, "full", None)).parameters())


def _base(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model
