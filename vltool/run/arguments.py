"""A recipe -> ms-swift's arguments, under its own names. Reads no file."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from vltool.errors import Problem
from vltool.recipe.schema import Recipe

NO_TARGETS = "dummy-target-modules"
"""peft's word for an adapter without targets, for `target_regex: '^$'`, which peft refuses (DUMMY_TARGET_MODULES)."""

OURS = frozenset(
    {
        "add_version", "check_model", "dataset", "fp16_full_eval", "include_num_input_tokens_seen", "logging_dir",
        "remove_unused_columns", "split_dataset_ratio", "strict", "use_logits_to_keep", "val_dataset",
    }
)  # fmt: skip
"""Arguments of ms-swift that vltool sets itself, so that a recipe cannot."""


BEST_METRICS = ("loss", "sft_loss", "llm_kd_loss", "token_acc")
"""What evaluation logs and a best checkpoint can be chosen by."""
MIN_LR_SCHEDULES = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")


class TunerPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What should train; the audits hold the prepared model against it."""

    tuner_type: str
    freeze_llm: bool
    freeze_vit: bool
    freeze_aligner: bool
    target_modules: tuple[str, ...]
    target_regex: str | None
    modules_to_save: tuple[str, ...]
    frozen_vit_blocks: int
    """Vision blocks before this one stay frozen although `freeze_vit` is false."""


def swift_arguments(recipe: Recipe, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, str]]:
    """ms-swift's arguments as the recipe's sections give them, and where each was written.

    Appends to `problems` what contradicts itself or is vltool's own to set.
    """
    arguments: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for section, values in recipe.swift.items():
        for name, value in values.items():
            where = recipe.where(f"{section}.{name}")
            if name in OURS:
                problems.append(Problem(f"{section}.{name} is set by vltool itself", "take the line out", where))
            elif msgspec.json.decode(msgspec.json.encode(value)) != value:
                problems.append(
                    Problem(f"{section}.{name}: {value} is no number for plan.json", "write a finite number", where)
                )
            elif name in arguments and arguments[name] != value:
                problems.append(
                    Problem(
                        f"{section}.{name} was given another value at {origins[name]}", "keep one of the two", where
                    )
                )
            else:
                arguments[name] = value
                origins[name] = str(where)
    _whole("per_device_train_batch_size", 1, recipe, arguments, problems)
    _whole("max_pixels", 0, recipe, arguments, problems)
    _accumulation(recipe, arguments, origins, problems)
    best = arguments.get("metric_for_best_model")
    if isinstance(best, str) and best.replace("eval/", "eval_", 1).removeprefix("eval_") not in BEST_METRICS:
        what = f"training.metric_for_best_model: evaluation logs no {best}"
        problems.append(
            Problem(what, f"one of {', '.join(BEST_METRICS)}", recipe.where("training.metric_for_best_model"))
        )
    if isinstance(best, str):
        arguments["metric_for_best_model"] = best.replace("eval/", "eval_", 1)
    kwargs, schedule = arguments.get("lr_scheduler_kwargs"), arguments.get("lr_scheduler_type")
    if isinstance(kwargs, dict) and "min_lr" in kwargs and schedule not in MIN_LR_SCHEDULES:
        what = f"training.lr_scheduler_type: {schedule} takes no min_lr (written at {origins['lr_scheduler_kwargs']})"
        do = f"write lr_scheduler_kwargs: null, or one of {', '.join(MIN_LR_SCHEDULES)}"
        problems.append(Problem(what, do, recipe.where("training.lr_scheduler_type")))
    if "seed" in arguments:
        arguments.setdefault("data_seed", arguments["seed"])
    # TensorBoard is written by vltool, from the rows of logging.jsonl.
    report_to = arguments.get("report_to") or []
    report_to = report_to if isinstance(report_to, list) else [report_to]
    if "all" in report_to:
        what = "training.report_to: all would write TensorBoard twice"
        problems.append(Problem(what, "name what you want, such as [wandb]", recipe.where("training.report_to")))
    arguments["report_to"] = [name for name in report_to if name not in ("tensorboard", "none")] or ["none"]
    arguments.setdefault("template", "qwen3_vl")
    _precision(arguments)
    return arguments, origins


def _whole(name: str, least: int, recipe: Recipe, arguments: dict[str, Any], problems: list[Problem]) -> None:
    """Refuse what is no whole number in an argument of ms-swift that the plan itself reckons with."""
    value = arguments.get(name, least)
    if type(value) is int and value >= least:
        return
    del arguments[name]
    key = next(f"{section}.{name}" for section, values in recipe.swift.items() if name in values)
    what = f"{key}: {value!r} is not a whole number of at least {least}"
    problems.append(Problem(what, "mend the value", recipe.where(key)))


def _accumulation(
    recipe: Recipe, arguments: dict[str, Any], origins: dict[str, str], problems: list[Problem], processes: int = 1
) -> None:
    wanted = recipe.training.effective_batch_size
    if wanted is None:
        return
    where = recipe.where("training.effective_batch_size")
    if "gradient_accumulation_steps" in arguments:
        problems.append(
            Problem(
                "training.effective_batch_size and training.gradient_accumulation_steps say the same thing twice "
                f"(the latter at {origins['gradient_accumulation_steps']})",
                "keep one of the two",
                where,
            )
        )
        return
    together = arguments.get("per_device_train_batch_size", 1) * processes
    steps, rest = divmod(wanted, together)
    if rest or not steps:
        near = " or ".join(str(n * together) for n in dict.fromkeys((max(steps, 1), steps + 1)))
        problems.append(
            Problem(
                f"training.effective_batch_size: {wanted} is no multiple of {together} samples "
                f"(per_device_train_batch_size x processes)",
                f"set it to {near}",
                where,
            )
        )
        return
    arguments["gradient_accumulation_steps"] = steps
    origins["gradient_accumulation_steps"] = str(where)


def _precision(arguments: dict[str, Any]) -> None:
    """Say the precision outright: ms-swift turns fp16 on for float32 weights when nothing is said."""
    dtype = arguments.setdefault("torch_dtype", "bfloat16")
    arguments.setdefault("bf16", dtype == "bfloat16")
    arguments.setdefault("fp16", False)


def tuner_arguments(tuner: TunerPlan) -> dict[str, Any]:
    """ms-swift's arguments for what the plan trains."""
    chosen: dict[str, Any] = {
        "tuner_type": tuner.tuner_type,
        "freeze_llm": tuner.freeze_llm,
        "freeze_vit": tuner.freeze_vit,
        "freeze_aligner": tuner.freeze_aligner,
        "target_modules": list(tuner.target_modules),
        "modules_to_save": list(tuner.modules_to_save),
    }
    if tuner.tuner_type == "full":
        if tuner.frozen_vit_blocks:
            early = [f"model.visual.blocks.{block}." for block in range(tuner.frozen_vit_blocks)]
            chosen["freeze_parameters"] = ["model.visual.patch_embed", "model.visual.pos_embed", *early]
    elif tuner.target_regex is not None:
        chosen["target_regex"] = NO_TARGETS if tuner.target_regex in ("^$", "") else tuner.target_regex
    return chosen


def last_blocks_regex(freeze_llm: bool, freeze_aligner: bool, first_block: int, depth: int) -> str:
    """Full names of the linear modules that `all-linear` would reach, of the vision blocks only the last ones."""
    blocks = "|".join(str(block) for block in range(first_block, depth))
    parts = [rf"model\.visual\.blocks\.({blocks})\.(attn\.(qkv|proj)|mlp\.linear_fc[12])"]
    if not freeze_aligner:
        parts.append(r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]")
    if not freeze_llm:
        parts.append(
            r"model\.language_model\.layers\.\d+\.(.*\.)?(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        )
    return f"^({'|'.join(parts)})$"
