"""The keys of a recipe that are vltool's own, section by section.

Keys that a section's struct does not name belong to ms-swift (see `swift_keys`) and pass through under
their own names, but for those of `REFUSED`. Nothing here reads a file or derives a value: see `validate`
and `vltool.run.plan`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from vltool.errors import Problem, Where
from vltool.recipe.augmentation import AnyOp
from vltool.recipe.curriculum import Curriculum

Scalar = None | bool | int | float | str
Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Length = Annotated[int, Meta(ge=1, le=10_000_000)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Weight = Annotated[float, Meta(ge=0.0)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: frozen, keyword-only, strict."""


class Model(Section, frozen=True, kw_only=True):
    """`model:` keys that vltool reads itself; the rest is ms-swift's."""

    model: Annotated[str | None, Meta(description="Folder of the base checkpoint.")] = None
    model_type: Annotated[
        Literal["qwen3_vl", "qwen3_vl_moe"] | None,
        Meta(description="ms-swift's model type; inferred from config.json when absent."),
    ] = None


class Data(Section, frozen=True, kw_only=True):
    """`data:` keys that vltool reads itself; the rest is ms-swift's."""

    dataset: Annotated[
        tuple[str, ...] | str | None,
        Meta(description="Accepted only as the placeholder `dummy` or `placeholder`; data is `custom.train_jsonl`."),
    ] = None
    on_bad_record: Annotated[
        Literal["error", "skip"],
        Meta(description="`error` stops the run at a record that cannot be encoded; `skip` counts and logs it."),
    ] = "error"


class Tuner(Section, frozen=True, kw_only=True):
    """`tuner:` keys that vltool reads itself; the rest is ms-swift's."""

    tuner_type: Annotated[
        Literal[
            "lora", "full", "adalora", "boft", "fourierft", "vera", "longlora", "llamapro", "adapter", "reft"
        ],
        Meta(description="How weights are changed: through adapters of a kind, or in `full`."),
    ] = "lora"  # fmt: skip
    freeze_llm: Annotated[bool, Meta(description="Keep the language model as it is.")] = False
    freeze_vit: Annotated[bool, Meta(description="Keep the vision blocks as they are.")] = True
    freeze_aligner: Annotated[bool, Meta(description="Keep the merger and deepstack mergers as they are.")] = True
    target_modules: Annotated[
        tuple[str, ...], Meta(description="Adapter targets: `all-linear`, or suffixes of module names.")
    ] = ("all-linear",)
    target_regex: Annotated[
        str | None, Meta(description="Adapter targets as a pattern of full module names; `^$` for none.")
    ] = None
    modules_to_save: Annotated[
        tuple[str, ...], Meta(description="Modules trained in full beside the adapter and saved with it.")
    ] = ()
    last_vit_blocks: Annotated[
        Positive | None,
        Meta(description="With `freeze_vit: false`, train only this many of the last vision blocks."),
    ] = None
    resume_from_checkpoint: Annotated[
        str | None, Meta(description="An earlier stage's adapter to start from (stage chaining).")
    ] = None
    merge_previous: Annotated[
        str | None, Meta(description="Where to write the base with the earlier stage merged into it.")
    ] = None


class Training(Section, frozen=True, kw_only=True):
    """`training:` keys that vltool reads itself; the rest is ms-swift's."""

    output_dir: Annotated[
        str | None, Meta(description="The run folder; `runs/<recipe>/<UTC timestamp>` when absent.")
    ] = None
    resume_from_checkpoint: Annotated[
        str | None, Meta(description="`auto` for the run folder's last complete checkpoint, or a checkpoint folder.")
    ] = None
    packing: Annotated[bool, Meta(description="Put several samples into one row, none seeing another.")] = False
    effective_batch_size: Annotated[
        Positive | None,
        Meta(description="Samples an optimizer step over all processes; sets gradient_accumulation_steps."),
    ] = None
    save_delay_steps: Annotated[NonNegative, Meta(description="Save no checkpoint before this step.")] = 0
    save_last_epoch: Annotated[bool, Meta(description="Save a checkpoint when training ends.")] = True


