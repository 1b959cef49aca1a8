"""A run as it goes: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vltool.cli.output import Output
from vltool.errors import Problem

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 30.0
"""Between two lines of progress where there is no terminal."""

_SHOWN_METRICS = (
    ("loss", "loss"), ("sft_loss", "sft"), ("llm_kd_loss", "kd"), ("token_acc", "acc"), ("learning_rate", "lr"),
    ("grad_norm", "grad"),
)  # fmt: skip


class RunReporter:
    """Shows stages, tables, rows and warnings of a run (see `vltool.run.reporter.Reporter`)."""

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
        from rich.table import Table
        from rich.text import Text

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

    def carried(self, checkpoint: str, rows: Sequence[Any]) -> None:
        """The table of what was taken over from an earlier stage."""
        if self._quiet:
            return
        from rich.table import Table

        self._output.note(f"carried from {checkpoint}, by numbers of modules:")
        table = Table("tower", "LoRA", "in full", "LoRA folded in")
        for row in rows:
            table.add_row(row.tower, str(row.adapted), str(row.copied), str(row.folded))
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
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

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
        self._output.note(" ".join(parts))

    def warn(self, problem: Problem) -> None:
        """Something is off, and the run goes on."""
        self._output.problem(problem, "yellow")

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
