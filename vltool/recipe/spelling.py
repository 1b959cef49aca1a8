"""Keys that older ms-swift called differently -> today's names, file by file."""

from __future__ import annotations

from dataclasses import replace

from vltool.errors import Problem
from vltool.recipe.load import KeyNode, MapNode, Node, ScalarNode
from vltool.recipe.schema import CLOSED
from vltool.recipe.swift_keys import swift_table


def modernise(tree: MapNode, problems: list[Problem], notes: list[Problem]) -> MapNode:
    """The tree of one file in today's spelling, with a note for each old name.

    Done before files are merged: an old name in a recipe has to win over today's in its base.
    Both names with different values in one file are a problem.
    """
    table = swift_table()
    entries = []
    for key, node in tree.entries:
        if isinstance(node, MapNode) and key.name not in CLOSED:
            renamed = {old: to.now for old, to in table.renamed.items() if table.keys[to.now].section == key.name}
            node = replace(node, entries=tuple(_section(key.name, node, renamed, problems, notes)))
        entries.append((key, node))
    return replace(tree, entries=tuple(entries))


def _section(
    section: str, tree: MapNode, renamed: dict[str, str], problems: list[Problem], notes: list[Problem]
) -> list[tuple[KeyNode, Node]]:
    present = {key.name: (key, node) for key, node in tree.entries if key.name not in renamed}
    entries = []
    for key, node in tree.entries:
        today = renamed.get(key.name)
        if today is None:
            entries.append((key, node))
            continue
        notes.append(Problem(f"{section}.{key.name} is now called {today}, and was read as that", where=key.where))
        if today not in present:
            present[today] = (key, node)
            entries.append((replace(key, name=today), node))
            continue
        other_key, other = present[today]
        if not (isinstance(node, ScalarNode) and isinstance(other, ScalarNode) and node.text == other.text):
            what = f"{section}.{key.name} and {section}.{other_key.name} are the same key, with different values"
            problems.append(Problem(what, f"write {today} alone (the other is at {other_key.where})", key.where))
    return entries