class Rlhf(Section, frozen=True, kw_only=True):
    """`rlhf:` distillation from a frozen teacher."""

    rlhf_type: Annotated[Literal["gkd"] | None, Meta(description="`gkd` turns distillation on.")] = None
    teacher_model: Annotated[str | None, Meta(description="The teacher's checkpoint; default: model.model.")] = None
    teacher_model_type: Annotated[
        Literal["qwen3_vl", "qwen3_vl_moe"] | None, Meta(description="Inferred from config.json when absent.")
    ] = None
    beta: Annotated[
        Fraction,
        Meta(description="Interpolates: 0 forward KL(teacher‖student), 1 reverse KL, between them the JSD."),
    ] = 0.5
    sft_alpha: Annotated[Weight, Meta(description="Weight of the cross entropy of the captions.")] = 0.0
    llm_kd_weight: Annotated[Weight, Meta(description="Weight of the divergence of the language head.")] = 1.0
    kd_temperature: Annotated[
        float, Meta(gt=0.0, description="Both logits are divided by it inside the divergence.")
    ] = 1.0
    lmbda: Annotated[Fraction, Meta(description="Probability that a step trains on the student's own text.")] = 0.5
    seq_kd: Annotated[bool, Meta(description="Train on text that the teacher wrote.")] = False
    seq_kd_ratio: Annotated[Fraction, Meta(description="Share of teacher text where `seq_kd` is on.")] = 1.0
    max_completion_length: Annotated[Positive, Meta(description="Longest sampled answer, in tokens.")] = 256
    temperature: Annotated[float, Meta(gt=0.0, description="Sampling temperature.")] = 0.9
    eval_kd_batches: Annotated[
        NonNegative | Literal["all"], Meta(description="Evaluation batches on which the divergence is measured.")
    ] = 8
    teacher_cache: Annotated[str | None, Meta(description="Folder of cached teacher log-probabilities.")] = None
    teacher_cache_topk: Annotated[Positive, Meta(description="Tokens of a position that `teacher_cache` keeps.")] = 64
    teacher_completions_cache: Annotated[str | None, Meta(description="Folder of cached teacher answers.")] = None
    offload_teacher_model: Annotated[bool, Meta(description="Keep the teacher's copy on the CPU between uses.")] = False


class Deepspeed(Section, frozen=True, kw_only=True):
    """`deepspeed:` sharding over GPUs."""

    enabled: Annotated[bool, Meta(description="Whether DeepSpeed is used.")] = False
    config: Annotated[str | dict[str, Any] | None, Meta(description="`zero2`, `zero3`, a JSON file, or a mapping.")] = (
        None
    )


class FeatureTerm(Section, frozen=True, kw_only=True):
    """One component of `custom.visual_kd`."""

    enabled: Annotated[bool, Meta(description="Whether this component is distilled.")] = False
    weight: Annotated[Weight, Meta(description="Weight in the loss.")] = 0.1
    distance: Annotated[Literal["mse", "cosine"], Meta(description="How features are compared.")] = "mse"


class VisualKd(Section, frozen=True, kw_only=True):
    """`custom.visual_kd:` distillation of vision features."""

    enabled: Annotated[bool, Meta(description="Whether vision features are distilled.")] = False
    vit: Annotated[FeatureTerm, Meta(description="Output of the last vision block, before the merger.")] = FeatureTerm()
    aligner: Annotated[FeatureTerm, Meta(description="Output of the merger.")] = FeatureTerm()
    deepstack: Annotated[FeatureTerm, Meta(description="Outputs of the deepstack mergers.")] = FeatureTerm()


class Augmentation(Section, frozen=True, kw_only=True):
    """`custom.augmentation:` geometry-aware augmentation of training images."""

    enabled: Annotated[bool, Meta(description="Whether training images are augmented.")] = False
    bypass_prob: Annotated[Fraction, Meta(description="Probability that a sample is left as it is.")] = 0.0
    ops: Annotated[tuple[AnyOp, ...], Meta(description="What is done, in this order.")] = ()
    curriculum: Annotated[Curriculum | None, Meta(description="Phases that interpolate parameters.")] = None


class Custom(Section, frozen=True, kw_only=True):
    """`custom:` the data and what vltool adds to ms-swift."""

    train_jsonl: Annotated[str | None, Meta(description="Training records, one JSON object a line.")] = None
    val_jsonl: Annotated[str | None, Meta(description="Validation records.")] = None
    fusion_config: Annotated[str | None, Meta(description="A mixture of datasets in place of train_jsonl.")] = None
    user_prompt: Annotated[str | None, Meta(description="The user's text, or a .txt file that holds it.")] = None
    system_prompt: Annotated[str | None, Meta(description="The system's text, or a .txt file that holds it.")] = None
    emit_norm: Annotated[
        Literal["none", "norm100", "norm1000"], Meta(description="Grid of the emitted coordinates.")
    ] = "norm1000"
    json_format: Annotated[Literal["standard"], Meta(description="Form of the assistant's JSON.")] = "standard"
    use_summary: Annotated[bool, Meta(description="Train on each record's summary instead of its objects.")] = False
    sample_limit: Annotated[Positive | None, Meta(description="First records used of each file.")] = None
    train_sample_limit: Annotated[Positive | None, Meta(description="First records used of train_jsonl.")] = None
    val_sample_limit: Annotated[Positive | None, Meta(description="First records used of val_jsonl.")] = None
    augmentation: Annotated[Augmentation, Meta(description="Geometry-aware augmentation.")] = Augmentation()
    visual_kd: Annotated[VisualKd, Meta(description="Distillation of vision features.")] = VisualKd()
    trainer_variant: Annotated[
        Literal["gkd_monitor"] | None, Meta(description="`gkd_monitor`: distillation with CE and KD logged apart.")
    ] = None
    dump_conversation_text: Annotated[
        bool, Meta(description="Write the first training sample as the model reads it.")
    ] = False
    dump_conversation_path: Annotated[
        str | None, Meta(description="Where to write it; `conversation.txt` in the run folder when absent.")
    ] = None
    preflight: Annotated[bool, Meta(description="Audit every record before the worker starts.")] = True


