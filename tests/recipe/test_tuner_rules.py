"""Rules on what trains: each with recipes that break it, told at their lines, and recipes that keep it."""

from __future__ import annotations

import pytest
from planning import MINIMAL, notes_of, problems_of, written

from vltool.recipe.settings import Settings, Undecided
from vltool.recipe.tuner_rules import NO_TARGETS, WORDS, trained_parts


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


NOTHING = (
    "nothing would train: freeze_llm, freeze_vit and freeze_aligner freeze all that the tuner targets",
    "write false for what should train, or name it in modules_to_save",
)


@pytest.mark.parametrize(
    ("tuner", "at", "what", "do"),
    [
        (
            "{tuner_type: full, lora_rank: 8}", ":5:38",
            "tuner.lora_rank means nothing to tuner_type: full",
            "take the line out, or choose lora or longlora",
        ),
        (
            "{lora_rank: 8, adalora_init_r: 8}", ":5:39", "tuner.adalora_init_r means nothing to tuner_type: lora",
            "take the line out, or choose adalora",
        ),
        (
            "{tuner_type: adalora, use_dora: true}", ":5:40",
            "tuner.use_dora means nothing to tuner_type: adalora",
            "take the line out, or choose lora or longlora",
        ),
        (
            "{tuner_type: boft, fourier_n_frequency: 8}", ":5:48",
            "tuner.fourier_n_frequency means nothing to tuner_type: boft",
            "take the line out, or choose fourierft",
        ),
        (
            "{tuner_type: full, target_regex: ^$, freeze_vit: false}", ":5:41",
            "tuner.target_regex means nothing to tuner_type: full",
            "take the line out, or choose lora or longlora or adalora or boft or fourierft or vera",
        ),
        (
            "{tuner_type: longlora, lora_ga_iters: 2}", ":5:46",
            "tuner.lora_ga_iters means nothing to tuner_type: longlora",
            "take the line out, or choose lora",
        ),
        (
            "{freeze_parameters: [model.visual]}", ":5:9", "tuner.freeze_parameters means nothing to tuner_type: lora",
            "take the line out, or choose full",
        ),
        (
            "{target_modules: [q_proj, q_porj]}", ":5:34",
            "tuner.target_modules: no module of Qwen3-VL is called q_porj", "did you mean q_proj?",
        ),
        (
            "{target_modules: [q_proj, model.visual.blocks.3.attn.qvk]}", ":5:34",
            "tuner.target_modules: no module of Qwen3-VL is called model.visual.blocks.3.attn.qvk",
            "did you mean model.visual.blocks.3.attn.qkv?",
        ),
        (
            "{target_modules: [q_proj, all-liner]}", ":5:34",
            "tuner.target_modules: no module of Qwen3-VL is called all-liner", "did you mean all-linear?",
        ),
        (
            "{modules_to_save: [zzzz]}", ":5:27", "tuner.modules_to_save: no module of Qwen3-VL is called zzzz",
            "names are those of transformers, model.visual.merger say",
        ),
        (
            "{modules_to_save: [visual.deepstack_merger_list]}", ":5:27",
            "tuner.modules_to_save: visual.deepstack_merger_list is a list of modules, which cannot be saved as one",
            "name its modules: visual.deepstack_merger_list.0, visual.deepstack_merger_list.1, "
            "visual.deepstack_merger_list.2",
        ),
        (
            '{target_regex: "model.*("}', ":5:23",
            "tuner.target_regex: missing ), unterminated subpattern at position 7",
            "it is a Python regular expression",
        ),
        (
            "{target_regex: q_proj, modules_to_save: [lm_head]}", ":5:23",
            "tuner.target_regex matches no linear module of Qwen3-VL as a whole",
            "it has to match full names, model.visual.blocks.0.attn.qkv say; ^$ is the pattern for none",
        ),
        ("{freeze_llm: true}", ":5:21", *NOTHING),
        ("{tuner_type: full, freeze_llm: true}", ":5:39", NOTHING[0], "write false for what should train"),
        ("{target_regex: ^$, modules_to_save: []}", ":5:23", "nothing would train", "modules_to_save"),
        ("{target_modules: [], freeze_llm: true}", ":5:9", "nothing would train", "modules_to_save"),
        (
            "{last_vit_blocks: 2}", ":5:26", "has no effect beside freeze_vit",
            "write freeze_vit: false, or last_vit_blocks: null",
        ),
        (
            '{last_vit_blocks: 2, freeze_vit: false, target_regex: ".*qkv"}', ":5:26",
            "has no effect beside target_regex",
            "say in the pattern which blocks train, or last_vit_blocks: null",
        ),
        (
            "{merge_previous: m}", ":5:25", "tuner.merge_previous: there is no earlier stage to merge",
            "name its checkpoint in tuner.resume_from_checkpoint",
        ),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_told_at_its_line(tuner, at, what, do):
    (problem,) = problems_of(f"{MINIMAL}tuner: {tuner}\n")
    head, _, advice = problem.partition("\n  ")
    assert head.startswith(f"r.yaml{at}: ")
    assert what in head
    assert do in advice


@pytest.mark.parametrize(
    "tuner",
    [
        "{tuner_type: full, lora_rank: null}",
        "{tuner_type: full, freeze_parameters: [model.visual]}",
        "{tuner_type: lora, lora_rank: 8, lora_ga_iters: 2, target_parameters: [a], lora_dtype: float32}",
        "{tuner_type: longlora, lora_rank: 8, lora_alpha: 8}",
        "{tuner_type: adalora, adalora_init_r: 8, lora_alpha: 8}",
        "{tuner_type: boft, boft_block_size: 8, target_modules: [q_proj]}",
        "{tuner_type: fourierft, fourier_n_frequency: 8}",
        "{target_modules: [all-linear]}",
        "{target_modules: [q_proj, model.visual.blocks.3.attn.qkv, layers.7.mlp.gate_proj]}",
        "{modules_to_save: [model.visual.deepstack_merger_list.0, embed_tokens, all-norm]}",
        "{target_regex: '.*q_proj'}",
        "{target_regex: ^$, modules_to_save: [lm_head]}",
        "{target_regex: '', modules_to_save: [lm_head]}",
        "{freeze_llm: true, freeze_aligner: false}",
        "{freeze_llm: true, freeze_vit: false}",
        "{freeze_llm: true, modules_to_save: [merger]}",
        "{freeze_llm: true, target_modules: [q_proj]}",
        "{freeze_llm: true, target_regex: '.*q_proj'}",
        "{freeze_llm: true, target_modules: [all-norm]}",
        "{tuner_type: full, freeze_llm: true, freeze_vit: false}",
        "{last_vit_blocks: 2, freeze_vit: false}",
        "{tuner_type: full, last_vit_blocks: 2, freeze_vit: false}",
        "{merge_previous: m, resume_from_checkpoint: c}",
    ],
)
def test_what_keeps_the_rules_loads(tuner):
    assert problems_of(f"{MINIMAL}tuner: {tuner}\n") == []


@pytest.mark.parametrize(
    ("tuner", "problem"),
    [
        ("{tuner_type: lara, adalora_init_r: 8}", "tuner.tuner_type: 'lara'"),
        ("{freeze_llm: x, freeze_vit: true}", "tuner.freeze_llm: 'x'"),
        ("{target_modules: q_proj}", "tuner.target_modules: 'q_proj' is not a list"),
        ("{last_vit_blocks: 0, freeze_vit: true}", "tuner.last_vit_blocks: 0 "),
        ("{target_regex: 5, last_vit_blocks: 2, freeze_vit: false}", "tuner.target_regex: 5 "),
    ],
)
def test_a_rule_says_nothing_of_a_value_that_is_itself_wrong(tuner, problem):
    (told,) = problems_of(f"{MINIMAL}tuner: {tuner}\n")
    assert problem in told


FULL_DO = "extend the overlay full"


@pytest.mark.parametrize(
    ("tuner_type", "keys", "do"),
    [
        ("full", "target_modules, lora_rank", FULL_DO),
        ("adalora", "lora_rank", FULL_DO.replace("full", "adalora")),
        ("vera", "lora_rank", "write lora_rank: null"),
        ("reft", "target_modules, lora_rank", "write target_modules: null; lora_rank: null"),
    ],
)  # fmt: skip
def test_a_tuner_chosen_over_a_base_clears_what_it_inherits(tuner_type, keys, do, tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL + "tuner: {target_modules: [q_proj], lora_rank: 8}\n")
    mine = f"extends: base.yaml\ntuner:\n  tuner_type: {tuner_type}\n"
    places = ", ".join({"target_modules": "base.yaml:5:9", "lora_rank": "base.yaml:5:46"}[k] for k in keys.split(", "))
    told = f"r.yaml:3:15: tuner.tuner_type: {tuner_type} does not read {keys} ({places})\n  {do}"
    (problem,) = problems_of(mine)
    assert problem.startswith(told)
    assert problems_of(mine + "".join(f"  {key}: null\n" for key in keys.split(", "))) == []


@pytest.mark.parametrize("tuner_type", ["boft", "fourierft"])
def test_copies_beside_an_adapter_that_peft_cannot_merge_are_noted(tuner_type):
    (note,) = notes_of(f"{MINIMAL}tuner: {{tuner_type: {tuner_type}, modules_to_save: [merger]}}\n")
    assert note.startswith(f"r.yaml:5:{len(tuner_type) + 23}: tuner.modules_to_save: beside {tuner_type} ")
    assert "cannot be merged" in note
    assert notes_of(f"{MINIMAL}tuner: {{tuner_type: {tuner_type}}}\n") == []
    assert notes_of(f"{MINIMAL}tuner: {{tuner_type: {tuner_type}, modules_to_save: []}}\n") == []
    assert notes_of(f"{MINIMAL}tuner: {{tuner_type: adalora, modules_to_save: [merger]}}\n") == []


def test_a_key_over_an_inherited_tuner_is_told_at_its_own_line(tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL + "tuner: {tuner_type: lora}\n")
    (problem,) = problems_of("extends: base.yaml\ntuner: {vera_rank: 8}\n")
    assert problem.startswith("r.yaml:2:20: tuner.vera_rank means nothing to tuner_type: lora")
    assert "base.yaml:5:21" in problem


@pytest.mark.parametrize("name", ["blocks", "self_attn", "norm1", "merger"])
def test_adapters_go_on_linear_modules(name):
    (problem,) = problems_of(f"{MINIMAL}tuner: {{target_modules: [q_proj, {name}]}}\n")
    assert problem.startswith("r.yaml:5:34: ")
    assert f"{name} is no linear module" in problem
    assert problems_of(f"{MINIMAL}tuner: {{target_modules: [q_proj, embed_tokens, lm_head]}}\n") == []


def test_every_word_of_ms_swifts_is_a_name():
    for word in WORDS:
        assert problems_of(f"{MINIMAL}tuner: {{target_modules: [{word}]}}\n") == []


def _settings(**tuner):
    return Settings("r.yaml", ["r.yaml"], {"tuner": tuner}, {}, {}, set())


FROZEN = {"freeze_llm": True, "freeze_vit": True, "freeze_aligner": True}


@pytest.mark.parametrize(
    ("tuner", "parts"),
    [
        ({}, {"language"}),
        ({"freeze_vit": False, "freeze_llm": True}, {"vision"}),
        ({"freeze_aligner": False}, {"aligner", "deepstack", "language"}),
        (FROZEN, set()),
        (FROZEN | {"modules_to_save": ["merger", "lm_head"]}, {"aligner", "head"}),
        (FROZEN | {"target_modules": ["q_proj"]}, {"language"}),
        (FROZEN | {"target_modules": ["linear_fc1"]}, {"vision", "aligner", "deepstack"}),
        (FROZEN | {"target_modules": ["linear_fc1"], "target_regex": ".*qkv"}, {"vision"}),
        (FROZEN | {"target_regex": r".*deepstack_merger_list\.2\.linear_fc1"}, {"deepstack"}),
        *(({"target_regex": none}, set()) for none in NO_TARGETS),
        ({"target_regex": "^$", "modules_to_save": ["deepstack_merger_list.1"]}, {"deepstack"}),
        ({"tuner_type": "full", "target_regex": "^$", "freeze_vit": False}, {"vision", "language"}),
        ({"tuner_type": "full", "freeze_llm": True, "modules_to_save": ["lm_head"]}, set()),
    ],
)
def test_the_parts_that_train(tuner, parts):
    assert trained_parts(_settings(**tuner)) == parts


def test_the_parts_of_a_pattern_that_is_none_are_undecided():
    with pytest.raises(Undecided):
        trained_parts(_settings(target_regex="("))


def test_rules_look_at_what_holds_after_merging(tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL + "tuner: {freeze_llm: true}\n")
    (told,) = problems_of("extends: base.yaml\n")
    assert told.startswith("base.yaml:5:21: nothing would train")
    assert written("extends: base.yaml\ntuner: {freeze_vit: false}\n").tuner.freeze_llm
