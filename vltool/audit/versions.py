"""Versions and ranges of them, compared as pip does for final releases (PEP 440)."""

from __future__ import annotations

import re

_PARTS = re.compile(
    r"\s*v?(\d+(?:\.\d+)*)(?:[-_.]?(a|b|rc|c|alpha|beta|pre|preview|dev|post)[-_.]?(\d*))?", re.IGNORECASE
)
_CLAUSE = re.compile(r"\s*(~=|==|!=|<=|>=|<|>)\s*([^\s,]+)\s*$")
_STAGE = {"dev": -3, "a": -2, "alpha": -2, "b": -2, "beta": -2, "rc": -1, "c": -1, "pre": -1, "preview": -1, "post": 1}
Key = tuple[tuple[int, ...], int, int]


def version_key(version: str) -> Key | None:
    """What versions are ordered by: the release's numbers, then its stage; None for what is no version.

    What stands behind a plus sign, such as +cu128, does not count.
    """
    found = _PARTS.match(version)
    if found is None:
        return None
    numbers = [int(part) for part in found[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    stage = _STAGE[found[2].lower()] if found[2] else 0
    return tuple(numbers), stage, int(found[3] or 0) if found[2] else 0


def within(version: str, specifier: str) -> bool:
    """Whether a version lies in a range such as `>=2.9,<2.10`; of what is not understood, it is taken to.

    specifier: clauses between commas, all of which have to hold; an empty one lets everything pass.
    """
    key = version_key(version)
    return key is None or all(_holds(key, clause) for clause in specifier.split(",") if clause.strip())


def _holds(key: Key, clause: str) -> bool:
    found = _CLAUSE.match(clause)
    if found is None:
        return True
    operator, text = found[1], found[2]
    if text.endswith(".*"):
        same = _starts(key, text.removesuffix(".*"))
        return same if operator == "==" else not same if operator == "!=" else True
    wanted = version_key(text)
    if wanted is None:
        return True
    if operator == "~=":
        return key >= wanted and _starts(key, text.rpartition(".")[0])
    if operator == "<" and wanted[1] == 0:
        # PEP 440: a range that ends before 5.0 does not hold 5.0's own candidates.
        return key[0] < wanted[0]
    if operator == ">" and wanted[1] == 0:
        # Nor does one that begins after 5.0 hold what was mended of 5.0.
        return key[0] > wanted[0]
    return {
        "==": key == wanted, "!=": key != wanted, "<=": key <= wanted, ">=": key >= wanted, "<": key < wanted,
        ">": key > wanted,
    }[operator]  # fmt: skip


def _starts(key: Key, prefix: str) -> bool:
    """Whether a version's numbers begin with these; numbers that are not written are 0."""
    wanted = [int(part) for part in prefix.split(".") if part.isdecimal()]
    numbers = [*key[0], *[0] * len(wanted)]
    return numbers[: len(wanted)] == wanted
