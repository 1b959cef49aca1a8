"""Rules on numbers and names in ms-swift's keys, learning rates, precision, evaluation and saving."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from vltool.errors import nearest
from vltool.recipe.settings import Settings, Undecided
from vltool.recipe.swift_keys import swift_table

ATTENTION = (
    "sdpa", "eager", "flash_attn", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention",
)  # fmt: skip
"""Implementations of attention that have a name; others are repositories of kernels, `owner/name`."""


def attention_has_a_name(settings: Settings) -> None:
    """An implementation of attention that is misspelt."""
    name = settings["model.attn_impl"]
    if name is not None and "/" not in name and name not in ATTENTION:
        guess = nearest(name, ATTENTION)
        do = f"did you mean {guess}?" if guess else f"one of {', '.join(ATTENTION)}"
        settings.problem("model.attn_impl", f"model.attn_impl: there is no {name}", do)


_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "training.per_device_train_batch_size", "training.per_device_eval_batch_size",
            "training.gradient_accumulation_steps", "training.logging_steps", "training.save_total_limit",
            "data.dataloader_prefetch_factor", "template.max_pixels", "tuner.lora_rank",
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(("training.seed", "data.data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(
        (
            "training.learning_rate", "training.aligner_lr", "training.vit_lr", "training.weight_decay",
            "training.adam_epsilon", "training.max_grad_norm", "training.warmup_steps", "training.num_train_epochs",
            "data.dataloader_num_workers",
        ),
        (0, math.inf),
    ),
    **dict.fromkeys(
        ("training.warmup_ratio", "training.adam_beta1", "training.adam_beta2", "tuner.lora_dropout"), (0, 1)
    ),
}  # fmt: skip
"""Keys of ms-swift's, and the least and the greatest value with which a run makes sense."""


_STEPS = "write a number of steps; 0.1 is a tenth of all"
_ABOVE_ZERO = {"training.save_steps": _STEPS, "training.eval_steps": _STEPS, "tuner.lora_alpha": "write twice the rank"}
"""Keys whose value has to lie above 0, and what to do."""


def numbers_lie_in_their_ranges(settings: Settings) -> None:
    """ms-swift takes any number; some are no run."""
    for key, (least, most) in _RANGES.items():
        with suppress(Undecided):
            if settings.written(key) and not least <= settings[key] <= most:
                wanted = f"a number of at least {least}" if most == math.inf else f"a number from {least} to {most}"
                settings.problem(key, f"{key}: {settings[key]} is not {wanted}", f"write {wanted}")
    for key, do in _ABOVE_ZERO.items():
        with suppress(Undecided):
            if settings.written(key) and settings[key] <= 0:
                settings.problem(key, f"{key}: {settings[key]} is not above 0", do)
    if settings["training.max_steps"] <= 0 and not settings["training.num_train_epochs"]:
        at = settings.latest("training.num_train_epochs", "training.max_steps")
        settings.problem(at, "training.num_train_epochs: 0 trains nothing", "write num_train_epochs: 1, or more")
    if settings["training.max_steps"] == 0:
        settings.problem("training.max_steps", "training.max_steps: 0 trains nothing", "write a number of steps")
    if settings["data.dataloader_num_workers"] == 0 and settings["data.dataloader_prefetch_factor"] is not None:
        at = settings.latest("data.dataloader_prefetch_factor", "data.dataloader_num_workers")
        what = "data.dataloader_prefetch_factor: there are no workers to load ahead"
        settings.problem(at, what, "write dataloader_prefetch_factor: null, or dataloader_num_workers: 4")


def rates_by_tower_need_the_optimizer(settings: Settings) -> None:
    """ms-swift reads `aligner_lr` and `vit_lr` in its multimodal optimizer alone."""
    if settings["training.optimizer"] == "multimodal":
        return
    for key in ("training.aligner_lr", "training.vit_lr"):
        if settings[key] is not None:
            at = settings.latest(key, "training.optimizer")
            what = f"{key}{settings.elsewhere(key, at)} has no effect without optimizer: multimodal"
            settings.problem(at, what, "write optimizer: multimodal under training")


def schedule_takes_its_arguments(settings: Settings) -> None:
    """Arguments of the learning rate's schedule, a floor among them."""
    key, inner = "training.lr_scheduler_type", "training.lr_scheduler_kwargs"
    schedule, given = settings[key], settings[inner] or {}
    known = swift_table().schedules[schedule]
    for name in given:
        if known is not None and name not in known:
            at = settings.latest(f"{inner}.{name}", key)
            what = f"{inner}.{name}{settings.elsewhere(f'{inner}.{name}', at)}: {schedule}"
            what += f"{settings.elsewhere(key, at)} takes no {name}"
            others = [other for other, names in swift_table().schedules.items() if name in (names or ())]
            guess = nearest(name, known)
            do = f"did you mean {guess}?" if guess else f"write lr_scheduler_kwargs: {{{name}: null}}"
            if others:
                do = f"write lr_scheduler_type: {' or '.join(others)}; or lr_scheduler_kwargs: {{{name}: null}}"
            settings.problem(at, what, do)
    if schedule.endswith("with_min_lr") and not {"min_lr", "min_lr_rate"} & given.keys():
        at = settings.latest(key, inner)
        settings.problem(at, f"{key}: {schedule} needs a min_lr", "write lr_scheduler_kwargs: {min_lr: 1.0e-6}")
    if {"min_lr", "min_lr_rate"} <= given.keys():
        at = settings.latest(f"{inner}.min_lr_rate", f"{inner}.min_lr")
        what = f"{inner}: min_lr and min_lr_rate both set the floor"
        settings.problem(at, what, "write null for one of the two")
    floor, rate = given.get("min_lr", 0), settings["training.learning_rate"]
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor < math.inf:
        settings.problem(f"{inner}.min_lr", f"{inner}.min_lr: {floor!r} is no learning rate", "write min_lr: 1.0e-6")
    elif rate is not None and floor > rate:
        at = settings.latest(f"{inner}.min_lr", "training.learning_rate")
        place = settings.elsewhere(f"{inner}.min_lr", at)
        what = f"{inner}.min_lr: {floor:g}{place} lies above the learning rate, {rate:g}"
        settings.problem(at, what, "write a floor below it")


