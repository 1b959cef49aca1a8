"""`vltool inspect-ckpt DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vltool.cli.complete import checkpoint_folders, recipe_names
from vltool.cli.findings import ids, show_counts, show_table, write_log
from vltool.cli.guard import guarded
from vltool.cli.output import Output
from vltool.cli.reporter import RunReporter

if TYPE_CHECKING:
    from vltool.audit.checkpoint_rules import Carried
    from vltool.audit.finding import Finding
    from vltool.checkpoint.difference import Difference
    from vltool.checkpoint.inspection import Inspection
    from vltool.checkpoint.values import Survey

SHOWN = 20
"""Names in a list of the difference; `--json` has all of them."""


@guarded
def inspect_ckpt(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A checkpoint folder.", autocompletion=checkpoint_folders),
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Read the tensors, too: NaN, zeros, norms, magnitudes.")
    ] = False,
    diff: Annotated[
        Path | None, typer.Option("--diff", metavar="OTHER", help="Compare with another checkpoint; differing exits 1.")
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect", metavar="RECIPE", help="A recipe or a file of assertions to hold it to.",
            autocompletion=recipe_names,
        ),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="DIR", help="Where its base is, if not where it says.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="Report this rule alone; may be repeated.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="ID", help="Leave this rule out; may be repeated.")
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option("--sarif", metavar="FILE", help="Write the findings as SARIF, for code hosts.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of the table.")] = False,
) -> int:  # fmt: skip
    """Say what a checkpoint holds, and what is wrong with it, from the headers of its files.

    An error among the findings, or a difference with --diff, exits 1. Pickles are never opened.

    Example: vltool inspect-ckpt runs/mine/checkpoint-300 --expect mine.yaml
    """
    from vltool.audit import checkpoint_rules, finding
    from vltool.audit.checkpoint_catalogue import RULES
    from vltool.checkpoint.completeness import completeness
    from vltool.checkpoint.inspection import inspect
    from vltool.errors import InvalidInput

    if folder is None:
        raise InvalidInput("name a checkpoint folder: vltool inspect-ckpt DIR", "runs/mine/checkpoint-300, say")
    if base is not None and not base.is_dir():
        raise InvalidInput(f"--base: no such folder: {base}", "mend the path")
    rules = finding.by_id(RULES)
    choice: dict[str, Any] = {"known": rules, "only": ids(only), "ignore": ids(ignore)}
    finding.chosen((), **choice)
    if sarif is not None:
        from vltool.audit.sarif import check_file

        check_file(sarif)
    inspection = inspect(folder, base=base)
    other = None if diff is None else inspect(diff)
    said = None
    if expect is not None:
        from vltool.audit.expectations import read_assertions

        said = read_assertions(expect, inspection)
    output = Output()
    survey = _survey(inspection, output, quiet=as_json) if values or (said and said.need_values) else None
    found = checkpoint_rules.judge(inspection, completeness(inspection), survey)
    if said is not None and expect is not None:
        from vltool.audit.expectations import hold

        found += hold(said, inspection, survey, expect)
    findings = finding.arranged(finding.chosen(found, **choice))
    differs = None
    if other is not None:
        from vltool.checkpoint.difference import difference

        differs = difference(inspection, other, values=values)
    carried = checkpoint_rules.carried(inspection)
    code = int(finding.failed(findings, strict=strict) or bool(differs))
    if sarif is not None:
        write_log(sarif, findings, rules, target=str(folder), command="inspect-ckpt")
    if as_json:
        output.print_json(_document(inspection, carried, survey, differs, findings, code))
    else:
        _show(output, inspection, carried, survey)
        if differs is not None:
            _show_difference(output, differs)
        show_table(output, findings, places=False)
        show_counts(output, findings)
    return code


def _survey(inspection: Inspection, output: Output, *, quiet: bool) -> Survey:
    from vltool.checkpoint.values import survey

    reporter = RunReporter(output, quiet=quiet)
    try:
        reporter.stage("reading the tensors")
        return survey(
            inspection.tensors,
            progress=lambda done, total: reporter.progress("MB", done // 1_000_000, total // 1_000_000),
        )
    finally:
        reporter.close()


def _document(
    inspection: Inspection, carried: Carried | None, survey: Survey | None, differs: Difference | None,
    findings: list[Finding], code: int,
) -> dict[str, Any]:  # fmt: skip
    from vltool.audit.finding import by_severity

    return {
        "exit_code": code,
        "checkpoint": inspection.to_json(),
        "carried": carried and {"from": carried.checkpoint, "tensors": carried.tensors},
        "values": survey and {tower: values.to_json() for tower, values in survey.towers.items()},
        "difference": None if differs is None else differs.to_json(),
        "counts": by_severity(findings),
        "findings": [item.to_json() for item in findings],
    }


def _show(output: Output, inspection: Inspection, carried: Carried | None, survey: Survey | None) -> None:
    from rich import box
    from rich.table import Table

    output.columns(str(inspection.folder), list(_facts(inspection, carried)))
    counts = inspection.towers()
    if not inspection.tensors:
        return
    heads = ["tower", "tensors", "elements", "MB", "layers"]
    heads += ["norm", "largest", "zeros"] if survey else ["holds"]
    table = Table(*heads, box=box.SIMPLE_HEAD)
    for at, column in enumerate(table.columns):
        column.no_wrap = heads[at] != "holds"
        column.justify = "left" if heads[at] in ("tower", "layers", "holds") else "right"
    for tower, count in counts.items():
        if not count.tensors:
            continue
        row = [tower, f"{count.tensors:,}", f"{count.elements:,}", f"{count.size_bytes / 1e6:,.1f}"]
        row.append(_ranges(sorted(count.layers)))
        if survey:
            values = survey.towers[tower]
            row += [f"{values.norm:.4g}", f"{values.largest:.4g}", f"{values.zeros / max(values.elements, 1):.1%}"]
        else:
            row.append(", ".join(kind for kind, _ in count.kinds.most_common(4)))
        table.add_row(*row)
    output.result.print(table, soft_wrap=False)


def _facts(inspection: Inspection, carried: Carried | None) -> list[tuple[str, str]]:
    config, progress = inspection.config, inspection.progress
    told: list[tuple[str, str]] = [("kind", inspection.kind)]
    if config is not None:
        told.append(("adapter", f"{config.kind or 'unknown'}, by {config.tool} {config.version or ''}".rstrip()))
        ranks = ", ".join(f"{rank} ({count} modules)" for rank, count in inspection.ranks().items())
        told.append(("rank", ranks or str(config.rank)))
        told.append(("alpha", f"{config.alpha:g}{', rsLoRA' * config.rslora}" if config.alpha is not None else "none"))
        targets = config.targets if isinstance(config.targets, str) else ", ".join(config.targets or ())
        told.append(("targets", targets or "none"))
        told.append(("modules_to_save", ", ".join(config.modules_to_save) or "none"))
    if inspection.base_name is not None:
        told.append(("base", inspection.base_name + ("" if inspection.base else " (not on this host)")))
    if carried is not None:
        parts = ", ".join(f"{tower} {count}" for tower, count in carried.tensors.items()) or "nothing"
        told.append(("carried, frozen", f"{parts} tensors of {carried.checkpoint}"))
    if inspection.tied is not None:
        told.append(("head", "tied to the embedding" if inspection.tied else "of its own"))
    told.append(("types", ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in inspection.dtypes().items())))
    if progress is not None:
        best = "" if progress.best_metric is None else f", best {progress.best_metric:g} at {progress.best_checkpoint}"
        epoch = "" if progress.epoch is None else f" (epoch {progress.epoch:.2f})"
        told.append(("trainer state", f"step {progress.step}{epoch}{best}"))
    states = inspection.contents.of("optimizer", "scheduler", "random state", "deepspeed shard", "fsdp shard")
    if states:
        size = sum(file.size_bytes for file in states) / 1e6
        told.append(("to resume", f"{', '.join(file.path.name for file in states[:4])} ({size:,.1f} MB)"))
    return told


def _ranges(numbers: list[int]) -> str:
    """`0-3, 7` of 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _show_difference(output: Output, differs: Difference) -> None:
    rows = [(name, f"{a} → {b}") for name, (a, b) in differs.fields.items()]
    for title, names in (("only here", differs.only_a), ("only there", differs.only_b), ("values differ",
                         differs.values or ())):  # fmt: skip
        rows += [(title, name) for name in names[:SHOWN]]
        if len(names) > SHOWN:
            rows.append((title, f"and {len(names) - SHOWN:,} more"))
    rows += [(name, f"{a} → {b}") for name, (a, b) in list(differs.changed.items())[:SHOWN]]
    output.columns("difference", rows or [("none", "" if differs.values is not None else "values were not compared")])
