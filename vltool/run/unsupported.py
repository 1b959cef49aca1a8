"""What a recipe may say and this version cannot do yet: refused, never ignored."""

from __future__ import annotations

from typing import Any

from vltool.errors import Problem
from vltool.recipe.schema import Recipe, Tuner

_DO = "take it out of the recipe, or wait for the version that builds it"

TUNERS = ("lora", "full")

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "acc_strategy": ("token",),
    "adapters": ([],),
    "agent_template": (None,),
    "auto_find_batch_size": (False,),
    "callbacks": ([],),
    "custom_register_path": ([],),
    "dataloader_multiprocessing_context": (None, "fork"),
    "deepspeed": (None,),
    "device_map": (None,),
    "early_stop_interval": (None,),
    "enable_channel_loss": (False,),
    "enable_dft_loss": (False,),
    "eval_use_evalscope": (False,),
    "enable_thinking": (None,),
    "eval_metric": (None,),
    "external_plugins": ([],),
    # The first steps of a float16 run overflow on purpose, which the audits could not tell from a fault.
    "fp16": (False,),
    "freeze_parameters": ([],),
    "freeze_parameters_ratio": (0, 0.0),
    "freeze_parameters_regex": (None,),
    "fsdp": (None, "", []),
    "group_by_length": (False,),
    "ignore_data_skip": (False,),
    "init_strategy": (None,),
    "init_weights": (True, "true", "True"),
    "label_smoothing_factor": (0, 0.0),
    "lazy_tokenize": (True, None),
    "lisa_activated_layers": (0,),
    "load_args": (False,),
    "load_best_model_at_end": (False,),
    "logging_strategy": ("steps", "epoch"),
    "lora_bias": ("none",),
    "loss_scale": ("default", "last_round", "all"),
    "loss_type": (None,),
    "model_kwargs": (None,),
    "new_special_tokens": ([],),
    "optimizer": (None, "default", "multimodal"),
    "padding_free": (False,),
    "padding_side": ("right",),
    "predict_with_generate": (False,),
    "push_to_hub": (False,),
    "resume_only_model": (False,),
    "response_prefix": (None,),
    "rope_scaling": (None,),
    "router_aux_loss_coef": (0, 0.0),
    "safe_serialization": (True,),
    "save_only_model": (False,),
    "save_strategy": ("steps", "epoch"),
    "sequence_parallel_size": (1,),
    "streaming": (False,),
    "target_parameters": (None,),
    "task_type": ("causal_lm", None),
    "template": ("qwen3_vl",),
    "template_backend": ("swift",),
    "torch_compile": (False,),
    "torch_dtype": ("bfloat16", "float32"),
    "trainable_parameters": ([],),
    "trainable_parameters_regex": (None,),
    "truncation_strategy": (None,),
    "tuner_backend": ("peft",),
    "use_chat_template": (True, None),
    "use_dora": (False,),
    "use_flash_ckpt": (False,),
    "use_galore": (False,),
    "use_liger_kernel": (False,),
    "use_rslora": (False,),
    "use_swift_lora": (False,),
}
"""ms-swift's arguments that vltool's trainer, data or audits do not honour yet, and the values that they do."""

_RECORDS = "records come from custom.train_jsonl and custom.val_jsonl, read by vltool"

NO_EFFECT: dict[str, str] = {
    **dict.fromkeys(
        (
            "cached_dataset", "cached_val_dataset", "columns", "custom_dataset_info", "dataset_num_proc",
            "dataset_shuffle", "disable_auto_column_mapping", "download_mode", "interleave_prob",
            "load_data_args", "load_from_cache_file", "model_author", "model_name", "norm_bbox",
            "shuffle_buffer_size", "stopping_strategy", "val_dataset_shuffle",
        ),
        _RECORDS,
    ),
    "quant_bits": "write it under quantization",
    "quant_method": "write it under quantization",
    "system": "write custom.system_prompt",
}  # fmt: skip
"""ms-swift's arguments that could do nothing here, and what to do instead."""

