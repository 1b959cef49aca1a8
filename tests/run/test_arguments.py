"""ms-swift's arguments: precision, batch, targets, and what a recipe may not say."""

from __future__ import annotations

import itertools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from planning import House, write_config

from vltool.run import unsupported
from vltool.run.arguments import NO_TARGETS, OURS, TunerPlan, last_blocks_regex, tuner_arguments


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return House(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "said", "want"),
    [
        (None, {}, ("bfloat16", True, False)),
        ("bfloat16", {}, ("bfloat16", True, False)),
        ("float32", {}, ("float32", False, False)),
        ("float32", {"bf16": True}, ("float32", True, False)),
        ("bfloat16", {"bf16": False}, ("bfloat16", False, False)),
    ],
)
def test_precision_is_always_said_and_never_twice(dtype, said, want, house):
    arguments = house.plan(model={"torch_dtype": dtype}, training={"bf16": None} | said).arguments
    assert (arguments["torch_dtype"], arguments["bf16"], arguments["fp16"]) == want


def test_the_base_recipe_in_float32(house):
    arguments = house.plan(model={"torch_dtype": "float32"}, training={"bf16": False}).arguments
    assert (arguments["bf16"], arguments["fp16"]) == (False, False)


def test_the_template_is_said_even_where_the_recipe_does_not(house):
    assert house.plan(template={"template": None}).arguments["template"] == "qwen3_vl"


@pytest.mark.parametrize(
    ("written", "want"),
    [("eval/token_acc", "eval_token_acc"), ("eval_token_acc", "eval_token_acc"), ("loss", "loss"), (None, None)],
)
def test_the_metric_of_the_best_model_has_two_spellings(written, want, house):
    assert house.plan(training={"metric_for_best_model": written}).arguments.get("metric_for_best_model") == want


@pytest.mark.parametrize(
    ("written", "want"),
    [
        (None, ["none"]), ("tensorboard", ["none"]), (["tensorboard"], ["none"]), ("none", ["none"]), ([], ["none"]),
        ("wandb", ["wandb"]), (["tensorboard", "wandb"], ["wandb"]), (5, [5]),
    ],
)  # fmt: skip
def test_tensorboard_is_ours_to_write(written, want, house):
    assert house.plan(training={"report_to": written}).arguments["report_to"] == want


@pytest.mark.parametrize(("together", "each", "steps"), [(16, 1, 16), (16, 2, 8), (6, 6, 1), (1, None, 1)])
def test_accumulation_makes_the_effective_batch(together, each, steps, house):
    plan = house.plan(training={"effective_batch_size": together, "per_device_train_batch_size": each})
    assert plan.arguments["gradient_accumulation_steps"] == steps


@pytest.mark.parametrize(("together", "each", "near"), [(7, 2, "6 or 8"), (3, 4, "4"), (9, 8, "8 or 16")])
def test_a_batch_that_cannot_be_made_offers_the_nearest(together, each, near, house):
    (problem,) = house.refused(training={"effective_batch_size": together, "per_device_train_batch_size": each})
    assert problem.what.startswith(f"training.effective_batch_size: {together} is no multiple of {each} samples")
    assert problem.do == f"set it to {near}"
    assert str(problem.where).startswith("mine.yaml:1:")


def test_accumulation_is_said_once(house):
    (problem,) = house.refused(training={"gradient_accumulation_steps": 16})
    assert "the same thing twice (the latter at mine.yaml:1:" in problem.what
    plan = house.plan(training={"gradient_accumulation_steps": 3, "effective_batch_size": None})
    assert plan.arguments["gradient_accumulation_steps"] == 3
    assert plan.origins["gradient_accumulation_steps"].startswith("mine.yaml:1:")
    plan = house.plan(training={"effective_batch_size": None})
    assert "gradient_accumulation_steps" not in plan.arguments


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("training", "per_device_train_batch_size", 0), ("training", "per_device_train_batch_size", "2"),
        ("training", "per_device_train_batch_size", [2]), ("training", "per_device_train_batch_size", True),
        ("training", "per_device_train_batch_size", 2.0), ("template", "max_pixels", "1_000_000"),
        ("template", "max_pixels", 1e6), ("template", "max_pixels", -1), ("template", "max_pixels", {"a": 1}),
    ],
)  # fmt: skip
def test_numbers_that_the_plan_reckons_with_are_whole(section, name, value, house):
    (problem,) = house.refused(**{section: {name: value}})
    assert problem.what.startswith(f"{section}.{name}: {value!r} is not a whole number")
    assert str(problem.where).startswith("mine.yaml:1:")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "[1, .nan]", "{a: {b: .inf}}"])
