"""Every YAML example of the operators' playbook, over the least recipe that it needs, is read as it was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vltool.errors import InvalidInput
from vltool.recipe.render import document
from vltool.recipe.schema import Recipe
from vltool.recipe.validate import load_recipe

ENV = {"VLTOOL_MODEL": "/models/base", "VLTOOL_TRAIN_JSONL": "/data/train.jsonl", "VLTOOL_VAL_JSONL": "/data/val.jsonl"}
MINIMAL = """
global_max_length: 4096
model: {model: /models/base}
custom: {train_jsonl: /data/train.jsonl, user_prompt: Name every object.}
"""
PLACEHOLDER = "data.dataset can go: vltool puts ms-swift's placeholder there"
RENAMED = "tuner.train_type is now called tuner_type, and was read as that"
CAPTIONS_LEFT_OUT = "rlhf.seq_kd replaces every caption of yours by the teacher's text: they are never trained on"
VISUAL = """
custom:
  visual_kd:
    enabled: true
    vit: {enabled: %s, weight: 0.1, distance: mse}
    aligner: {enabled: true, weight: 0.1, distance: mse}
    deepstack: {enabled: true, weight: 0.1, distance: mse}
"""

EXAMPLES: dict[str, tuple[str, str, set[str]]] = {
    "critical setup": (
        "minimal",
        """
model: {model: /path/to/Qwen3-VL-4B-Instruct}
template: {template: qwen3_vl, max_length: 4096}
global_max_length: 4096
data: {dataset: ["dummy"]}
""",
        {PLACEHOLDER},
    ),
    "lora": (
        "minimal",
        """
tuner:
  train_type: lora
  lora_rank: 32
  lora_alpha: 64
  target_modules: [all-linear]
  freeze_llm: false
  freeze_vit: true
  freeze_aligner: false
""",
        {RENAMED},
    ),
    "stage 1": (
        "minimal",
        """
tuner: {train_type: lora, target_modules: [all-linear], freeze_llm: true, freeze_vit: true, freeze_aligner: false}
training: {num_train_epochs: 3, learning_rate: 1.0e-4}
""",
        {RENAMED},
    ),
    "stage 2": (
        "minimal",
        """
model: {model: /path/to/base/Qwen3-VL-4B-Instruct}
tuner:
  train_type: lora
  target_modules: [all-linear]
  freeze_llm: false
  freeze_vit: true
  freeze_aligner: false
  resume_from_checkpoint: /path/to/stage1/checkpoint-XXX
training: {num_train_epochs: 2, learning_rate: 5.0e-5}
""",
        {RENAMED},
    ),
    "gkd": (
        "stage3",
        """
rlhf:
  rlhf_type: gkd
  teacher_model: /abs/path/to/base/Qwen3-VL-4B-Instruct
  beta: 0.5
  sft_alpha: 0.3
  seq_kd: true
  lmbda: 0.5
  max_completion_length: 256
  temperature: 0.9
custom: {trainer_variant: gkd_monitor}
""",
        {CAPTIONS_LEFT_OUT},
    ),
    "vision features without the language head": (
        "stage3_gkd",
        "rlhf: {llm_kd_weight: 0.0}\n" + VISUAL % "false",
        {"rlhf.lmbda: with llm_kd_weight 0, steps on the student's own text have nothing to learn from it"},
    ),
    "vision features": ("stage3_gkd", VISUAL % "true", set()),
    "forward only": (
        "stage3",
        """
rlhf:
  rlhf_type: gkd
  teacher_model: /abs/path/to/base/Qwen3-VL-4B-Instruct
  sft_alpha: 1.0
  beta: 0.1
  seq_kd: false
  lmbda: 0.0
""",
        set(),
    ),
    "packing": ("minimal", "training: {packing: true}", set()),
    "a floor of the learning rate": (
        "minimal",
        """
training:
  lr_scheduler_type: cosine_warmup_with_min_lr
  learning_rate: 1.0e-4
  warmup_ratio: 0.1
  lr_scheduler_kwargs: {min_lr: 1.0e-6}
""",
        set(),
    ),
    "zero2": ("minimal", "deepspeed: {enabled: true, config: zero2}", set()),
    "zero3": ("minimal", "deepspeed: {enabled: true, config: zero3}", set()),
    "augmentation": (
        "minimal",
        """
custom:
  augmentation:
    enabled: true
    ops:
      - {name: hflip, params: {prob: 0.3}}
      - {name: rotate, params: {max_deg: 15.0, prob: 0.3}}
      - {name: color_jitter, params: {brightness: [0.85, 1.15], prob: 0.3}}
      - {name: pad_to_multiple, params: {multiple: 32}}
