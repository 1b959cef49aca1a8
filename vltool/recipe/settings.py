"""What a recipe's keys come to, written or by default, for rules that look at several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self,
        file: str,
        files: Sequence[str],
        values: Mapping[str, Mapping[str, Any]],
        origins: Mapping[str, Where],
        cleared: Mapping[str, Where],
        wrong: set[str],
    ) -> None:
        """file: the recipe itself. files: all, in the order in which they were merged.

        values: section -> key -> what was written.
        cleared: dotted keys that null took away. wrong: those that have a problem of their own.
        """
        self._file = file
        self._files = list(files)
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self._values = values
        self._origins = origins
        self._cleared = cleared
        self._wrong = wrong

    def __getitem__(self, key: str) -> Any:
        """The value of a key, its default where none was written.

        Raises Undecided when what was written has a problem.
        """
        parts = key.split(".")
        around = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if around & self._wrong or any(wrong.startswith(f"{key}.") for wrong in self._wrong):
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
        """Where a key was written, or cleared; the recipe itself for one that is missing."""
        return self._origins.get(key) or self._cleared.get(key) or Where(self._file)

    def latest(self, *keys: str) -> str:
        """Of keys that go badly together, the one to report at: written in the file that was merged last.

        That is where whoever reads the message has made the change; the first of several there.
        """
        return max(keys, key=self._layer)

    def elsewhere(self, key: str, at: str) -> str:
        """The place of a key in brackets, for a message at another; nothing where both are one."""
        return "" if key == at else f" ({self.where(key)})"

    def settled_by(self, key: str, *others: str) -> bool:
        """Whether a key was written where the others were or above them, and not just inherited."""
        return self._layer(key) >= max(map(self._layer, others))

    def _layer(self, key: str) -> int:
        place = self._origins.get(key) or self._cleared.get(key)
        return self._files.index(place.file) if place else -1

    def problem(self, key: str, what: str, do: str) -> None:
        """The recipe is wrong at this key; rules that look at it later have nothing to say."""
        self.problems.append(Problem(what, do, self.where(key)))
        self._wrong.add(key.partition("[")[0])

    def note(self, key: str, what: str, do: str = "", *, rule: str = "") -> None:
        """The recipe says something at this key that may not be what was meant.

        rule: the id under which audits report it; none for what concerns the spelling alone.
        """
        self.notes.append(Problem(what, do, self.where(key), rule))


_ABSENT = object()


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    return {section: msgspec.to_builtins(own()) for section, own in OWN.items()}