def test_numbers_that_json_cannot_hold_are_refused(value, house):
    recipe = house.folder / "mine.yaml"
    recipe.write_text(f"extends: base\ntraining:\n  max_grad_norm: {value}\n")
    (problem,) = house.refused(str(recipe))
    assert problem.what.startswith("training.max_grad_norm: ")
    assert (problem.where.line, problem.where.column) == (3, 18 if value[0] in ".-" else 3)


@pytest.mark.parametrize("name", sorted(OURS - {"dataset"}))
def test_arguments_that_vltool_sets_are_not_the_recipes(name, house):
    (problem,) = house.refused(training={name: "x"})
    assert problem.what == f"training.{name} is set by vltool itself"
    assert str(problem.where).startswith("mine.yaml:1:")


def test_an_argument_in_two_sections_has_one_value(house):
    (problem,) = house.refused(data={"seed": 43})
    assert problem.what.startswith("training.seed was given another value at mine.yaml:1:")
    assert house.plan(data={"seed": 42}).arguments["seed"] == 42


# Targets.


def test_no_targets_is_pefts_word_for_it(house):
    assert house.plan("stage1_aligner_full").arguments["target_regex"] == NO_TARGETS
    assert house.plan("stage1_aligner_full").tuner.target_regex == "^$"
    # Importing peft imports torch; its constants are read instead.
    peft = find_spec("peft")
    if peft is None or peft.origin is None:
        pytest.skip("peft is not installed")
    text = (Path(peft.origin).parent / "utils" / "constants.py").read_text()
    assert re.search('^DUMMY_TARGET_MODULES = "(.*)"$', text, re.M).group(1) == NO_TARGETS


def test_targets_of_the_operators_own(house):
    tuner = {"target_regex": r".*q_proj", "last_vit_blocks": 2, "freeze_vit": False}
    assert house.plan(tuner=tuner).arguments["target_regex"] == ".*q_proj"
    arguments = house.plan(tuner={"target_modules": ["q_proj", "v_proj"]}).arguments
    assert arguments["target_modules"] == ["q_proj", "v_proj"]
    assert "target_regex" not in arguments


def test_targets_beside_last_vit_blocks_would_be_lost_and_are_refused(house):
    tuner = {"target_modules": ["q_proj"], "last_vit_blocks": 2}
    (problem,) = house.refused(tuner=tuner | {"freeze_vit": False})
    assert problem.what.startswith("tuner.target_modules: ")
    house.plan(tuner=tuner)
    house.plan(tuner=tuner | {"freeze_vit": False, "target_regex": "x"})
    house.plan(tuner=tuner | {"freeze_vit": False, "tuner_type": "full"})


VISION = ["attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"]
LANGUAGE = [
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
]


def linear_modules(depth):
    """Linear modules of Qwen3-VL: tower -> names; of the vision blocks tower and number."""
    merger = [f"model.visual.merger.linear_fc{n}" for n in (1, 2)]
    deepstack = [f"model.visual.deepstack_merger_list.{level}.linear_fc{n}" for level in range(3) for n in (1, 2)]
    return {
        "aligner": merger + deepstack,
        "language": [f"model.language_model.layers.{layer}.{name}" for layer in (0, 9, 10, 35) for name in LANGUAGE],
        "vision": {block: [f"model.visual.blocks.{block}.{name}" for name in VISION] for block in range(depth)},
    }


OTHERS = [
    "model.visual", "model.visual.patch_embed.proj", "model.visual.pos_embed", "model.visual.merger",
    "model.visual.merger.norm", "model.visual.deepstack_merger_list.0", "model.visual.deepstack_merger_list.0.norm",
    "model.visual.blocks.3", "model.visual.blocks.3.norm1", "model.visual.blocks.3.attn", "model.visual.blocks.3.mlp",
    "model.visual.blocks.33.attn.qkv", "model.language_model.embed_tokens", "model.language_model.norm",
    "model.language_model.layers.0.self_attn", "model.language_model.layers.0.self_attn.q_norm",
    "model.language_model.layers.0.mlp", "model.language_model.layers.0.mlp.gate",
    "model.language_model.layers.0.mlp.experts", "model.language_model.layers.0.mlp.experts.gate_up_proj",
    "model.language_model.layers.0.mlp.act_fn", "lm_head",
]  # fmt: skip


