"""Rules on data, batches, schedules, evaluation and launching: what breaks them is told at its line."""

from __future__ import annotations

import pytest
from planning import MINIMAL, notes_of, problems_of, written

from vltool.recipe.batch import accumulation_steps, misfit
from vltool.recipe.data_rules import PLACEHOLDERS
from vltool.recipe.launch_rules import DEEPSPEED_CONFIGS
from vltool.recipe.training_rules import ATTENTION


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


MIN_LR_SCHEDULES = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
VALIDATED = MINIMAL.replace("custom:\n", "custom:\n  val_jsonl: /v.jsonl\n")
"""Five lines, with validation records; what is added begins in line 6."""
EFFECTIVE = "training.effective_batch_size"
METRIC, SCHEDULE = "training.metric_for_best_model", "training.lr_scheduler_type"
NO_OPTIMIZER = ("has no effect without optimizer: multimodal", "write optimizer: multimodal under training")
EVERY_METRIC = "evaluation logs loss, sft_loss, token_acc, entropy"


@pytest.mark.parametrize(
    ("added", "at", "what", "do"),
    [
        (
            "  fusion_config: f.yaml", "5:18", "custom.fusion_config and custom.train_jsonl are both given",
            "write null for one of them (train_jsonl is at r.yaml:4:16)",
        ),
        (
            "data: {dataset: x}", "5:17", "data.dataset: ms-swift's datasets are not used",
            "name the records in custom.train_jsonl, or a mixture in custom.fusion_config",
        ),
        (
            "training: {packing: true}\ndata: {lazy_tokenize: true}", "5:21",
            "training.packing needs lengths beforehand, which data.lazy_tokenize puts off",
            "write lazy_tokenize: null under data, or packing: false",
        ),
        (
            "training: {effective_batch_size: 7, per_device_train_batch_size: 2}", "5:34",
            f"{EFFECTIVE}: 7 is no multiple of 2 samples", ": 6 or 8",
        ),
        (
            "training: {effective_batch_size: 3, per_device_train_batch_size: 4}", "5:34",
            f"{EFFECTIVE}: 3 is no multiple of 4 samples", ": 4",
        ),
        (
            "training: {effective_batch_size: 6}\nlaunch: {nproc_per_node: 2, nnodes: 2, master_addr: h}", "5:34",
            f"{EFFECTIVE}: 6 is no multiple of 4 samples", ": 4 or 8",
        ),
        (
            "training: {effective_batch_size: 6, gradient_accumulation_steps: 6}", "5:34",
            "gradient_accumulation_steps say the same thing twice",
            "write null for one of the two",
        ),
        ("training: {vit_lr: 1e-4}", "5:20", NO_OPTIMIZER[0], NO_OPTIMIZER[1]),
        (
            "training: {aligner_lr: 1e-4, optimizer: default}", "5:24",
            f"training.aligner_lr {NO_OPTIMIZER[0]}", NO_OPTIMIZER[1],
        ),
        (
            "training: {lr_scheduler_type: cosine, lr_scheduler_kwargs: {min_lr: 1e-6}}", "5:",
            "takes no min_lr",
            "cosine_with_min_lr or cosine_warmup_with_min_lr",
        ),
        (
            "training: {lr_scheduler_type: cosine_with_min_lr, learning_rate: 1e-4, "
            "lr_scheduler_kwargs: {min_lr: 1e-3}}", "5:102",
            "lies above the learning rate, 0.0001",
            "write a floor below it",
        ),
        *(
            (
                f"training: {{lr_scheduler_type: {schedule}}}", "5:31", f"{SCHEDULE}: {schedule} needs a min_lr",
                "write lr_scheduler_kwargs: {min_lr: 1.0e-6}",
            )
            for schedule in MIN_LR_SCHEDULES
        ),
        (
            "training: {warmup_steps: 10, warmup_ratio: 0.1}", "5:26",
            "both set the warm-up",
            "write null for one of the two",
        ),
        (
            "training: {bf16: true, fp16: true}", "5:30",
            "bf16 are both true", "write fp16: false",
        ),
        (
            "training: {metric_for_best_model: loss}", "5:35",
            f"{METRIC}: nothing is evaluated without custom.val_jsonl",
            "name validation records, or write metric_for_best_model: null",
        ),
        (
            "training: {report_to: [all]}", "5:12", "training.report_to: all would write TensorBoard twice",
            "name what you want, [wandb] say",
        ),
        (
            "  augmentation: {enabled: true}", "5:27", "custom.augmentation is enabled, but has no ops",
            "list them in ops, or extend augment_grounding",
        ),
        (
            "deepspeed: {enabled: true}", "5:22", "deepspeed.enabled is true, but deepspeed.config is missing",
            "write config: zero2, config: zero3 or a JSON file beside it",
        ),
        (
            "deepspeed: {enabled: true, config: zero5}", "5:36", "deepspeed.config: there is no zero5",
            "did you mean zero3?",
        ),
        (
            "deepspeed: {config: stage}", "5:21", "deepspeed.config: there is no stage",
            f"known: {', '.join(DEEPSPEED_CONFIGS)}; or write a path",
        ),
        (
            "launch: {node_rank: 1}", "5:21", "launch.node_rank: 1 is none of 1 node, which are counted from 0",
            "write a rank below launch.nnodes",
        ),
        (
            "launch: {nnodes: 2}", "5:18", "launch.nnodes: 2 nodes have nowhere to meet",
            "write launch.master_addr, the first node's address, or launch.rdzv_endpoint: HOST:PORT",
        ),
        (
            "launch: {nnodes: 2, master_addr: h, rdzv_endpoint: 'h:1'}", "5:34",
            "launch.master_addr and launch.rdzv_endpoint are two ways to meet", "write null for one of the two",
        ),
        (
            "launch: {node_rank: 2, nnodes: 2, master_addr: h}", "5:21",
            "launch.node_rank: 2 is none of 2 nodes, which are counted from 0", "write a rank below launch.nnodes",
        ),
        (
            "training: {gradient_checkpointing_kwargs: {a: {b: [1, -.inf]}}}", "5:",
            "not finite",
            "write a finite number",
        ),
        (
            "training: {gradient_checkpointing_kwargs: {a: .nan}}", "5:",
            "not finite", "write a finite number",
        ),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_told_at_its_line(added, at, what, do):
    (problem,) = problems_of(f"{MINIMAL}{added}\n")
    head, _, advice = problem.partition("\n  ")
    assert head.startswith(f"r.yaml:{at}")
    assert what in head
    assert do in advice


@pytest.mark.parametrize(
    "added",
    [
        "training: {packing: true}",
        "training: {packing: true}\ndata: {lazy_tokenize: false}",
        "data: {lazy_tokenize: true}",
        "training: {effective_batch_size: 8, per_device_train_batch_size: 2}",
        "training: {effective_batch_size: 8}\nlaunch: {nproc_per_node: 2, nnodes: 2, master_addr: h}",
        "training: {effective_batch_size: 7}\nlaunch: {nproc_per_node: auto}",
        "training: {gradient_accumulation_steps: 6}",
        "training: {vit_lr: 1e-4, aligner_lr: 1e-4, optimizer: multimodal}",
        *(
            f"training: {{lr_scheduler_type: {schedule}, lr_scheduler_kwargs: {{min_lr: 1e-6}}}}"
            for schedule in MIN_LR_SCHEDULES
        ),
        "training: {lr_scheduler_type: cosine_with_min_lr, learning_rate: 1e-4, lr_scheduler_kwargs: {min_lr: 1e-4}}",
        "training: {lr_scheduler_kwargs: {num_cycles: 1}}",
        "training: {warmup_steps: 10, warmup_ratio: 0}",
        "training: {warmup_steps: 0, warmup_ratio: 0.1}",
        "training: {bf16: false, fp16: true}",
        "training: {bf16: true, fp16: false}",
        "training: {report_to: [wandb, tensorboard]}",
        "  augmentation: {enabled: true, ops: [{name: hflip}]}",
        "  augmentation: {enabled: false, ops: []}",
        *(f"deepspeed: {{enabled: true, config: {name}}}" for name in DEEPSPEED_CONFIGS),
        "deepspeed: {enabled: true, config: ./stage}",
        "deepspeed: {enabled: true, config: stage.json}",
        "deepspeed: {enabled: true, config: {a: 1}}",
        "launch: {node_rank: 1, nnodes: 2, rdzv_endpoint: 'h:1'}",
        "training: {max_grad_norm: 1.0e+300, gradient_checkpointing_kwargs: {a: [1.5, x, true, {b: 2}]}}",
    ],
)
def test_what_keeps_the_rules_loads_without_a_word(added):
    assert notes_of(f"{MINIMAL}{added}\n") == []


@pytest.mark.parametrize(
    ("launch", "unread"),
    [
        ("master_addr: h, master_port: 1", ["master_addr", "master_port"]),
        ("rdzv_backend: c10d, rdzv_endpoint: 'h:1', rdzv_id: x", ["rdzv_endpoint", "rdzv_backend", "rdzv_id"]),
        ("nnodes: 2, master_addr: h, rdzv_id: x", ["rdzv_id"]),
        ("nnodes: 2, rdzv_endpoint: 'h:1', master_port: 1", ["master_port"]),
    ],
)
def test_ways_to_meet_that_are_not_taken_are_noted(launch, unread):
    notes = notes_of(f"{MINIMAL}launch: {{{launch}}}\n")
    assert sorted(note.partition("launch.")[2].split()[0] for note in notes) == sorted(unread)
    assert all("has no effect" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("custom: {user_prompt: x}", "custom.train_jsonl is missing"),
        ("custom: {train_jsonl: null}", "custom.train_jsonl is missing"),
        ("custom: {fusion_config: null}", "custom.train_jsonl is missing"),
    ],
)
def test_records_have_to_be_named(text, what):
    do = "name the training records there, or a mixture in custom.fusion_config"
    (problem,) = problems_of(f"global_max_length: 64\n{text}\n")
    assert problem.startswith("r.yaml:")
    assert problem.endswith(f": {what}\n  {do}")
    assert problems_of("global_max_length: 64\ncustom: {fusion_config: f.yaml}\n") == []


@pytest.mark.parametrize("word", PLACEHOLDERS)
def test_the_placeholder_that_ms_swift_wants_can_go(word):
    for value in (word, f"[{word}]"):
        (note,) = notes_of(f"{MINIMAL}data: {{dataset: {value}}}\n")
        assert note.endswith("data.dataset can go: vltool puts ms-swift's placeholder there")


LEAST = {
    "training.per_device_train_batch_size": 1, "training.per_device_eval_batch_size": 1,
    "training.gradient_accumulation_steps": 1, "training.logging_steps": 1,
    "template.max_pixels": 1, "tuner.lora_rank": 1, "training.learning_rate": 0,
    "training.weight_decay": 0, "data.dataloader_num_workers": 0,
}  # fmt: skip


@pytest.mark.parametrize("key", LEAST)
def test_counts_have_a_least_value(key):
    section, name = key.split(".")
    column = len(f"{section}: {{{name}: ") + 1
    for below in (LEAST[key] - 1, -7):
        told = problems_of(f"{MINIMAL}{section}: {{{name}: {below}}}\n")
        (problem,) = told
        assert problem.startswith(f"r.yaml:5:{column}: {key}: {below} is not a number of at least {LEAST[key]}\n")
    assert problems_of(f"{MINIMAL}{section}: {{{name}: {LEAST[key]}}}\n") == []
    assert problems_of(f"{MINIMAL}{section}: {{{name}: null}}\n") == []


@pytest.mark.parametrize("key", ["save_steps", "eval_steps"])
def test_steps_may_be_a_share_of_the_run_but_not_none(key):
    assert problems_of(f"{MINIMAL}training: {{{key}: 0.5}}\n") == []
    (told,) = problems_of(f"{MINIMAL}training: {{{key}: 0}}\n")
    assert f"training.{key}: 0 is not above 0" in told


def test_a_batch_of_nothing_is_one_problem():
    (told,) = problems_of(f"{MINIMAL}training: {{effective_batch_size: 6, per_device_train_batch_size: 0}}\n")
    assert "training.per_device_train_batch_size: 0 is not a number of at least 1" in told


@pytest.mark.parametrize(
    ("value", "told"),
    [('"2"', "the quotes make it text"), ("[2]", "a list"), ("true", "true"), ("2.0", "2.0"), ("{a: 1}", "a mapping")],
)
@pytest.mark.parametrize("key", ["training.per_device_train_batch_size", "template.max_pixels"])
def test_numbers_that_a_plan_reckons_with_are_whole(key, value, told):
    section, name = key.split(".")
    (problem,) = problems_of(f"{MINIMAL}{section}: {{{name}: {value}}}\n")
    assert problem.startswith("r.yaml:5:")
    assert f"{key}: " in problem
    assert "is not a whole number" in problem
    assert told in problem


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_number_is_finite(value):
    (problem,) = problems_of(f"{MINIMAL}training: {{max_grad_norm: {value}}}\n")
    assert problem.startswith(f"r.yaml:5:27: training.max_grad_norm: {value} is not a number")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize(
    "added",
    [
        "training: {gradient_checkpointing_kwargs: {x: VALUE}}",
        "training: {gradient_checkpointing_kwargs: {x: [1, {y: VALUE}]}}",
        "deepspeed: {enabled: true, config: {x: [VALUE]}}",
    ],
)
def test_a_number_inside_something_is_finite(added, value):
    (problem,) = problems_of(f"{MINIMAL}{added.replace('VALUE', value)}\n")
    assert problem.startswith("r.yaml:")
    assert "is not finite" in problem
    assert problems_of(f"{MINIMAL}{added.replace('VALUE', '1.5')}\n") == []


RANGES = {"training.warmup_ratio": 1, "training.adam_beta1": 1, "tuner.lora_dropout": 1, "training.seed": 2**32 - 1}


@pytest.mark.parametrize("key", RANGES)
def test_shares_and_seeds_have_a_greatest_value(key):
    section, name = key.split(".")
    assert problems_of(f"{MINIMAL}{section}: {{{name}: {RANGES[key]}}}\n") == []
    for beyond in (RANGES[key] + 1, -1):
        (problem,) = problems_of(f"{MINIMAL}{section}: {{{name}: {beyond}}}\n")
        assert f"{key}: {beyond} is not a number from 0 to {RANGES[key]}" in problem


@pytest.mark.parametrize(
    ("added", "key"),
    [
        ("training: {num_train_epochs: 0}", "training.num_train_epochs"),
        ("training: {max_steps: 0}", "training.max_steps"),
        ("training: {max_steps: -1, num_train_epochs: 0}", "training.num_train_epochs"),
    ],
)
def test_a_run_of_nothing_is_refused(added, key):
    (problem,) = problems_of(f"{MINIMAL}{added}\n")
    assert f"{key}: 0 trains nothing" in problem
    assert problems_of(f"{MINIMAL}training: {{max_steps: 3, num_train_epochs: 0}}\n") == []
    assert problems_of(f"{MINIMAL}training: {{num_train_epochs: 0.5}}\n") == []


def test_loading_ahead_needs_workers():
    ahead = MINIMAL + "data: {dataloader_num_workers: 0, dataloader_prefetch_factor: 2}\n"
    (problem,) = problems_of(ahead)
    assert "data.dataloader_prefetch_factor: there are no workers to load ahead" in problem
    assert problems_of(ahead.replace("workers: 0", "workers: 1")) == []


@pytest.mark.parametrize(("name", "do"), [("spda", "did you mean sdpa?"), ("zzz", "one of sdpa, eager, ")])
def test_attention_has_a_name(name, do):
    model = MINIMAL.replace("{model: /m}", "{model: /m, attn_impl: %s}")
    (problem,) = problems_of(model % name)
    assert problem.startswith("r.yaml:2:")
    assert name in problem.partition("\n")[0]
    assert f"\n  {do}" in problem
    for known in (*ATTENTION, "kernels-community/flash-attn"):
        assert problems_of(model % known) == []


@pytest.mark.parametrize("key", ["user_prompt", "system_prompt"])
def test_a_prompt_that_looks_like_another_file_is_noted(key):
    for text in ("prompt.md", "prompts/long"):
        (note,) = notes_of(f"{MINIMAL}  {key}: {text}\n")
        assert f"custom.{key}: {text} is the prompt itself" in note
    assert notes_of(f"{MINIMAL}  {key}: Say what you see, or/and where.\n") == []


def test_variables_have_names():
    for name in ("A.B", "2A", "A-B", "'A B'", "''"):
        (problem,) = problems_of(f"{MINIMAL}launch: {{env: {{{name}: x}}}}\n")
        assert problem.startswith("r.yaml:5:")
        assert "is no variable's name" in problem
    assert problems_of(f"{MINIMAL}launch: {{env: {{A_b2: x, _C: y}}}}\n") == []


def test_arguments_of_a_schedule_are_those_that_it_takes():
    def told(schedule, kwargs):
        return problems_of(f"{MINIMAL}training: {{lr_scheduler_type: {schedule}, lr_scheduler_kwargs: {kwargs}}}\n")

    for schedule, kwargs in {
        "cosine_with_min_lr": "{min_lr_rate: 0.1}", "cosine": "{num_cycles: 1}", "polynomial": "{power: 2.0}",
        "reduce_lr_on_plateau": "{min_lr: 1.0e-6}",
    }.items():  # fmt: skip
        assert told(schedule, kwargs) == []
    (problem,) = told("polynomial", "{powr: 2.0}")
    assert "takes no powr" in problem
    assert "did you mean power?" in problem
    (problem,) = told("cosine_with_min_lr", "{min_lr: x}")
    assert "min_lr: 'x' is no learning rate" in problem


def test_both_rates_by_tower_are_told():
    told = problems_of(f"{MINIMAL}training: {{vit_lr: 1e-4, aligner_lr: 1e-4}}\n")
    assert told == [
        f"r.yaml:5:20: training.vit_lr {NO_OPTIMIZER[0]}\n  {NO_OPTIMIZER[1]}",
        f"r.yaml:5:38: training.aligner_lr {NO_OPTIMIZER[0]}\n  {NO_OPTIMIZER[1]}",
    ]


@pytest.mark.parametrize(
    ("added", "at", "what", "do"),
    [
        ("training: {metric_for_best_model: accuracy}", 35, f"{METRIC}: evaluation logs no accuracy", EVERY_METRIC),
        (
            "training: {metric_for_best_model: eval_token_ac}", 35, f"{METRIC}: evaluation logs no eval_token_ac",
            "did you mean eval_token_acc?",
        ),
        (
            "training: {metric_for_best_model: llm_kd_loss}", 35, f"{METRIC}: evaluation logs no llm_kd_loss",
            "did you mean eval_loss?",
        ),
        (
            "training: {metric_for_best_model: llm_kd_loss}\nrlhf: {rlhf_type: gkd, eval_kd_batches: 0}", 35,
            f"{METRIC}: evaluation logs no llm_kd_loss", "did you mean eval_loss?",
        ),
        (
            "training: {metric_for_best_model: llm_kd_loss}\n"
            "rlhf: {rlhf_type: gkd, llm_kd_weight: 0, sft_alpha: 1, lmbda: 0}", 35,
            f"{METRIC}: evaluation logs no llm_kd_loss", "did you mean eval_loss?",
        ),
        (
            "training: {metric_for_best_model: vision_kd_loss}\nrlhf: {rlhf_type: gkd}", 35,
            f"{METRIC}: evaluation logs no vision_kd_loss", "did you mean eval_llm_kd_loss?",
        ),
        (
            "training: {metric_for_best_model: loss, save_strategy: epoch, eval_strategy: steps}", 56,
            f"{METRIC}: checkpoints are saved by epoch, but evaluated by steps",
            "write the same save_strategy and eval_strategy",
        ),
        (
            "training: {metric_for_best_model: loss, save_steps: 100, eval_steps: 40}", 53,
            f"training.save_steps: 100 is no multiple of eval_steps, 40, by which {METRIC} is known",
            "write save_steps: 80",
        ),
        (
            "training: {metric_for_best_model: loss, save_steps: 10, eval_steps: 50}", 53,
            f"training.save_steps: 10 is no multiple of eval_steps, 50, by which {METRIC} is known",
            "write save_steps: 50",
        ),
    ],
)  # fmt: skip
def test_a_best_checkpoint_that_cannot_be_chosen(added, at, what, do):
    (problem,) = problems_of(f"{VALIDATED}{added}\n")
    head, _, advice = problem.partition("\n  ")
    assert head.startswith(f"r.yaml:6:{at}: ")
    assert what in head
    assert do in advice


VISUAL = (
    "  visual_kd: {enabled: true, aligner: {enabled: true}}\nrlhf: {rlhf_type: gkd}\ntuner: {freeze_aligner: false}\n"
)


@pytest.mark.parametrize(
    "added",
    [
        *(
            f"training: {{metric_for_best_model: {prefix}{name}}}"
            for prefix in ("", "eval_", "eval/") for name in ("loss", "sft_loss", "token_acc", "entropy")
        ),
        "training: {metric_for_best_model: llm_kd_loss}\nrlhf: {rlhf_type: gkd}",
        "training: {metric_for_best_model: llm_kd_loss}\nrlhf: {rlhf_type: gkd, eval_kd_batches: all}",
        VISUAL + "training: {metric_for_best_model: vision_kd_loss}",
        "training: {metric_for_best_model: loss, save_strategy: epoch, eval_strategy: epoch}",
        "training: {metric_for_best_model: loss, save_steps: 100, eval_steps: 50}",
        "training: {metric_for_best_model: loss, save_steps: 100}",
        "training: {save_steps: 100, eval_steps: 40}",
    ],
)  # fmt: skip
def test_a_best_checkpoint_that_can_be_chosen(added):
    assert problems_of(f"{VALIDATED}{added}\n") == []


def test_a_mixture_may_hold_validation_records():
    text = "global_max_length: 64\ncustom: {fusion_config: f.yaml}\ntraining: {metric_for_best_model: loss}\n"
    assert problems_of(text) == []


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ("training: {packing: 5}\ndata: {lazy_tokenize: true}", "training.packing: 5"),
        ("training: {effective_batch_size: 7, per_device_train_batch_size: x}", "per_device_train_batch_size: 'x'"),
        ("training: {vit_lr: 1e-4, optimizer: adam}", "training.optimizer: 'adam' is not one of "),
        ("training: {lr_scheduler_type: cosine_min, lr_scheduler_kwargs: {min_lr: 1e-6}}", "'cosine_min' is not one"),
        ("training: {bf16: true, fp16: 1}", "training.fp16: 1"),
        ("deepspeed: {enabled: true, config: 5}", "deepspeed.config: 5"),
        ("launch: {node_rank: 2, nnodes: x}", "launch.nnodes: 'x'"),
    ],
)
def test_a_rule_says_nothing_of_a_value_that_is_itself_wrong(added, told):
    (problem,) = problems_of(f"{MINIMAL}{added}\n")
    assert told in problem


