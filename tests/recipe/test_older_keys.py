"""Keys that older ms-swift called otherwise, or had: read as today's with a note, or refused with a remedy."""

from __future__ import annotations

import re

import pytest
from planning import MINIMAL, problems_of, written

from vltool.recipe.schema import OWN, REFUSED, SECTIONS, TOP_LEVEL
from vltool.recipe.swift_keys import swift_table

TABLE = swift_table()
SECTION = {old: TABLE.keys[to.now].section for old, to in TABLE.renamed.items()}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def value_for(today):
    """A value that today's key takes."""
    key = TABLE.keys[today]
    if today in ("model", "tuner_type", "target_regex"):
        return {"model": "/n", "tuner_type": "adalora", "target_regex": ".*q_proj"}[today]
    if key.choices:
        return key.choices[0]
    kinds = {"bool": True, "int": 3, "float": 0.25, "str": "x", "list[str]": ["x"]}
    return next(kinds[kind] for kind in key.type if kind in kinds)


def yaml(value):
    return {True: "true"}.get(value, value) if not isinstance(value, list) else f"[{', '.join(value)}]"


def recipe_with(section, name, value):
    tuner = ", tuner_type: full" if name in ("additional_trainable_parameters", "trainable_parameters") else ""
    text = MINIMAL.replace("model: {model: /m}\n", "") if section == "model" else MINIMAL
    return f"{text}{section}: {{{name}: {yaml(value)}{tuner}}}\n", text.count("\n") + 1


@pytest.mark.parametrize("old", TABLE.renamed)
def test_a_key_of_an_older_name_is_read_as_todays_with_a_note(old):
    today, section = TABLE.renamed[old].now, SECTION[old]
    value = value_for(today)
    text, line = recipe_with(section, old, value)
    place = f"r.yaml:{line}:{len(section) + 4}"
    if today in REFUSED:
        (problem,) = problems_of(text)
        assert problem.startswith(f"{place}: {section}.{today} has no effect in a recipe")
        assert REFUSED[today] in problem
        return
    recipe = written(text)
    (note,) = recipe.notes
    assert str(note) == f"{place}: {section}.{old} is now called {today}, and was read as that"
    own = getattr(recipe, section, None)
    assert (getattr(own, today) if hasattr(own, today) else recipe.swift[section][today]) == value
    assert recipe.where(f"{section}.{today}").line == line
    plain, _ = recipe_with(section, today, value)
    same = written(plain)
    assert (same.swift, same.notes) == (recipe.swift, ())
    assert all(getattr(same, name) == getattr(recipe, name) for name in OWN)


@pytest.mark.parametrize("old", TABLE.renamed)
def test_an_older_name_elsewhere_names_todays_and_its_section(old):
    today, section = TABLE.renamed[old].now, SECTION[old]
    elsewhere = [name for name in SECTIONS if name not in (section, "custom", "model")]
    text = MINIMAL + "".join(f"{name}: {{{old}: 1}}\n" for name in elsewhere) + f"{old}: 1\n"
    do = f"\n  it is now called {today}, and belongs in {section}"
    columns = [len(name) + 4 for name in elsewhere]
    assert problems_of(text) == [
        *(
            f"r.yaml:{5 + i}:{columns[i]}: unknown key {name}.{old}{do}" for i, name in enumerate(elsewhere)
        ),
        f"r.yaml:{5 + len(elsewhere)}:1: unknown key {old}{do}",
    ]  # fmt: skip


@pytest.mark.parametrize("old", TABLE.gone)
def test_a_key_that_is_gone_gives_its_remedy_wherever_it_stands(old):
    sections = [name for name in SECTIONS if name not in ("custom", "model")]
    text = MINIMAL + f"  {old}: 1\n" + "".join(f"{name}: {{{old}: 1}}\n" for name in sections) + f"{old}: 1\n"
    told = problems_of(text)
    assert [problem.partition("\n")[0].partition("key ")[2] for problem in told] == [
        f"custom.{old}", *(f"{name}.{old}" for name in sections), old,
    ]  # fmt: skip
    for problem in told:
        assert problem.endswith(f"\n  ms-swift {TABLE.ms_swift} no longer has it: {TABLE.gone[old]}")
        assert TABLE.gone[old]


@pytest.mark.parametrize("old", [old for old, remedy in TABLE.gone.items() if remedy.startswith("write")])
def test_a_remedy_names_keys_that_there_are(old):
    ours = {name for struct in OWN.values() for name in struct.__struct_fields__}
    words = re.findall(r"[a-z][a-z_0-9.]*", TABLE.gone[old])
    keys = [word.rpartition(".")[2] for word in words if word.rpartition(".")[2] in ours | TABLE.keys.keys()]
    assert keys, TABLE.gone[old]
    for section, name in re.findall(r"\b([a-z]+)\.([a-z_]+)", TABLE.gone[old]):
        assert section in TOP_LEVEL
        assert name in OWN[section].__struct_fields__ or TABLE.keys[name].section == section


def test_an_older_name_in_a_recipe_wins_over_todays_in_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL + "training: {per_device_train_batch_size: 2}\n")
    recipe = written("extends: base.yaml\ntraining: {batch_size: 3}\n")
    assert recipe.swift["training"] == {"per_device_train_batch_size": 3}


def test_an_older_and_todays_name_agree_or_are_a_problem():
    agreeing = MINIMAL + "training: {batch_size: 2, per_device_train_batch_size: 2}\n"
    assert written(agreeing).swift["training"] == {"per_device_train_batch_size": 2}
    (problem,) = problems_of(agreeing.replace("batch_size: 2,", "batch_size: 4,"))
    assert problem.startswith(
        "r.yaml:5:12: training.batch_size and training.per_device_train_batch_size are the same key, "
        "with different values\n  write per_device_train_batch_size alone"
    )
    assert "r.yaml:5:27" in problem


@pytest.mark.parametrize(
    ("section", "first", "second"),
    [("training", "batch_size: 2", "per_gpu_train_batch_size: 4"), ("tuner", "sft_type: full", "train_type: lora")],
)
def test_two_older_names_of_one_key_agree_or_are_a_problem(section, first, second):
    (problem,) = problems_of(f"{MINIMAL}{section}: {{{first}, {second}}}\n")
    at = len(f"{section}: {{{first}, ") + 1
    assert problem.startswith(f"r.yaml:5:{at}: {section}.{second.split(':')[0]} and {section}.{first.split(':')[0]} ")
    name, value = first.split(": ")
    agreeing = f"{MINIMAL}{section}: {{{first}, {second.split(':')[0]}: {value}}}\n"
    alone = f"{MINIMAL}{section}: {{{TABLE.renamed[name].now}: {value}}}\n"
    assert problems_of(agreeing) == problems_of(alone) == []
    assert written(agreeing).swift == written(alone).swift
    assert len(written(agreeing).notes) == 2
