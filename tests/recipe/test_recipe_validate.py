"""Validation: what a recipe may say, and what its writer reads when it says something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vltool.errors import InvalidInput, Where
from vltool.recipe.augmentation import ClaheOp, Flip, HflipOp
from vltool.recipe.resolve import resolve
from vltool.recipe.schema import FeatureTerm, Recipe
from vltool.recipe.validate import load_recipe, validate

MINIMAL = "global_max_length: 64\nmodel: {model: /m}\ncustom:\n  train_jsonl: /t.jsonl\n"
"""Four lines; whatever a test adds begins in line 5."""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _load(text: str, **options: Any) -> Recipe:
    Path("r.yaml").write_text(text)
    return load_recipe("r.yaml", **{"env": {}, **options})


def _refused(text: str, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        _load(text, **options)
    return str(caught.value)


def test_a_minimal_recipe_is_the_defaults() -> None:
    recipe = _load(MINIMAL)
    assert (recipe.name, recipe.files, recipe.global_max_length) == ("r", ("r.yaml",), 64)
    assert recipe.model.model == "/m"
    assert recipe.custom.train_jsonl == "/t.jsonl"
    assert recipe.custom.emit_norm == "norm1000"
    assert recipe.tuner.target_modules == ("all-linear",)
    assert recipe.swift == {
        "model": {"max_model_len": 64}, "template": {"max_length": 64},
        "data": {}, "tuner": {}, "training": {}, "quantization": {},
    }  # fmt: skip
    assert recipe.notes == ()


def test_keys_go_to_their_owner() -> None:
    recipe = _load(
        MINIMAL
        + "tuner: {lora_rank: 8, freeze_llm: true, modules_to_save: [lm_head, merger.norm]}\n"
        + "training: {learning_rate: 1e-4, gradient_checkpointing_kwargs: {a: [1, 2.5]}, callbacks: [a],\n"
        + "  packing: true}\n"
        + "rlhf: {rlhf_type: gkd, beta: 1, eval_kd_batches: all}\n"
        + "launch: {nproc_per_node: auto, env: {A: '1'}}\n"
        + "deepspeed: {enabled: true, config: {zero: {stage: 2}}}\n"
    )
    assert recipe.swift["tuner"] == {"lora_rank": 8}
    assert recipe.swift["training"] == {
        "learning_rate": 1e-4,
        "gradient_checkpointing_kwargs": {"a": [1, 2.5]},
        "callbacks": ["a"],
    }
    assert recipe.tuner.freeze_llm
    assert recipe.tuner.modules_to_save == ("lm_head", "merger.norm")
    assert recipe.training.packing
    assert type(recipe.rlhf.beta) is float
    assert recipe.rlhf.eval_kd_batches == "all"
    assert recipe.launch.nproc_per_node == "auto"
    assert recipe.launch.env == {"A": "1"}
    assert recipe.deepspeed.config == {"zero": {"stage": 2}}


def test_nested_settings_arrive_typed() -> None:
    recipe = _load(
        MINIMAL
        + "  visual_kd: {enabled: true, aligner: {enabled: true, weight: 1}}\n"
        + "  augmentation: {enabled: true, ops: [{name: hflip, params: {prob: 0.5}}, {name: clahe}]}\n"
        + "rlhf: {rlhf_type: gkd}\ntuner: {freeze_aligner: false}\n"
    )
    assert recipe.custom.visual_kd.aligner == FeatureTerm(enabled=True, weight=1.0)
    assert recipe.custom.augmentation.ops == (HflipOp(params=Flip(prob=0.5)), ClaheOp())


def test_every_value_knows_where_it_was_written() -> None:
    Path("base.yaml").write_text(MINIMAL)
    recipe = _load(
        "extends: base.yaml\ncustom:\n  visual_kd:\n    vit:\n      weight: 0.5\n"
        "tuner:\n  target_modules:\n  - q_proj\n"
    )
    assert recipe.where("custom.train_jsonl") == Where("base.yaml", 4, 16)
    assert recipe.where("custom.visual_kd.vit.weight") == Where("r.yaml", 5, 15)
    assert recipe.where("custom.visual_kd.vit") == Where("r.yaml", 4, 5)
    assert recipe.where("tuner.target_modules") == Where("r.yaml", 7, 3)
    assert recipe.where("template.max_length") == Where("base.yaml", 1, 20)
    assert recipe.where("custom.emit_norm") == Where("r.yaml")


@pytest.mark.parametrize(
    ("added", "what", "do"),
    [
        ("trainning: {}", "5:1: unknown key trainning", "did you mean training?"),
        ("train_jsonl: x", "5:1: unknown key train_jsonl", "it belongs in custom"),
        ("tuner.lora_rank: 8", "5:1: unknown key tuner.lora_rank", "put the key under `tuner:`"),
        ("  emit_nrom: none", "5:3: unknown key custom.emit_nrom", "did you mean emit_norm?"),
        ("  lmbda: 1", "5:3: unknown key custom.lmbda", "it belongs in rlhf"),
        ("  packing: true", "5:3: unknown key custom.packing", "it belongs in training"),
        ("training: {freeze_vit: true}", "5:12: unknown key training.freeze_vit", "it belongs in tuner"),
        ("launch: {zzz: 1}", "5:10: unknown key launch.zzz", "known here: nproc_per_node, nnodes, "),
        ("  visual_kd: {vit: {wieght: 1}}", "5:21: unknown key custom.visual_kd.vit.wieght", "did you mean weight?"),
        ("training: 5", "5:11: training: a mapping belongs here, not 5", ""),
        ("training: [a]", "5:11: training: a mapping belongs here, not a list", ""),
        (
            "deepspeed: zero2",
            "5:12: deepspeed: a mapping belongs here, not 'zero2'",
            "write deepspeed: {enabled: true, config: 'zero2'}",
        ),
        (
            "  emit_norm: norm500",
            "5:14: custom.emit_norm: 'norm500' is not one of none, norm100, norm1000",
            "did you mean norm100?",
        ),
        (
            "tuner: {freeze_vit: on}",
            "5:21: tuner.freeze_vit: 'on' is not true or false",
            "YAML 1.2 reads `on` as text: write true",
        ),
        (
            "tuner: {freeze_vit: No}",
            "5:21: tuner.freeze_vit: 'No' is not true or false",
            "YAML 1.2 reads `No` as text: write false",
        ),
        (
            "tuner: {freeze_vit: 'true'}",
            "5:21: tuner.freeze_vit: 'true' is not true or false",
            "the quotes make it text: write freeze_vit: true",
        ),
        ("tuner: {freeze_vit: 1}", "5:21: tuner.freeze_vit: 1 is not true or false", ""),
        (
            "tuner: {last_vit_blocks: '6'}",
            "5:26: tuner.last_vit_blocks: '6' is not a whole number of at least 1",
            "the quotes make it text: write last_vit_blocks: 6",
        ),
        ("tuner: {last_vit_blocks: 6.0}", "5:26: tuner.last_vit_blocks: 6.0 is not a whole number of at least 1", ""),
        ("tuner: {last_vit_blocks: true}", "5:26: tuner.last_vit_blocks: true is not a whole number of at least 1", ""),
        ("tuner: {last_vit_blocks: 0}", "5:26: tuner.last_vit_blocks: 0 is not a whole number of at least 1", ""),
        (
            "tuner: {last_vit_blocks: 1_0}",
            "5:26: tuner.last_vit_blocks: '1_0' is not a whole number of at least 1",
            "YAML 1.2 reads `1_0` as text: write last_vit_blocks: 10",
        ),
        (
            "rlhf: {beta: '1e-1'}",
            "5:14: rlhf.beta: '1e-1' is not a number from 0 to 1",
            "the quotes make it text: write beta: 1e-1",
        ),
        ("rlhf: {beta: 1.5}", "5:14: rlhf.beta: 1.5 is not a number from 0 to 1", ""),
        ("rlhf: {sft_alpha: .nan}", "5:19: rlhf.sft_alpha: .nan is not a number of at least 0", ""),
        ("rlhf: {sft_alpha: .inf}", "5:19: rlhf.sft_alpha: .inf is not a number of at least 0", ""),
        ("rlhf: {kd_temperature: 0}", "5:24: rlhf.kd_temperature: 0 is not a number above 0", ""),
        (
            "rlhf: {eval_kd_batches: -1}",
            "5:25: rlhf.eval_kd_batches: -1 is not a whole number of at least 0, nor all",
            "",
        ),
        ("  user_prompt: 5", "5:16: custom.user_prompt: 5 is not text", "put it in quotes: '5'"),
        ("  user_prompt: [a]", "5:16: custom.user_prompt: a list is not text", ""),
        ("  visual_kd: {vit: {weight: x}}", "5:29: custom.visual_kd.vit.weight: 'x' is not a number of at least 0", ""),
        ("  visual_kd: {vit: 3}", "5:20: custom.visual_kd.vit: 3 is not a mapping", ""),
        (
            "  augmentation: {ops: [{name: vflip}, hflip]}",
            "5:39: custom.augmentation.ops[1]: 'hflip' is not a mapping",
            "",
        ),
        (
            "  augmentation: {ops: [{name: hflop}]}",
            "5:31: custom.augmentation.ops[0].name: 'hflop' is not one of hflip, vflip, rotate, scale, "
            "resize_by_scale, random_crop, color_jitter, gamma, hsv, clahe, auto_contrast, sharpness, pad_to_multiple, "
            "expand_to_fit_affine",
            "did you mean hflip?",
        ),
        ("  augmentation: {ops: [{params: {}}]}", "5:24: custom.augmentation.ops[0].name is missing", ""),
        (
            "  augmentation: {ops: [{name: hflip, prams: {}}]}",
            "5:38: unknown key custom.augmentation.ops[0].prams",
            "did you mean params?",
        ),
        ("tuner: {tuner_type: lara}", "5:21: tuner.tuner_type: 'lara' is not one of adalora, adapter, ", ""),
        ("training: {anything: 1}", "5:12: unknown key training.anything", "neither vltool nor ms-swift has it; "),
        ("training: {lerning_rate: 1}", "5:12: unknown key training.lerning_rate", "did you mean learning_rate?"),
        ("training: {frieze_vit: 1}", "5:12: unknown key training.frieze_vit", "did you mean tuner.freeze_vit?"),
        ("training: {lora_rank: 1}", "5:12: unknown key training.lora_rank", "it belongs in tuner"),
        ("rlhf: {lora_rank: 1}", "5:8: unknown key rlhf.lora_rank", "it belongs in tuner"),
        ("rlhf: {cpo_alpha: 1}", "5:8: unknown key rlhf.cpo_alpha", "vltool's distillation has no use for this key"),
        ("training: {learning_rate: fast}", "5:27: training.learning_rate: 'fast' is not a number", ""),
        ("training: {callbacks: a}", "5:23: training.callbacks: 'a' is not a list", "write callbacks: [a]"),
        ("training: {seed: 1.5}", "5:18: training.seed: 1.5 is not a whole number", ""),
        (
            "training: {eval_strategy: step}",
            "5:27: training.eval_strategy: 'step' is not one of no, steps, epoch",
            "did you mean steps?",
        ),
        (
            "tuner: {target_modules: all-linear}",
            "5:25: tuner.target_modules: 'all-linear' is not a list",
            "write target_modules: [all-linear]",
        ),
        ("tuner: {modules_to_save: [a, 3]}", "5:30: tuner.modules_to_save[1]: 3 is not text", "put it in quotes: '3'"),
        ("launch: {env: {A: 1}}", "5:19: launch.env.A: 1 is not text", "put it in quotes: '1'"),
        (
            "tuner: {lora_rank: 08}",
            "5:20: tuner.lora_rank: 08 begins with a zero, which some read as octal",
            "write 8, or '08' in quotes if it is text",
        ),
        (
            "training: {lr_scheduler_kwargs: {y: [-007]}}",
            "5:38: training.lr_scheduler_kwargs.y[0]: -007 begins with a zero, which some read as octal",
            "write -7, or '-007' in quotes if it is text",
        ),
        (
            "launch: {nnodes: 02}",
            "5:18: launch.nnodes: 02 begins with a zero, which some read as octal",
            "write 2, or '02' in quotes if it is text",
        ),
    ],
)
def test_wrong_keys_and_types_are_located(added: str, what: str, do: str) -> None:
    assert _refused(f"{MINIMAL}{added}\n").startswith(f"r.yaml:{what}\n  {do}" if do else f"r.yaml:{what}")


def test_everything_wrong_is_told_at_once_in_the_order_of_the_lines() -> None:
    Path("base.yaml").write_text("custom: {train_jsonl: a, emit_norm: nrom100}\n")
    text = "extends: base.yaml\nmodle: {}\ntuner: {freeze_vit: on}\nrlhf: {beta: 2, bata: 1}\nmodel: {model: '${M}'}\n"
    heads = [line.split(": ")[0] for line in _refused(text).splitlines() if not line.startswith(" ")]
    assert heads == [
        "r.yaml",
        "r.yaml:2:1",
        "r.yaml:3:21",
        "r.yaml:4:14",
        "r.yaml:4:17",
        "r.yaml:5:16",
        "base.yaml:1:37",
    ]


def test_an_unset_variable_is_one_problem_not_two() -> None:
    text = MINIMAL + "tuner: {last_vit_blocks: '${N}'}\n"
    assert _refused(text).count("r.yaml") == 1


def test_a_number_in_a_variable_that_is_text() -> None:
    text = MINIMAL + "launch:\n  rdzv_id: ${JOB}\n"
    assert _refused(text, env={"JOB": "42"}).endswith("launch.rdzv_id: 42 is not text\n  put the variable in quotes")
    assert _load(text.replace("${JOB}", "'${JOB}'"), env={"JOB": "42"}).launch.rdzv_id == "42"


def test_validate_takes_what_resolve_gives() -> None:
    Path("r.yaml").write_text(MINIMAL)
    assert validate(resolve("r.yaml", env={})) == load_recipe("r.yaml", env={})


class TestLength:
    REST = "model: {model: /m}\ncustom: {train_jsonl: /t}\n"

    @pytest.mark.parametrize(
        "text",
        [
            "global_max_length: 64\n",
            "template: {max_length: 64}\n",
            "quantization: {}\nglobal_max_length: 64\ntemplate: {max_length: 64}\n",
        ],
    )
    def test_one_knob_sets_both(self, text: str) -> None:
        recipe = _load(text + self.REST)
        assert recipe.global_max_length == 64
        assert recipe.swift["model"]["max_model_len"] == recipe.swift["template"]["max_length"] == 64

    def test_model_max_model_len_alone_is_the_length(self) -> None:
        assert _load("model: {max_model_len: 64}\ncustom: {train_jsonl: /t}\n").swift["template"] == {"max_length": 64}

    def test_another_value_beside_it_names_both_lines(self) -> None:
        message = _refused("global_max_length: 64\ntemplate: {max_length: 32}\n" + self.REST)
        assert message.startswith("r.yaml:2:24: template.max_length is 32, but global_max_length is 64\n")
        assert "r.yaml:1:20" in message

    def test_two_lengths_without_the_knob_name_both_lines(self) -> None:
        message = _refused("model: {max_model_len: 64}\ntemplate: {max_length: 32}\ncustom: {train_jsonl: /t}\n")
        assert message.startswith("r.yaml:1:24: model.max_model_len is 64, but template.max_length is 32\n")
        assert "r.yaml:2:24" in message

    def test_none_is_an_error(self) -> None:
        assert _refused(self.REST).startswith("r.yaml: no length: global_max_length is missing\n")

    def test_no_length_is_one_problem(self) -> None:
        message = _refused("global_max_length: 64\ntemplate: {max_length: '64'}\n" + self.REST)
        assert message.count("r.yaml") == 1
        assert "the quotes make it text" in message


class TestOlderSpellings:
    def test_train_type_is_tuner_type_with_a_note(self) -> None:
        recipe = _load(MINIMAL + "tuner: {train_type: full}\n")
        assert recipe.tuner.tuner_type == "full"
        assert recipe.swift["tuner"] == {}
        assert recipe.where("tuner.tuner_type") == Where("r.yaml", 5, 21)
        assert recipe.notes[0].where == Where("r.yaml", 5, 9)
        assert "tuner_type" in recipe.notes[0].what

    def test_the_old_name_wins_over_the_new_one_of_its_base(self) -> None:
        Path("base.yaml").write_text(MINIMAL + "tuner: {tuner_type: lora}\n")
        assert _load("extends: base.yaml\ntuner: {train_type: full}\n").tuner.tuner_type == "full"
        assert _load("extends: base.yaml\ntuner: {sft_type: full}\n").tuner.tuner_type == "full"

    def test_both_may_agree_but_not_differ(self) -> None:
        assert _load(MINIMAL + "tuner: {train_type: full, tuner_type: full}\n").tuner.tuner_type == "full"
        message = _refused(MINIMAL + "tuner: {train_type: full, tuner_type: lora}\n")
        assert message.startswith("r.yaml:5:9: tuner.train_type and tuner.tuner_type are the same key, with different")
        assert "r.yaml:5:27" in message


class TestData:
    @pytest.mark.parametrize("value", ["dummy", "placeholder", "[dummy]", '["placeholder"]'])
    def test_the_placeholder_is_dropped_with_a_note(self, value: str) -> None:
        recipe = _load(f"{MINIMAL}data: {{dataset: {value}}}\n")
        assert recipe.data.dataset is None
        assert recipe.swift["data"] == {}
        assert recipe.notes[0].where == Where("r.yaml", 5, 8 if "[" in value else 17)

    @pytest.mark.parametrize("value", ["alpaca", "[alpaca]", "[dummy, dummy]", "[]"])
    def test_other_datasets_point_to_train_jsonl(self, value: str) -> None:
        message = _refused(f"{MINIMAL}data: {{dataset: {value}}}\n")
        assert "data.dataset: ms-swift's datasets are not used\n  name the records in custom.train_jsonl" in message

    def test_records_must_come_from_one_place(self) -> None:
        message = _refused("global_max_length: 64\n")
        assert message.startswith("r.yaml: custom.train_jsonl is missing\n")
        message = _refused(MINIMAL + "  fusion_config: f.yaml\n")
        assert message.startswith("r.yaml:5:18: custom.fusion_config and custom.train_jsonl are both given\n")
        assert "r.yaml:4:16" in message

    def test_an_overlay_can_put_a_mixture_in_place_of_records(self) -> None:
        Path("base.yaml").write_text("global_max_length: 64\ncustom: {train_jsonl: '${UNSET}'}\n")
        recipe = _load("extends: base.yaml\ncustom: {train_jsonl: null, fusion_config: f.yaml}\n")
        assert recipe.custom.train_jsonl is None
        assert recipe.custom.fusion_config == str(Path("f.yaml").absolute())


class TestCombinations:
    def test_the_gkd_trainer_needs_gkd(self) -> None:
        message = _refused(MINIMAL + "  trainer_variant: gkd_monitor\n")
        assert message.startswith(
            "r.yaml:5:20: custom.trainer_variant: gkd_monitor distils, but rlhf.rlhf_type is not gkd"
        )
        assert _load(MINIMAL + "rlhf: {rlhf_type: gkd}\n").custom.trainer_variant is None

    def test_rlhf_keys_without_gkd_are_noted(self) -> None:
        (note,) = _load(MINIMAL + "rlhf: {beta: 0.1, lmbda: 0}\n").notes
        assert str(note) == "r.yaml:5:1: rlhf: beta, lmbda has no effect without rlhf_type: gkd"

    def test_deepspeed_needs_a_configuration(self) -> None:
        message = _refused(MINIMAL + "deepspeed: {enabled: true}\n")
        assert message.startswith("r.yaml:5:22: deepspeed.enabled is true, but deepspeed.config is missing\n")
        assert not _load(MINIMAL + "deepspeed: {enabled: false}\n").deepspeed.enabled
