"""`${NAME}` and `${NAME:-default}` in a recipe's text become the environment's values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from vltool.errors import Problem
from vltool.recipe.load import UNUSABLE, MapNode, Node, ScalarNode, SeqNode
from vltool.recipe.paths import HUB_IDS
from vltool.recipe.scalars import read_plain

_VARIABLE = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\})?")


def escape(text: str) -> str:
    """Text that reads as `text` after substitution."""
    return text.replace("${", "$${")


def substitute(node: Node, env: Mapping[str, str], key: str, problems: list[Problem]) -> Node:
    """Put the environment's values into a tree; `key` is the dotted name of `node`, empty at the top.

    What was written plain is read again by YAML's rules for plain scalars, so `${RANK}` can be a
    number and an empty variable is null; what was quoted stays text. Defaults count for variables
    that are unset or empty, as in a shell. A text with a problem stays as it was written.
    """
    if isinstance(node, MapNode):
        dotted = f"{key}." if key else ""
        entries = ((name, substitute(value, env, dotted + name.name, problems)) for name, value in node.entries)
        return replace(node, entries=tuple(entries))
    if isinstance(node, SeqNode):
        items = (substitute(item, env, f"{key}[{i}]", problems) for i, item in enumerate(node.items))
        return replace(node, items=tuple(items))
    assert isinstance(node, ScalarNode)
    return _scalar(node, env, key, problems) if isinstance(node.value, str) and "${" in node.text else node


def _scalar(node: ScalarNode, env: Mapping[str, str], key: str, problems: list[Problem]) -> ScalarNode:
    before = len(problems)
    from_shell = False

    def problem(what: str, do: str) -> str:
        problems.append(Problem(f"{key}: {what}", do, node.where, id="base-path" if key in HUB_IDS else ""))
        return ""

    def value(match: re.Match[str]) -> str:
        nonlocal from_shell
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            return "${"
        if name is None or "${" in (default or ""):
            begun = node.text[match.start() : match.start() + 24].splitlines()[0]
            return problem(
                f"`{begun}` is no variable", "write ${NAME} or ${NAME:-default}; $${ gives the characters ${"
            )
        written = env.get(name, "")
        if written == "" and default is not None:
            return str(default[2:])
        if name not in env:
            return problem(f"the environment variable {name} is not set", f"set {name}, or write {key} in your recipe")
        if UNUSABLE.search(written):
            return problem(f"the environment variable {name} is not UTF-8 text", "")
        from_shell = from_shell or match.start() == 0
        return written

    text = _VARIABLE.sub(value, node.text)
    if len(problems) > before:
        return node
    return replace(node, value=read_plain(text) if node.plain else text, text=text, from_shell=from_shell)
