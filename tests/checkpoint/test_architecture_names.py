"""Names of weights to towers, whatever peft made of them, and what a config.json may say."""

from __future__ import annotations

import json

import pytest

from vltool.checkpoint.architecture import (
    Architecture,
    deepstack_index,
    plain_name,
    read_architecture,
    tensor_kind,
    tower_of,
)
from vltool.errors import InvalidInput

BASE = {
    "model.visual.patch_embed.proj.weight": "vision",
    "model.visual.pos_embed.weight": "vision",
    "model.visual.blocks.0.attn.qkv.weight": "vision",
    "model.visual.blocks.23.mlp.linear_fc2.bias": "vision",
    "model.visual.blocks.3.norm1.weight": "vision",
    "model.visual.merger.norm.weight": "aligner",
    "model.visual.merger.linear_fc1.weight": "aligner",
    "model.visual.deepstack_merger_list.0.linear_fc1.weight": "deepstack",
    "model.visual.deepstack_merger_list.2.norm.bias": "deepstack",
    "model.language_model.embed_tokens.weight": "language",
    "model.language_model.layers.35.self_attn.q_proj.weight": "language",
    "model.language_model.layers.0.self_attn.q_norm.weight": "language",
    "model.language_model.layers.0.mlp.experts.gate_up_proj": "language",
    "model.language_model.layers.0.mlp.gate.weight": "language",
    "model.language_model.norm.weight": "language",
    "lm_head.weight": "head",
    # transformers before 4.52 wrote these.
    "visual.blocks.0.attn.qkv.weight": "vision",
    "visual.merger.linear_fc1.weight": "aligner",
    "visual.deepstack_merger_list.1.linear_fc1.weight": "deepstack",
}


@pytest.mark.parametrize("name", BASE)
def test_towers_of_base_names(name):
    assert plain_name(name) == name
    assert tower_of(name) == BASE[name]


def peft_spellings(name):
    """What peft may call a weight, in a model and in a file."""
    module, _, leaf = name.rpartition(".")
    outer = module.rpartition(".")[0] or module
    prefix = "base_model.model."
    yield f"{prefix}{name}"
    yield f"{prefix}{module}.base_layer.{leaf}"
    yield f"{prefix}{module}.lora_A.default.weight"
    yield f"{prefix}{module}.lora_B.weight"
    yield f"{prefix}{module}.lora_magnitude_vector.default.weight"
    yield f"{prefix}{module}.modules_to_save.default.{leaf}"
    yield f"{prefix}{module}.original_module.{leaf}"
    inner = name.removeprefix(f"{outer}.")
    yield f"{prefix}{outer}.modules_to_save.default.{inner}"
    yield f"{prefix}{outer}.modules_to_save.default.{inner.replace(leaf, f'base_layer.{leaf}')}"
    yield f"{prefix}{outer}.modules_to_save.other_adapter.{inner}"


@pytest.mark.parametrize("name", BASE)
def test_towers_of_adapted_names(name):
    for spelling in peft_spellings(name):
        assert tower_of(spelling) == BASE[name], spelling
        assert plain_name(plain_name(spelling)) == plain_name(spelling)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (
            "base_model.model.model.visual.merger.modules_to_save.default.linear_fc1.weight",
            "model.visual.merger.linear_fc1.weight",
        ),
        ("base_model.model.model.visual.merger.original_module.norm.bias", "model.visual.merger.norm.bias"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("base_model.model.lm_head.base_layer.weight", "lm_head.weight"),
        (
            "base_model.model.model.language_model.layers.1.mlp.up_proj.base_layer.weight",
            "model.language_model.layers.1.mlp.up_proj.weight",
        ),
        (
            "base_model.model.model.visual.blocks.1.attn.qkv.lora_A.default.weight",
            "model.visual.blocks.1.attn.qkv.lora_A.default.weight",
        ),
        ("base_model.model.lm_head.modules_to_save.second_adapter.weight", "lm_head.weight"),
        ("base_model.model.base_model.x", "base_model.x"),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


def test_deepstack_mergers_are_told_apart():
    assert deepstack_index("model.visual.deepstack_merger_list.12.linear_fc1.weight") == 12
    assert deepstack_index("base_model.model.model.visual.deepstack_merger_list.0.norm.lora_A.default.weight") == 0
    assert deepstack_index("model.visual.deepstack_merger_list") is None
    assert deepstack_index("model.visual.blocks.3.attn.qkv.weight") is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("m.q_proj.lora_A.default.weight", "lora_A"),
        ("m.q_proj.lora_B.weight", "lora_B"),
        ("m.q_proj.lora_B.default.bias", "bias"),
        ("m.embed_tokens.lora_embedding_A.default", "lora_embedding_A"),
        ("m.q_proj.lora_magnitude_vector.default.weight", "lora_magnitude_vector"),
        ("m.merger.modules_to_save.default.norm.weight", "weight"),
        ("m.merger.modules_to_save.default.norm.bias", "bias"),
        ("m.mlp.experts.gate_up_proj", "weight"),
        ("weight", "weight"),
    ],
)
def test_kinds_of_tensors(name, kind):
    assert tensor_kind(name) == kind


