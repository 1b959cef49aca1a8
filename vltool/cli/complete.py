"""What the shell offers for an argument that names a recipe."""

from __future__ import annotations


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes and the recipe files of the working directory that begin with `incomplete`.

    None where a folder was begun: the shell completes paths by itself.
    """
    from pathlib import Path

    from vltool.recipe.resolve import shipped_recipes

    if "/" in incomplete:
        return []
    here = (path.name for path in sorted(Path().glob("*.y*ml")) if path.is_file())
    return [name for name in (*shipped_recipes(), *here) if name.startswith(incomplete)]
