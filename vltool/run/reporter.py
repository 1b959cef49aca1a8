"""Where a worker says what it does; the command line shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vltool.errors import Problem
from vltool.run.evidence import CarriedRow, TowerRow


class Reporter(Protocol):
    """Where a worker says what it does; the command line shows it."""

    def stage(self, text: str) -> None:
        """A new stage of the run began."""

    def towers(self, rows: Sequence[TowerRow]) -> None:
        """The audit's table before step 1."""

    def carried(self, checkpoint: str, rows: Sequence[CarriedRow]) -> None:
        """What was taken over from an earlier stage."""

    def progress(self, what: str, done: int, total: int) -> None:
        """So much of some long work is done; `what` is a word or two, such as `training`."""

    def row(self, row: dict[str, int | float]) -> None:
        """A row of metrics was logged."""

    def warn(self, problem: Problem) -> None:
        """Something is off, and the run goes on."""
