"""The recipe's `deepspeed` section -> the configuration that ms-swift hands to DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vltool.errors import Problem
from vltool.recipe.launch_rules import DEEPSPEED_CONFIGS
from vltool.recipe.schema import Recipe

_BATCH_KEYS = {
    "train_micro_batch_size_per_gpu": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.max_grad_norm",
}
"""What DeepSpeed calls things that the recipe says elsewhere."""


def deepspeed_config(recipe: Recipe, problems: list[Problem]) -> str | dict[str, Any] | None:
    """A name that ms-swift has a configuration for, or a whole configuration; None without DeepSpeed.

    Appends to `problems` a file that cannot be read, and settings that belong elsewhere in the recipe.
    """
    config = recipe.deepspeed.config
    if not recipe.deepspeed.enabled or config is None or config in DEEPSPEED_CONFIGS:
        return config if recipe.deepspeed.enabled and isinstance(config, str) else None
    where = recipe.where("deepspeed.config")
    if isinstance(config, str):
        try:
            config = json.loads(Path(config).read_bytes())
        except (OSError, ValueError) as error:
            what = f"deepspeed.config: {recipe.deepspeed.config} cannot be read: {error}"
            problems.append(Problem(what, f"name a JSON file, or one of {', '.join(DEEPSPEED_CONFIGS)}", where))
            return None
    if not isinstance(config, dict):
        problems.append(Problem("deepspeed.config: is no JSON object", "write DeepSpeed's settings by name", where))
        return None
    for name, key in _BATCH_KEYS.items():
        if config.get(name, "auto") != "auto":
            what = f"deepspeed.config sets {name}, which is {key} of the recipe"
            problems.append(Problem(what, f"write auto there, and {key} in the recipe", where))
    if config.get("train_batch_size", "auto") != "auto":
        what = "deepspeed.config sets train_batch_size, which is training.effective_batch_size of the recipe"
        problems.append(Problem(what, "write auto there, and training.effective_batch_size in the recipe", where))
    if "optimizer" in config or "scheduler" in config:
        what = "deepspeed.config brings an optimizer or a scheduler of its own"
        problems.append(Problem(what, "take it out: training.optim and training.lr_scheduler_type say it", where))
    return dict.fromkeys((*_BATCH_KEYS, "train_batch_size"), "auto") | config


def zero_stage(config: str | dict[str, Any] | None) -> int:
    """How much of the training state DeepSpeed shards (0 to 3), of what `deepspeed_config` gave."""
    if isinstance(config, dict):
        return int(config.get("zero_optimization", {}).get("stage", 0))
    return 0 if config is None else int(config.removeprefix("zero")[0])


def offloads(config: str | dict[str, Any] | None) -> bool:
    """Whether the optimizer or the parameters live in the host's memory."""
    if not isinstance(config, dict):
        return config is not None and config.endswith("_offload")
    zero = config.get("zero_optimization", {})
    return any(zero.get(name, {}).get("device", "none") != "none" for name in ("offload_optimizer", "offload_param"))
