"""What the shell offers for an argument that names a recipe, or something else that is checked."""

from __future__ import annotations

import os
import re

_PLAIN = re.compile(r"\w[\w.,+@%-]*( [\w.,+@%-]+)*")
"""File names that every shell hands on unharmed; any other, the shell finds as a path."""


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes and the recipe files of the working directory that begin with `incomplete`.

    None where a folder was begun: the shell completes paths by itself.
    """
    return _names(incomplete, (".yaml", ".yml"))


def target_names(incomplete: str) -> list[str]:
    """`recipe_names`, with the mixtures and files of records in the working directory, and checkpoint folders."""
    return [*_names(incomplete, (".yaml", ".yml", ".json", ".jsonl")), *checkpoint_folders(incomplete)]


def checkpoint_folders(incomplete: str) -> list[str]:
    """Checkpoint folders below the working directory or below the folder that was begun."""
    from pathlib import Path

    begun = incomplete.rpartition("/")[0]
    here = Path(begun) if begun else Path("/" if incomplete.startswith("/") else ".")
    marks = ("adapter_config.json", "config.json", "trainer_state.json")
    try:
        folders = [path for path in sorted(here.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []
    found = [str(path) for path in folders if any((path / mark).is_file() for mark in marks)]
    return [_as_typed(name) for name in found if name.startswith(incomplete)]


def rule_ids(incomplete: str) -> list[str]:
    """Ids of rules that begin with `incomplete`."""
    from vltool.audit.catalogue import RULES

    return [rule for rule in RULES if rule.startswith(incomplete)]


def _names(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    from pathlib import Path

    from vltool.recipe.resolve import shipped_recipes

    if "/" in incomplete:
        return []
    files = (path for path in sorted(Path().iterdir()) if path.suffix in suffixes and path.is_file())
    here = [path.name for path in files if _PLAIN.fullmatch(path.name) and not path.name.startswith(".")]
    return [_as_typed(name) for name in (*shipped_recipes(), *here) if name.startswith(incomplete)]


def _as_typed(name: str) -> str:
    """A name as it has to stand on the line: bash alone inserts it as it comes, and leaves quoting to us."""
    if os.environ.get("_VLTOOL_COMPLETE") != "complete_bash":
        return name
    words = os.environ.get("COMP_WORDS", "").split("\n")
    at = int(os.environ.get("COMP_CWORD", "0"))
    quoted = at < len(words) and words[at].startswith(("'", '"'))
    return name if quoted else name.replace(" ", r"\ ")