WHOLE_CLASSES = ("all-embedding", "all-norm")
"""ms-swift's words for modules by their class, which the audits cannot hold against a tower."""


def _narrowed(tuner: Tuner) -> bool:
    """Whether the adapter's targets are worked out from `last_vit_blocks`, in place of `target_modules`."""
    by_blocks = tuner.last_vit_blocks is not None and not tuner.freeze_vit
    return by_blocks and tuner.target_regex is None and tuner.tuner_type != "full"


def problems(recipe: Recipe) -> list[Problem]:
    """One problem for each thing that the recipe asks for and `train` cannot do yet."""
    custom, training, tuner, rlhf, launch = recipe.custom, recipe.training, recipe.tuner, recipe.rlhf, recipe.launch
    asked: list[tuple[bool, str, str]] = [
        (custom.fusion_config is not None, "custom.fusion_config", "mixtures of datasets"),
        (custom.augmentation.enabled, "custom.augmentation.enabled", "augmentation"),
        (custom.visual_kd.enabled, "custom.visual_kd.enabled", "distillation of vision features"),
        (training.packing, "training.packing", "packing"),
        (training.save_delay_steps > 0, "training.save_delay_steps", "delayed saving"),
        (not training.save_last_epoch, "training.save_last_epoch", "leaving out the last checkpoint"),
        (recipe.deepspeed.enabled, "deepspeed.enabled", "DeepSpeed"),
        (launch.nproc_per_node != 1, "launch.nproc_per_node", "more than one process"),
        (launch.nnodes != 1, "launch.nnodes", "more than one node"),
        (launch.node_rank != 0, "launch.node_rank", "more than one node"),
        (launch.master_addr is not None, "launch.master_addr", "more than one node"),
        (launch.master_port is not None, "launch.master_port", "more than one node"),
        (launch.rdzv_backend is not None, "launch.rdzv_backend", "more than one node"),
        (launch.rdzv_endpoint is not None, "launch.rdzv_endpoint", "more than one node"),
        (launch.rdzv_id is not None, "launch.rdzv_id", "more than one node"),
        (tuner.resume_from_checkpoint is not None, "tuner.resume_from_checkpoint", "chaining of stages"),
        (tuner.merge_previous is not None, "tuner.merge_previous", "chaining of stages"),
        (
            _narrowed(tuner) and tuner.target_modules != ("all-linear",),
            "tuner.target_modules",
            "last_vit_blocks with targets other than all-linear (write a target_regex)",
        ),
        (tuner.tuner_type not in TUNERS, "tuner.tuner_type", f"tuners other than {' and '.join(TUNERS)}"),
        (bool(recipe.swift.get("quantization")), "quantization", "quantized base models"),
    ]
    if rlhf.rlhf_type is not None:
        asked += [
            (rlhf.seq_kd, "rlhf.seq_kd", "training on text sampled from the teacher"),
            (rlhf.lmbda > 0.0, "rlhf.lmbda", "training on text sampled from the student (set it to 0.0)"),
            (rlhf.teacher_cache is not None, "rlhf.teacher_cache", "a cached teacher"),
            (rlhf.teacher_completions_cache is not None, "rlhf.teacher_completions_cache", "cached completions"),
            (rlhf.offload_teacher_model, "rlhf.offload_teacher_model", "offloading the teacher"),
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
        for word in WHOLE_CLASSES:
            if word in getattr(tuner, key):
                what = f"tuner.{key}: this version of vltool cannot do {word} yet"
                found.append(Problem(what, "name the modules", recipe.where(f"tuner.{key}")))
    for section, values in recipe.swift.items():
        for name, value in values.items():
            key = f"{section}.{name}"
            if name in NO_EFFECT and section != "quantization":
                found.append(Problem(f"{key} has no effect in vltool", NO_EFFECT[name], recipe.where(key)))
            elif name in ARGUMENTS and value not in ARGUMENTS[name]:
                what = f"{key}: this version of vltool cannot do {name}: {value!r} yet"
                found.append(Problem(what, _DO, recipe.where(key)))
    return found
