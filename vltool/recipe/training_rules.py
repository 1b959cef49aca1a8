"""Rules on data, batches, schedules, evaluation, saving and launching."""

from __future__ import annotations

import msgspec

from vltool.errors import nearest
from vltool.recipe.settings import Settings

PLACEHOLDERS = ("dummy", "placeholder")
"""What older recipes had to write in `data.dataset`, since ms-swift insists on something there."""
MIN_LR_SCHEDULES = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
DEEPSPEED_CONFIGS = ("zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
"""Names that ms-swift has a DeepSpeed configuration for."""


def records_are_named_once(settings: Settings) -> None:
    """Records come from train_jsonl or a mixture, never from ms-swift's own datasets."""
    given = settings["data.dataset"]
    if given in PLACEHOLDERS or given in ([word] for word in PLACEHOLDERS):
        settings.note("data.dataset", "data.dataset can go: vltool puts ms-swift's placeholder there")
    elif given is not None:
        do = "name the records in custom.train_jsonl, or a mixture in custom.fusion_config"
        settings.problem("data.dataset", "data.dataset: ms-swift's datasets are not used", do)
    both = settings.written("custom.train_jsonl") and settings.written("custom.fusion_config")
    if both:
        what = "custom.fusion_config and custom.train_jsonl are both given"
        do = f"write null for one of them (train_jsonl is at {settings.where('custom.train_jsonl')})"
        settings.problem("custom.fusion_config", what, do)
    elif not (settings.written("custom.train_jsonl") or settings.written("custom.fusion_config")):
        do = "name the training records there, or a mixture in custom.fusion_config"
        settings.problem("custom.train_jsonl", "custom.train_jsonl is missing", do)


def packing_tokenises_ahead(settings: Settings) -> None:
    """Packing has to know lengths before a sample is drawn."""
    if settings["training.packing"] and settings["data.lazy_tokenize"]:
        at = settings.where("data.lazy_tokenize")
        what = f"training.packing needs lengths beforehand, which data.lazy_tokenize ({at}) puts off"
        settings.problem("training.packing", what, "write lazy_tokenize: null under data, or packing: false")


def accumulation_steps(effective: int, per_device: int, processes: int) -> int | None:
    """Micro-batches of an optimizer step of `effective` samples; None when they do not divide it."""
    steps, rest = divmod(effective, per_device * processes)
    return None if rest or not steps else steps


def nearest_batch_sizes(effective: int, per_device: int, processes: int) -> str:
    """The effective batch sizes next to `effective` that can be made."""
    together = per_device * processes
    below = max(effective // together, 1)
    return " or ".join(str(steps * together) for steps in dict.fromkeys((below, effective // together + 1)))


def batches_divide(settings: Settings) -> None:
    """`effective_batch_size` is what accumulation comes to, and is said once."""
    effective = settings["training.effective_batch_size"]
    if effective is None:
        return
    key, other = "training.effective_batch_size", "training.gradient_accumulation_steps"
    if settings.written(other):
        what = f"{key} and {other} say the same thing twice (the latter at {settings.where(other)})"
        settings.problem(key, what, "write null for one of the two")
        return
    per_device = settings["training.per_device_train_batch_size"]
    on_node = settings["launch.nproc_per_node"]
    # With `auto` the host decides; `train` looks at it there.
    processes = (1 if on_node == "auto" else on_node) * settings["launch.nnodes"]
    if per_device >= 1 and accumulation_steps(effective, per_device, processes) is None:
        what = f"{key}: {effective} is no multiple of {per_device * processes} samples"
        what += " (per_device_train_batch_size x processes)"
        settings.problem(key, what, f"write {nearest_batch_sizes(effective, per_device, processes)}")


def counts_are_counts(settings: Settings) -> None:
    """Numbers that have to be positive for a run to be one."""
    for key, least in (
        ("training.per_device_train_batch_size", 1),
        ("training.per_device_eval_batch_size", 1),
        ("training.gradient_accumulation_steps", 1),
        ("training.logging_steps", 1),
        ("training.save_steps", 1),
        ("training.eval_steps", 1),
        ("template.max_pixels", 1),
        ("tuner.lora_rank", 1),
        ("training.learning_rate", 0),
        ("training.weight_decay", 0),
        ("data.dataloader_num_workers", 0),
    ):
        if settings.written(key) and settings[key] < least:
            settings.problem(key, f"{key}: {settings[key]} is not at least {least}", "mend the value")


def rates_by_tower_need_the_optimizer(settings: Settings) -> None:
    """ms-swift reads `aligner_lr` and `vit_lr` in its multimodal optimizer alone."""
    if settings["training.optimizer"] == "multimodal":
        return
    for key in ("training.aligner_lr", "training.vit_lr"):
        if settings[key] is not None:
            what = f"{key} has no effect without optimizer: multimodal"
            settings.problem(key, what, "write optimizer: multimodal under training")


def schedule_takes_its_arguments(settings: Settings) -> None:
    """A floor of the learning rate, and two spellings of warm-up."""
    key, kwargs = "training.lr_scheduler_type", settings["training.lr_scheduler_kwargs"]
    if isinstance(kwargs, dict) and "min_lr" in kwargs:
        at = settings.where("training.lr_scheduler_kwargs.min_lr")
        floor, rate = kwargs["min_lr"], settings["training.learning_rate"]
        if settings[key] not in MIN_LR_SCHEDULES:
            what = f"{key}: {settings[key]} takes no min_lr (written at {at})"
            settings.problem(key, what, f"write {' or '.join(MIN_LR_SCHEDULES)}, or lr_scheduler_kwargs: null")
        elif isinstance(floor, int | float) and rate is not None and floor > rate:
            what = f"training.lr_scheduler_kwargs.min_lr: {floor:g} lies above the learning rate, {rate:g}"
            settings.problem("training.lr_scheduler_kwargs.min_lr", what, "write a floor below it")
    elif settings[key] in MIN_LR_SCHEDULES:
        do = "write lr_scheduler_kwargs: {min_lr: 1.0e-6} under training"
        settings.problem(key, f"{key}: {settings[key]} needs a min_lr", do)
    if settings["training.warmup_steps"] and settings["training.warmup_ratio"]:
        at = settings.where("training.warmup_ratio")
        what = f"training.warmup_steps and training.warmup_ratio ({at}) both set the warm-up"
        settings.problem("training.warmup_steps", what, "write null for one of the two")


def one_precision(settings: Settings) -> None:
    """bf16 and fp16 exclude each other."""
    if settings["training.bf16"] and settings["training.fp16"]:
        what = f"training.fp16 and training.bf16 ({settings.where('training.bf16')}) are both true"
        settings.problem("training.fp16", what, "write fp16: false")


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
    saving, evaluating = settings["training.save_strategy"], settings["training.eval_strategy"] or "steps"
    if saving != evaluating:
        what = f"{key}: checkpoints are saved by {saving}, but evaluated by {evaluating}"
        settings.problem(key, what, "write the same save_strategy and eval_strategy")
    elif saving == "steps":
        _saved_when_evaluated(settings, key)


def _saved_when_evaluated(settings: Settings, key: str) -> None:
    saves = settings["training.save_steps"]
    evaluates = settings["training.eval_steps"] or saves
    if evaluates >= 1 and saves % evaluates:
        near = max(evaluates, round(saves / evaluates) * evaluates)
        what = f"training.save_steps: {saves:g} is no multiple of eval_steps, {evaluates:g}, by which {key} is known"
        settings.problem("training.save_steps", what, f"write save_steps: {near:g}")


def logged_metrics(settings: Settings) -> list[str]:
    """What evaluation logs under this recipe, without its prefix."""
    logged = ["loss", "sft_loss", "token_acc"]
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


def augmentation_has_operations(settings: Settings) -> None:
    """Augmentation that is on and does nothing."""
    if settings["custom.augmentation.enabled"] and not settings["custom.augmentation.ops"]:
        what = "custom.augmentation is enabled, but has no ops"
        settings.problem("custom.augmentation.enabled", what, "list them in ops, or extend augment_grounding")


def deepspeed_is_configured(settings: Settings) -> None:
    """DeepSpeed needs a configuration, by a name that ms-swift knows or as a file or mapping."""
    enabled, config = settings["deepspeed.enabled"], settings["deepspeed.config"]
    if enabled and config is None:
        what = "deepspeed.enabled is true, but deepspeed.config is missing"
        settings.problem("deepspeed.enabled", what, "write config: zero2, config: zero3 or a JSON file beside it")
    if isinstance(config, str) and "/" not in config and config not in DEEPSPEED_CONFIGS:
        guess = nearest(config, DEEPSPEED_CONFIGS)
        do = f"did you mean {guess}?" if guess else f"known: {', '.join(DEEPSPEED_CONFIGS)}; or write a path"
        settings.problem("deepspeed.config", f"deepspeed.config: there is no {config}", do)


def nodes_are_numbered(settings: Settings) -> None:
    """`node_rank` counts from 0."""
    rank, nodes = settings["launch.node_rank"], settings["launch.nnodes"]
    if rank >= nodes:
        what = f"launch.node_rank: {rank} is none of {nodes} node{'s' * (nodes > 1)}, which are counted from 0"
        settings.problem("launch.node_rank", what, "write a rank below launch.nnodes")


def numbers_are_finite(settings: Settings) -> None:
    """What ms-swift is handed passes through JSON, which has no infinity."""
    for key in settings.swift_keys():
        if (value := settings[key]) != msgspec.json.decode(msgspec.json.encode(value)):
            settings.problem(key, f"{key}: {value} holds a number that is not finite", "write a finite number")


RULES = (
    records_are_named_once,
    packing_tokenises_ahead,
    batches_divide,
    counts_are_counts,
    rates_by_tower_need_the_optimizer,
    schedule_takes_its_arguments,
    one_precision,
    best_checkpoint_can_be_chosen,
    tensorboard_is_written_once,
    augmentation_has_operations,
    deepspeed_is_configured,
    nodes_are_numbered,
    numbers_are_finite,
)
