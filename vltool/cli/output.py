"""The one sink: results on stdout, talk on stderr. Decides nothing."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vltool.errors import Problem, VltoolError, Where

if TYPE_CHECKING:
    from rich.console import Console

JSON_SCHEMA_VERSION = 1
LONGEST_EXCERPT = 200
"""Characters of a line that is shown below a problem."""
_TOKEN = re.compile(
    r"""
      "(?:[^"\\]|\\.)*"                   # a text in double quotes
    | '(?:[^']|'')*'                      # a text in single quotes
    | \$\{[^}]*\}                         # a variable
    | [^\s:,\[\]{}]+ (?: :[^\s:,\[\]{}]+ )*   # a word, or a key up to its colon
    """,
    re.VERBOSE,
)
"""What a caret underlines: a quoted text, a variable, a word."""


def _lenient(stream: object) -> None:
    """Let what cannot be written, as a file's name that is no UTF-8, be written escaped."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


class Output:
    """Two consoles that follow the terminal's width and colour, NO_COLOR and pipes."""

    @cached_property
    def result(self) -> Console:
        """Where the result goes: stdout."""
        from rich.console import Console

        _lenient(sys.stdout)
        return Console(highlight=False, soft_wrap=True)

    @cached_property
    def talk(self) -> Console:
        """Where everything else goes: stderr."""
        from rich.console import Console

        _lenient(sys.stderr)
        return Console(stderr=True, highlight=False)

    def print_json(self, document: dict[str, Any], *, versioned: bool = True) -> None:
        """The one JSON document of a command with `--json`, with the version of its form."""
        version = {"schema_version": JSON_SCHEMA_VERSION} if versioned else {}
        json.dump(version | document, sys.stdout, indent=2)
        sys.stdout.write("\n")

    def print_plain(self, text: str) -> None:
        """A document that is the result, character by character."""
        sys.stdout.write(text)

    def line(self, *parts: str, style: str = "") -> None:
        """A line of the result; the first part in a style, the rest dimmed."""
        from rich.text import Text

        head, *rest = parts
        self.result.print(Text.assemble((head, style), *((part, "dim") for part in rest)))

    def columns(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """A titled table of names and what they are, part of the result."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, title=title, title_justify="left", title_style="bold")
        table.add_column(no_wrap=True)
        table.add_column()
        for name, text in rows:
            table.add_row(Text(name, style="cyan"), Text(text))
        self.result.print(table, soft_wrap=False)

    def error(self, error: VltoolError) -> None:
        """All problems of an error, each with its place, its line and what to do."""
        for problem in error.problems:
            self.problem(problem, "red")
        if len(error.problems) > 1:
            self.talk.print(f"{len(error.problems)} problems", style="bold red")

    def problem(self, problem: Problem, style: str, *, to: Console | None = None) -> None:
        """One problem; where it stands in a file, that line, underlined at the place, and what to do.

        to: where it is shown, by default with the talk.
        """
        from rich.text import Text

        console = self.talk if to is None else to
        head = Text(_visible(problem.what), style=style)
        if problem.where:
            head = Text.assemble((f"{_visible(str(problem.where))}: ", "bold"), head)
        console.print(head, soft_wrap=True)
        excerpt = None if problem.where is None else _excerpt(problem.where)
        if excerpt:
            line, caret = excerpt
            console.print(Text(line, style="dim"), soft_wrap=True)
            console.print(Text.assemble((caret, style), f"  {_visible(problem.do)}".rstrip()), soft_wrap=True)
        elif problem.do:
            console.print(Text(f"  {_visible(problem.do)}"), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line of talk."""
        from rich.text import Text

        self.talk.print(Text(text), soft_wrap=True)


def _visible(text: str) -> str:
    """The text with escapes for what a terminal would obey or not show, line breaks left alone."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def _excerpt(where: Where) -> tuple[str, str] | None:
    """The line of a place, and carets under what begins there; None where it cannot be shown."""
    from rich.cells import cell_len

    from vltool.recipe.resolve import file_of

    if not where.line or not where.column:
        return None
    try:
        lines = file_of(where.file).read_text(encoding="utf-8", errors="replace").removeprefix("\ufeff").split("\n")
    except OSError:
        return None
    line = lines[where.line - 1].rstrip() if where.line <= len(lines) else ""
    if not line or len(line) > LONGEST_EXCERPT or not line.isprintable() or where.column > len(line):
        return None
    before, after = line[: where.column - 1], line[where.column - 1 :]
    token = _TOKEN.match(after)
    gutter = f"  {where.line} | "
    return gutter + line, " " * cell_len(gutter + before) + "^" * max(cell_len(token[0] if token else ""), 1)
