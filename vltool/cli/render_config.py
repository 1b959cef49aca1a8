"""`vltool render-config RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vltool.cli.complete import recipe_names
from vltool.cli.guard import guarded
from vltool.cli.output import Output

if TYPE_CHECKING:
    from vltool.errors import Where
    from vltool.recipe.render import Difference
    from vltool.recipe.schema import Recipe


@guarded
def render_config(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="A recipe file, or the name of a shipped one.", autocompletion=recipe_names
        ),
    ] = None,
    base_config: Annotated[
        str | None,
        typer.Option(
            "--base-config",
            metavar="FILE",
            help="A recipe merged under everything.",
            autocompletion=recipe_names,
        ),
    ] = None,
    bare: Annotated[bool, typer.Option("--no-provenance", help="Leave out where each line came from.")] = False,
    args: Annotated[bool, typer.Option("--args", help="Show what ms-swift will be handed.")] = False,
    diff: Annotated[
        str | None,
        typer.Option(
            "--diff",
            metavar="OTHER",
            help="Show where another recipe differs, key by key.",
            autocompletion=recipe_names,
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")] = False,
    shipped: Annotated[bool, typer.Option("--list", help="List the shipped recipes and overlays.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Show what a recipe comes to: every value, and the file and line that wrote it.

    The output is a recipe that resolves to itself and needs no other file.

    Example: vltool render-config mine.yaml --diff stage3_gkd
    """  # fmt: skip
    from vltool.errors import InvalidInput
    from vltool.recipe import render
    from vltool.recipe.validate import load_recipe

    output = Output()
    asked = [
        name
        for name, wanted in (("--args", args), ("--diff", diff), ("--schema", schema), ("--list", shipped))
        if wanted
    ]
    if len(asked) > 1:
        raise InvalidInput(f"{' and '.join(asked)} are different questions", "ask one at a time")
    if (recipe is None) != (schema or shipped):
        what = f"{asked[0]} takes no recipe" if recipe else "name a recipe: vltool render-config RECIPE"
        raise InvalidInput(what, "vltool render-config --list shows the shipped ones")
    if schema:
        from vltool.recipe.json_schema import json_schema

        output.print_json(json_schema(), versioned=False)
        return 0
    if shipped:
        _list(output, as_json=as_json)
        return 0
    resolved = load_recipe(str(recipe), base_config=base_config)
    for note in resolved.notes:
        output.problem(note, "yellow")
    if diff is not None:
        other = load_recipe(diff, base_config=base_config)
        _diff(output, (str(recipe), diff), (resolved, other), as_json=as_json)
    elif args:
        _arguments(output, resolved, as_json=as_json)
    elif as_json:
        output.print_json(
            {
                "recipe": resolved.name,
                "files": list(resolved.files),
                "values": render.document(resolved),
                "origins": {key: str(where) for key, where in resolved.origins.items()},
                "notes": [note.to_json() for note in resolved.notes],
            }
        )
    else:
        output.print_plain(render.to_yaml(resolved, provenance=not bare))
    return 0


def _arguments(output: Output, recipe: Recipe, *, as_json: bool) -> None:
    from vltool.recipe.render import arguments_to_yaml
    from vltool.run.arguments import ALWAYS
    from vltool.run.plan import make_plan

    plan = make_plan(recipe, cwd=Path.cwd(), to_show=True)
    arguments = dict(sorted((plan.arguments | ALWAYS).items()))
    if as_json:
        output.print_json({"recipe": recipe.name, "arguments": arguments, "origins": plan.origins})
    else:
        output.print_plain(arguments_to_yaml(arguments, plan.origins))


def _diff(output: Output, names: tuple[str, str], recipes: tuple[Recipe, Recipe], *, as_json: bool) -> None:
    from vltool.recipe.render import differences

    found = differences(*recipes)
    if as_json:
        rows = [
            {"key": item.key, "left": _side(item.left, item.left_where), "right": _side(item.right, item.right_where)}
            for item in found
        ]
        output.print_json({"left": names[0], "right": names[1], "differences": rows})
        return
    for item in found:
        _show(output, names, item)
    output.note(f"{len(found)} differences" if len(found) != 1 else "1 difference")


def _side(value: Any, where: Where | None) -> dict[str, Any]:
    return {"value": value, "origin": None if where is None else str(where)}


def _show(output: Output, names: tuple[str, str], item: Difference) -> None:
    """A key, and below it what each recipe has there."""
    from vltool.recipe.render import one_line

    output.line(item.key, style="bold")
    width = max(map(len, names))
    texts = [
        f"  {name:<{width}}  {one_line(value)}" for name, value in zip(names, (item.left, item.right), strict=True)
    ]
    column = max(map(len, texts))
    for text, style, where in zip(texts, ("red", "green"), (item.left_where, item.right_where), strict=True):
        output.line(text.ljust(column), f"  # {where or 'default'}", style=style)


def _list(output: Output, *, as_json: bool) -> None:
    from vltool.recipe.resolve import OVERLAY, headline, is_overlay, shipped_recipes

    rows = [
        {
            "name": name,
            "kind": "overlay" if is_overlay(file) else "recipe",
            "purpose": headline(file).removeprefix(OVERLAY),
            "file": str(file),
        }
        for name, file in shipped_recipes().items()
    ]
    if as_json:
        output.print_json({"recipes": rows})
        return
    for kind in ("recipe", "overlay"):
        table = [(row["name"], row["purpose"]) for row in rows if row["kind"] == kind]
        output.columns(f"{kind}s", table)
    output.note(f"in {Path(rows[0]['file']).parent}" if rows else "none are installed")