@pytest.mark.parametrize("depth", [4, 24, 27])
@pytest.mark.parametrize(("freeze_llm", "freeze_aligner"), [*itertools.product([False, True], repeat=2)])
def test_last_vit_blocks_reach_exactly_their_linear_modules(depth, freeze_llm, freeze_aligner, house):
    write_config(house.base, depth=depth)
    modules = linear_modules(depth)
    everything = [*modules["aligner"], *modules["language"], *itertools.chain(*modules["vision"].values()), *OTHERS]
    for last in {1, 2, depth // 2, depth - 1}:
        tuner = {
            "freeze_vit": False, "freeze_llm": freeze_llm, "freeze_aligner": freeze_aligner, "last_vit_blocks": last,
        }  # fmt: skip
        plan = house.plan(tuner=tuner) if last in (1, depth - 1) else None
        pattern = last_blocks_regex(freeze_llm, freeze_aligner, depth - last, depth)
        if plan is not None:
            assert plan.tuner.frozen_vit_blocks == depth - last
            assert plan.arguments["target_regex"] == plan.tuner.target_regex == pattern
        want = {name for block in range(depth - last, depth) for name in modules["vision"][block]}
        want |= set() if freeze_aligner else set(modules["aligner"])
        want |= set() if freeze_llm else set(modules["language"])
        assert {name for name in everything if re.fullmatch(pattern, name)} == want


@pytest.mark.parametrize("tuner", [{"last_vit_blocks": 4}, {"last_vit_blocks": 99}, {"last_vit_blocks": None}])
def test_all_blocks_need_no_pattern(tuner, house):
    write_config(house.base, depth=4)
    plan = house.plan(tuner={"freeze_vit": False} | tuner)
    assert plan.tuner.frozen_vit_blocks == 0
    assert "target_regex" not in plan.arguments
    assert house.plan(tuner={"freeze_vit": True, "last_vit_blocks": 1}).tuner.frozen_vit_blocks == 0


def test_full_tuning_freezes_the_early_blocks_by_name(house):
    write_config(house.base, depth=12)
    full = {"tuner_type": "full", "freeze_vit": False, "last_vit_blocks": 10}
    plan = house.plan(tuner=full)
    assert plan.arguments["freeze_parameters"] == [
        "model.visual.patch_embed", "model.visual.pos_embed", "model.visual.blocks.0.",
        "model.visual.blocks.1.",
    ]  # fmt: skip
    assert "target_regex" not in plan.arguments
    # The dot keeps blocks.1. from freezing blocks.10 and blocks.11.
    frozen = tuple(plan.arguments["freeze_parameters"])
    assert not "model.visual.blocks.10.attn.qkv.weight".startswith(frozen)
    assert house.plan(tuner=full).tuner.target_regex is None
    assert "freeze_parameters" not in house.plan(tuner=full | {"last_vit_blocks": 12}).arguments


def test_tuner_arguments_say_what_the_plan_says():
    plan = TunerPlan(
        tuner_type="lora", freeze_llm=True, freeze_vit=False, freeze_aligner=True, target_modules=("a", "b"),
        target_regex="", modules_to_save=("c",), frozen_vit_blocks=0,
    )  # fmt: skip
    assert tuner_arguments(plan) == {
        "tuner_type": "lora", "freeze_llm": True, "freeze_vit": False, "freeze_aligner": True,
        "target_modules": ["a", "b"], "modules_to_save": ["c"], "target_regex": NO_TARGETS,
    }  # fmt: skip


# What cannot be done yet.


def other_than(allowed):
    """A value of the same kind that is not allowed."""
    first = allowed[0]
    if isinstance(first, bool):
        return not first
    if isinstance(first, int | float):
        return first + 1
    return ["other"] if isinstance(first, list) else "other"


def section_of(name):
    """Where a recipe would write it; any section of ms-swift's will do."""
    if name == "template":
        return "template"
    if name == "torch_dtype":
        return "model"
    return "tuner" if name.startswith(("lora", "use_", "init", "lisa", "tuner", "target")) else "training"


@pytest.mark.parametrize("name", unsupported.NO_EFFECT)
def test_an_argument_that_could_do_nothing_is_refused_whatever_its_value(name, house):
    section = "template" if name in ("system", "norm_bbox") else "data"
    (problem,) = house.refused(**{section: {name: "x"}})
    assert problem.what == f"{section}.{name} has no effect in vltool"
    assert problem.do
    assert str(problem.where).startswith("mine.yaml:1:")


@pytest.mark.parametrize("key", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("word", unsupported.WHOLE_CLASSES)
def test_modules_by_their_class_are_refused(key, word, house):
    (problem,) = house.refused(tuner={key: [word]})
    assert problem.what == f"tuner.{key}: this version of vltool cannot do {word} yet"


CASES = [(name, value) for name, allowed in unsupported.ARGUMENTS.items() for value in allowed]


@pytest.mark.parametrize("name", unsupported.ARGUMENTS)
def test_an_argument_that_is_not_honoured_is_refused_at_its_line(name, house):
    value = other_than(unsupported.ARGUMENTS[name])
    assert value not in unsupported.ARGUMENTS[name]
    section = section_of(name)
    (problem,) = house.refused(**{section: {name: value}})
    assert problem.what == f"{section}.{name}: this version of vltool cannot do {name}: {value!r} yet"
    assert problem.do
    assert str(problem.where).startswith("mine.yaml:1:")


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={value}" for name, value in CASES])
def test_an_argument_is_accepted_at_the_values_that_are_honoured(name, value, house):
    plan = house.plan(**{section_of(name): {name: value}})
    assert plan.arguments.get(name) == value


FEATURES = {
    "custom.fusion_config": ({"custom": {"fusion_config": "f.yaml", "train_jsonl": None}}, {}),
    "custom.augmentation.enabled": (
        {"custom": {"augmentation": {"enabled": True}}},
        {"custom": {"augmentation": {"ops": [{"name": "hflip"}]}}},
    ),
    "custom.visual_kd.enabled": (
        {"custom": {"visual_kd": {"enabled": True}}},
        {"custom": {"visual_kd": {"vit": {"weight": 2}}}},
    ),
    "training.packing": ({"training": {"packing": True}}, {"training": {"packing": False}}),
    "training.save_delay_steps": ({"training": {"save_delay_steps": 1}}, {"training": {"save_delay_steps": 0}}),
    "training.save_last_epoch": ({"training": {"save_last_epoch": False}}, {"training": {"save_last_epoch": True}}),
    "deepspeed.enabled": (
        {"deepspeed": {"enabled": True, "config": "zero2"}},
        {"deepspeed": {"enabled": False, "config": "zero2"}},
    ),
    "launch.nproc_per_node": ({"launch": {"nproc_per_node": "auto"}}, {"launch": {"nproc_per_node": 1}}),
    "launch.nnodes": ({"launch": {"nnodes": 2}}, {"launch": {"nnodes": 1}}),
    "launch.node_rank": ({"launch": {"node_rank": 1}}, {"launch": {"node_rank": 0}}),
    "launch.master_addr": ({"launch": {"master_addr": "h"}}, {"launch": {"master_addr": None}}),
    "launch.master_port": ({"launch": {"master_port": 29500}}, {}),
    "launch.rdzv_backend": ({"launch": {"rdzv_backend": "c10d"}}, {}),
    "launch.rdzv_endpoint": ({"launch": {"rdzv_endpoint": "h:1"}}, {}),
    "launch.rdzv_id": ({"launch": {"rdzv_id": "1"}}, {}),
    "tuner.resume_from_checkpoint": ({"tuner": {"resume_from_checkpoint": "x"}}, {}),
    "tuner.merge_previous": ({"tuner": {"merge_previous": "x"}}, {}),
    "tuner.target_modules": (
        {"tuner": {"target_modules": ["q_proj"], "freeze_vit": False, "last_vit_blocks": 2}},
        {"tuner": {"target_modules": ["q_proj"]}},
    ),
    "tuner.tuner_type": ({"tuner": {"tuner_type": "adalora"}}, {"tuner": {"tuner_type": "full"}}),
    "quantization": ({"quantization": {"quant_bits": 4}}, {"quantization": {}}),
    "rlhf.seq_kd": ({"rlhf": {"seq_kd": True}}, {"rlhf": {"seq_kd_ratio": 0.5}}),
    "rlhf.lmbda": ({"rlhf": {"lmbda": 0.1}}, {"rlhf": {"temperature": 0.5, "max_completion_length": 9}}),
    "rlhf.teacher_cache": ({"rlhf": {"teacher_cache": "x"}}, {}),
    "rlhf.teacher_completions_cache": ({"rlhf": {"teacher_completions_cache": "x"}}, {}),
    "rlhf.offload_teacher_model": ({"rlhf": {"offload_teacher_model": True}}, {}),
}
"""Key -> sections that ask for what cannot be done, and sections that look alike and are accepted."""


def distilling(sections):
    if "rlhf" not in sections:
        return sections
    return {"rlhf": {"rlhf_type": "gkd", "sft_alpha": 1.0, "lmbda": 0.0} | sections["rlhf"]}


@pytest.mark.parametrize("key", FEATURES)
def test_a_feature_that_is_not_built_is_refused_at_its_line(key, house):
    asked, alike = FEATURES[key]
    (problem,) = house.refused(**distilling(asked))
    assert problem.what.startswith(f"{key}: this version of vltool cannot do ")
    assert problem.do
    assert str(problem.where).startswith("mine.yaml:1:")
    house.plan(**distilling(alike))


def test_every_feature_that_is_refused_has_its_case():
    from inspect import getsource

    named = set(re.findall(r'"((?:[a-z]+\.)[a-z_.]+|quantization)",\s', getsource(unsupported.problems)))
    assert named == FEATURES.keys()


def test_settings_of_distillation_mean_nothing_without_it(house):
    house.plan(rlhf={"seq_kd": True, "lmbda": 0.5, "teacher_cache": "x"})