def one_warm_up(settings: Settings) -> None:
    """Warm-up by steps and by a share of them exclude each other."""
    keys = ("training.warmup_steps", "training.warmup_ratio")
    if all(settings[key] for key in keys):
        places = " and ".join(str(settings.where(key)) for key in keys)
        what = f"training.warmup_steps and warmup_ratio both set the warm-up ({places})"
        settings.problem(settings.latest(*keys), what, "write null for one of the two")


def one_precision(settings: Settings) -> None:
    """bf16 and fp16 exclude each other."""
    if settings["training.bf16"] and settings["training.fp16"]:
        keys = ("training.fp16", "training.bf16")
        what = f"training.fp16 and bf16 are both true ({' and '.join(str(settings.where(key)) for key in keys)})"
        settings.problem(settings.latest(*keys), what, "write fp16: false")


def best_checkpoint_can_be_chosen(settings: Settings) -> None:
    """The metric is one that evaluation logs, at the steps at which checkpoints are saved."""
    key = "training.metric_for_best_model"
    if not settings.written(key):
        return
    if not settings.written("custom.val_jsonl") and not settings.written("custom.fusion_config"):
        what = f"{key}: nothing is evaluated without custom.val_jsonl"
        settings.problem(key, what, f"name validation records, or write {key.split('.')[1]}: null")
        return
    metric, logged = settings[key], logged_metrics(settings)
    if metric.replace("eval/", "eval_", 1).removeprefix("eval_") not in logged:
        guess = nearest(metric, [f"eval_{name}" for name in logged])
        do = f"did you mean {guess}?" if guess else f"evaluation logs {', '.join(logged)}"
        settings.problem(key, f"{key}: evaluation logs no {metric}", do)
    saving = settings["training.save_strategy"]
    evaluating = settings["training.eval_strategy"] or saving
    if saving == "best":
        return
    if saving != evaluating:
        what = f"{key}: checkpoints are saved by {saving}, but evaluated by {evaluating}"
        at = settings.latest("training.save_strategy", "training.eval_strategy", key)
        settings.problem(at, what, "write the same save_strategy and eval_strategy")
    elif saving == "steps":
        _saved_when_evaluated(settings, key)


def _saved_when_evaluated(settings: Settings, key: str) -> None:
    saves = settings["training.save_steps"]
    evaluates = settings["training.eval_steps"] or saves
    # Below 1 they are shares of all steps, which nobody knows yet.
    if (saves < 1) != (evaluates < 1):
        return
    times = saves / evaluates
    if abs(times - round(times)) > 1e-9 or times < 1:
        near = max(round(times), 1) * evaluates
        what = f"training.save_steps: {saves:g} is no multiple of eval_steps, {evaluates:g}, by which {key} is known"
        at = settings.latest("training.save_steps", "training.eval_steps", key)
        settings.problem(at, what, f"write save_steps: {near:g}")


def logged_metrics(settings: Settings) -> list[str]:
    """What evaluation logs under this recipe, without its prefix."""
    logged = ["loss", "sft_loss", "token_acc", "entropy"]
    if settings["rlhf.rlhf_type"] is not None and settings["rlhf.eval_kd_batches"] != 0:
        if settings["rlhf.llm_kd_weight"]:
            logged.append("llm_kd_loss")
        if settings["custom.visual_kd.enabled"]:
            logged.append("vision_kd_loss")
    return logged


def tensorboard_is_written_once(settings: Settings) -> None:
    """vltool writes TensorBoard itself, from the rows of logging.jsonl."""
    if "all" in settings["training.report_to"]:
        what = "training.report_to: all would write TensorBoard twice"
        settings.problem("training.report_to", what, "name what you want, [wandb] say")


def numbers_are_finite(settings: Settings) -> None:
    """What ms-swift is handed passes through JSON, which has no infinity."""
    for key in (*settings.swift_keys(), "custom.augmentation", "deepspeed.config"):
        with suppress(Undecided):
            for around, number in _infinite(settings[key], (key,)):
                # Items of lists that hold mappings have no place of their own.
                place = next(filter(settings.written, reversed(around)), key)
                settings.problem(place, f"{around[-1]}: {number} is not finite", "write a finite number")


def _infinite(value: Any, around: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Numbers that are not finite, each with its key after those around it."""
    if isinstance(value, float) and not math.isfinite(value):
        yield around, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _infinite(inner, (*around, f"{around[-1]}.{name}"))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from _infinite(item, (*around, f"{around[-1]}[{at}]"))


RULES = (
    numbers_lie_in_their_ranges,
    rates_by_tower_need_the_optimizer,
    schedule_takes_its_arguments,
    one_warm_up,
    attention_has_a_name,
    one_precision,
    best_checkpoint_can_be_chosen,
    tensorboard_is_written_once,
    numbers_are_finite,
)
