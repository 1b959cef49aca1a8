"""ms-swift's arguments: precision, batch, targets, and what a recipe may not say."""

from __future__ import annotations

import itertools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from planning import House, write_config

from vltool.errors import Problem
from vltool.recipe.schema import OWN, REFUSED
from vltool.recipe.swift_keys import swift_table
from vltool.recipe.tuner_rules import BY_CLASS
from vltool.run import unsupported
from vltool.run.arguments import ALWAYS, PEFT_NO_TARGETS, TunerPlan, last_blocks_regex, swift_arguments, tuner_arguments


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
    plan = house.plan(training={"metric_for_best_model": written}, custom={"val_jsonl": str(house.val)})
    assert plan.arguments.get("metric_for_best_model") == want


@pytest.mark.parametrize(
    ("written", "want"),
    [
        (None, ["none"]), (["tensorboard"], ["none"]), (["none"], ["none"]), ([], ["none"]), (["wandb"], ["wandb"]),
        (["tensorboard", "wandb"], ["wandb"]),
    ],
)  # fmt: skip
def test_tensorboard_is_ours_to_write(written, want, house):
    assert house.plan(training={"report_to": written}).arguments["report_to"] == want


@pytest.mark.parametrize(("together", "each", "steps"), [(16, 1, 16), (16, 2, 8), (6, 6, 1), (1, None, 1)])
def test_accumulation_makes_the_effective_batch(together, each, steps, house):
    plan = house.plan(training={"effective_batch_size": together, "per_device_train_batch_size": each})
    assert plan.arguments["gradient_accumulation_steps"] == steps


def test_processes_of_the_host_decide_what_accumulation_comes_to(house):
    """The rule of recipes counts one process where the host decides; the plan has the last word."""
    recipe = house.recipe(training={"effective_batch_size": 6}, launch={"nproc_per_node": "auto"})
    problems: list[Problem] = []
    assert swift_arguments(recipe, problems, processes=3)[0]["gradient_accumulation_steps"] == 2
    assert problems == []
    assert swift_arguments(recipe, problems, processes=4)[0]["gradient_accumulation_steps"] is None
    (problem,) = problems
    assert problem.what == "training.effective_batch_size: 6 is no multiple of 4 samples (1 a process x 4 processes)"
    assert problem.do == "write effective_batch_size: 4 or 8"
    assert str(problem.where).startswith("mine.yaml:1:")


def test_accumulation_is_the_recipes_or_comes_of_the_batch(house):
    plan = house.plan(training={"gradient_accumulation_steps": 3, "effective_batch_size": None})
    assert plan.arguments["gradient_accumulation_steps"] == 3
    assert plan.origins["gradient_accumulation_steps"].startswith("mine.yaml:1:")
    plan = house.plan(training={"effective_batch_size": None})
    assert "gradient_accumulation_steps" not in plan.arguments


def test_the_seed_of_the_order_of_records_is_the_seed(house):
    assert house.plan().arguments["data_seed"] == house.plan().arguments["seed"] == 42
    assert house.plan(training={"seed": 7}).arguments["data_seed"] == 7
    assert house.plan(data={"data_seed": 8}).arguments["data_seed"] == 8


@pytest.mark.parametrize("name", ALWAYS)
def test_arguments_of_every_run_are_not_the_recipes(name, house):
    """What the bridge hands over last would silently win over a recipe's line."""
    key = swift_table().keys[name]
    value = {"bool": True, "float": 0.5, "list[str]": ["x"]}[key.type[0]]
    (problem,) = house.refused(**{key.section: {name: value}})
    assert problem.what.startswith(f"{key.section}.{name}")
    assert problem.do
    assert str(problem.where).startswith("mine.yaml:1:")
    assert name not in house.plan().arguments


# Targets.


def test_no_targets_is_pefts_word_for_it(house):
    assert house.plan("stage1_aligner_full").arguments["target_regex"] == PEFT_NO_TARGETS
    assert house.plan("stage1_aligner_full").tuner.target_regex == "^$"
    # Importing peft imports torch; its constants are read instead.
    peft = find_spec("peft")
    if peft is None or peft.origin is None:
        pytest.skip("peft is not installed")
    text = (Path(peft.origin).parent / "utils" / "constants.py").read_text()
    assert re.search('^DUMMY_TARGET_MODULES = "(.*)"$', text, re.M).group(1) == PEFT_NO_TARGETS


def test_targets_of_the_operators_own(house):
    tuner = {"target_regex": r".*q_proj", "freeze_vit": False}
    assert house.plan(tuner=tuner).arguments["target_regex"] == ".*q_proj"
    arguments = house.plan(tuner={"target_modules": ["q_proj", "v_proj"]}).arguments
    assert arguments["target_modules"] == ["q_proj", "v_proj"]
    assert "target_regex" not in arguments