CONFLICTS = {
    "packing": ("training: {packing: true}", "data: {lazy_tokenize: true}"),
    "accumulation": ("training: {effective_batch_size: 4}", "training: {gradient_accumulation_steps: 4}"),
    "batch and its parts": ("training: {effective_batch_size: 5}", "training: {per_device_train_batch_size: 2}"),
    "batch and processes": ("training: {effective_batch_size: 5}", "launch: {nproc_per_node: 2}"),
    "batch and nodes": ("training: {effective_batch_size: 5}", "launch: {nnodes: 2, master_addr: h}"),
    "schedule": ("training: {lr_scheduler_type: cosine}", "training: {lr_scheduler_kwargs: {min_lr: 1.0e-6}}"),
    "floor": (
        "training: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 0.1}}",
        "training: {learning_rate: 0.01}",
    ),
    "warm-up": ("training: {warmup_steps: 3}", "training: {warmup_ratio: 0.1}"),
    "precision": ("training: {bf16: true}", "training: {fp16: true}"),
    "strategies": (
        "training: {metric_for_best_model: loss, save_strategy: epoch}\ncustom: {val_jsonl: /v.jsonl}",
        "training: {eval_strategy: steps}",
    ),
    "steps": (
        "training: {metric_for_best_model: loss, save_steps: 10}\ncustom: {val_jsonl: /v.jsonl}",
        "training: {eval_steps: 4}",
    ),
    "blocks": ("tuner: {last_vit_blocks: 2}", "tuner: {freeze_vit: true}"),
    "weights": ("rlhf: {rlhf_type: gkd, lmbda: 0, llm_kd_weight: 0}", "rlhf: {sft_alpha: 0}"),
    "nothing": ("tuner: {freeze_llm: true}", "tuner: {freeze_vit: true, freeze_aligner: true}"),
}  # fmt: skip
"""Two lines of two files that go badly together."""


