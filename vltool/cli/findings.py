"""What the commands that report findings have in common: choosing, showing, explaining and handing them on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vltool.cli.output import Output

if TYPE_CHECKING:
    from vltool.audit.finding import Finding, Rule
    from vltool.errors import Where

SHOWN_OF_A_RULE = 10
"""Findings of one rule in the table; `--json` has all of them."""
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def ids(given: list[str] | None) -> list[str]:
    """Ids of rules as options give them, several in one or one in several."""
    return [name.strip() for text in given or () for name in text.split(",") if name.strip()]


def show_refused(output: Output, finding: Finding) -> None:
    """Why a target cannot be judged, with the line that it stands in."""
    from vltool.errors import Problem

    # Without a line the words name the file by themselves.
    where = finding.where if finding.where and finding.where.line else None
    problem = Problem(f"{finding.what} [{finding.id}]", finding.remedy, where)
    output.problem(problem, STYLES[finding.severity], to=output.result)


def show_table(output: Output, findings: Sequence[Finding], *, places: bool = True) -> None:
    """The findings, those of each rule together; with `places`, also where each stands."""
    from itertools import groupby

    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not findings:
        return
    heads = ["", "rule", f"{'where, ' * places}what, and what to do"]
    table = Table(*heads, box=box.SIMPLE_HEAD, title_justify="left")
    for (severity, rule), group in groupby(findings, key=lambda item: (item.severity, item.id)):
        items = list(group)
        for item in items[:SHOWN_OF_A_RULE]:
            place = f"{_from_here(item.where)}\n" if places and item.where else ""
            told = Text.assemble((place, "bold"), item.what, (f"\n{item.remedy}" if item.remedy else "", "dim"))
            table.add_row(Text(severity, style=STYLES[severity]), rule, told)
        if (more := len(items) - SHOWN_OF_A_RULE) > 0:
            table.add_row("", rule, Text(f"and {more:,} more", style="dim"))
    output.result.print(table, soft_wrap=False)


def _from_here(where: Where) -> Where:
    """The place, relative to the working directory where its file lies below it."""
    from dataclasses import replace

    here = f"{Path.cwd()}{os.sep}"
    return replace(where, file=where.file.removeprefix(here))


def show_counts(output: Output, findings: Sequence[Finding]) -> None:
    """One line: how many of each severity."""
    from rich.text import Text

    from vltool.audit.finding import by_severity

    counts = by_severity(findings)
    told = ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for name, count in counts.items() if count)
    worst = next((name for name, count in counts.items() if count), None)
    output.result.print(Text(told or "no findings", style=STYLES[worst] if worst else "green"))


def explain(output: Output, rule: str, *, as_json: bool) -> int:
    """Print a rule's page. Raises InvalidInput for an id that no rule has."""
    from dataclasses import asdict

    from vltool.audit.catalogue import RULES
    from vltool.audit.finding import known_rule
    from vltool.audit.pages import page

    found = RULES[known_rule(rule, RULES)]
    if as_json:
        output.print_json({"exit_code": 0, "rule": asdict(found) | {"docs": found.page}})
    else:
        from rich.markdown import Markdown

        output.result.print(Markdown(page(found)), soft_wrap=False)
    return 0


def write_log(file: Path, findings: Sequence[Finding], rules: Mapping[str, Rule], *, target: str, command: str) -> None:
    """Write the findings of a command as SARIF; addresses begin at the working directory."""
    from vltool import __version__
    from vltool.audit.sarif import to_sarif, write_sarif

    log: dict[str, Any] = to_sarif(
        findings, rules, __version__, target=target, root=Path.cwd(), category=f"vltool {command}"
    )
    write_sarif(file, log)
