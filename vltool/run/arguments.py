"""A recipe -> ms-swift's arguments, under its own names. Reads no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from vltool.errors import Problem
from vltool.recipe.batch import accumulation_steps, misfit
from vltool.recipe.schema import Recipe
from vltool.recipe.swift_keys import swift_table
from vltool.recipe.tuner_rules import NO_TARGETS
from vltool.run.chain import ChainPlan

PEFT_NO_TARGETS = "dummy-target-modules"
"""peft's word for an adapter without targets, for `target_regex: '^$'`, which peft refuses (DUMMY_TARGET_MODULES)."""

ALWAYS: dict[str, Any] = {
    # ms-swift's arguments insist on a dataset and turn evaluation off without a validation split.
    "dataset": ["placeholder"],
    "split_dataset_ratio": 0.01,
    "add_version": False,
    "check_model": False,
    "remove_unused_columns": False,
    "strict": True,
    "use_logits_to_keep": False,
}
"""Arguments that every run hands to ms-swift, whatever its recipe says; the bridge adds them."""


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
    carried: ChainPlan | None = None
    """The earlier stage that this stage's adapter holds too; the fields above are this stage's own."""


def swift_arguments(
    recipe: Recipe, problems: list[Problem], *, processes: int = 1
) -> tuple[dict[str, Any], dict[str, str]]:
    """ms-swift's arguments as the recipe's sections give them, and where each was written.

    Appends to `problems` a batch that this many processes cannot make.
    """
    arguments = {name: value for values in recipe.swift.values() for name, value in values.items()}
    origins = {
        name: str(recipe.where(f"{section}.{name}")) for section, values in recipe.swift.items() for name in values
    }
    effective = recipe.training.effective_batch_size
    if effective is not None:
        where = recipe.where("training.effective_batch_size")
        per_device = arguments.get("per_device_train_batch_size", 1)
        arguments["gradient_accumulation_steps"] = accumulation_steps(effective, per_device, processes)
        origins["gradient_accumulation_steps"] = str(where)
        if arguments["gradient_accumulation_steps"] is None:
            problems.append(Problem(*misfit(effective, per_device, processes), where))
    if "metric_for_best_model" in arguments:
        arguments["metric_for_best_model"] = arguments["metric_for_best_model"].replace("eval/", "eval_", 1)
    if "seed" in arguments:
        arguments.setdefault("data_seed", arguments["seed"])
    # TensorBoard is written by vltool, from the rows of logging.jsonl.
    report_to = arguments.get("report_to", [])
    arguments["report_to"] = [name for name in report_to if name not in ("tensorboard", "none")] or ["none"]
    arguments.setdefault("template", "qwen3_vl")
    _precision(arguments)
    return arguments, origins


def _precision(arguments: dict[str, Any]) -> None:
    """Say the precision outright: ms-swift turns fp16 on for float32 weights when nothing is said."""
    dtype = arguments.setdefault("torch_dtype", "bfloat16")
    arguments.setdefault("bf16", dtype == "bfloat16")
    arguments.setdefault("fp16", False)


def value_of(arguments: Mapping[str, Any], name: str) -> Any:
    """One of ms-swift's arguments, or its default."""
    if arguments.get(name) is not None:
        return arguments[name]
    known = swift_table().keys.get(name)
    return None if known is None else known.default


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
        return chosen
    regex = tuner.target_regex
    if tuner.carried is not None:
        chosen["modules_to_save"] = list(dict.fromkeys((*tuner.modules_to_save, *tuner.carried.saved)))
        regex = union_regex(tuner, tuner.carried)
    if regex is not None:
        chosen["target_regex"] = PEFT_NO_TARGETS if regex in NO_TARGETS else regex
    return chosen


def union_regex(tuner: TunerPlan, carried: ChainPlan) -> str:
    """Modules that get a LoRA when an earlier stage is carried: this stage's own and the earlier one's.

    None of those that are trained or kept in full, where peft would lay a LoRA aside without a word.
    """
    in_full = (*tuner.modules_to_save, *carried.saved)
    adapted = [re.escape(name) for name in carried.adapted if not any(named_in(name, module) for module in in_full)]
    own = own_regex(tuner)
    parts = ([] if own in NO_TARGETS else [f"(?:{own})"]) + adapted
    if not parts:
        return NO_TARGETS[0]
    # As peft does: a saved module is one whose name ends with these characters.
    guard = "".join(rf"(?!(?:.*)?{re.escape(module)}(?:\.|$))" for module in in_full)
    return f"^{guard}(?:{'|'.join(parts)})$"


def named_in(name: str, module: str) -> bool:
    """Whether a module lies inside one that `modules_to_save` names by these characters."""
    parts = name.split(".")
    return any(".".join(parts[:end]).endswith(module) for end in range(1, len(parts) + 1))


def own_regex(tuner: TunerPlan) -> str:
    """This stage's own adapter targets as a pattern of full names."""
    if tuner.target_regex is not None:
        return tuner.target_regex
    if "all-linear" in tuner.target_modules:
        blocks = None if tuner.freeze_vit else r"\d+"
        return linear_regex(tuner.freeze_llm, tuner.freeze_aligner, blocks)
    return rf"(?:.*\.)?(?:{'|'.join(map(re.escape, tuner.target_modules))})"


def last_blocks_regex(freeze_llm: bool, freeze_aligner: bool, first_block: int, depth: int) -> str:
    """Full names of the linear modules that `all-linear` would reach, of the vision blocks only the last ones."""
    return linear_regex(freeze_llm, freeze_aligner, "|".join(str(block) for block in range(first_block, depth)))


def linear_regex(freeze_llm: bool, freeze_aligner: bool, blocks: str | None) -> str:
    """Full names of the linear modules that `all-linear` would reach. blocks: which of the vision tower's, if any."""
    parts = []
    if blocks is not None:
        parts.append(rf"model\.visual\.blocks\.({blocks})\.(attn\.(qkv|proj)|mlp\.linear_fc[12])")
    if not freeze_aligner:
        parts.append(r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]")
    if not freeze_llm:
        parts.append(
            r"model\.language_model\.layers\.\d+\.(.*\.)?(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        )
    return f"^({'|'.join(parts)})$"
