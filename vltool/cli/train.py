"""`vltool train RECIPE`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vltool.cli.complete import recipe_names
from vltool.cli.guard import guarded
from vltool.cli.output import Output
from vltool.cli.reporter import RunReporter

if TYPE_CHECKING:
    from vltool.errors import OutOfMemory
    from vltool.run.plan import RunPlan


@guarded
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="A recipe file, or the name of a shipped one.", autocompletion=recipe_names
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="The same as RECIPE.", autocompletion=recipe_names)
    ] = None,
    base_config: Annotated[
        str | None,
        typer.Option(
            "--base-config", metavar="FILE", help="A recipe merged under everything.", autocompletion=recipe_names
        ),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="DEBUG", help="Show what ms-swift and transformers say.")
    ] = False,
) -> int:
    """Train as a recipe says: audit, train, log, evaluate, save.

    Example: VLTOOL_MODEL=/models/Qwen3-VL-4B-Instruct VLTOOL_TRAIN_JSONL=train.jsonl vltool train stage2_llm_lora
    """
    from vltool.audit.preflight import preflight
    from vltool.errors import InvalidInput, OutOfMemory
    from vltool.recipe.validate import load_recipe
    from vltool.run import launch
    from vltool.run.plan import make_plan
    from vltool.run.ranks import place_in

    if (recipe is None) == (config is None):
        raise InvalidInput("name one recipe: vltool train RECIPE, or vltool train --config RECIPE")
    output = Output()
    resolved = load_recipe(str(recipe or config), base_config=base_config)
    plan = make_plan(resolved, cwd=Path.cwd(), debug=debug)
    launch.require_training_stack()
    place = place_in(os.environ)
    first = place is None or place.rank == 0
    reporter = RunReporter(output, quiet=not first)
    try:
        if first:
            for note in resolved.notes:
                output.problem(note, "yellow")
            # The other processes take this one's plan, with the records that it leaves out.
            plan = preflight(plan, resolved, reporter)
        outcome = launch.train(plan, reporter, resolved=resolved)
    except OutOfMemory as error:
        reporter.close()
        raise _explained(plan, error, output) from error
    finally:
        reporter.close()
    if outcome["signal"] is not None and first:
        kept = outcome["last_checkpoint"]
        on = f"training.resume_from_checkpoint: auto goes on from {kept}" if kept else "no checkpoint was saved"
        output.note(f"stopped at step {outcome['step']} of {outcome['max_steps']}; {on}")
    if outcome["signal"] is not None:
        return 128 + int(outcome["signal"])
    if first:
        output.result.print(outcome["last_checkpoint"] or os.fspath(plan.run_dir), markup=False)
    return 0


def _explained(plan: RunPlan, error: OutOfMemory, output: Output) -> OutOfMemory:
    """Show the plan of the memory that did not suffice; the error with what would make it smaller."""
    from vltool.audit.memory_rules import explained
    from vltool.cli.plan_tables import memory_table

    planned, told = explained(plan, error)
    if planned.memory is not None:
        output.talk.print(memory_table(planned))
        for line in planned.summary():
            output.note(line)
    return told
