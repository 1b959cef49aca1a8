"""Fusion configs: what they mean, and every way in which one is wrong."""

from __future__ import annotations

import json

import pytest

from vltool.errors import InvalidInput
from vltool.recipe.fusion import load_fusion


@pytest.fixture
def load(tmp_path):
    def read(text, name="mix.yaml", **more):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return load_fusion(str(path), env=more.pop("env", {}), **more)

    return read


def wrong(load, text, **more):
    """`line:column: what` of each problem, with what to do."""
    with pytest.raises(InvalidInput) as caught:
        load(text, **more)
    return [f"{p.where.line}:{p.where.column}: {p.what} | {p.do}" for p in caught.value.problems]


def test_defaults_differ_between_targets_and_sources(load, tmp_path):
    mix = load("target: {train_jsonl: a/own.jsonl}\nsources: [{train_jsonl: ../coco.jsonl.zst, ratio: 0.5}]\n")
    own, coco = mix.datasets
    assert (own.role, own.name, own.train_jsonl) == ("target", "own", str(tmp_path / "a" / "own.jsonl"))
    assert (own.augmentation_enabled, own.curriculum_enabled, own.max_objects_per_image) == (True, True, None)
    assert (coco.role, coco.name, coco.train_jsonl) == ("source", "coco", str(tmp_path.parent / "coco.jsonl.zst"))
    assert (coco.augmentation_enabled, coco.curriculum_enabled, coco.max_objects_per_image) == (False, False, 64)
    assert coco.ratio == 0.5


def test_json_reads_as_yaml_does(load):
    document = {"targets": [{"train_jsonl": "a.jsonl"}], "sources": [{"train_jsonl": "b.jsonl", "ratio": 1, "seed": 3}]}
    for indent in (None, 2, "\t"):
        mix = load(json.dumps(document, indent=indent), name="mix.json")
        assert [dataset.name for dataset in mix.datasets] == ["a", "b"]
    assert mix.sources[0].seed == 3


def test_a_datasets_prompt_wins_over_its_domains(load, tmp_path):
    (tmp_path / "asks.txt").write_text("Name them.\n")
    mix = load(
        """
targets: [{train_jsonl: a.jsonl}, {train_jsonl: b.jsonl, user_prompt: Only b.}]
sources: [{train_jsonl: c.jsonl, ratio: 1, system_prompt: ''}]
domains:
  target: {user_prompt: asks.txt}
  source: {system_prompt: Be brief.}
"""
    )
    assert [dataset.user_prompt for dataset in mix.datasets] == ["Name them.", "Only b.", None]
    assert [dataset.system_prompt for dataset in mix.datasets] == [None, None, ""]


def test_variables_and_clearing(load, tmp_path):
    mix = load(
        "target: {train_jsonl: '${DATA}/a.jsonl', name: null}\nsources: [{train_jsonl: b.jsonl, ratio: '${R}'}]"
        .replace("'${R}'", "${R:-0.25}").replace("[{", "\n  - ").replace(", ratio", "\n    ratio").replace("}]", ""),
        env={"DATA": "/data"},
    )  # fmt: skip
    assert mix.targets[0].train_jsonl == "/data/a.jsonl"
    assert mix.targets[0].name == "a"


def test_every_problem_is_told_with_its_place(load):
    told = wrong(
        load,
        """target: {train_jsonl: a.jsonl, tempate: x, ratio: 1}
sources:
  - train_jsonl: b.jsonl
    ratio: "0.5"
  - dataset: coco
    ratio: 0
    template: coco
  - 7
  - {train_jsonl: d.jsonl}
domain: 1
domains: {traget: {}, source: {user_prompt: absent.txt}}
""",
    )
    expected = [
        "1:32: unknown key target.tempate | did you mean template?",
        "1:51: target.ratio: an epoch covers every target once",
        "4:12: sources[0].ratio: '0.5' is not a number above 0 and of at most 10,000 | the quotes make it text",
        "5:5: unknown key sources[1].dataset | write name:",
        "5:5: sources[1].train_jsonl is missing",
        "6:12: sources[1].ratio: 0 is not a number above 0",
        "7:15: sources[1].template: 'coco' cannot be honoured; the model reads every dataset through qwen3_vl",
        "8:5: sources[2]: 7 is not a mapping",
        "9:5: sources[3].ratio is missing",
        "10:1: unknown key domain | targets and sources are the domains",
        "11:11: unknown key domains.traget | did you mean target?",
        "11:45: domains.source.user_prompt: ",
    ]
    assert len(told) == len(expected), told
    for line, begun in zip(told, expected, strict=True):
        assert line.startswith(begun), line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "1:1: there is no target"),
        ("targets: []", "targets is empty"),
        ("target: [{train_jsonl: a.jsonl}]", "target: a list is not a mapping | write targets"),
        ("targets: {train_jsonl: a.jsonl}", "targets: a mapping is not a list"),
        ("target: a.jsonl", "target: 'a.jsonl' is not a mapping"),
        ("target: {train_jsonl: a.jsonl}\ntargets: [{train_jsonl: b.jsonl}]", "2:1: target and targets are both given"),
        ("targets: [{train_jsonl: x/a.jsonl}, {train_jsonl: y/a.jsonl}]", "targets[0] is called a too | give one"),
        ("target: {train_jsonl: ''}", "target.train_jsonl is an empty text"),
        ("target: {train_jsonl: a.jsonl, max_objects_per_image: 0}", "of at least 1"),
        ("target: {train_jsonl: a.jsonl, seed: -1}", "a whole number of at least 0"),
        ("target: {train_jsonl: a.jsonl, user_prompt: ' '}", "target.user_prompt is empty"),
        ("target: {train_jsonl: a.jsonl, augmentation_enabled: yes}", "write true"),
        ("target: {train_jsonl: '${NOPE}.jsonl'}", "the environment variable NOPE is not set"),
        ("target: {train_jsonl: a.jsonl}\nsources: [{train_jsonl: b.jsonl, ratio: .inf}]", "write a finite number"),
        ("target: {train_jsonl: a.jsonl}\nsource: []", "unknown key source | did you mean sources?"),
        ("target: {train_jsonl: a.jsonl}\ntarget: {train_jsonl: b.jsonl}", "duplicate key target"),
    ],
)
def test_what_is_wrong_is_said_once(load, text, says):
    told = wrong(load, text)
    assert len(told) == 1, told
    assert says in told[0]


def test_all_stands_for_any_number_of_objects(load):
    mix = load(
        "target: {train_jsonl: a.jsonl}\nsources: [{train_jsonl: b.jsonl, ratio: 1, max_objects_per_image: all}]"
    )
    assert mix.sources[0].max_objects_per_image is None


def test_keys_without_effect_are_noted(load):
    mix = load(
        "target: {train_jsonl: a.jsonl, seed: 3}\nsources: [{train_jsonl: b.jsonl, ratio: 1, curriculum_enabled: true}]"
    )
    assert [(note.where.line, note.what.split(":")[0]) for note in mix.notes] == [
        (1, "target.seed has no effect"),
        (2, "sources[0].curriculum_enabled has no effect"),
    ]


def test_an_absent_config_is_named():
    with pytest.raises(InvalidInput, match=r"no such file: gone\.yaml"):
        load_fusion("gone.yaml")