def test_targets_beside_last_vit_blocks_would_be_lost_and_are_refused(house):
    tuner = {"target_modules": ["q_proj"], "last_vit_blocks": 2}
    (problem,) = house.refused(tuner=tuner | {"freeze_vit": False})
    assert problem.what.startswith("tuner.target_modules: ")
    house.plan(tuner={"target_modules": ["q_proj"]})
    house.plan(tuner={"target_modules": ["q_proj"], "freeze_vit": False})
    house.plan(tuner={"target_modules": ["all-linear"], "last_vit_blocks": 2, "freeze_vit": False})


def test_names_beside_all_linear_would_be_dropped_and_are_refused(house):
    (problem,) = house.refused(tuner={"target_modules": ["all-linear", "lm_head"]})
    assert problem.what.startswith("tuner.target_modules: ms-swift takes all-linear alone")
    assert str(problem.where).startswith("mine.yaml:1:")


FULL = {"tuner_type": "full"} | dict.fromkeys(("target_modules", "lora_rank", "lora_alpha", "lora_dropout"))
"""Full tuning over `base`, whose adapter's keys it would not read."""
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


def test_full_tuning_freezes_the_early_blocks_by_name(house):
    write_config(house.base, depth=12)
    full = FULL | {"freeze_vit": False, "last_vit_blocks": 10}
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
        "target_modules": ["a", "b"], "modules_to_save": ["c"], "target_regex": PEFT_NO_TARGETS,
    }  # fmt: skip


# What cannot be done yet.

OURS = {key: section for section, struct in OWN.items() for key in struct.__struct_fields__}
NOT_HONOURED = sorted(
    name
    for name, key in swift_table().keys.items()
    if key.section != "rlhf"
    and name not in unsupported.HONOURED | unsupported.PARTLY.keys() | REFUSED.keys() | OURS.keys()
)
"""Keys of ms-swift's that a recipe may write, and that change nothing in a run."""


def test_what_is_honoured_is_named_once():
    assert not unsupported.HONOURED & unsupported.PARTLY.keys()
    assert not (unsupported.HONOURED | unsupported.PARTLY.keys()) & (OURS.keys() | REFUSED.keys())
    assert unsupported.HONOURED | unsupported.PARTLY.keys() <= swift_table().keys.keys()


