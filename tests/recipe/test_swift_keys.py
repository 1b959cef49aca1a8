"""The table of ms-swift's keys: what is shipped is what the installed ms-swift says, and is read without it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import inspect as types

from vltool.errors import Where
from vltool.recipe.convert import convert
from vltool.recipe.load import KeyNode, MapNode, ScalarNode, SeqNode
from vltool.recipe.schema import CLOSED, OWN, REFUSED, SECTIONS
from vltool.recipe.swift_keys import swift_table
from vltool.run import unsupported
from vltool.run.arguments import ALWAYS

ROOT = Path(__file__).parents[2]
OURS = {name for struct in OWN.values() for name in struct.__struct_fields__}
TABLE = swift_table()


@pytest.fixture(scope="module")
def tool():
    """`tools/swift_keys.py`, where ms-swift is installed."""
    pytest.importorskip("swift")
    spec = importlib.util.spec_from_file_location("tool_of_swift_keys", ROOT / "tools" / "swift_keys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_table_is_the_one_that_the_installed_ms_swift_gives(tool):
    assert tool.to_json(tool.table()) == tool.TABLE.read_text(encoding="utf-8")
    assert tool.TABLE == ROOT / "vltool" / "recipe" / "swift_keys.json"


def test_another_default_would_be_noticed(tool, monkeypatch):
    from swift.arguments import SftArguments

    (seed,) = [field for field in dataclasses.fields(SftArguments) if field.name == "seed"]
    monkeypatch.setattr(seed, "default", seed.default + 1)
    was, now = tool.TABLE.read_text(encoding="utf-8").splitlines(), tool.to_json(tool.table()).splitlines()
    assert len(was) == len(now)
    ((old, new),) = [(old, new) for old, new in zip(was, now, strict=True) if old != new]
    assert old.startswith('    "seed": {')
    assert new == old.replace('"default": 42', '"default": 43')


def test_a_key_more_or_less_would_be_noticed(tool):
    document = tool.table()
    del document["keys"]["seed"]
    assert tool.to_json(document) != tool.TABLE.read_text(encoding="utf-8")


def test_the_document_has_a_line_for_each_key(tool):
    document = {"ms_swift": "1", "keys": {"a": {"x": [1, "ü"]}, "b": {}}}
    assert tool.to_json(document) == (
        '{"ms_swift": "1",\n"keys": {\n    "a": {"x": [1, "\\u00fc"]},\n    "b": {}\n}}\n'
    )
    assert json.loads(tool.to_json(document)) == document


def test_the_table_holds_every_argument_of_both_classes(tool):
    from swift.arguments import RLHFArguments, SftArguments

    sft, rlhf = ({field.name for field in dataclasses.fields(cls)} for cls in (SftArguments, RLHFArguments))
    assert TABLE.keys.keys() == sft | rlhf
    assert {name for name, key in TABLE.keys.items() if key.section == "rlhf"} == rlhf - sft


def test_the_history_is_of_keys_that_there_are(tool):
    history = json.loads(tool.HISTORY.read_text(encoding="utf-8"))
    assert history["since"].keys() <= TABLE.keys.keys()
    assert history["renamed"].keys() == TABLE.renamed.keys()
    assert history["gone"] == TABLE.gone
    assert {name: key.since for name, key in TABLE.keys.items() if key.since} == history["since"]


def test_the_table_is_read_without_ms_swift():
    code = (
        "import sys; from vltool.recipe.swift_keys import swift_table; from vltool.recipe.validate import load_recipe; "
        "print(len(swift_table().keys)); print(*{'swift', 'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out == f"{len(TABLE.keys)}\n\n"


@pytest.mark.parametrize("name", TABLE.keys)
def test_a_key_can_be_written_somewhere(name):
    key = TABLE.keys[name]
    assert key.section in SECTIONS
    assert key.section == "rlhf" or key.section not in CLOSED
    assert key.type
    assert isinstance(key.accepts(), types.Type)


def test_keys_of_ours_stand_where_ms_swifts_do():
    elsewhere = {
        f"{section}.{name}"
        for section, struct in OWN.items()
        for name in struct.__struct_fields__
        if name in TABLE.keys and TABLE.keys[name].section != section
    }
    # The earlier stage's adapter, and the temperature of what the student writes.
    assert elsewhere == {"tuner.resume_from_checkpoint", "rlhf.temperature"}


def node_of(value):
    here = Where("r.yaml", 1, 1)
    if isinstance(value, dict):
        return MapNode(here, tuple((KeyNode(name, here), node_of(inner)) for name, inner in value.items()))
    if isinstance(value, list):
        return SeqNode(here, tuple(map(node_of, value)))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return ScalarNode(here, value, text, plain=not isinstance(value, str))


@pytest.mark.parametrize("name", [name for name, key in TABLE.keys.items() if key.default is not None])
def test_a_default_is_a_value_that_its_key_takes(name):
    key, problems = TABLE.keys[name], []
    assert convert(node_of(key.default), key.accepts(), name, problems) == key.default
    assert problems == []


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("seed", [1, -1], [1.5, "1", True, [1], None]),
        ("learning_rate", [1e-4, 1], ["fast", True, float("nan"), None]),
        ("gradient_checkpointing", [True, False], [1, "true"]),
        ("attn_impl", ["sdpa"], [1, True, ["sdpa"]]),
        ("report_to", [["wandb"], []], ["wandb", [1], {"a": "b"}]),
        ("lr_scheduler_kwargs", [{"a": [1, {"b": True}]}, {}], [[1], 1]),
        ("accelerator_config", [{"a": [1, {"b": True}]}, {}, "{}"], [[1], 1]),
        ("torch_dtype", ["bfloat16"], ["bf16", 16]),
        ("eval_strategy", ["no", "steps"], ["step", False]),
        ("debug", ["underflow_overflow", ["underflow_overflow"]], [1, [1]]),
        ("reft_layers", [[1, 2]], [["1"], 1]),
        ("liger_kernel_config", [{"rope": True}], [{"rope": 1}, "rope"]),
    ],
)
def test_types_and_choices_are_held(name, taken, refused):
    wanted = TABLE.keys[name].accepts()
    for value in taken:
        problems = []
        assert convert(node_of(value), wanted, name, problems) == value
        assert problems == []
    for value in refused:
        problems = []
        convert(node_of(value), wanted, name, problems)
        assert problems, value


def test_what_other_rooms_name_is_in_the_table():
    for names in (REFUSED, unsupported.HONOURED, unsupported.PARTLY, ALWAYS):
        assert names
        assert set(names) <= TABLE.keys.keys()
    assert not REFUSED.keys() & unsupported.HONOURED
    assert not REFUSED.keys() & OURS
    assert ALWAYS.keys() <= REFUSED.keys() | {"dataset"}


def test_older_names_lead_to_keys_that_there_are():
    assert {now.now for now in TABLE.renamed.values()} <= TABLE.keys.keys()
    assert not TABLE.renamed.keys() & TABLE.keys.keys()
    assert not TABLE.gone.keys() & (TABLE.keys.keys() | OURS)
    assert not TABLE.renamed.keys() & TABLE.gone.keys()
    assert all(TABLE.keys[now.now].section not in CLOSED for now in TABLE.renamed.values())
