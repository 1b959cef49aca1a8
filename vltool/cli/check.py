"""`vltool check TARGET…`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vltool.cli.complete import recipe_names, rule_ids, target_names
from vltool.cli.findings import explain as explain_rule
from vltool.cli.findings import ids, show_counts, show_refused, show_table, write_log
from vltool.cli.guard import guarded
from vltool.cli.output import Output
from vltool.cli.reporter import RunReporter

if TYPE_CHECKING:
    from vltool.audit.audit import Audit
    from vltool.audit.data_rules import Judged
    from vltool.audit.finding import Finding
    from vltool.audit.memory_rules import Planned
    from vltool.checkpoint.inspection import Inspection
    from vltool.run.preview import Written


@guarded
def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET", help="Recipes, fusion configs, .jsonl files of records, or checkpoint folders.",
            autocompletion=target_names,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="How a .jsonl or a mixture is read: prompts, tokenizer, limits, augmentation.",
            autocompletion=recipe_names,
        ),
    ] = None,
    preview: Annotated[
        Path | None, typer.Option("--preview", metavar="DIR", help="Write a page that shows records as trained on.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="Records on the page, of each file.")
    ] = 20,
    variants: Annotated[
        int, typer.Option("--variants", metavar="K", min=0, help="Augmented variants on the page, of each record.")
    ] = 3,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="Report this rule alone; may be repeated.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="ID", help="Leave this rule out; may be repeated.")
    ] = None,
    gpu_gib: Annotated[
        float, typer.Option("--gpu-gib", metavar="GIB", min=1.0, help="Memory of the GPU that the run will get.")
    ] = 79.0,
    deep: Annotated[
        bool, typer.Option("--deep", help="Count what trains on the model itself, too; needs the training stack.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", metavar="ID", help="Say what a rule means and what to do, and leave.", autocompletion=rule_ids
        ),
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option("--sarif", metavar="FILE", help="Write the findings as SARIF, for code hosts.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of the table.")] = False,
) -> int:  # fmt: skip
    """Judge recipes, every record as training would read it, and checkpoints; plan a step's memory.

    Reads every record of a recipe, the header of every image, and counts tokens. An error among the findings exits 1,
    a target that cannot be judged 2.

    Example: vltool check my_recipe.yaml --preview /tmp/preview
    """
    output = Output()
    if explain is not None:
        return explain_rule(output, explain, as_json=as_json)
    from vltool.audit import finding
    from vltool.audit.audit import audit
    from vltool.audit.catalogue import RULES
    from vltool.errors import InvalidInput
    from vltool.run.preview import check_folder

    if not targets:
        raise InvalidInput(
            "name what to check: vltool check TARGET", "a recipe, a fusion config, a .jsonl, or a checkpoint folder"
        )
    choice = {"only": ids(only), "ignore": ids(ignore)}
    finding.chosen((), known=RULES, **choice)
    if preview is not None:
        check_folder(preview)
    if sarif is not None:
        from vltool.audit.sarif import check_file

        check_file(sarif)
    reporter = RunReporter(output, quiet=as_json)
    try:
        done = audit(targets, recipe=recipe, gpu_gib=gpu_gib, deep=deep, reporter=reporter)
        findings = done.told(**choice)
        written = None
        if preview is not None and not done.refused:
            reporter.stage("drawing the preview")
            written = _preview(preview, done.records, findings, samples, variants, reporter)
    finally:
        reporter.close()
    code = done.exit_code(findings, strict=strict)
    if sarif is not None:
        write_log(sarif, findings, RULES, target=targets[0], command="check")
    if as_json:
        output.print_json(_document(done, findings, written, code))
    else:
        _show(output, done, findings)
    if written is not None:
        output.note(f"{written.file}: {written.records} records, {written.size_bytes / 1e6:.1f} MB")
    return code


def _preview(
    folder: Path,
    judged: Sequence[Judged],
    findings: Sequence[Finding],
    samples: int,
    variants: int,
    reporter: RunReporter,
) -> Written:
    from vltool.audit.data_rules import parts_of
    from vltool.run.preview import write_preview

    return write_preview(
        folder,
        parts_of(judged, findings, variants=variants),
        findings,
        samples=samples,
        progress=lambda done, total: reporter.progress("drawing", done, total),
    )


def _document(done: Audit, findings: Sequence[Finding], written: Written | None, code: int) -> dict[str, Any]:
    from vltool.audit.finding import by_severity

    page = None
    if written is not None:
        page = {"file": str(written.file), "records": written.records, "bytes": written.size_bytes}
    return {
        "exit_code": code,
        "files": [one.to_json() for one in done.records],
        "trainable": [{"recipe": recipe} | counted.to_json() for recipe, counted in done.trainable],
        "memory": [one.to_json() for one in done.memory],
        "checkpoints": [_census(one) for one in done.checkpoints],
        "counts": by_severity(findings),
        "findings": [item.to_json() for item in findings],
        "preview": page,
    }


def _census(inspection: Inspection) -> dict[str, Any]:
    """What a checkpoint holds, in short; `vltool inspect-ckpt --json` has the rest."""
    whole = inspection.to_json()
    kept = ("folder", "kind", "base", "tensors", "elements", "bytes", "dtypes", "ranks", "trainer_state")
    towers = {tower: count["elements"] for tower, count in whole["towers"].items() if count["tensors"]}
    return {name: whole[name] for name in kept} | {"towers": towers}


def _told_of(inspection: Inspection) -> str:
    """The same in a line."""
    census = _census(inspection)
    parts = [f"{census['tensors']:,} tensors in {', '.join(census['towers'])}"] if census["tensors"] else ["no tensors"]
    parts += [f"rank {', '.join(census['ranks'])}"] if census["ranks"] else []
    parts.append(f"{census['bytes'] / 1e6:,.1f} MB")
    step = census["trainer_state"] and census["trainer_state"]["step"]
    parts += [f"step {step}"] if step is not None else []
    return f"{inspection.folder}: {inspection.kind}, {', '.join(parts)}"


def _show_memory(output: Output, memory: Sequence[Planned]) -> None:
    from rich.text import Text

    from vltool.cli.plan_tables import memory_table

    for one in memory:
        if one.memory is None:
            output.note(f"{one.recipe}: no memory plan: {one.why}")
            continue
        output.result.print(memory_table(one), soft_wrap=False)
        for line in one.summary():
            output.result.print(Text(line))


def _show(output: Output, done: Audit, findings: Sequence[Finding]) -> None:
    from rich.text import Text

    from vltool.cli.plan_tables import tower_table

    for name, counted in done.trainable:
        output.result.print(tower_table(name, counted), soft_wrap=False)
    _show_memory(output, done.memory)
    for item in done.refused:
        show_refused(output, item)
    show_table(output, [item for item in findings if item not in done.refused])
    for line in (*(one.summary() for one in done.records), *map(_told_of, done.checkpoints)):
        output.result.print(Text(line))
    show_counts(output, findings)
