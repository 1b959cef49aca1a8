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
    "deepspeed": (None,),
    "device_map": (None,),
    "enable_channel_loss": (False,),
    "enable_dft_loss": (False,),
    "eval_use_evalscope": (False,),
    "external_plugins": ([],),
    # The first steps of a float16 run overflow on purpose, which the audits could not tell from a fault.
    "fp16": (False,),
    "fsdp": (None, "", []),
    "group_by_length": (False,),
    "init_weights": (True, "true", "True"),
    "label_smoothing_factor": (0, 0.0),
    "lazy_tokenize": (True, None),
    "lisa_activated_layers": (0,),
    "load_best_model_at_end": (False,),
    "lora_bias": ("none",),
    "loss_scale": ("default", "last_round", "all"),
    "loss_type": (None,),
    "padding_free": (False,),
    "padding_side": ("right",),
    "predict_with_generate": (False,),
    "push_to_hub": (False,),
    "resume_only_model": (False,),
    "router_aux_loss_coef": (0, 0.0),
    "sequence_parallel_size": (1,),
    "streaming": (False,),
    "target_parameters": (None,),
    "task_type": ("causal_lm", None),
    "train_dataloader_shuffle": (True,),
    "truncation_strategy": (None,),
    "torch_dtype": ("bfloat16", "float32"),
    "tuner_backend": ("peft",),
    "use_dora": (False,),
    "use_flash_ckpt": (False,),
    "use_galore": (False,),
    "use_liger_kernel": (False,),
    "use_rslora": (False,),
    "use_swift_lora": (False,),
}
"""ms-swift's arguments that vltool's trainer, data or audits do not honour yet, and the values that they do."""


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
    for section, values in recipe.swift.items():
        for name, value in values.items():
            allowed = ARGUMENTS.get(name)
            if allowed is not None and value not in allowed:
                key = f"{section}.{name}"
                found.append(
                    Problem(f"{key}: this version of vltool cannot do {name}: {value!r} yet", _DO, recipe.where(key))
                )
    return found
