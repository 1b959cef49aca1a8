"""Rules on distillation: what breaks them is told at its line, what may not be meant is noted there."""

from __future__ import annotations

import pytest
from planning import MINIMAL, notes_of, problems_of


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


GKD = "rlhf: {rlhf_type: gkd}\n"


def visual(*components, more=GKD):
    """Lines 5 and on: vision terms, then what else there is."""
    enabled = "".join(f", {name}: {{enabled: true}}" for name in components)
    return f"  visual_kd: {{enabled: true{enabled}}}\n{more}"


@pytest.mark.parametrize(
    ("added", "at", "what", "do"),
    [
        (
            "  trainer_variant: gkd_monitor\n", "5:20",
            "custom.trainer_variant: gkd_monitor distils, but rlhf.rlhf_type is not gkd",
            "write rlhf_type: gkd under rlhf, or remove trainer_variant",
        ),
        (
            visual("aligner", more="tuner: {freeze_aligner: false}\n"), "5:24",
            "custom.visual_kd needs a teacher, but rlhf.rlhf_type is not gkd", "write rlhf_type: gkd under rlhf",
        ),
        (
            "rlhf: {rlhf_type: gkd, llm_kd_weight: 0}\n", "5:39",
            "rlhf.sft_alpha and rlhf.llm_kd_weight are both 0: nothing would be learnt",
            "give one of them a weight, sft_alpha: 1.0 say",
        ),
        (visual(), "5:24", "custom.visual_kd is enabled, but none of vit, aligner, deepstack is", "enabled: true"),
        (
            visual("vit", "aligner", "deepstack"), "5:24",
            "custom.visual_kd: every enabled term is always zero, since nothing trains in vision blocks or aligner",
            "write freeze_aligner: false or freeze_vit: false under tuner, or visual_kd: {enabled: false}",
        ),
        (
            visual("vit", more=GKD + "tuner: {freeze_vit: true, freeze_aligner: false}\n"), "5:24",
            "every enabled term is always zero", "freeze_vit: false",
        ),
        (
            visual("deepstack", more=GKD + "tuner: {target_modules: [visual.merger.linear_fc1]}\n"), "5:24",
            "every enabled term is always zero", "visual_kd: {enabled: false}",
        ),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_told_at_its_line(added, at, what, do):
    (problem,) = problems_of(MINIMAL + added)
    head, _, advice = problem.partition("\n  ")
    assert head.startswith(f"r.yaml:{at}: ")
    assert what in head
    assert do in advice


@pytest.mark.parametrize(
    ("added", "at", "what", "do"),
    [
        ("rlhf: {beta: 0.1, lmbda: 0}\n", "5:1", "rlhf: beta, lmbda has no effect without rlhf_type: gkd", ""),
        (
            "rlhf: {rlhf_type: gkd, beta: 0}\n", "5:30",
            "rlhf.beta: exactly 0 is the full forward KL to the teacher, not none of it", "write 0.1",
        ),
        (
            "rlhf: {rlhf_type: gkd, lmbda: 1}\n", "5:31",
            "rlhf.lmbda: 1 trains on the student's own text alone, never on your captions", "write lmbda: 0.5",
        ),
        (
            "rlhf: {rlhf_type: gkd, lmbda: 1, seq_kd: true}\n", "5:31",
            "rlhf.lmbda: 1 trains on the student's own text alone", "write lmbda: 0.5",
        ),
        (
            "rlhf: {rlhf_type: gkd, seq_kd: true}\n", "5:32",
            "rlhf.seq_kd replaces every caption of yours by the teacher's text: they are never trained on",
            "write seq_kd_ratio: 0.5",
        ),
        (
            "rlhf: {rlhf_type: gkd, lmbda: 0, temperature: 0.5}\n", "5:47",
            "rlhf.temperature has no effect: with lmbda 0 and no seq_kd nothing is sampled", "take the line out",
        ),
        (
            "rlhf: {rlhf_type: gkd, lmbda: 0, max_completion_length: 9}\n", "5:57",
            "rlhf.max_completion_length has no effect", "take the line out",
        ),
        ("rlhf: {rlhf_type: gkd, seq_kd_ratio: 0.5}\n", "5:38", "rlhf.seq_kd_ratio has no effect", "take the line out"),
        (
            "rlhf: {rlhf_type: gkd, teacher_completions_cache: x}\n", "5:51",
            "rlhf.teacher_completions_cache has no effect: seq_kd is not on", "take the line out",
        ),
        (
            "rlhf: {rlhf_type: gkd, llm_kd_weight: 0, sft_alpha: 1, lmbda: 0.5}\n", "5:63",
            "rlhf.lmbda: with llm_kd_weight 0, steps on the student's own text have nothing to learn from it",
            "write lmbda: 0.0",
        ),
        (
            visual("vit", "aligner", more=GKD + "tuner:\n  freeze_aligner: false\n"), "5:45",
            "custom.visual_kd.vit is always zero: nothing trains at or before its output", "enabled: false",
        ),
        (
            visual("aligner", "deepstack", more=GKD + "tuner:\n  target_modules: [visual.merger.linear_fc1]\n"), "5:77",
            "custom.visual_kd.deepstack is always zero", "enabled: false",
        ),
        (
            visual("aligner", "deepstack", more=GKD + "tuner:\n  modules_to_save: [deepstack_merger_list.1]\n"), "5:49",
            "custom.visual_kd.aligner is always zero", "enabled: false",
        ),
    ],
)  # fmt: skip
def test_what_may_not_be_meant_is_noted_at_its_line(added, at, what, do):
    (note,) = notes_of(MINIMAL + added)
    head, _, advice = note.partition("\n  ")
    assert head.startswith(f"r.yaml:{at}: ")
    assert what in head
    assert do in advice


@pytest.mark.parametrize(
    "added",
    [
        GKD,
        "rlhf: {rlhf_type: gkd, beta: 0.1, lmbda: 0.5, temperature: 0.5, max_completion_length: 9}\n",
        "rlhf: {rlhf_type: gkd, beta: 1, lmbda: 0, sft_alpha: 1}\n",
        "rlhf: {rlhf_type: gkd, llm_kd_weight: 0, sft_alpha: 1, lmbda: 0}\n",
        "rlhf: {rlhf_type: gkd, llm_kd_weight: 1, sft_alpha: 0}\n",
        "rlhf: {rlhf_type: gkd, seq_kd: true, seq_kd_ratio: 0.5, teacher_completions_cache: x}\n",
        "rlhf: {rlhf_type: gkd, lmbda: 0, seq_kd: true, seq_kd_ratio: 0.5, temperature: 0.5}\n",
        "  trainer_variant: gkd_monitor\n" + GKD,
        "  visual_kd: {enabled: false, vit: {enabled: true}}\n",
        "  visual_kd: {vit: {weight: 0.5}}\n" + GKD,
        visual("aligner", "deepstack", more=GKD + "tuner: {freeze_aligner: false}\n"),
        visual("vit", "aligner", "deepstack", more=GKD + "tuner: {freeze_vit: false}\n"),
        visual("aligner", more=GKD + "tuner: {target_regex: '.*visual.merger.linear_fc1'}\n"),
        visual("deepstack", more=GKD + "tuner: {modules_to_save: [deepstack_merger_list.1]}\n"),
    ],
)
def test_what_keeps_the_rules_loads_without_a_word(added):
    assert notes_of(MINIMAL + added) == []


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ("  trainer_variant: gkd_monitor\nrlhf: {rlhf_type: dpo}\n", "rlhf.rlhf_type: 'dpo'"),
        ("rlhf: {rlhf_type: gkd, llm_kd_weight: 0, sft_alpha: x}\n", "rlhf.sft_alpha: 'x'"),
        ("rlhf: {rlhf_type: gkd, lmbda: 2}\n", "rlhf.lmbda: 2"),
        ("  visual_kd: {enabled: true, vit: {enabled: x}}\n" + GKD, "custom.visual_kd.vit.enabled: 'x'"),
        (visual("vit", more=GKD + "tuner: {target_regex: '('}\n"), "tuner.target_regex: "),
        (visual("vit", more=GKD + "tuner: {freeze_vit: x}\n"), "tuner.freeze_vit: 'x'"),
    ],
)
def test_a_rule_says_nothing_of_a_value_that_is_itself_wrong(added, told):
    (problem,) = problems_of(MINIMAL + added)
    assert told in problem


