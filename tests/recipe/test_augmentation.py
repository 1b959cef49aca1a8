"""Augmentation in a recipe: every operation typed, every wrong parameter at its own place."""

from __future__ import annotations

import pytest

from vltool.errors import InvalidInput
from vltool.recipe.augmentation import OPS
from vltool.recipe.validate import load_recipe

MINIMAL = """\
model: {model: /m}
global_max_length: 9
custom:
  train_jsonl: /t.jsonl
  augmentation:
    enabled: true
    ops:
"""


def loaded(tmp_path, monkeypatch, ops, more=""):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(MINIMAL + "".join(f"    - {op}\n" for op in ops) + more)
    return load_recipe("r.yaml").custom.augmentation


def problems_of(*args):
    with pytest.raises(InvalidInput) as caught:
        loaded(*args)
    return [
        (f"{problem.where.line}:{problem.where.column}", problem.what, problem.do) for problem in caught.value.problems
    ]


@pytest.mark.parametrize("name", OPS)
def test_every_operation_has_defaults_of_its_own(name, tmp_path, monkeypatch):
    params = ", params: {max_deg: 5.0}" if name == "rotate" else ""
    (op,) = loaded(tmp_path, monkeypatch, [f"{{name: {name}{params}}}"]).ops
    assert type(op) is OPS[name]
    assert op.name == name