@pytest.mark.parametrize("name", CONFLICTS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_conflict_is_told_in_the_file_that_was_merged_last(name, turned, tmp_path):
    below, above = CONFLICTS[name][::-1] if turned else CONFLICTS[name]
    (tmp_path / "lowest.yaml").write_text(MINIMAL)
    (tmp_path / "below.yaml").write_text(f"extends: lowest.yaml\n{below}\n")
    (problem,) = problems_of(f"extends: below.yaml\n{above}\n")
    assert problem.startswith("r.yaml:2:")


def test_what_rules_find_is_told_with_the_rest_in_the_order_of_lines(tmp_path):
    (tmp_path / "base.yaml").write_text("training: {warmup_steps: 1, warmup_ratio: 0.5}\n" + MINIMAL)
    told = problems_of(
        "extends: base.yaml\nlaunch: {node_rank: 1}\ntuner: {freeze_vit: x}\ndeepspeed: {enabled: true}\nmodle: {}\n"
    )
    assert [problem.partition(": ")[0] for problem in told] == [
        "r.yaml:2:21", "r.yaml:3:21", "r.yaml:4:22", "r.yaml:5:1", "base.yaml:1:26",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("effective", "each", "processes", "steps", "near"),
    [
        (16, 1, 1, 16, "16 or 17"), (16, 2, 4, 2, "16 or 24"), (8, 8, 1, 1, "8 or 16"), (7, 2, 1, None, "6 or 8"),
        (3, 2, 2, None, "4"), (9, 2, 2, None, "8 or 12"),
    ],
)  # fmt: skip
def test_accumulation(effective, each, processes, steps, near):
    assert accumulation_steps(effective, each, processes) == steps
    assert misfit(effective, each, processes)[1] == f"write effective_batch_size: {near}"
    for size in map(int, near.split(" or ")):
        assert accumulation_steps(size, each, processes)


def test_a_clear_recipe_is_what_was_written():
    recipe = written(f"{VALIDATED}training: {{metric_for_best_model: eval/loss, save_steps: 4, eval_steps: 2}}\n")
    assert recipe.swift["training"] == {"metric_for_best_model": "eval/loss", "save_steps": 4, "eval_steps": 2}
