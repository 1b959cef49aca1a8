"""What a recipe's keys come to, written or by default, for rules that look at several of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from vltool.errors import Problem, Where
from vltool.recipe.schema import OWN
from vltool.recipe.swift_keys import swift_table


class Undecided(Exception):
    """A rule asked for a value that is itself wrong, and has nothing to say until it is mended."""


class Settings:
    """Values by dotted key, with the places that they were written in; rules report through it."""

    def __init__(
        self, file: str, values: Mapping[str, Mapping[str, Any]], origins: Mapping[str, Where], wrong: set[str]
    ) -> None:
        """values: section -> key -> what was written. wrong: dotted keys that have a problem of their own."""
        self.file = file
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self._values = values
        self._origins = origins
        self._wrong = wrong

    def __getitem__(self, key: str) -> Any:
        """The value of a key, its default where none was written.

        Raises Undecided when what was written has a problem.
        """
        parts = key.split(".")
        if any(".".join(parts[:n]) in self._wrong for n in range(1, len(parts) + 1)):
            raise Undecided
        for tree in (self._values, _defaults()):
            node: Any = tree
            for part in parts:
                node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
            if node is not _ABSENT:
                return node
        return swift_table().keys[parts[1]].default

    def keys(self, section: str) -> list[str]:
        """The keys that were written in a section."""
        return list(self._values.get(section, {}))

    def swift_keys(self) -> list[str]:
        """The dotted keys of ms-swift's that were written."""
        defaults = _defaults()
        return [
            f"{section}.{key}"
            for section, keys in self._values.items()
            for key in keys
            if key not in defaults.get(section, {})
        ]

    def written(self, key: str) -> bool:
        """Whether some file gives the key a value."""
        return key in self._origins

    def where(self, key: str) -> Where:
        """Where a key was written; the recipe itself for one that is missing."""
        return self._origins.get(key) or Where(self.file)

    def problem(self, key: str, what: str, do: str) -> None:
        """The recipe is wrong at this key."""
        self.problems.append(Problem(what, do, self.where(key)))

    def note(self, key: str, what: str, do: str = "") -> None:
        """The recipe says something at this key that may not be what was meant."""
        self.notes.append(Problem(what, do, self.where(key)))


_ABSENT = object()


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    return {section: msgspec.to_builtins(own()) for section, own in OWN.items()}
