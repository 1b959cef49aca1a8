"""The sizes of both towers, as config.json tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The language tower, in config.json's terms."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Of the MLP: with experts, of all that one token goes through."""
    experts_a_token: int
    """0 without experts."""
    vocab: int

    @property
    def query(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of the keys of all heads, which is that of the values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """The vision tower, in config.json's terms."""

    hidden: int
    depth: int
    heads: int
    inner: int
    out: int
    deepstack: tuple[int, ...]
    """Blocks whose outputs the deepstack mergers read."""
    patch_px: int
    merge: int
    temporal: int

    @property
    def patch_values(self) -> int:
        """Numbers that a patch is made of."""
        return 3 * self.temporal * self.patch_px**2

    @property
    def merged_hidden(self) -> int:
        """Width of what a merger's first matrix reads."""
        return self.hidden * self.merge**2


def text_of(config: dict[str, Any]) -> Text:
    """From `text_config`. Raises KeyError for a size that it lacks."""
    experts = config.get("num_experts_per_tok", 0) if config.get("num_experts") else 0
    return Text(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        inner=experts * config["moe_intermediate_size"] if experts else config["intermediate_size"],
        experts_a_token=experts,
        vocab=config["vocab_size"],
    )


def vision_of(config: dict[str, Any]) -> Vision:
    """From `vision_config`. Raises KeyError for a size that it lacks."""
    return Vision(
        hidden=config["hidden_size"],
        depth=config["depth"],
        heads=config["num_heads"],
        inner=config["intermediate_size"],
        out=config["out_hidden_size"],
        deepstack=tuple(config["deepstack_visual_indexes"]),
        patch_px=config["patch_size"],
        merge=config["spatial_merge_size"],
        temporal=config["temporal_patch_size"],
    )
