"""Configurations and names of adapters: peft's of several versions, and other tools'."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vltool.checkpoint.adapter import AdapterConfig, Part, part_of, partner, rank_in, read_config
from vltool.errors import BadContent

Q = "model.language_model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"base_model.model.{Q}.lora_A.weight", Part(Q, "lora_A", adapts=True)),
        (f"base_model.model.{Q}.lora_B.default.weight", Part(Q, "lora_B", adapts=True)),
        (f"base_model.model.{Q}.lora_magnitude_vector", Part(Q, "lora_magnitude_vector", adapts=True)),
        (f"base_model.model.{Q}.boft_R", Part(Q, "boft_R", adapts=True)),
        (f"base_model.model.{Q}.hada_w1_a", Part(Q, "hada_w1_a", adapts=True)),
        (f"base_model.model.{Q}.vera_lambda_b", Part(Q, "vera_lambda_b", adapts=True)),
        ("base_model.model.model.visual.merger.norm.weight", Part("model.visual.merger.norm", "weight", adapts=False)),
        ("base_model.model.model.visual.merger.norm.bias", Part("model.visual.merger.norm", "bias", adapts=False)),
        (f"{Q}.lora_a", Part(Q, "lora_a", adapts=True)),
        ("lora_te_layers_0_q_proj.lora_down.weight", Part("lora_te_layers_0_q_proj", "lora_down", adapts=True)),
        ("lora_te_layers_0_q_proj.alpha", Part("lora_te_layers_0_q_proj", "alpha", adapts=True)),
        ("weight", Part("", "weight", adapts=False)),
        ("", Part("", "weight", adapts=False)),
    ],
)
def test_names_are_taken_apart(name, part):
    assert part_of(name) == part


def test_ranks_are_read_from_either_factor():
    shapes = {"lora_A": (4, 9), "lora_B": (7, 4), "lora_down": (4, 9), "lora_up": (7, 4), "lora_a": (9, 4),
              "lora_b": (4, 7)}  # fmt: skip
    assert {rank_in(kind, shape) for kind, shape in shapes.items()} == {4}
    assert rank_in("boft_R", (4, 9)) is None
    assert rank_in("lora_A", ()) is None
    assert [partner(kind) for kind in ("lora_A", "lora_B", "lora_up", "weight")] == [
        "lora_B", "lora_A", "lora_down", None,
    ]  # fmt: skip


def read(tmp_path, document):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(document))
    return read_config(path)


def test_peft_of_today_and_of_tomorrow(tmp_path):
    config = read(
        tmp_path,
        {
            "peft_type": "LORA", "peft_version": "9.9", "base_model_name_or_path": "/b", "r": 8, "lora_alpha": 16,
            "use_dora": True, "use_rslora": True, "target_modules": ["q_proj"], "modules_to_save": ["merger"],
            "rank_pattern": {"q_proj": 4}, "bias": "lora_only", "init_lora_weights": "pissa", "new": {"deep": [1]},
            "trainable_token_indices": {"embed_tokens": [1]}, "layers_to_transform": 3,
        },
    )  # fmt: skip
    assert (config.tool, config.kind, config.version, config.base) == ("peft", "DORA", "9.9", "/b")
    assert (config.rank, config.alpha, config.rslora, config.bias) == (8, 16.0, True, "lora_only")
    assert (config.rank_of(Q), config.rank_of("a.k_proj")) == (4, 8)
    assert config.moves_the_base()
    assert config.tokens == ("embed_tokens",)
    assert config.targeted(Q)
    assert not config.targeted(Q.replace("layers.3", "layers.2"))


def test_mlx(tmp_path):
    config = read(
        tmp_path,
        {"fine_tune_type": "lora", "model": "m/x", "lora_parameters": {"rank": 8, "scale": 20.0, "keys": ["q_proj"]}},
    )
    assert (config.tool, config.kind, config.base, config.rank, config.alpha) == ("mlx", "LORA", "m/x", 8, 160.0)
    assert config.targets == ("q_proj",)


def test_targets_are_read_as_peft_reads_them():
    def targeted(**said):
        return AdapterConfig(tool="peft", kind="LORA", base=None, rank=1, alpha=1, **said).targeted(Q)

    assert targeted(targets=("q_proj",))
    assert targeted(targets=("self_attn.q_proj",))
    assert not targeted(targets=("proj",))
    assert targeted(targets=r".*layers\.\d+\.self_attn\.q_proj")
    assert not targeted(targets=r"layers\.\d+")
    assert targeted(targets="all-linear")
    assert not targeted(targets="(")
    assert not targeted(targets=None)
    assert not targeted(targets=("q_proj",), excluded=("self_attn.q_proj",))


@pytest.mark.parametrize("number", [10**400, float("inf"), float("nan"), True, "4", None])
def test_an_alpha_that_is_no_number_is_unknown(number, tmp_path):
    assert read(tmp_path, {"peft_type": "LORA", "lora_alpha": number}).alpha is None


def test_a_name_in_modules_to_save_is_an_end_of_a_name():
    config = AdapterConfig(tool="peft", kind="LORA", base=None, rank=1, alpha=1, modules_to_save=("visual.merger",))
    assert config.saved_in("model.visual.merger.linear_fc1") == "visual.merger"
    assert config.saved_in("model.visual.deepstack_merger_list.0") is None


@pytest.mark.parametrize(
    "document",
    [[], 1, {"r": "8"}, {"r": True}, {"peft_type": 1}, {"base_model_name_or_path": []}, {"target_modules": [1]},
     {"target_modules": {}}, {"modules_to_save": 1}, {"rank_pattern": []}, {"lora_parameters": {"rank": "x"}}],
)  # fmt: skip
def test_what_is_no_configuration_is_named(document, tmp_path):
    with pytest.raises(BadContent, match=r"adapter_config\.json"):
        read(tmp_path, document)


KEYS = st.sampled_from(
    ["r", "lora_alpha", "peft_type", "target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "bias",
     "layers_to_transform", "trainable_token_indices", "lora_parameters", "model", "init_lora_weights", "use_dora",
     "target_parameters", "alpha", "peft_version", "base_model_name_or_path"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | KEYS, inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(KEYS, JSON, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_object_is_a_configuration_or_bad_content(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "adapter_config.json"
    path.write_text(json.dumps(document))
    try:
        config = read_config(path)
    except BadContent:
        return
    config.targeted(Q)
    config.rank_of(Q)
    config.saved_in(Q)
    assert config.moves_the_base() in (True, False)
