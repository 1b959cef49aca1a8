"""The one sink: results on stdout, talk on stderr. Decides nothing."""

from __future__ import annotations

import json
import linecache
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from vltool.errors import Problem, VltoolError

JSON_SCHEMA_VERSION = 1
SECONDS_BETWEEN_LINES = 30.0
"""Between two lines of progress where there is no terminal."""

_SHOWN_METRICS = (
    ("loss", "loss"), ("sft_loss", "sft"), ("llm_kd_loss", "kd"), ("token_acc", "acc"), ("learning_rate", "lr"),
    ("grad_norm", "grad"),
)  # fmt: skip


class Output:
    """Two consoles that follow the terminal's width and colour, NO_COLOR and pipes."""

    def __init__(self) -> None:
        self.result = Console(highlight=False, soft_wrap=True)
        self.talk = Console(stderr=True, highlight=False)

    def print_json(self, document: dict[str, Any]) -> None:
        """The one JSON document of a command with `--json`."""
        json.dump({"schema_version": JSON_SCHEMA_VERSION} | document, sys.stdout, indent=2)
        sys.stdout.write("\n")

    def error(self, error: VltoolError) -> None:
        """All problems of an error, each with its place, its line and what to do."""
        for problem in error.problems:
            self.problem(problem, "red")
        if len(error.problems) > 1:
            self.talk.print(f"{len(error.problems)} problems", style="bold red")

    def problem(self, problem: Problem, style: str) -> None:
        """One problem; where it stands in a file, that line with a caret under the place."""
        text = Text()
        if problem.where:
            text.append(f"{problem.where}: ", style="bold")
        text.append(problem.what, style=style)
        self.talk.print(text, soft_wrap=True)
        where = problem.where
        if where:
            linecache.checkcache(where.file)
        source = linecache.getline(where.file, where.line).rstrip() if where and where.line else ""
        if where and where.column and source and len(source) < 200:
            gutter = f"  {where.line} | "
            self.talk.print(Text(gutter + source, style="dim"), soft_wrap=True)
            caret = " " * (len(gutter) + where.column - 1) + "^"
            self.talk.print(Text(caret, style=style), soft_wrap=True)
        if problem.do:
            self.talk.print(Text(f"  {problem.do}"), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line of talk."""
        self.talk.print(Text(text), soft_wrap=True)


class RunReporter:
    """Shows a run as it goes: a progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, output: Output, *, quiet: bool = False) -> None:
        self._output = output
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def stage(self, text: str) -> None:
        """A new stage of the run began."""
        if not self._quiet:
            self._output.note(f"{text} …")

    def towers(self, rows: Sequence[Any]) -> None:
        """The audit's table before step 1."""
        if self._quiet and not any(row.problem for row in rows):
            return
        table = Table("tower", "plan", "trainable", "frozen", "", title="what trains", title_justify="left")
        for row in rows:
            table.add_row(
                row.tower,
                "trains" if row.should_train else "frozen",
                f"{row.trainable:,}",
                f"{row.frozen:,}",
                Text(row.problem or "", style="red"),
            )
        self._output.talk.print(table)

    def progress(self, what: str, done: int, total: int) -> None:
        """A bar on a terminal; elsewhere a line every half a minute, and none for training, whose rows are lines."""
        if self._quiet:
            return
        if not self._output.talk.is_terminal:
            now = time.monotonic()
            if what != "training" and now - self._told > SECONDS_BETWEEN_LINES:
                self._told = now
                self._output.note(f"{what}: {done} of {total}")
            return
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._output.talk,
            )
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, rate="")
        task = next(task for task in self._bars.tasks if task.id == self._tasks[what])
        rate = f"{task.speed:.3g}/s" if task.speed else ""
        self._bars.update(task.id, completed=done, total=total, rate=rate)
        # Evaluation comes and goes; the bar of the training stays.
        if done >= total and what != "training":
            self._bars.remove_task(self._tasks.pop(what))

    def row(self, row: dict[str, int | float]) -> None:
        """A row of metrics was logged."""
        if self._quiet:
            return
        split = "eval" if "eval/loss" in row else "train"
        parts = [f"{row['step']:>6} {split:<5}"]
        for name, label in _SHOWN_METRICS:
            value = row.get(f"{split}/{name}")
            if value is not None:
                parts.append(f"{label} {value:.4g}" if label in ("loss", "sft") else f"{label} {value:.3g}")
        self._output.talk.print(Text(" ".join(parts)))

    def warn(self, problem: Problem) -> None:
        """Something is off, and the run goes on."""
        self._output.problem(problem, "yellow")

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