@pytest.mark.parametrize(
    ("op", "place", "what", "do"),
    [
        ("{name: rotate, params: {max_deg: 500}}", "8:40", "max_deg: 500 is not a number from 0 to 180", ""),
        ("{name: rotate}", "8:7", "rotate: no angle", "write one of max_deg: 5.0 and deg: [-5.0, 5.0]"),
        ("{name: rotate, params: {max_deg: 1, deg: [1, 2]}}", "8:43", "are both given", "write one of max_deg"),
        ("{name: scale, params: {lo: 1.2}}", "8:34", "lo is 1.2, above hi, 1.1", "smaller factor as lo"),
        ("{name: scale, params: {hi: 0}}", "8:34", "hi: 0 is not a number from 0.05 to 20", ""),
        ("{name: resize_by_scale, params: {scales: [1.0], lo: 1}}", "8:40", "scales stands beside lo or hi", ""),
        ("{name: resize_by_scale, params: {scales: []}}", "8:40", "scales is empty", "list factors"),
        ("{name: gamma, params: {gamma: 1.2}}", "8:37", "gamma: 1.2 is not a list of 2", "write gamma: [1.2, 1.2]"),
        ("{name: gamma, params: {gamma: [2, 1]}}", "8:30", "gamma goes from 2 down to 1", "write [1, 2]"),
        ("{name: gamma, params: {gamma: [1, 2, 3]}}", "8:37", "3 items are not a list of 2", "write 2"),
        ("{name: gamma, params: {gamma: [a, 2]}}", "8:38", "gamma[0]: 'a' is not a number above 0", ""),
        ("{name: hflip, params: {prob: .nan}}", "8:36", "prob: .nan is not a number from 0 to 1", "a finite number"),
        ("hflip", "8:7", "ops[0]: 'hflip' is not a mapping", ""),
        ("{name: gamma, params: {gamma: [1, 11]}}", "8:41", "11 is not a number above 0 and of at most 10", ""),
        ("{name: auto_contrast, params: {cutoff: 50}}", "8:46", "50 is not a number of at least 0 and below 50", ""),
        ("{name: hflip, params: {prb: 1.0}}", "8:30", "unknown key", "did you mean prob?"),
        ("{name: pad_to_multiple, params: {multiple: 2.5}}", "8:50", "2.5 is not a whole number", ""),
        (
            "{name: expand_to_fit_affine, params: {multiple: 64, max_pixels: 1024}}", "8:71",
            "no canvas of multiples of 64 has so few pixels", "raise it",
        ),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_told_where_it_stands(op, place, what, do, tmp_path, monkeypatch):
    ((found_place, found_what, found_do),) = problems_of(tmp_path, monkeypatch, [op])
    assert what in found_what
    assert "a mapping, nor a mapping" not in found_what
    assert do in found_do
    assert found_place == place


CURRICULUM = "    curriculum: {{phases: [{}]}}\n"
ROTATE = "{name: rotate, params: {max_deg: 5.0}}"


@pytest.mark.parametrize(
    ("phases", "what", "do"),
    [
        ("", "the curriculum has no phase", ""),
        ("{ops: {}}", "a phase ends at until_percent or until_step", ""),
        ("{until_percent: 5, until_step: 5}", "a phase ends at until_percent or until_step", ""),
        ("{until_percent: 101}", "101 is not a number", ""),
        ("{until_percent: 20}, {until_percent: 20}", "the phase ends at 20, not after the one before", "in order"),
        ("{until_percent: 20}, {until_step: 30}", "some phases end by percent, others by step", "in one unit"),
        ("{until_step: 3, ops: {rotat: {prob: 1.0}}}", "rotat is none of the ops", "did you mean rotate?"),
        ("{until_step: 3, ops: {hsv: {prob: 1.0}}}", "hsv is none of the ops", "list it under ops too"),
        ("{until_step: 3, ops: {rotate: {max_dg: 1.0}}}", "rotate has no max_dg", "did you mean max_deg?"),
        ("{until_step: 3, ops: {rotate: {max_deg: 181.0}}}", "<= 180", "a value that the op itself could have"),
        ("{until_step: 3, ops: {rotate: {deg: [1.0, 2.0]}}}", "rotate.deg cannot go from None", ""),
        ("{until_step: 3, ops: {scale: {lo: 1.05}}}, {until_step: 4, ops: {scale: {hi: 1.0}}}", "above hi, 1", ""),
        ("{until_step: 3, ops: {gamma: {gamma: [1.2, 0.5]}}}", "from 1.2 down to 0.5", "write [0.5, 1.2]"),
        ("{until_step: 3, bypass_prob: 2}", "2 is not a number from 0 to 1", ""),
    ],
)
def test_a_curriculum_that_cannot_be_followed_is_told(phases, what, do, tmp_path, monkeypatch):
    ops = [ROTATE, "{name: scale}", "{name: gamma}"]
    found = problems_of(tmp_path, monkeypatch, ops, CURRICULUM.format(phases))
    assert any(what in found_what and do in found_do for _, found_what, found_do in found), found


def test_a_good_curriculum_arrives_typed(tmp_path, monkeypatch):
    phases = "{until_percent: 30, ops: {rotate: {max_deg: 9.0, prob: 1.0}}}, {until_percent: 100, bypass_prob: 0.0}"
    augmentation = loaded(tmp_path, monkeypatch, [ROTATE], CURRICULUM.format(phases))
    assert [phase.until_percent for phase in augmentation.curriculum.phases] == [30.0, 100.0]


def test_a_fault_in_a_phase_is_told_at_its_parameter(tmp_path, monkeypatch):
    phases = "{until_step: 3, ops: {rotate: {prob: 0.5, max_deg: 900}}}"
    ((place, what, _),) = problems_of(tmp_path, monkeypatch, [ROTATE], CURRICULUM.format(phases))
    line = CURRICULUM.format(phases)
    assert place == f"9:{line.index('900') + 1}"
    assert "rotate.max_deg" in what


def test_a_phase_may_move_a_whole_range_past_where_it_was(tmp_path, monkeypatch):
    phases = "{until_step: 3, ops: {scale: {lo: 1.5, hi: 2.0}}}, {until_step: 9, ops: {scale: {hi: 0.8, lo: 0.7}}}"
    augmentation = loaded(tmp_path, monkeypatch, ["{name: scale}"], CURRICULUM.format(phases))
    assert [phase.ops["scale"]["lo"] for phase in augmentation.curriculum.phases] == [1.5, 0.7]