class Launch(Section, frozen=True, kw_only=True):
    """`launch:` processes and nodes."""

    nproc_per_node: Annotated[Positive | Literal["auto"], Meta(description="Processes a node.")] = 1
    nnodes: Annotated[Positive, Meta(description="Nodes.")] = 1
    node_rank: Annotated[NonNegative, Meta(description="This node's place, from 0.")] = 0
    master_addr: Annotated[str | None, Meta(description="Address of node 0.")] = None
    master_port: Annotated[Port | None, Meta(description="Port of node 0.")] = None
    rdzv_backend: Annotated[str | None, Meta(description="torchrun's rendezvous backend.")] = None
    rdzv_endpoint: Annotated[str | None, Meta(description="torchrun's rendezvous endpoint.")] = None
    rdzv_id: Annotated[str | None, Meta(description="torchrun's rendezvous id.")] = None
    env: Annotated[dict[str, str], Meta(description="Environment variables, set where unset.")] = {}


OWN: dict[str, type[Section]] = {
    "model": Model,
    "data": Data,
    "tuner": Tuner,
    "training": Training,
    "rlhf": Rlhf,
    "deepspeed": Deepspeed,
    "custom": Custom,
    "launch": Launch,
}
"""Sections with keys of our own, and the struct that describes them."""

CLOSED: frozenset[str] = frozenset({"rlhf", "deepspeed", "custom", "launch"})
"""Sections in which every key is ours: an unknown one is an error. Keys beside ours in the others are ms-swift's."""

_RECORDS = "records come from custom.train_jsonl and custom.val_jsonl, read by vltool: take the line out"
_ITSELF = "vltool sets it itself: take the line out"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "cached_dataset", "cached_val_dataset", "columns", "custom_dataset_info", "dataset_num_proc",
            "dataset_shuffle", "decision_drop_instructions", "decision_shuffle_fields", "decision_state_as_text",
            "decision_subsample_options", "disable_auto_column_mapping", "download_mode", "interleave_prob",
            "load_data_args", "load_from_cache_file", "model_author", "model_name", "norm_bbox",
            "shuffle_buffer_size", "stopping_strategy", "val_dataset_shuffle",
        ),
        _RECORDS,
    ),
    **dict.fromkeys(
        (
            "add_version", "check_model", "fp16_full_eval", "include_num_input_tokens_seen", "logging_dir",
            "remove_unused_columns", "split_dataset_ratio", "strict", "use_logits_to_keep",
        ),
        _ITSELF,
    ),
    "disable_tqdm": "vltool shows its own progress: take the line out",
    "use_hf": "models are folders on this host: take the line out",
    "deepspeed": "write it under `deepspeed:`, {enabled: true, config: zero2} say",
    "system": "write custom.system_prompt",
    "val_dataset": "name the records in custom.val_jsonl",
}  # fmt: skip
"""ms-swift's keys that could do nothing in a recipe, and what to do instead."""

SECTIONS: tuple[str, ...] = (
    "model", "template", "data", "tuner", "training", "rlhf", "deepspeed", "quantization", "launch", "custom",
)  # fmt: skip
"""All sections, in the order in which they are written."""

TOP_LEVEL: tuple[str, ...] = ("extends", "global_max_length", *SECTIONS)

PATHS: frozenset[str] = frozenset(
    {
        "model.model", "rlhf.teacher_model", "custom.train_jsonl", "custom.val_jsonl", "custom.fusion_config",
        "custom.dump_conversation_path", "tuner.resume_from_checkpoint", "tuner.merge_previous",
        "training.output_dir", "training.resume_from_checkpoint", "rlhf.teacher_cache",
        "rlhf.teacher_completions_cache", "deepspeed.config", "custom.user_prompt", "custom.system_prompt",
    }
)  # fmt: skip
"""Keys whose value is, or may be, a path relative to the file that wrote it."""


class Recipe(Section, frozen=True, kw_only=True):
    """A resolved and validated recipe: our keys typed, ms-swift's as written, every value's origin."""

    name: str
    files: tuple[str, ...]
    """Files that were read, in the order in which they were merged; the last is the recipe itself, or an overlay
    that was put over it."""
    global_max_length: Length
    model: Model
    data: Data
    tuner: Tuner
    training: Training
    rlhf: Rlhf
    deepspeed: Deepspeed
    launch: Launch
    custom: Custom
    swift: dict[str, dict[str, Any]]
    """Section -> ms-swift's keys in it, as written (paths made absolute)."""
    origins: dict[str, Where]
    """`section.key` (deeper for mappings) -> where the value that holds was written."""
    notes: tuple[Problem, ...] = ()
    """Things worth saying that are not wrong, such as an old spelling that was translated."""

    def where(self, key: str) -> Where | None:
        """Where `section.key` was written; the recipe itself for a default."""
        return self.origins.get(key) or (Where(self.files[-1]) if self.files else None)
