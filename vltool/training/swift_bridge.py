"""The only module that imports ms-swift: arguments in; model, template and trainer base out.

ms-swift's dataset loading is never called. The tuner is prepared here, before any trainer exists.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from swift.arguments import SftArguments
from swift.dataloader.shard import DataLoaderShard
from swift.pipelines.train import SwiftSft
from swift.template import MaxLengthError
from swift.trainers import Seq2SeqTrainer
from swift.trainers.patcher import PrinterCallbackNew, ProgressCallbackNew
from swift.utils import disable_deepspeed_zero3, unwrap_model_for_generation
from transformers import AutoConfig, AutoModelForImageTextToText

from vltool.data.geometry_spans import Span
from vltool.data.tokens import render
from vltool.errors import BadContent, InvalidInput, MissingOnHost, Problem
from vltool.recipe.swift_keys import swift_table
from vltool.run.arguments import ALWAYS
from vltool.run.plan import RunPlan
from vltool.training.collate import BlankImage, Encode
from vltool.training.geometry_tokens import GEOMETRY, number_tokens
from vltool.training.pissa import take_up
from vltool.training.quantized import keep_packed, packed_among

__all__ = [
    "MS_SWIFT_CALLBACKS",
    "DataLoaderShard",
    "Prepared",
    "Seq2SeqTrainer",
    "blank_image",
    "build",
    "build_teacher",
    "check_arguments",
    "dump_conversation",
    "encoder",
    "outline",
    "unwrap_model_for_generation",
]

MS_SWIFT_CALLBACKS = (ProgressCallbackNew, PrinterCallbackNew)
"""Callbacks of ms-swift that print and write logging.jsonl in its own way; ours take their place."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What ms-swift built: the model with its tuner, and all that a trainer takes."""

    model: Any
    template: Any
    arguments: Any
    """ms-swift's SftArguments."""
    training_arguments: Any
    """transformers' training arguments inside them."""


def check_arguments(plan: RunPlan) -> None:
    """Hold the plan's arguments against the installed ms-swift's own, which may be another than recipes know.

    Raises InvalidInput with one located problem for each argument that it does not have.
    """
    names = {field.name for field in dataclasses.fields(SftArguments)}
    do = f"take the line out, or install ms-swift {swift_table().ms_swift}, against which recipes are checked"
    problems = []
    for name in plan.arguments.keys() - names:
        at = plan.origins.get(name)
        problems.append(Problem(f"{at}: " * bool(at) + f"the installed ms-swift has no argument {name}", do))
    if problems:
        raise InvalidInput(problems)


def build(plan: RunPlan, *, records: int = 1) -> Prepared:
    """Model, template and tuner of the plan, the tuner prepared.

    records: how many there are to train on, from which AdaLoRA knows its steps.
    Raises InvalidInput for arguments that ms-swift does not know or refuses, MissingOnHost for a package
    that the recipe asks for, such as flash-attn.
    """
    check_arguments(plan)
    # Without a GPU transformers refuses bf16, unless it is told that the CPU is meant.
    device = {} if torch.accelerator.is_available() else {"use_cpu": True}
    try:
        arguments = SftArguments(**(device | plan.arguments | ALWAYS))
    except (ValueError, AssertionError) as error:
        raise InvalidInput(f"ms-swift refuses its arguments: {error}", "mend the recipe") from error
    try:
        pipeline = SwiftSft(arguments)
    except ImportError as error:
        raise MissingOnHost(f"the model needs a package that is not installed: {error}", "install it") from error
    _keep_context_length(pipeline.model, plan)
    _keep_forward(pipeline.model)
    keep_packed(pipeline.model)
    if packed := packed_among(pipeline.model, plan.tuner.modules_to_save):
        at = plan.origins.get("modules_to_save")
        raise InvalidInput(
            f"{at}: " * bool(at) + f"modules_to_save: {', '.join(packed[:3])} are packed into 4 bits, and cannot train",
            "name modules outside the language model's layers, or train these by LoRA",
        )
    _obey_token_ids(pipeline.template, pipeline.model.config)
    try:
        model = pipeline.prepare_model(
            arguments, pipeline.model, template=pipeline.template, train_dataset=range(records), task_type=None
        )
    except ValueError as error:
        raise InvalidInput(f"the tuner cannot be made: {error}", "mend the tuner section of the recipe") from error
    if plan.resume is not None:
        take_up(model, Path(plan.resume), at=plan.origins.get("init_weights"))
    if arguments.is_adapter and arguments.training_args.bf16 and not arguments.deepspeed:
        # peft keeps adapters in fp32, but not the copies of modules_to_save: in bf16, updates as small as
        # the end of a schedule's would round to nothing. DeepSpeed keeps fp32 copies of its own.
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype == torch.bfloat16:
                parameter.data = parameter.data.float()
    # Other tools of ms-swift read them from a checkpoint's folder.
    arguments.save_args()
    if plan.distillation is not None:
        for holder in (arguments, arguments.training_args):
            holder.llm_kd_weight = plan.distillation.llm_kd_weight
    return Prepared(
        model=model,
        template=pipeline.template,
        arguments=arguments,
        training_arguments=arguments.training_args,
    )


_NOT_FOR_SHAPES = ("deepspeed", "attn_impl")
"""Arguments that want a package or a GPU, and change no parameter's shape; those of quantization too."""


