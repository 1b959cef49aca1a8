"""Variables: what the shell's values become in a recipe."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vltool.errors import Problem, Where
from vltool.recipe.load import KeyNode, MapNode, ScalarNode, SeqNode
from vltool.recipe.variables import escape, substitute

HERE = Where("r.yaml", 3, 5)


def _read(text: str, env: Mapping[str, str], *, plain: bool = True) -> ScalarNode:
    problems: list[Problem] = []
    node = substitute(ScalarNode(HERE, text, text, plain), env, "custom.x", problems)
    assert not problems
    assert isinstance(node, ScalarNode)
    return node


@pytest.mark.parametrize(
    ("text", "env", "value"),
    [
        ("${A}", {"A": "8"}, 8),
        ("${A}", {"A": "1e-4"}, 1e-4),
        ("${A}", {"A": "true"}, True),
        ("${A}", {"A": ""}, None),
        ("${A:-}", {}, None),
        ("${A:-5}", {}, 5),
        ("${A:-5}", {"A": ""}, 5),
        ("${A:-5}", {"A": "6"}, 6),
        ("${A}/${B:-b}.x", {"A": "/a"}, "/a/b.x"),
        ("$${A}", {"A": "8"}, "${A}"),
        ("$A and $$", {"A": "8"}, "$A and $$"),
        ("${A}", {"A": "${B}"}, "${B}"),
    ],
)
def test_plain_text_is_read_again(text: str, env: dict[str, str], value: object) -> None:
    node = _read(text, env)
    assert node.value == value
    assert type(node.value) is type(value)


@pytest.mark.parametrize("value", ["8", "", "true", "1e-4"])
def test_quoted_text_stays_text(value: str) -> None:
    assert _read("${A}", {"A": value}, plain=False).value == value


def test_only_what_begins_with_the_shells_value_comes_from_the_shell() -> None:
    assert _read("${A}/x", {"A": "a"}).from_shell
    assert not _read("x/${A}", {"A": "a"}).from_shell
    assert not _read("${A:-a}/x", {}).from_shell
    assert not _read("$${A}/${A}", {"A": "a"}).from_shell


@pytest.mark.parametrize(
    ("text", "env", "message"),
    [
        (
            "${A}",
            {},
            "r.yaml:3:5: custom.x: the environment variable A is not set\n  set A, or write custom.x in your recipe",
        ),
        ("${1A}", {}, "r.yaml:3:5: custom.x: `${1A}` is no variable"),
        ("x${A", {"A": "a"}, "r.yaml:3:5: custom.x: `${A` is no variable"),
        ("${A:-${B}}", {"B": "b"}, "r.yaml:3:5: custom.x: `${A:-${B}}` is no variable"),
        ("${A}", {"A": "\udcff"}, "r.yaml:3:5: custom.x: the environment variable A is not UTF-8 text"),
    ],
)
def test_problems_name_variable_key_and_place(text: str, env: dict[str, str], message: str) -> None:
    problems: list[Problem] = []
    node = ScalarNode(HERE, text, text, plain=True)
    assert substitute(node, env, "custom.x", problems) is node
    assert len(problems) == 1
    assert str(problems[0]).startswith(message)


def test_keys_deep_in_a_tree_are_named() -> None:
    leaf = ScalarNode(HERE, "${A}", "${A}", plain=True)
    tree = MapNode(HERE, ((KeyNode("custom", HERE), MapNode(HERE, ((KeyNode("y", HERE), SeqNode(HERE, (leaf,))),))),))
    problems: list[Problem] = []
    substitute(tree, {}, "", problems)
    assert [problem.what for problem in problems] == ["custom.y[0]: the environment variable A is not set"]


@given(st.text(alphabet="${}A:-b\n") | st.text())
def test_escaped_text_round_trips(text: str) -> None:
    assert _read(escape(text), {"A": "wrong"}, plain=False).value == text


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_value_arrives_as_it_is(value: str) -> None:
    assert _read("a${A}b", {"A": value}, plain=False).value == f"a{value}b"
