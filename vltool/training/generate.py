"""Answers sampled from the student or the teacher, in place of the operator's.

Suffixes: B batch, S sequence.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from vltool.run.distillation import SamplingPlan, Source
from vltool.training.losses import IGNORE


def draw_source(plan: SamplingPlan | None, *, seed: int, step: int) -> Source:
    """Whose text optimizer step `step` (from 0) trains on: the same on every process and after a restart."""
    if plan is None:
        return "dataset"
    if step < len(plan.first):
        return plan.first[step]
    drawn = random.Random(f"{seed} {step}")
    if drawn.random() < plan.lmbda:
        return "student"
    return "teacher" if drawn.random() < plan.seq_kd_ratio else "dataset"


def prompt_of(sample: dict[str, Any]) -> dict[str, Any]:
    """An encoded sample without its last answer and what follows it; its images stay."""
    labels = sample["labels"]
    end = len(labels)
    while end and labels[end - 1] == IGNORE:
        end -= 1
    while end and labels[end - 1] != IGNORE:
        end -= 1
    prompt = {name: sample[name] for name in ("pixel_values", "image_grid_thw") if sample.get(name) is not None}
    if (kinds := sample.get("mm_token_type_ids")) is not None:
        prompt["mm_token_type_ids"] = kinds[:end]
    return prompt | {"input_ids": sample["input_ids"][:end]}


def answered(prompt: dict[str, Any], answer_ids: Sequence[int]) -> dict[str, Any]:
    """The encoded sample of a prompt and an answer, whose tokens are its labels."""
    count = len(prompt["input_ids"])
    sample = prompt | {
        "input_ids": [*prompt["input_ids"], *answer_ids],
        "labels": [IGNORE] * count + list(answer_ids),
        "length": count + len(answer_ids),
        "lengths": [count + len(answer_ids)],
    }
    if (kinds := prompt.get("mm_token_type_ids")) is not None:
        sample["mm_token_type_ids"] = torch.cat((kinds, kinds.new_zeros(len(answer_ids))))
    return sample


def generate(
    model: Any,
    prompts: Sequence[dict[str, Any]],
    plan: SamplingPlan,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    never_ids: Sequence[int],
    seed: int,
) -> list[list[int]]:
    """Sample one answer for each prompt, in one left-padded batch with a KV cache.

    model: in evaluation mode. end_ids: tokens that end an answer, which keeps the one that ended it. never_ids:
    placeholders, which an answer has no images for.
    The numbers drawn depend on `seed` alone, and leave torch's own generators as they were.
    """
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in _left_padded(prompts, pad_id).items()}
    settings = GenerationConfig(
        max_new_tokens=plan.max_completion_length,
        do_sample=True,
        temperature=plan.temperature,
        # The whole distribution, whatever the checkpoint's own settings leave out.
        top_k=0,
        top_p=1.0,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
        suppress_tokens=list(never_ids),
        use_cache=True,
    )
    # Each process alone, until its own answers end: transformers, under ZeRO-3, would wait for all after each token.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        ids_BS = model.generate(**inputs, generation_config=settings, synced_gpus=False)
    longest = inputs["input_ids"].shape[1]
    return [_until_the_end(ids, end_ids) for ids in ids_BS[:, longest:].tolist()]


def _until_the_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in end_ids), len(ids) - 1)
    return ids[: end + 1]


def _left_padded(prompts: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    longest = max(len(prompt["input_ids"]) for prompt in prompts)
    rows: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "mm_token_type_ids": []}
    for prompt in prompts:
        ids = torch.tensor(prompt["input_ids"])
        kinds = prompt.get("mm_token_type_ids", torch.zeros_like(ids))
        padding = (longest - len(ids), 0)
        rows["input_ids"].append(torch.nn.functional.pad(ids, padding, value=pad_id))
        rows["attention_mask"].append(torch.nn.functional.pad(torch.ones_like(ids), padding))
        rows["mm_token_type_ids"].append(torch.nn.functional.pad(kinds, padding))
    inputs = {name: torch.stack(values) for name, values in rows.items()}
    with_images = [prompt for prompt in prompts if "pixel_values" in prompt]
    if with_images:
        for name in ("pixel_values", "image_grid_thw"):
            inputs[name] = torch.cat([prompt[name] for prompt in with_images])
    return inputs
