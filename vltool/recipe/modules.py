"""Names of Qwen3-VL's modules, as a recipe may write them; no checkpoint is read.

Source: transformers, models/qwen3_vl and models/qwen3_vl_moe; a test holds the list against both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from vltool.errors import nearest

Part = Literal["vision", "aligner", "deepstack", "language", "head"]

_MERGER = ("", ".norm", ".linear_fc1", ".act_fn", ".linear_fc2")
_BLOCK = ("", ".norm1", ".norm2", ".attn", ".attn.qkv", ".attn.proj", ".mlp", ".mlp.linear_fc1", ".mlp.act_fn",
          ".mlp.linear_fc2")  # fmt: skip
_LAYER = ("", ".input_layernorm", ".post_attention_layernorm", ".self_attn", ".self_attn.q_proj", ".self_attn.k_proj",
          ".self_attn.v_proj", ".self_attn.o_proj", ".self_attn.q_norm", ".self_attn.k_norm", ".mlp", ".mlp.gate_proj",
          ".mlp.up_proj", ".mlp.down_proj", ".mlp.act_fn", ".mlp.gate", ".mlp.experts",
          ".mlp.experts.act_fn")  # fmt: skip
MODULES: tuple[str, ...] = (
    "model",
    "model.visual",
    "model.visual.patch_embed",
    "model.visual.patch_embed.proj",
    "model.visual.pos_embed",
    "model.visual.rotary_pos_emb",
    "model.visual.blocks",
    *(f"model.visual.blocks.N{part}" for part in _BLOCK),
    *(f"model.visual.merger{part}" for part in _MERGER),
    "model.visual.deepstack_merger_list",
    *(f"model.visual.deepstack_merger_list.N{part}" for part in _MERGER),
    "model.language_model",
    "model.language_model.embed_tokens",
    "model.language_model.rotary_emb",
    "model.language_model.norm",
    "model.language_model.layers",
    *(f"model.language_model.layers.N{part}" for part in _LAYER),
    "lm_head",
)
"""Full names, dense and MoE, with N for every index."""
LISTS = tuple(name.removesuffix(".N") for name in MODULES if name.endswith(".N"))
"""Modules that are lists of modules, which peft cannot wrap."""

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_LINEAR = re.compile(r"(_proj|attn\.proj|\.qkv|_fc1|_fc2|lm_head)$")
_DEEPEST = 128
"""More blocks or layers than any Qwen3-VL has."""


def named(name: str) -> list[str]:
    """The modules, as `MODULES` writes them, that a name means as a target: a whole name, or the last parts of one."""
    plain = _INDEX.sub("N", name)
    return [] if "N" in name.split(".") else [module for module in MODULES if f".{module}".endswith(f".{plain}")]


def saved(name: str) -> list[str]:
    """The modules that a name in `modules_to_save` means to peft: all that end with its characters."""
    return [module for module in MODULES if module.endswith(_INDEX.sub("N", name))]


def within(module: str) -> list[str]:
    """A module of `MODULES` and those inside it."""
    return [inner for inner in MODULES if inner == module or inner.startswith(f"{module}.")]


def adaptable(module: str) -> bool:
    """Whether an adapter can go on a module of `MODULES`: linear ones, and the embedding."""
    return module.endswith("embed_tokens") or _LINEAR.search(module) is not None


def matched(pattern: re.Pattern[str]) -> Iterator[str]:
    """The linear modules, as `MODULES` writes them, of which the pattern matches one as a whole."""
    for module in MODULES:
        if _LINEAR.search(module) is None:
            continue
        indices = range(_DEEPEST) if ".N" in module else range(1)
        if any(pattern.fullmatch(module.replace(".N", f".{index}")) for index in indices):
            yield module


def part_of(module: str) -> Part:
    """The part of the model that a module of `MODULES` belongs to."""
    if module.startswith("model.visual.deepstack_merger_list"):
        return "deepstack"
    if module.startswith("model.visual.merger"):
        return "aligner"
    if module.startswith("model.visual"):
        return "vision"
    return "head" if module == "lm_head" else "language"


def close_to(name: str) -> str | None:
    """The module's name that was most likely meant, with the indices that were written."""
    indices = _INDEX.findall(name)
    plain = _INDEX.sub("N", name)
    depth = plain.count(".") + 1
    guess = nearest(plain, {".".join(module.split(".")[-depth:]) for module in MODULES})
    if guess is None or guess.count("N") > len(indices):
        return None
    for index in indices:
        guess = guess.replace("N", index, 1)
    return guess