@pytest.mark.parametrize("key", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("word", BY_CLASS)
def test_modules_by_their_class_are_refused(key, word, house):
    (problem,) = house.refused(tuner={key: [word]})
    assert problem.what == f"tuner.{key}: this version of vltool cannot do {word} yet"


OTHERS_THAN = {"bool": (True, False), "int": (3, 4), "float": (0.25, 0.5), "str": ("x", "y")}
"""Two values of each simple kind, of which one at least is no default."""
TUNERS_OF_THEIR_OWN = ("adapter_", "llamapro_", "vera_", "reft_")
"""How keys begin that lora, the tuner of `base`, never reads, so that a rule of recipes objects to them first."""


def another_value(key):
    """A value that the key takes and that is not its default."""
    if key.choices:
        return next(choice for choice in key.choices if choice != key.default)
    kind = next((kind for kind in key.type if kind in OTHERS_THAN), key.type[0])
    if kind in OTHERS_THAN:
        return next(value for value in OTHERS_THAN[kind] if value != key.default)
    item = {
        "dict": {"x": 1},
        "list[str]": ["x"],
        "list[int]": [3],
        "list[float]": [0.5],
        "dict[str, bool]": {"x": True},
    }
    return item[kind]


def read_by_the_tuner(name):
    return not name.startswith(TUNERS_OF_THEIR_OWN) and not name.startswith(
        ("freeze_parameters", "trainable_parameters")
    )


COMPANY = {"quantization": {"quant_method": "bnb", "quant_bits": 4}}
"""Section -> keys without which its others mean nothing."""


@pytest.mark.parametrize("name", NOT_HONOURED)
def test_a_key_that_is_not_honoured_is_refused_at_its_line(name, house):
    key = swift_table().keys[name]
    value = another_value(key)
    assert not unsupported.honoured(name, value)
    chosen = COMPANY.get(key.section, {}) if read_by_the_tuner(name) else {"tuner_type": "lora"}
    (problem,) = house.refused(**{key.section: chosen | {name: value}})
    dotted = f"{key.section}.{name}"
    if not read_by_the_tuner(name):
        assert problem.what.startswith(f"{dotted} means nothing to tuner_type: lora")
    else:
        assert problem.what == f"{dotted}: this version of vltool cannot do {name}: {value!r} yet"
    assert problem.do
    assert str(problem.where).startswith("mine.yaml:1:")


DEFAULTS = [
    name for name in NOT_HONOURED
    if swift_table().keys[name].default is not None
    and swift_table().keys[name].section != "quantization"
    and read_by_the_tuner(name)
]  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_key_that_is_not_honoured_may_say_its_default(name, house):
    key = swift_table().keys[name]
    assert house.plan(**{key.section: {name: key.default}}).arguments[name] == key.default


PARTS = [(name, value) for name, values in unsupported.PARTLY.items() for value in values]


@pytest.mark.parametrize(("name", "value"), PARTS, ids=[f"{name}={value}" for name, value in PARTS])
def test_a_key_that_is_partly_honoured_is_accepted_at_those_values(name, value, house):
    section = swift_table().keys[name].section
    assert house.plan(**{section: COMPANY.get(section, {}) | {name: value}}).arguments[name] == value


@pytest.mark.parametrize("name", unsupported.PARTLY)
def test_a_key_that_is_partly_honoured_is_refused_at_others(name, house):
    key = swift_table().keys[name]
    kind = OTHERS_THAN.get(key.type[0], ())
    value = next(value for value in (*key.choices, *kind) if value not in unsupported.PARTLY[name])
    sections = {"training": {"bf16": False}}
    sections[key.section] = sections.get(key.section, COMPANY.get(key.section, {})) | {name: value}
    problems = house.refused(**sections)
    assert [problem.what for problem in problems] == [
        f"{key.section}.{name}: this version of vltool cannot do {name}: {value!r} yet"
    ]
    assert str(problems[0].where).startswith("mine.yaml:1:")


@pytest.mark.parametrize("name", sorted(unsupported.HONOURED))
def test_a_key_that_is_honoured_is_never_refused_by_what_cannot_be_done(name, house):
    key = swift_table().keys[name]
    assert unsupported.honoured(name, key.default)
    assert unsupported.honoured(name, object()), "whatever its value"


VISUAL = {"enabled": True, "vit": {"enabled": True}}
FEATURES = {
    "training.packing": ({"training": {"packing": True}}, {"training": {"packing": False}}),
    "tuner.init_weights": (
        {"tuner": {"tuner_type": "adalora", "lora_rank": None, "use_dora": None, "init_weights": "pissa"}},
        {"tuner": {"init_weights": "pissa"}},
    ),
    "deepspeed.enabled": (
        {
            "deepspeed": {"enabled": True, "config": "zero2"},
            "tuner": {"tuner_type": "adalora", "lora_rank": None, "use_dora": None},
        },
        {"deepspeed": {"enabled": True, "config": "zero2"}},
    ),
    "tuner.target_modules": (
        {"tuner": {"target_modules": ["q_proj"], "freeze_vit": False, "last_vit_blocks": 2}},
        {"tuner": {"target_modules": ["q_proj"]}},
    ),
    "tuner.tuner_type": (
        {"tuner": {"tuner_type": "vera", "lora_rank": None, "lora_alpha": None, "lora_dropout": None}},
        {"tuner": FULL},
    ),
    "deepspeed.config": (
        {"deepspeed": {"enabled": True, "config": "zero3"}} | COMPANY,
        {"deepspeed": {"enabled": True, "config": "zero3"}, "rlhf": {"lmbda": 0.1, "seq_kd": True}},
    ),
}
"""Key -> sections that ask for what cannot be done, and sections that look alike and are accepted."""


BESIDE = {
    "launch.node_rank": {"launch.nnodes"},
}
"""Keys without which another would be a mistake, and that cannot be done yet either."""


def distilling(sections):
    if "rlhf" not in sections:
        return sections
    return sections | {"rlhf": {"rlhf_type": "gkd", "sft_alpha": 1.0, "lmbda": 0.0} | sections["rlhf"]}


@pytest.mark.parametrize("key", FEATURES)
def test_a_feature_that_is_not_built_is_refused_at_its_line(key, house):
    asked, alike = FEATURES[key]
    problems = {problem.what.partition(":")[0]: problem for problem in house.refused(**distilling(asked))}
    problem = problems.pop(key)
    assert problems.keys() == BESIDE.get(key, set())
    assert problem.what.startswith(f"{key}: this version of vltool cannot do ")
    assert problem.do
    assert str(problem.where).startswith("mine.yaml:1:")
    house.plan(**distilling(alike))


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("tuner.tuner_type", {"tuner": FULL}),
        ("tuner.init_weights", {"tuner": {"init_weights": "pissa"}}),
        ("deepspeed.config", {"deepspeed": {"enabled": True, "config": "zero3"}}),
    ],
)
def test_a_packed_base_has_its_limits(key, sections, house):
    (problem,) = house.refused(**sections, **COMPANY)
    assert problem.what.startswith(f"{key}: this version of vltool cannot do ")
    assert "4-bit base" in problem.what
    assert house.plan(**COMPANY).arguments["quant_bits"] == 4


def test_experts_are_not_packed(house):
    write_config(house.base, model_type="qwen3_vl_moe")
    (problem,) = house.refused(**COMPANY)
    assert "the experts" in problem.what
    assert str(problem.where).startswith("mine.yaml:1:")


def test_every_feature_that_is_refused_has_its_case():
    from inspect import getsource

    named = set(re.findall(r'"((?:[a-z]+\.)[a-z_.]+|quantization)",\s', getsource(unsupported.problems)))
    assert named == FEATURES.keys()


def test_settings_of_distillation_mean_nothing_without_it(house):
    house.plan(rlhf={"seq_kd": True, "lmbda": 0.5, "teacher_cache": "x"})