""",
        set(),
    ),
    "gradient checkpointing": ("minimal", "training: {gradient_checkpointing: true}", set()),
    "accumulation": (
        "minimal",
        "training: {per_device_train_batch_size: 1, gradient_accumulation_steps: 16}",
        set(),
    ),
    "shorter": ("base", "global_max_length: 8192", set()),
    "flash attention": ("minimal", "model: {attn_impl: flash_attention_2}", set()),
    "bf16": ("minimal", "model: {torch_dtype: bfloat16}\ntraining: {bf16: true}", set()),
    "the placeholder": ("minimal", 'data: {dataset: ["dummy"]}', {PLACEHOLDER}),
    "the other placeholder": ("minimal", "data: {dataset: [placeholder]}", {PLACEHOLDER}),
    "workers": ("minimal", "data: {dataloader_num_workers: 16, dataloader_pin_memory: true}", set()),
    "against spikes": ("minimal", "training: {learning_rate: 5.0e-5, warmup_ratio: 0.1}", set()),
    "the aligner in full": (
        "minimal",
        """
tuner:
  train_type: lora
  freeze_llm: true
  freeze_vit: true
  freeze_aligner: true
  target_regex: '^$'
  modules_to_save:
    - model.visual.merger
    - model.visual.deepstack_merger_list.0
    - model.visual.deepstack_merger_list.1
    - model.visual.deepstack_merger_list.2
training: {optimizer: multimodal, aligner_lr: 1.0e-4, weight_decay: 0.1, warmup_ratio: 0.3}
""",
        {RENAMED},
    ),
    "dora": ("stage1_aligner_lora", "tuner: {use_dora: true}", set()),
    "smoke test": ("stage3_gkd", "custom: {sample_limit: 32}\ntraining: {save_steps: 5}", set()),
    "best by loss": ("base", "training: {metric_for_best_model: eval_loss}", set()),
}
"""Example -> the recipe beneath it, what it says, and the notes that are due (design, section 11)."""


def _load(beneath: str, text: str) -> Recipe:
    Path("minimal.yaml").write_text(MINIMAL, encoding="utf-8")
    base = "minimal.yaml" if beneath == "minimal" else beneath
    Path("example.yaml").write_text(f"extends: {base}\n{text}", encoding="utf-8")
    return load_recipe("example.yaml", env=ENV)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_resolves_with_the_notes_that_are_due(name: str) -> None:
    beneath, text, notes = EXAMPLES[name]
    assert {note.what for note in _load(beneath, text).notes} == notes


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lora", {"tuner_type": "lora", "freeze_aligner": False, "lora_rank": 32}),
        ("the aligner in full", {"target_regex": "^$", "freeze_aligner": True, "tuner_type": "lora"}),
        ("stage 2", {"resume_from_checkpoint": "/path/to/stage1/checkpoint-XXX", "tuner_type": "lora"}),
    ],
)
def test_an_example_keeps_what_it_says(name: str, values: dict[str, Any]) -> None:
    beneath, text, _ = EXAMPLES[name]
    assert values.items() <= document(_load(beneath, text))["tuner"].items()


@pytest.mark.parametrize("given", ["[my-data]", "other/set", "[dummy, my-data]"])
def test_another_dataset_than_the_placeholder_points_to_train_jsonl(given: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _load("minimal", f"data: {{dataset: {given}}}")
    (problem,) = caught.value.problems
    assert problem.what == "data.dataset: ms-swift's datasets are not used"
    assert "custom.train_jsonl" in problem.do
    assert str(problem.where).startswith("example.yaml:2:")


def test_vision_terms_in_a_recipe_that_freezes_the_vision_blocks_are_accepted_with_a_warning() -> None:
    text = VISUAL % "true" + "tuner: {freeze_vit: true, last_vit_blocks: null}\n"
    (note,) = _load("stage3_gkd", text).notes
    assert note.what == "custom.visual_kd.vit is always zero: nothing trains at or before its output"


def test_exactly_zero_is_explained() -> None:
    (note,) = _load("stage3_gkd_forward", "rlhf: {beta: 0}").notes
    assert note.what == "rlhf.beta: exactly 0 is the full forward KL to the teacher, not none of it"


def test_sampling_keys_in_forward_only_mode_are_told_to_do_nothing() -> None:
    notes = _load("stage3_gkd_forward", "rlhf: {temperature: 0.9, max_completion_length: 64}").notes
    assert [note.what.split(" ")[0] for note in notes] == ["rlhf.max_completion_length", "rlhf.temperature"]
