"""What a recipe may say and this version cannot do yet: refused, never ignored."""

from __future__ import annotations

import re
from typing import Any

from vltool.errors import Problem
from vltool.recipe.schema import Recipe, Tuner
from vltool.recipe.swift_keys import swift_table
from vltool.recipe.tuner_rules import BY_CLASS
from vltool.run.deepspeed import deepspeed_config, zero_stage

_DO = "take it out of the recipe, or wait for the version that builds it"

TUNERS = ("lora", "full", "adalora", "boft", "fourierft")

HONOURED = frozenset(
    {
        # model and template
        "attn_impl", "experts_impl", "max_model_len", "max_length", "max_pixels",
        # data
        "data_seed", "dataloader_drop_last", "dataloader_num_workers",
        "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
        "train_dataloader_shuffle",
        # quantization
        "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
        # tuner
        "lora_rank", "lora_alpha", "lora_dropout", "use_dora", "use_rslora",
        "adalora_beta1", "adalora_beta2", "adalora_deltaT", "adalora_init_r", "adalora_orth_reg_weight",
        "adalora_target_r", "adalora_tfinal", "adalora_tinit",
        "boft_block_num", "boft_block_size", "boft_dropout", "boft_n_butterfly_factor",
        "fourier_n_frequency", "fourier_scaling",
        # training: length, rates, precision
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
        "gradient_accumulation_steps", "learning_rate", "aligner_lr", "vit_lr", "lr_scheduler_type",
        "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim_args", "weight_decay", "adam_beta1",
        "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "tf32", "use_cpu", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "vit_gradient_checkpointing", "torch_empty_cache_steps", "seed",
        "full_determinism",
        # training: evaluation, saving, telemetry
        "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_steps", "save_total_limit",
        "max_shard_size", "metric_for_best_model", "greater_is_better", "logging_steps", "logging_first_step",
        "log_level", "log_level_replica", "report_to", "run_name", "project", "trackio_space_id",
        "trackio_bucket_id", "trackio_static_space_id", "swanlab_token", "swanlab_project", "swanlab_workspace",
        "swanlab_exp_name", "swanlab_notification_method", "swanlab_webhook_url", "swanlab_secret",
        "swanlab_sender_email", "swanlab_receiver_email", "swanlab_smtp_server", "swanlab_smtp_port",
        "swanlab_email_language", "swanlab_mode",
    }
)  # fmt: skip
"""ms-swift's keys that vltool's trainer, data and audits honour at any value."""

PARTLY: dict[str, tuple[Any, ...]] = {
    "bnb_4bit_compute_dtype": ("bfloat16", "float32"),
    "dataloader_multiprocessing_context": ("fork",),
    # The first steps of a float16 run overflow on purpose, which the audits could not tell from a fault.
    "fp16": (False,),
    "lazy_tokenize": (True,),
    "logging_strategy": ("steps", "epoch"),
    "loss_scale": ("default", "last_round", "all"),
    # Adapters train in fp32 whatever the model's dtype.
    "lora_dtype": ("float32",),
    # Others want packages, or other arguments, or do the step where no audit can see its gradients.
    "optim": ("adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd"),
    "optimizer": ("default", "multimodal"),
    "init_weights": ("true", "True", "gaussian", "pissa"),
    "quant_bits": (4,),
    "quant_method": ("bnb",),
    "save_strategy": ("steps", "epoch"),
    "task_type": ("causal_lm",),
    "template": ("qwen3_vl",),
    "torch_dtype": ("bfloat16", "float32"),
    "use_chat_template": (True,),
}
"""Keys that are honoured at some values. All others are at their default alone, which changes nothing."""


def honoured(name: str, value: Any) -> bool:
    """Whether a run would do what this value of a key of ms-swift's says."""
    if name == "init_weights" and re.fullmatch(r"pissa_niter_[1-9]\d*", str(value)):
        return True
    return name in HONOURED or value in PARTLY.get(name, (swift_table().keys[name].default,))


def starts_with_pissa(recipe: Recipe) -> bool:
    """Whether the adapter starts from the base's own singular vectors, which moves the base's weights."""
    return str(recipe.swift.get("tuner", {}).get("init_weights")).startswith("pissa")


def _narrowed(tuner: Tuner) -> bool:
    """Whether the adapter's targets are worked out from `last_vit_blocks`, in place of `target_modules`."""
    by_blocks = tuner.last_vit_blocks is not None and not tuner.freeze_vit
    return by_blocks and tuner.target_regex is None and tuner.tuner_type != "full"


def problems(recipe: Recipe) -> list[Problem]:
    """One problem for each thing that the recipe asks for and `train` cannot do yet."""
    training, tuner = recipe.training, recipe.tuner
    asked: list[tuple[bool, str, str]] = [
        (training.packing, "training.packing", "packing"),
        (
            _narrowed(tuner) and tuner.target_modules != ("all-linear",),
            "tuner.target_modules",
            "last_vit_blocks with targets other than all-linear (write a target_regex)",
        ),
        (tuner.tuner_type not in TUNERS, "tuner.tuner_type", f"tuners other than {' and '.join(TUNERS)}"),
        (
            starts_with_pissa(recipe) and tuner.tuner_type != "lora",
            "tuner.init_weights",
            f"PiSSA under tuner_type: {tuner.tuner_type}",
        ),
        # It needs every parameter's whole gradient, which DeepSpeed takes away, and adds to the loss outside the model.
        (
            recipe.deepspeed.enabled and tuner.tuner_type == "adalora",
            "deepspeed.enabled",
            "DeepSpeed with tuner_type: adalora",
        ),
    ]
    quantized = bool((recipe.swift.get("quantization") or {}).get("quant_method"))
    asked += [
        (
            quantized and tuner.tuner_type != "lora",
            "tuner.tuner_type",
            f"tuner_type: {tuner.tuner_type} over a 4-bit base",
        ),
        (quantized and starts_with_pissa(recipe), "tuner.init_weights", "PiSSA over a 4-bit base"),
        (
            quantized and zero_stage(deepspeed_config(recipe, [])) == 3,
            "deepspeed.config",
            "a 4-bit base under ZeRO-3, which would have to put packed weights in shards",
        ),
    ]
    found = [
        Problem(f"{key}: this version of vltool cannot do {what} yet", _DO, recipe.where(key))
        for wanted, key, what in asked
        if wanted
    ]
    if "all-linear" in tuner.target_modules and len(tuner.target_modules) > 1:
        what = "tuner.target_modules: ms-swift takes all-linear alone, and drops the names beside it"
        found.append(Problem(what, "write a target_regex", recipe.where("tuner.target_modules")))
    for key in ("target_modules", "modules_to_save"):
        # The audits cannot hold them against a tower.
        for word in BY_CLASS:
            if word in getattr(tuner, key):
                what = f"tuner.{key}: this version of vltool cannot do {word} yet"
                found.append(Problem(what, "name the modules", recipe.where(f"tuner.{key}")))
    for section, values in recipe.swift.items():
        for name, value in values.items():
            key = f"{section}.{name}"
            if not honoured(name, value):
                what = f"{key}: this version of vltool cannot do {name}: {value!r} yet"
                found.append(Problem(what, _DO, recipe.where(key)))
    return found
