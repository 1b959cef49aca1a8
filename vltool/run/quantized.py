"""What a recipe cannot have in 4 bits, judged by its base."""

from __future__ import annotations

from vltool.checkpoint.architecture import Architecture
from vltool.errors import Problem
from vltool.recipe.schema import Recipe


def check_quantized(recipe: Recipe, architecture: Architecture | None, problems: list[Problem]) -> None:
    """Append to `problems` a base whose experts would stay unpacked, and a merge that rounding would undo."""
    key = "quantization.quant_method"
    if not recipe.swift.get("quantization", {}).get("quant_method"):
        return
    if architecture is not None and architecture.model_type == "qwen3_vl_moe":
        # bitsandbytes replaces linear modules; experts are parameters of a module of their own.
        what = f"{key}: the experts, nearly all of this base's weights, would stay as they are"
        problems.append(Problem(what, "take the section quantization out", recipe.where(key)))
    if recipe.tuner.merge_previous is not None:
        what = "tuner.merge_previous: 4 bits would round away most of what the earlier stage changed"
        do = "carry it in this stage's adapter: tuner.resume_from_checkpoint alone"
        problems.append(Problem(what, do, recipe.where("tuner.merge_previous")))