def test_inherited_sampling_keys_are_not_noted_where_sampling_is_turned_off(tmp_path):
    (tmp_path / "base.yaml").write_text(
        MINIMAL + "rlhf: {rlhf_type: gkd, seq_kd: true, seq_kd_ratio: 0.5, temperature: 0.7}\n"
    )
    assert notes_of("extends: base.yaml\nrlhf: {lmbda: 0.0, seq_kd: false}\n") == []
    (note,) = notes_of("extends: base.yaml\nrlhf: {lmbda: 0.0, seq_kd: false, temperature: 0.5}\n")
    assert note.startswith("r.yaml:2:48: rlhf.temperature has no effect")


@pytest.mark.parametrize("turned", [False, True])
def test_terms_that_became_zero_are_told_where_that_was_written(turned, tmp_path):
    below, above = "custom: {visual_kd: {enabled: true, vit: {enabled: true}}}\n" + GKD, "tuner: {freeze_vit: true}\n"
    if turned:
        below, above = above, below
    (tmp_path / "lowest.yaml").write_text(MINIMAL)
    (tmp_path / "below.yaml").write_text(f"extends: lowest.yaml\n{below}")
    (problem,) = problems_of(f"extends: below.yaml\n{above}")
    assert problem.startswith("r.yaml:2:")
    assert "every enabled term is always zero" in problem