def outline(plan: RunPlan) -> Any:
    """The plan's model with its tuner on torch's meta device: every parameter, and no weight in memory.

    It is made from config.json, and its tuner by the same code as `build`'s. An earlier stage's parts are there,
    and not its weights. Raises InvalidInput as `build` does.
    """
    check_arguments(plan)
    chosen = {
        name: value
        for name, value in plan.arguments.items()
        if name not in _NOT_FOR_SHAPES and not name.startswith(("quant_", "bnb_"))
    }
    # ms-swift makes the folder while it looks at its arguments.
    with TemporaryDirectory(prefix="vltool-") as folder:
        given = chosen | ALWAYS | {"use_cpu": True, "model": plan.original, "output_dir": folder}
        try:
            arguments = SftArguments(**given)
        except (ValueError, AssertionError) as error:
            raise InvalidInput(f"ms-swift refuses its arguments: {error}", "mend the recipe") from error
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(plan.original))
    model.model_meta, model.model_info = arguments.model_meta, arguments.model_info
    try:
        # BOFT's permutations are worked out from numbers, which tensors on that device do not have.
        with nullcontext() if arguments.tuner_type == "boft" else torch.device("meta"):
            return SwiftSft.prepare_model(arguments, model, template=None, train_dataset=range(1), task_type=None)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"the tuner cannot be made: {error}", "mend the tuner section of the recipe") from error


def _keep_context_length(model: Any, plan: RunPlan) -> None:
    """Put back what ms-swift cut to the training length: a saved model must keep its base's context."""
    config = json.loads((Path(plan.model) / "config.json").read_bytes())
    length = config["text_config"].get("max_position_embeddings")
    if length is not None:
        model.config.get_text_config().max_position_embeddings = length


def _keep_forward(model: Any) -> None:
    """Put transformers' own forward back in the model.

    ms-swift puts one in its place that adds an image to batches without any, under DeepSpeed; every batch here
    has one (`BlankImage`), and that forward drops what generation and distillation hand over encoded.
    """
    inner = model.model
    inner.forward = getattr(inner, "origin_forward", inner.forward)


def _obey_token_ids(template: Any, config: Any) -> None:
    """Take the placeholders' ids from the checkpoint: ms-swift writes those of the released models into its class.

    Assigned on the instance. The list is replaced, not changed: ms-swift keeps one for the class, into
    which each template made in a process puts its ids, so another checkpoint's would count as placeholders.
    """
    template.image_token_id = config.image_token_id
    template.video_token_id = config.video_token_id
    template.placeholder_tokens = [config.image_token_id, config.video_token_id]


def build_teacher(plan: RunPlan, prepared: Prepared) -> Any:
    """A frozen copy of the plan's teacher in evaluation mode, on the student's device."""
    assert plan.distillation is not None
    # Under ZeRO-3 a model is loaded in shards, which only an engine of its own would put together again.
    with disable_deepspeed_zero3():
        teacher, _ = prepared.arguments.get_model_processor(
            model=plan.distillation.teacher_model, model_type=plan.distillation.teacher_model_type
        )
    _keep_forward(teacher)
    keep_packed(teacher)
    return teacher.requires_grad_(False).eval()


def encoder(prepared: Prepared) -> Encode:
    """A function that turns messages into one sample's input ids, labels, pixel values and numbers of geometries.

    It raises BadContent for a sample that is too long, whose image placeholders and images do not agree,
    or that leaves the loss nothing to see.
    """
    template = prepared.template

    def encode(messages: list[dict[str, Any]], geometry: Sequence[Span] = ()) -> dict[str, Any]:
        try:
            encoded: dict[str, Any] = template.encode({"messages": messages}, return_length=True)
        except MaxLengthError as error:
            raise BadContent(
                f"the record is longer than global_max_length ({template.max_length} tokens): {error}",
                "raise global_max_length, lower template.max_pixels, or shorten the record",
            ) from error
        placeholders = sum(token == template.image_token_id for token in encoded["input_ids"])
        grid = encoded.get("image_grid_thw")
        merge = template.processor.image_processor.merge_size
        wanted = 0 if grid is None else int(grid.prod(-1).sum()) // merge**2
        if placeholders != wanted:
            raise BadContent(f"the text holds {placeholders} image tokens, its images make {wanted}")
        if all(label == -100 for label in encoded["labels"]):
            raise BadContent("the loss sees no token of the record", "give it an assistant's answer")
        numbers = number_tokens(template.tokenizer, render(messages)[-1], geometry, encoded["labels"])
        return encoded | {GEOMETRY: numbers}

    return encode


def blank_image(prepared: Prepared) -> BlankImage:
    """The smallest image that the model takes, for batches without one."""
    processor, config = prepared.template.processor, prepared.model.config
    side = processor.image_processor.patch_size * processor.image_processor.merge_size
    grid = processor.image_processor(
        images=[np.zeros((side, side, 3), dtype=np.uint8)],
        return_tensors="pt",
        size={"shortest_edge": 1, "longest_edge": side**2},
    )
    ids = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
    return BlankImage(
        token_ids=ids, kinds=(0, 1, 0), pixel_values=grid["pixel_values"], image_grid_thw=grid["image_grid_thw"]
    )


def dump_conversation(prepared: Prepared, sample: dict[str, Any], path: Path) -> None:
    """Write a sample as the model reads it, and what of it the loss sees, into a text file."""
    if "input_ids" not in sample:
        return
    decode = prepared.template.safe_decode
    text = f"# what the model reads\n{decode(sample['input_ids'])}\n# what the loss sees\n{decode(sample['labels'])}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
