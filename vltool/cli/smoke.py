"""`vltool smoke [RECIPE]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vltool.cli.complete import recipe_names
from vltool.cli.guard import guarded
from vltool.cli.output import Output
from vltool.cli.reporter import RunReporter

if TYPE_CHECKING:
    from vltool.audit.run_rules import Verdict

DEFAULT_RECIPE = "stage3_gkd_visual"


@guarded
def smoke(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe, run shortened on its own model and data.",
            autocompletion=recipe_names,
        ),
    ] = None,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="Use a generated tiny Qwen3-VL and six photographs, whatever the recipe names."),
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option("--nproc", metavar="N", min=1, help="Processes to run it in, whatever the recipe says."),
    ] = None,
    keep: Annotated[Path | None, typer.Option("--keep", metavar="DIR", help="Keep the run in this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of the table.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="DEBUG", help="Show what ms-swift and transformers say.")
    ] = False,
) -> int:
    """Train a few steps for real, then prove from what was written that the run works.

    Without RECIPE: a generated tiny Qwen3-VL on six photographs, nothing downloaded.

    Example: vltool smoke my_recipe.yaml --keep /tmp/proof
    """
    from vltool.audit.smoke import run_smoke

    output = Output()
    reporter = RunReporter(output, quiet=as_json)
    try:
        result = run_smoke(
            recipe or DEFAULT_RECIPE,
            tiny=tiny or recipe is None,
            nproc=nproc,
            keep=keep,
            reporter=reporter,
            debug=debug,
        )
    finally:
        reporter.close()
    if result.failure:
        output.note(result.failure)
    if as_json:
        output.print_json(result.to_json())
    else:
        _table(output, result.verdicts)
    if keep is not None:
        output.note(f"the run is kept in {keep}")
    return 0 if result.passed else 1


def _table(output: Output, verdicts: list[Verdict]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    styles = {"pass": "green", "fail": "bold red", "not reached": "yellow", "not asked": "dim"}
    table = Table("", "", "what it proves", "by what", box=box.SIMPLE_HEAD, title="vltool smoke", title_justify="left")
    for verdict in verdicts:
        table.add_row(
            Text(verdict.status, style=styles[verdict.status]), verdict.id, verdict.proves, Text(verdict.evidence)
        )
    output.result.print(table, soft_wrap=False)
    asked = [verdict for verdict in verdicts if verdict.status != "not asked"]
    proved = sum(verdict.status == "pass" for verdict in asked)
    style = "green" if proved == len(asked) else "bold red"
    output.result.print(Text(f"{proved} of {len(asked)} proved", style=style))
