"""What a training step has to compute, by the definition of MFU that vltool's budgets use.

Language weights forward and input gradient, 2NT each, LoRA's own weights 2NT more for their gradient; causal
attention once forward and twice backward; the head at label positions; vision forward, once, since student and
teacher share it frozen; under GKD the teacher's forward. No recomputation, no padding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PEAK_FLOPS = 989e12
"""Dense bf16 of an H100 or H200 by its data sheet."""


def step_flops(checkpoint: Path, shape: dict[str, Any], batch: int, *, gkd: bool, rank: int = 32) -> float:
    """Model FLOPs of a step of so many rows, with LoRA of this rank on the language model."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    text, vision = config["text_config"], config["vision_config"]
    tokens, labels = batch * shape["tokens"], batch * shape["labels"]
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    heads = text["num_attention_heads"] * text["head_dim"]
    keys = text["num_key_value_heads"] * text["head_dim"]
    inner = text["intermediate_size"]
    linears = [(hidden, heads), (hidden, keys), (hidden, keys), (heads, hidden)]
    linears += [(hidden, inner), (hidden, inner), (inner, hidden)]
    weights = layers * sum(rows * columns for rows, columns in linears)
    lora = layers * sum(rank * (rows + columns) for rows, columns in linears)
    # Two products of [S, S], half of it masked.
    attention = layers * batch * 2 * shape["tokens"] ** 2 * heads
    head = 2 * labels * hidden * text["vocab_size"]
    forward = 2 * weights * tokens + attention + head
    backward = 2 * weights * tokens + 2 * attention + head
    return forward + backward + 6 * lora * tokens + _vision(vision, shape, batch) + (forward if gkd else 0.0)


def _vision(vision: dict[str, Any], shape: dict[str, Any], batch: int) -> float:
    merged = (shape["side_px"] // (vision["patch_size"] * vision["spatial_merge_size"])) ** 2
    patches = merged * vision["spatial_merge_size"] ** 2
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    block = 4 * hidden**2 + 2 * hidden * inner
    embed = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2 * hidden
    wide = hidden * vision["spatial_merge_size"] ** 2
    mergers = (1 + len(vision["deepstack_visual_indexes"])) * (wide**2 + wide * vision["out_hidden_size"])
    attention = vision["depth"] * 4 * patches**2 * hidden
    return batch * (2 * patches * (vision["depth"] * block + embed) + 2 * merged * mergers + attention)


def loss_flops(positions: int, vocabulary: int, hidden: int) -> float:
    """The three matrix products of a distillation loss: teacher logits, student logits, hidden gradient."""
    return 3 * 2.0 * positions * vocabulary * hidden
