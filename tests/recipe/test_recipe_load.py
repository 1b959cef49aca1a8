"""Loading: what a file may hold, and where exactly it says what it may not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vltool.errors import InvalidInput, Problem, Where
from vltool.recipe.load import MapNode, Node, ScalarNode, SeqNode, load_file
from vltool.recipe.scalars import read_plain


def _load(folder: Path, text: str | bytes) -> MapNode:
    path = folder / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_file(path, shown="r.yaml")


def _problems(folder: Path, text: str | bytes) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        _load(folder, text)
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def _plain(node: Node) -> object:
    if isinstance(node, MapNode):
        return {key.name: _plain(value) for key, value in node.entries}
    if isinstance(node, SeqNode):
        return [_plain(item) for item in node.items]
    assert isinstance(node, ScalarNode)
    return node.value


def test_every_node_knows_its_place(tmp_path: Path) -> None:
    tree = _load(tmp_path, "# header\ntuner:\n  target_modules: [a, b]\ntraining:\n  lr: 1e-4\n")
    (tuner_key, tuner), (_, training) = tree.entries
    assert isinstance(tuner, MapNode)
    assert isinstance(training, MapNode)
    assert tuner_key.where == Where("r.yaml", 2, 1)
    (targets_key, targets), *_ = tuner.entries
    assert isinstance(targets, SeqNode)
    assert targets_key.where == Where("r.yaml", 3, 3)
    assert [item.where for item in targets.items] == [Where("r.yaml", 3, 20), Where("r.yaml", 3, 23)]
    assert training.entries[0][1] == ScalarNode(Where("r.yaml", 5, 7), 1e-4, "1e-4", plain=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.0e-4", 1e-4), ("-.5", -0.5), ("1.", 1.0), (".inf", math.inf), ("-.INF", -math.inf),
        ("8", 8), ("-8", -8), ("0x1F", 31), ("0o17", 15), ("true", True), ("False", False), ("~", None), ("", None),
        ("null", None), ("on", "on"), ("yes", "yes"), ("1_000", "1_000"), ("1:30", "1:30"), ("0b11", "0b11"),
        ("2020-01-01", "2020-01-01"), ("1e", "1e"), ("=", "="), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_plain_scalars_follow_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    assert read_plain(text) == value
    assert type(read_plain(text)) is type(value)
    assert _plain(_load(tmp_path, f"a: {text}\n")) == {"a": value}


def test_not_a_number_is_one(tmp_path: Path) -> None:
    value = read_plain(".NaN")
    assert isinstance(value, float)
    assert math.isnan(value)


def test_quotes_and_blocks_are_text(tmp_path: Path) -> None:
    tree = _load(tmp_path, "a: '8'\nb: \"true\"\nc: |\n  8\nd: !!str 8\ne: !!float 8\n")
    assert _plain(tree) == {"a": "8", "b": "true", "c": "8\n", "d": "8", "e": 8.0}
    assert [isinstance(node, ScalarNode) and node.plain for _, node in tree.entries] == [False] * 5


def test_a_directive_does_not_bring_yaml_1_1_back(tmp_path: Path) -> None:
    assert _plain(_load(tmp_path, "%YAML 1.1\n---\na: on\n")) == {"a": "on"}


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "---\n...\n", "\ufeff"])
def test_an_empty_file_is_an_empty_recipe(text: str, tmp_path: Path) -> None:
    assert _load(tmp_path, text).entries == ()


def test_a_byte_order_mark_moves_no_column(tmp_path: Path) -> None:
    assert _load(tmp_path, "\ufeffa: 1\n").entries[0][0].where == Where("r.yaml", 1, 1)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\na: 4\n", ["r.yaml:4:3: duplicate key b.c", "r.yaml:5:1: duplicate key a"]),
        ("a:\n\tb: 1\n", ["r.yaml:2:1: a tab where YAML wants spaces"]),
        ("a: \t1\n", ["r.yaml:1:4: a tab where YAML wants spaces"]),
        ("a: b: c\n", ["r.yaml:1:5: a second `: ` in one line"]),
        ("a: [1, 2\n", ["r.yaml:1:4: the bracket that begins here never ends"]),
        ("a: \x00\n", [r"r.yaml:1:4: the character '\x00' cannot stand in YAML"]),
        ("ok: 1\na: \x1b\n", [r"r.yaml:2:4: the character '\x1b' cannot stand in YAML"]),
        ('a: "\\0"\n', [r"r.yaml:1:4: the character '\x00' cannot be used in text"]),
        ('ok: 1\na: "\\ud800"\n', [r"r.yaml:2:4: the character '\ud800' cannot be used in text"]),
        (b"a: 1\nb: \xff\n", ["r.yaml:2:4: not UTF-8 text: byte 0xff"]),
        ("\ufeff".encode() + b"a: \xff\n", ["r.yaml:1:4: not UTF-8 text: byte 0xff"]),
        ("a: {b: ${X}}\n", ["r.yaml:1:9: a variable without quotes inside { } or [ ]"]),
        ("- a\n", ["r.yaml:1:1: the file holds a list"]),
        ("hello\n", ["r.yaml:1:1: the file holds a single value"]),
        ("a: 1\n---\nb: 2\n", ["r.yaml:2:1: a second document begins here"]),
        ("a: &x 1\nb: *x\n", ["r.yaml:1:4: anchor &x", "r.yaml:2:4: alias *x"]),
        ("a: &x [*x]\n", ["r.yaml:1:4: anchor &x", "r.yaml:1:8: alias *x"]),
        ("a: *nowhere\n", ["r.yaml:1:4: alias *nowhere"]),
        ("<<: {a: 1}\n", ["r.yaml:1:1: merge key <<"]),
        ("1: a\nnull: b\n", ["r.yaml:1:1: the key 1 is no text", "r.yaml:2:1: the key null is no text"]),
        ("? [a]\n: 1\n", ["r.yaml:1:3: a key that is a list or a mapping"]),
        ("a: !secret x\nb: !!set {c}\n", ["r.yaml:1:4: unknown tag !secret", "r.yaml:2:4: unknown tag !!set"]),
        ("a: !!int x\n", ["r.yaml:1:4: 'x' is no int"]),
        ("[" * 3000, ["r.yaml:1:52: more than 50 mappings and lists inside each other"]),
    ],
)  # fmt: skip
def test_problems_say_where(text: str | bytes, problems: list[str], tmp_path: Path) -> None:
    assert _problems(tmp_path, text) == problems


def test_a_duplicate_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        _load(tmp_path, "a: 1\n\na: 2\n")
    assert str(caught.value) == "r.yaml:3:1: duplicate key a\n  first written at r.yaml:1:1"


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^gone\.yaml: cannot be read: No such file or directory$"):
        load_file(tmp_path / "gone.yaml", shown="gone.yaml")
    with pytest.raises(InvalidInput, match="Is a directory"):
        load_file(tmp_path)


YAML_PIECES = [
    *" \n\t\r:-?,[]{}#&*!|>'\"%@~.\\019abeTUx<=+_$\x85\u2028é\x00\x1b", "a: ", "\n  ", "- ", "---\n", "...", "!!", "? ",
    "%YAML 1.2\n", "%TAG ! ", "\\u", "\\U0011", "\\x", "|+", "|9\n", ">-\n", "!<tag:", "!!int ", "!!null", "!%", "<<: ",
]  # fmt: skip


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.lists(st.sampled_from(YAML_PIECES)).map("".join) | st.binary())
def test_any_text_loads_or_is_refused(text: str | bytes, tmp_path: Path) -> None:
    refused: list[Problem] = []
    try:
        _load(tmp_path, text)
    except InvalidInput as error:
        refused += error.problems
    assert all(problem.where and problem.where.line for problem in refused)
