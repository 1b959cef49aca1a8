"""`vltool check TARGET…`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vltool.cli.complete import recipe_names, target_names
from vltool.cli.guard import guarded
from vltool.cli.output import Output
from vltool.cli.reporter import RunReporter

if TYPE_CHECKING:
    from vltool.audit.data_rules import Judged
    from vltool.audit.finding import Finding
    from vltool.audit.memory_rules import Planned
    from vltool.run.preview import Written

SHOWN_OF_A_RULE = 10
"""Findings of one rule in the table; `--json` has all of them."""


@guarded
def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET", help="Recipes, fusion configs, or .jsonl files of records.", autocompletion=target_names
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
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of the table.")] = False,
) -> int:
    """Judge every record as training would read it, and plan a step's memory, before a GPU is asked for.

    Reads every record of a recipe, the header of every image, and counts tokens; an error among the findings exits 1.

    Example: vltool check my_recipe.yaml --preview /tmp/preview
    """
    from vltool.audit import data_rules, finding
    from vltool.audit.memory_rules import planned
    from vltool.audit.targets import read_targets
    from vltool.errors import InvalidInput
    from vltool.run.preview import check_folder

    if not targets:
        raise InvalidInput(
            "name what to check: vltool check TARGET", "a recipe, a fusion config, or a .jsonl of records"
        )
    choice: dict[str, Any] = {"known": data_rules.RULES, "only": _ids(only), "ignore": _ids(ignore)}
    finding.chosen((), **choice)
    if preview is not None:
        check_folder(preview)
    output = Output()
    reporter = RunReporter(output, quiet=as_json)
    try:
        named = read_targets(targets, recipe=recipe)
        judged: list[Judged] = []
        for records in named.records:
            reporter.stage(f"reading {records.jsonl}")
            judged.append(
                data_rules.judge(records, progress=lambda done, total: reporter.progress("records", done, total))
            )
        memory = planned(judged, gpu_gib=gpu_gib)
        found = [*named.findings, *(item for one in judged for item in one.findings)]
        found += data_rules.judge_mixtures(judged)
        found += [item for one in memory for item in one.findings]
        findings = finding.arranged(finding.chosen(found, **choice))
        written = None
        if preview is not None:
            reporter.stage("drawing the preview")
            written = _preview(preview, judged, findings, samples, variants, reporter)
    finally:
        reporter.close()
    code = int(finding.failed(findings, strict=strict))
    if as_json:
        output.print_json(_document(judged, memory, findings, written, code))
    else:
        _show_memory(output, memory)
        _show(output, judged, findings)
    if written is not None:
        output.note(f"{written.file}: {written.records} records, {written.size_bytes / 1e6:.1f} MB")
    return code


def _ids(given: list[str] | None) -> list[str]:
    return [name.strip() for text in given or () for name in text.split(",") if name.strip()]


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


def _document(
    judged: Sequence[Judged], memory: Sequence[Planned], findings: Sequence[Finding], written: Written | None, code: int
) -> dict[str, Any]:
    from vltool.audit.finding import by_severity

    page = None
    if written is not None:
        page = {"file": str(written.file), "records": written.records, "bytes": written.size_bytes}
    return {
        "exit_code": code,
        "files": [one.to_json() for one in judged],
        "memory": [one.to_json() for one in memory],
        "counts": by_severity(findings),
        "findings": [item.to_json() for item in findings],
        "preview": page,
    }


def _show_memory(output: Output, memory: Sequence[Planned]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for one in memory:
        if one.memory is None:
            output.note(f"{one.recipe}: no memory plan: {one.why}")
            continue
        table = Table(
            "memory of each GPU", "GiB", "", box=box.SIMPLE_HEAD, title=one.recipe, title_justify="left",
        )  # fmt: skip
        table.columns[1].justify = "right"
        *parts, total = one.memory.rows()
        for row in parts:
            table.add_row(row.name, f"{row.bytes / 2**30:.2f}", Text(row.note, style="dim"))
        table.add_section()
        table.add_row(total.name, f"{total.bytes / 2**30:.2f}", Text(total.note, style="dim"), style="bold")
        output.result.print(table, soft_wrap=False)
        for line in one.summary():
            output.result.print(Text(line))


def _show(output: Output, judged: Sequence[Judged], findings: Sequence[Finding]) -> None:
    from itertools import groupby

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from vltool.audit.finding import by_severity

    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    if findings:
        table = Table("", "rule", "where", "what, and what to do", box=box.SIMPLE_HEAD, title_justify="left")
        for (severity, rule), group in groupby(findings, key=lambda item: (item.severity, item.id)):
            items = list(group)
            for item in items[:SHOWN_OF_A_RULE]:
                told = Text.assemble(item.what, (f"\n{item.remedy}" if item.remedy else "", "dim"))
                table.add_row(Text(severity, style=styles[severity]), rule, str(item.where or ""), told)
            if (more := len(items) - SHOWN_OF_A_RULE) > 0:
                table.add_row("", rule, "", Text(f"and {more:,} more", style="dim"))
        output.result.print(table, soft_wrap=False)
    for one in judged:
        output.result.print(Text(one.summary()))
    counts = by_severity(findings)
    told_counts = ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for name, count in counts.items() if count)
    worst = next((name for name, count in counts.items() if count), None)
    output.result.print(Text(told_counts or "no findings", style=styles[worst] if worst else "green"))