CONFIG = {
    "model_type": "qwen3_vl",
    "vision_config": {"depth": 27, "deepstack_visual_indexes": [8, 16, 24], "patch_size": 16, "spatial_merge_size": 2},
    "text_config": {"num_hidden_layers": 36, "hidden_size": 2560, "vocab_size": 151936},
    "tie_word_embeddings": False,
}


@pytest.fixture
def checkpoint(tmp_path):
    def write(config):
        content = config if isinstance(config, bytes) else json.dumps(config).encode()
        (tmp_path / "config.json").write_bytes(content)
        return tmp_path

    return write


@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen3_vl_moe"])
def test_a_good_config(model_type, checkpoint):
    assert read_architecture(checkpoint(CONFIG | {"model_type": model_type})) == Architecture(
        model_type=model_type, vision_depth=27, deepstack_mergers=3, text_layers=36, hidden_size=2560,
        vocab_size=151936,
        tied_head=False, patch_size=16, merge_size=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("top", "text", "tied"),
    [(True, None, True), (False, True, False), (None, True, True), (None, False, False), (None, None, False)],
)
def test_a_tied_head_may_be_said_in_two_places(top, text, tied, checkpoint):
    config = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
    if top is not None:
        config["tie_word_embeddings"] = top
    if text is not None:
        config["text_config"] = CONFIG["text_config"] | {"tie_word_embeddings": text}
    assert read_architecture(checkpoint(config)).tied_head is tied


BAD = {
    "another model": (CONFIG | {"model_type": "qwen2_5_vl"}, ["model_type is 'qwen2_5_vl'", "qwen3_vl_moe"]),
    "no model type": ({}, ["no Qwen3-VL config", "'model_type'"]),
    "stored quantized": (CONFIG | {"quantization_config": {"quant_method": "fp8"}}, ["stored quantized", "in 4 bits"]),
    "its own code": (CONFIG | {"auto_map": {"AutoModel": "x.Y"}}, ["auto_map"]),
    "no vision tower": (
        {key: value for key, value in CONFIG.items() if key != "vision_config"},
        ["no Qwen3-VL config", "'vision_config'"],
    ),
    "no depth": (CONFIG | {"vision_config": {}}, ["no Qwen3-VL config", "'depth'"]),
    "text for a depth": (
        CONFIG | {"vision_config": CONFIG["vision_config"] | {"depth": "27"}},
        ["no Qwen3-VL config", "vision_depth"],
    ),
    "null for a vocabulary": (
        CONFIG | {"text_config": {"num_hidden_layers": 36, "hidden_size": 2560, "vocab_size": None}},
        ["no Qwen3-VL config", "vocab_size"],
    ),
    "no patch": (
        CONFIG | {"vision_config": CONFIG["vision_config"] | {"patch_size": 0}},
        ["no Qwen3-VL config", "patch_size"],
    ),
    "more layers than there can be": (
        CONFIG | {"text_config": CONFIG["text_config"] | {"num_hidden_layers": 10**9}},
        ["4096", "text_layers"],
    ),
    "a list for a tower": (CONFIG | {"text_config": []}, ["no Qwen3-VL config"]),
    "null for a tower": (CONFIG | {"vision_config": None}, ["no Qwen3-VL config"]),
    "a list": ([], ["no Qwen3-VL config"]),
    "a number": (5, ["no Qwen3-VL config"]),
    "empty": (b"", ["config.json:1:1: no JSON"]),
    "broken": (b'{\n  "model_type": qwen', ["config.json:2:17: no JSON"]),
    "no UTF-8": (b'{"model_type": "\xff"}', ["no JSON", "0xff"]),
    "deep": (b'{"a":' * 100_000, ["no JSON"]),
}


@pytest.mark.parametrize("name", BAD)
def test_configs_that_are_none_of_ours(name, checkpoint):
    config, words = BAD[name]
    with pytest.raises(InvalidInput) as caught:
        read_architecture(checkpoint(config))
    assert "config.json" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_absent_folders_and_files(tmp_path):
    with pytest.raises(InvalidInput, match="no such checkpoint folder"):
        read_architecture(tmp_path / "gone")
    with pytest.raises(InvalidInput, match=r"holds no config\.json"):
        read_architecture(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="no such checkpoint folder"):
        read_architecture(tmp_path / "file")
