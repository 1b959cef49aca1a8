"""Base checkpoints that a recipe names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vltool.checkpoint.architecture import Architecture, read_architecture
from vltool.errors import InvalidInput, Problem
from vltool.recipe.schema import Recipe

RULE = "base-path"
"""Id of what is wrong with a base's path, or with the folder that it names."""


def read_checkpoint(recipe: Recipe, key: str, folder: str | None, problems: list[Problem]) -> Architecture | None:
    """The architecture of the checkpoint in a folder that a key names; None, and a problem, without one."""
    where = recipe.where(key)
    if folder is None:
        problems.append(Problem(f"{key} is missing", "name the folder of the base checkpoint", where, id=RULE))
        return None
    try:
        return read_architecture(Path(folder))
    except InvalidInput as error:
        problems.extend(
            replace(problem, what=f"{key}: {problem.what}", where=where, id=RULE) for problem in error.problems
        )
        return None
