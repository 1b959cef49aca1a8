"""Recipe and host to a plan: what is in it, who teaches, where the run goes, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from planning import NOW, WHOLE, House, write_checkpoint, write_config

from vltool.recipe.resolve import file_of
from vltool.recipe.schema import OWN
from vltool.run.plan import SILENT_RESIZERS, RunPlan, make_plan

GKD = {"rlhf_type": "gkd", "sft_alpha": 1.0, "lmbda": 0.0}
PLANNED = WHOLE


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return House(tmp_path)


def test_there_are_shipped_recipes_to_plan():
    assert len(PLANNED) >= 6


@pytest.mark.parametrize("name", PLANNED)
def test_a_shipped_recipe_is_planned_as_it_is(name, house):
    plan = house.plan(name, env={"VLTOOL_VAL_JSONL": str(house.val)})
    assert (plan.recipe, plan.model, plan.model_type, plan.resume) == (name, str(house.base), "qwen3_vl", None)
    assert plan.run_dir == str(house.folder / "runs" / name / "20310203T040506Z")
    assert not Path(plan.run_dir).exists()
    assert [part.jsonl for part in plan.data.train + plan.data.val] == [str(house.train), str(house.val)]
    assert (plan.data.max_length, plan.data.max_pixels, plan.data.emit_norm) == (4096, 1048576, "norm1000")
    find = "Find every object in the image and answer with one JSON object. "
    assert plan.data.user_prompt.startswith("Say in one sentence " if name == "summary" else find)
    assert plan.data.use_summary == (name == "summary")
    assert plan.data.preflight
    want = {
        "model": str(house.base), "model_type": "qwen3_vl", "template": "qwen3_vl", "output_dir": plan.run_dir,
        "max_length": 4096, "max_model_len": 4096, "max_pixels": 1048576, "torch_dtype": "bfloat16", "bf16": True,
        "fp16": False, "lora_rank": 32, "lora_alpha": 64, "lora_dropout": 0.0, "gradient_accumulation_steps": 16,
        "lr_scheduler_kwargs": {"min_lr": 1e-6}, "report_to": ["none"], "eval_strategy": "steps", "eval_steps": 200,
        "seed": 42,
    }  # fmt: skip
    assert {key: plan.arguments.get(key) for key in want} == want
    assert list(plan.arguments) == sorted(plan.arguments)
    assert not plan.arguments.keys() & {"dataset", "effective_batch_size", "train_jsonl", "resume_from_checkpoint"}


@pytest.mark.parametrize("name", PLANNED)
def test_every_argument_of_the_recipe_says_which_line_wrote_it(name, house):
    plan = house.plan(name)
    for argument in plan.origins.keys() - {"gradient_accumulation_steps", "max_model_len", "max_length"}:
        file, line, column = plan.origins[argument].rsplit(":", 2)
        text = file_of(file).read_text().splitlines()[int(line) - 1]
        assert argument in text, (argument, plan.origins[argument])
        assert int(column) >= 3
    file, line, _ = plan.origins["gradient_accumulation_steps"].rsplit(":", 2)
    assert "effective_batch_size: 16" in file_of(file).read_text().splitlines()[int(line) - 1]
    rate = "base" if name == "summary" else name.partition("_gkd")[0]
    assert f"{rate}.yaml:" in plan.origins["learning_rate"]
    assert "base.yaml:" in plan.origins["lora_rank"]


TOWERS = {
    "base": (False, True, True), "stage1_aligner_lora": (True, True, False), "stage1_aligner_full": (True, True, True),
    "stage2_llm_lora": (False, True, False), "stage3": (False, False, False),
    "summary": (False, True, True),
}  # fmt: skip
RATES = {
    "base": {"learning_rate": 1e-4, "warmup_ratio": 0.1, "num_train_epochs": 3},
    "stage1_aligner_lora": {"learning_rate": 1e-4, "warmup_ratio": 0.1, "num_train_epochs": 3},
    "stage1_aligner_full": {
        "learning_rate": 1e-4, "warmup_ratio": 0.3, "optimizer": "multimodal", "aligner_lr": 1e-4, "weight_decay": 0.1,
    },
    "stage2_llm_lora": {"learning_rate": 5e-5, "num_train_epochs": 2},
    "stage3": {"learning_rate": 5e-5, "optimizer": "multimodal", "aligner_lr": 1e-4, "vit_lr": 1e-5},
    "summary": {"learning_rate": 1e-4, "warmup_ratio": 0.1, "num_train_epochs": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", PLANNED)
def test_towers_and_rates_of_a_shipped_recipe(name, house):
    plan = house.plan(name)
    freeze = (plan.tuner.freeze_llm, plan.tuner.freeze_vit, plan.tuner.freeze_aligner)
    stage = name.partition("_gkd")[0]
    assert freeze == TOWERS[stage]
    assert freeze == tuple(plan.arguments[f"freeze_{tower}"] for tower in ("llm", "vit", "aligner"))
    assert {key: plan.arguments.get(key) for key in RATES[stage]} == RATES[stage]
    assert plan.tuner.frozen_vit_blocks == (18 if name.startswith("stage3") else 0)
    assert ("target_regex" in plan.arguments) == (name.startswith("stage3") or name == "stage1_aligner_full")
    merger = ["model.visual.merger", *(f"model.visual.deepstack_merger_list.{level}" for level in range(3))]
    assert plan.arguments["modules_to_save"] == (merger if name == "stage1_aligner_full" else [])
    assert plan.arguments["target_modules"] == ["all-linear"]
    if name == "stage3_gkd_forward":
        assert plan.distillation is not None
        assert msgspec.structs.asdict(plan.distillation) == {
            "teacher": "adapters_off", "teacher_model": str(house.base), "teacher_model_type": "qwen3_vl",
            "beta": 0.1, "sft_alpha": 1.0, "llm_kd_weight": 1.0, "kd_temperature": 1.0, "eval_kd_batches": 8,
            "offload_teacher": False, "cache": None, "visual": None, "sampling": None,
        }  # fmt: skip
    else:
        assert (plan.distillation is not None) == ("gkd" in name)


def test_sampling_is_as_the_recipe_says(house):
    sampled = house.plan("stage3_gkd").distillation.sampling
    assert (sampled.lmbda, sampled.seq_kd_ratio, sampled.max_completion_length, sampled.temperature) == (
        0.5, 0.5, 256, 0.9,
    )  # fmt: skip
    assert sampled.first == ()
    assert house.plan("stage3_gkd", rlhf={"seq_kd": False}).distillation.sampling.seq_kd_ratio == 0.0
    assert house.plan("stage3_gkd", rlhf={"seq_kd": False, "lmbda": 0.0}).distillation.sampling is None
    kept = {"teacher_completions_cache": str(house.folder / "answers")}
    assert sampled.completions_cache is None
    assert house.plan("stage3_gkd", rlhf=kept).distillation.sampling.completions_cache == str(house.folder / "answers")
    assert house.plan("stage3_gkd", rlhf=kept | {"seq_kd": False}).distillation.sampling.completions_cache is None
    probed = make_plan(house.recipe("stage3_gkd"), cwd=house.folder, env={}, now=NOW, probe=True)
    assert probed.distillation.sampling.first[:4] == ("dataset", "student", "teacher", "dataset")


def test_answers_are_kept_in_a_folder(house):
    (house.folder / "file").touch()
    (problem,) = house.refused("stage3_gkd", rlhf={"teacher_completions_cache": str(house.folder / "file")})
    assert problem.what.startswith("rlhf.teacher_completions_cache: ")
    assert problem.what.endswith("is no folder")
    assert str(problem.where).startswith("mine.yaml:1:")


@pytest.mark.parametrize("name", ["stage2_llm_lora", "stage3"])
def test_a_stage_that_follows_another_is_refused_at_the_line_that_says_so(name, house):
    (problem,) = house.refused(name, env={"VLTOOL_STAGE1": "/runs/1", "VLTOOL_STAGE2": "/runs/2"})
    assert problem.what.startswith("tuner.resume_from_checkpoint: ")
    assert f"{name}.yaml" in str(problem.where)


def test_without_validation_data_nothing_is_evaluated(house):
    plan = house.plan()
    assert plan.data.val == ()
    assert plan.arguments["eval_strategy"] == "no"
    assert "eval_steps" not in plan.arguments


def full_plan(house):
    custom = {
        "system_prompt": "Du bist „gut“.", "val_jsonl": str(house.val), "dump_conversation_text": True,
        "sample_limit": 5, "train_sample_limit": 9, "val_sample_limit": 2, "use_summary": True, "emit_norm": "none",
    }  # fmt: skip
    recipe = house.recipe(
        "stage3_gkd_forward",
        custom=custom,
        launch={"env": {"A": "ü"}},
        data={"on_bad_record": "skip"},
        training={"max_grad_norm": 0.5, "run_name": None},
        rlhf={"eval_kd_batches": "all", "kd_temperature": 2},
    )
    env = {"ROOT_IMAGE_DIR": "/pictures"}
    return make_plan(recipe, cwd=house.folder, env=env, now=NOW, debug=True, probe=True)


def test_a_plan_survives_its_file(house):
    plan = full_plan(house)
    assert RunPlan.from_json(plan.to_json()) == plan
    again = json.loads(plan.to_json())
    assert (again["debug"], again["probe"], again["env"]) == (True, True, {"A": "ü"})
    assert plan.to_json().endswith(b"}\n")
    with pytest.raises(msgspec.ValidationError, match="surplus"):
        RunPlan.from_json(json.dumps(again | {"surplus": 1}).encode())


def test_what_the_data_plan_takes_from_recipe_and_environment(house):
    plan = full_plan(house)
    assert [part.limit for part in plan.data.train + plan.data.val] == [5, 2]
    assert plan.data.image_root == "/pictures"
    assert plan.data.system_prompt == "Du bist „gut“."
    assert (plan.data.use_summary, plan.data.emit_norm, plan.data.on_bad_record) == (True, "none", "skip")
    assert plan.dump_conversation == f"{plan.run_dir}/conversation.txt"
    assert plan.distillation is not None
    assert (plan.distillation.eval_kd_batches, plan.distillation.kd_temperature) == ("all", 2.0)


def test_the_smaller_limit_counts(house):
    plan = house.plan(
        custom={"val_jsonl": str(house.val), "sample_limit": 5, "train_sample_limit": 4, "val_sample_limit": 6}
    )
    assert [part.limit for part in plan.data.train + plan.data.val] == [4, 5]


def test_defaults_of_the_data_plan(house):
    plan = house.plan(shell={"ROOT_IMAGE_DIR": ""})
    assert plan.data.image_root is None
    assert (plan.data.train[0].limit, plan.data.val, plan.data.system_prompt) == (None, (), None)
    assert plan.dump_conversation is None
    assert (plan.debug, plan.probe, plan.env) == (False, False, {})
    plan = house.plan(custom={"dump_conversation_path": "seen.txt"})
    assert plan.dump_conversation == str(house.folder / "seen.txt")


@pytest.mark.parametrize("name", SILENT_RESIZERS)
def test_variables_that_would_resize_images_are_refused(name, house):
    (problem,) = house.refused(shell={name: "602112"})
    assert f"{name}=602112" in problem.what
    assert "template.max_pixels" in problem.do


def test_max_pixels_may_stand_in_the_environment_where_it_says_the_same(house):
    house.plan(shell={"MAX_PIXELS": "1048576"})
    house.plan(shell={"MAX_PIXELS": "4096"}, template={"max_pixels": 4096})
    house.refused(shell={"MAX_PIXELS": "1048577"})
    house.refused(shell={"IMAGE_MAX_TOKEN_NUM": "1048576"})


@pytest.mark.parametrize(
    ("sections", "key", "words"),
    [
        ({"model": {"model": None}}, None, "model.model is missing"),
        ({"model": {"model": "/gone"}}, "model.model", "no such checkpoint folder"),
        ({"custom": {"train_jsonl": "gone.jsonl"}}, "custom.train_jsonl", "no such file"),
        ({"custom": {"val_jsonl": "gone.jsonl"}}, "custom.val_jsonl", "no such file"),
        ({"custom": {"train_jsonl": "base"}}, "custom.train_jsonl", "no such file"),
        ({"custom": {"user_prompt": None}}, None, "custom.user_prompt is missing"),
        ({"custom": {"user_prompt": ""}}, "custom.user_prompt", "custom.user_prompt is missing"),
        ({"rlhf": GKD | {"teacher_model": "/gone"}}, "rlhf.teacher_model", "no such checkpoint folder"),
    ],
)
def test_what_is_missing_is_told_where_it_was_written(sections, key, words, house):
    (problem,) = house.refused(**sections)
    assert words in problem.what
    assert problem.where is not None
    assert problem.where.file == "mine.yaml"
    assert (problem.where.line is None) == (key is None)


def test_all_problems_are_told_at_once(house):
    problems = house.refused(
        model={"model": "/gone"}, custom={"train_jsonl": "gone.jsonl", "user_prompt": None},
        training={"packing": True, "bf16_full_eval": True},
        rlhf=GKD | {"teacher_model": "/nowhere", "lmbda": 0.5}, shell={"MIN_PIXELS": "4"},
    )  # fmt: skip
    assert sorted(re.match(r"[\w.]+( [\w.]+)?", problem.what)[0] for problem in problems) == [
        "custom.train_jsonl", "custom.user_prompt is", "model.model", "rlhf.teacher_model", "the environment",
        "training.bf16_full_eval", "training.packing",
    ]  # fmt: skip


def test_problems_of_the_recipe_come_before_there_is_a_plan(house):
    (problem,) = house.refused(model={"model": "/gone"}, rlhf=GKD | {"sft_alpha": 0, "llm_kd_weight": 0})
    assert problem.what == "rlhf.sft_alpha and rlhf.llm_kd_weight are both 0: nothing would be learnt"


def test_model_types_are_read_or_given(house):
    write_config(house.base, model_type="qwen3_vl_moe")
    teacher = write_config(house.folder / "teacher")
    plan = house.plan(rlhf=GKD | {"teacher_model": "teacher"})
    assert plan.distillation is not None
    assert (plan.model_type, plan.distillation.teacher_model_type) == ("qwen3_vl_moe", "qwen3_vl")
    assert plan.distillation.teacher_model == str(teacher)
    plan = house.plan(
        model={"model_type": "qwen3_vl"}, rlhf=GKD | {"teacher_model": "teacher", "teacher_model_type": "qwen3_vl_moe"}
    )
    assert plan.distillation is not None
    assert (plan.model_type, plan.distillation.teacher_model_type) == ("qwen3_vl", "qwen3_vl_moe")


TEACHERS = {
    "none named": ("lora", None, "adapters_off"),
    "the same": ("lora", "base", "adapters_off"),
    "the same, spelt otherwise": ("lora", "other/../base/", "adapters_off"),
    "the same through a link": ("lora", "link", "adapters_off"),
    "a copy of it elsewhere": ("lora", "other", "copy"),
    "full tuning, none named": ("full", None, "copy"),
    "full tuning, the same": ("full", "base", "copy"),
    "full tuning, another": ("full", "other", "copy"),
}


def tuned(tuner_type):
    """Sections over `base` for a tuner: full tuning clears what it would not read."""
    cleared = ("target_modules", "lora_rank", "lora_alpha", "lora_dropout")
    return {"tuner": {"tuner_type": tuner_type} | (dict.fromkeys(cleared) if tuner_type == "full" else {})}


@pytest.mark.parametrize("name", TEACHERS)
def test_who_teaches(name, house):
    tuner_type, teacher, kind = TEACHERS[name]
    shutil.copytree(house.base, house.folder / "other")
    (house.folder / "link").symlink_to(house.base)
    plan = house.plan(**tuned(tuner_type), rlhf=GKD | {"teacher_model": teacher})
    assert plan.distillation is not None
    assert plan.distillation.teacher == kind
    assert Path(plan.distillation.teacher_model).samefile(house.folder / ("other" if teacher == "other" else "base"))


def test_a_linked_student_is_taught_by_its_target(house):
    (house.folder / "link").symlink_to(house.base)
    plan = house.plan(model={"model": "link"}, rlhf=GKD | {"teacher_model": "base"})
    assert plan.distillation is not None
    assert plan.distillation.teacher == "adapters_off"


@pytest.mark.parametrize("enabled", [True, False])
def test_vision_terms_are_those_that_are_enabled_and_weigh(enabled, house):
    terms = {
        "vit": {"enabled": True, "weight": 0.0},
        "aligner": {"enabled": True, "weight": 0.25, "distance": "cosine"},
        "deepstack": {"enabled": False},
    }
    plan = house.plan(custom={"visual_kd": {"enabled": enabled} | terms}, rlhf=GKD, tuner={"freeze_aligner": False})
    visual = plan.distillation.visual
    if not enabled:
        assert visual is None
        return
    assert (visual.vit, visual.deepstack) == (None, None)
    assert (visual.aligner.weight, visual.aligner.distance) == (0.25, "cosine")


def test_a_teacher_of_another_vocabulary_is_refused(house):
    write_config(house.folder / "teacher", vocab_size=152064)
    (problem,) = house.refused(rlhf=GKD | {"teacher_model": "teacher"})
    assert "152064" in problem.what
    assert "151936" in problem.what
    assert str(problem.where).startswith("mine.yaml:1:")


# The run folder.


def test_two_runs_of_one_recipe_get_folders_in_the_order_of_time(house):
    first = house.plan().run_dir
    second = house.plan(now=NOW + timedelta(seconds=1)).run_dir
    assert Path(first).parent == Path(second).parent == house.folder / "runs" / "base"
    assert first < second


def test_an_empty_or_absent_folder_is_taken(house):
    (house.folder / "empty").mkdir()
    for name in ("empty", "new"):
        assert house.plan(training={"output_dir": name}).run_dir == str(house.folder / name)


def test_a_used_folder_and_a_file_are_refused(house):
    (house.folder / "used").mkdir()
    (house.folder / "used" / "x").write_text("")
    (problem,) = house.refused(training={"output_dir": "used"})
    assert problem.what.endswith("used is not empty")
    assert "resume_from_checkpoint: auto" in problem.do
    assert str(problem.where).startswith("mine.yaml:1:")
    (problem,) = house.refused(training={"output_dir": "train.jsonl"})
    assert problem.what.endswith("train.jsonl is a file")
    write_checkpoint(house.folder / "runs" / "base" / "20310203T040506Z" / "checkpoint-1")
    (problem,) = house.refused()
    assert "is not empty" in problem.what


def test_auto_goes_on_in_the_folder_that_is_named(house):
    wanted = {"output_dir": "run", "resume_from_checkpoint": "auto"}
    plan = house.plan(training=wanted)
    assert (plan.run_dir, plan.resume) == (str(house.folder / "run"), None), "there is nothing to go on from"
    write_checkpoint(house.folder / "run" / "checkpoint-8")
    write_checkpoint(house.folder / "run" / "checkpoint-12")
    (house.folder / "run" / "checkpoint-12" / "optimizer.pt").unlink()
    plan = house.plan(training=wanted)
    assert (plan.run_dir, plan.resume) == (str(house.folder / "run"), str(house.folder / "run" / "checkpoint-8"))
    (house.folder / "run" / "checkpoint-8" / "optimizer.pt").unlink()
    (problem,) = house.refused(training=wanted)
    assert "is not empty" in problem.what
    assert "neither a complete checkpoint" in problem.do
    assert "auto" not in problem.do
    # A run that died before its first checkpoint begins anew, so that a scheduler can launch it again.
    (house.folder / "run" / "plan.json").write_text("{}")
    plan = house.plan(training=wanted)
    assert (plan.run_dir, plan.resume) == (str(house.folder / "run"), None)


def test_auto_finds_the_recipes_last_run_that_has_a_checkpoint(house):
    auto = {"resume_from_checkpoint": "auto"}
    runs = house.folder / "runs" / "mine"
    assert house.plan(training=auto).run_dir == str(runs / "20310203T040506Z")
    assert house.plan(training=auto).resume is None
    for stamp in ("20300101T000000Z", "20300102T000000Z"):
        write_checkpoint(runs / stamp / "checkpoint-4")
    write_checkpoint(house.folder / "runs" / "other" / "20300105T000000Z" / "checkpoint-4")
    (runs / "20300103T000000Z").mkdir()
    (runs / "notes.txt").write_text("")
    plan = house.plan(training=auto)
    assert plan.run_dir == str(runs / "20300102T000000Z")
    assert plan.resume == str(runs / "20300102T000000Z" / "checkpoint-4")


def test_a_checkpoint_that_is_named_continues_its_own_run(house):
    checkpoint = write_checkpoint(house.folder / "old" / "checkpoint-4")
    for training in ({}, {"output_dir": "old"}, {"output_dir": "linked"}):
        (house.folder / "linked").unlink(missing_ok=True)
        (house.folder / "linked").symlink_to(house.folder / "old")
        plan = house.plan(training={"resume_from_checkpoint": "old/checkpoint-4"} | training)
        assert plan.resume == str(checkpoint)
        assert Path(plan.run_dir).samefile(house.folder / "old")


def test_a_checkpoint_of_another_run_goes_into_a_new_folder_only(house):
    checkpoint = write_checkpoint(house.folder / "old" / "checkpoint-4")
    plan = house.plan(training={"resume_from_checkpoint": "old/checkpoint-4", "output_dir": "new"})
    assert (plan.run_dir, plan.resume) == (str(house.folder / "new"), str(checkpoint))
    write_checkpoint(house.folder / "new" / "checkpoint-2")
    (problem,) = house.refused(training={"resume_from_checkpoint": "old/checkpoint-4", "output_dir": "new"})
    assert "new is not empty" in problem.what


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("gone/checkpoint-4", "no such checkpoint"), ("train.jsonl", "no such checkpoint"), ("old", "no complete"),
     ("old/checkpoint-5", "no complete"), ("old/last-checkpoint", "no complete")],
)  # fmt: skip
def test_what_is_no_checkpoint_cannot_be_resumed(wanted, words, house):
    write_checkpoint(house.folder / "old" / "checkpoint-4")
    (house.folder / "old" / "last-checkpoint").symlink_to(house.folder / "old" / "checkpoint-4")
    (write_checkpoint(house.folder / "old" / "checkpoint-5") / "trainer_state.json").unlink()
    (problem,) = house.refused(training={"resume_from_checkpoint": wanted, "output_dir": "new"})
    assert words in problem.what
    assert problem.do == "name one, or say auto"
    assert str(problem.where).startswith("mine.yaml:1:")


# No key of ours is read by nobody.

MOOT = {
    "custom.augmentation.bypass_prob": "custom.augmentation.enabled",
    "custom.augmentation.ops": "custom.augmentation.enabled",
    "custom.augmentation.curriculum": "custom.augmentation.enabled",
}  # fmt: skip
"""Keys that mean something only beside another, which is refused."""
VALIDATED = {"data.dataset", "custom.trainer_variant", "custom.json_format"}
"""Keys that validation reads, or whose only value is the default."""


class Watched:
    """Stands for a section and notes which of its keys are read."""

    def __init__(self, struct, prefix, seen):
        self._struct, self._prefix, self._seen = struct, prefix, seen

    def __getattr__(self, name):
        key = f"{self._prefix}{name}"
        value = getattr(self._struct, name)
        if isinstance(value, msgspec.Struct) and (self._prefix or name in OWN):
            return Watched(value, f"{key}.", self._seen)
        self._seen.add(key)
        return value


def own_keys(struct, prefix):
    for name, value in msgspec.structs.asdict(struct).items():
        if isinstance(value, msgspec.Struct):
            yield from own_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_of_ours_is_read(house):
    seen: set[str] = set()
    visual = {"visual_kd": {"enabled": True} | {key: {"enabled": True} for key in ("vit", "aligner", "deepstack")}}
    distilled = {
        "tuner": {"freeze_vit": False},
        "rlhf": GKD | {"teacher_model": "base", "lmbda": 0.5, "seq_kd": True},
        "custom": visual,
    }
    cached = {"rlhf": GKD | {"lmbda": 0.0, "teacher_cache": str(house.folder / "cache")}}
    for sections in ({}, distilled, cached):
        recipe = house.recipe(**(sections or {"launch": {}}))
        make_plan(Watched(recipe, "", seen), cwd=house.folder, env={}, now=NOW)
    keys = {key for section, struct in OWN.items() for key in own_keys(struct(), f"{section}.")}
    assert len(keys) > 60
    assert keys >= MOOT.keys() | VALIDATED
    assert seen >= set(MOOT.values())
    assert keys - seen == MOOT.keys() | VALIDATED


def test_the_rules_of_recipes_read_the_rest():
    folder = Path(make_plan.__code__.co_filename).parents[1] / "recipe"
    source = "".join(file.read_text() for file in folder.glob("*_rules.py"))
    for key in VALIDATED - {"custom.json_format"}:
        assert f'settings["{key}"]' in source, key
