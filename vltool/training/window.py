"""The batches since the last row, each beside its records: where a value is not finite, whose it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from vltool.errors import Problem, RunFailed, Where
from vltool.run.distillation import Source
from vltool.run.evidence import write_atomically
from vltool.run.telemetry import NOT_FINITE_FILE_NAME
from vltool.training.ranks import Ranks

Split = Literal["train", "eval"]
GRAD_NORM = "train/grad_norm"
MOST_NAMED = 8
"""Records that a message names; the file holds all of them."""

_WRITER: dict[Source, str] = {"student": "the student", "teacher": "the teacher"}
_SHOWS_THE_WAY = "the last rows of logging.jsonl show the way in"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that the loss has seen."""

    step: int
    """The optimizer step that it belongs to, from 1; in evaluation, the last one before it."""
    loss: Tensor
    """On its device, where it stays."""
    records: tuple[Where, ...]
    source: Source
    """Whose answers it holds."""


@dataclass(frozen=True, slots=True)
class _Share:
    """What one process has to say of the step to blame."""

    blamed: tuple[Where, ...]
    source: Source
    losses: tuple[float, ...]
    """Of all of its batches of that step."""


class Window:
    """What this process's batches since the last row came to; reads nothing off the device before it has to."""

    def __init__(self, run_dir: Path, ranks: Ranks) -> None:
        self._run_dir = run_dir
        self._ranks = ranks
        self._batches: dict[Split, list[Batch]] = {"train": [], "eval": []}
        self._norms: dict[int, Any] = {}

    def add(self, split: Split, loss: Tensor, *, step: int, records: tuple[Where, ...], source: Source) -> None:
        """Keep a batch. Every process adds as many, in the same order."""
        self._batches[split].append(Batch(step, loss.detach(), records, source))

    def add_norm(self, step: int, norm: Tensor | float | None) -> None:
        """Keep the norm of a step's gradient; None is one that nobody knows."""
        if norm is not None:
            self._norms[step] = norm

    def forget(self, split: Split) -> None:
        """A row was written: begin anew."""
        self._batches[split].clear()
        if split == "train":
            self._norms.clear()

    def require_finite(self, split: Split, values: Mapping[str, float], step: int) -> None:
        """Raise RunFailed, on every process, as `problem` has it; to be called by all."""
        if found := self.problem(split, values, step):
            raise RunFailed(found)

    def gradient_problem(self, step: int) -> Problem | None:
        """What is to be said of step `step` if the norm of its gradient is not finite; to be called by all."""
        return self.problem("train", {GRAD_NORM: float(self._norms.get(step, 0.0))}, step)

    def problem(self, split: Split, values: Mapping[str, float], step: int) -> Problem | None:
        """The problem, if one of `values`, as known at `step`, is not finite on some process; to be called by all.

        With GRAD_NORM among them, neither may any step's norm since the last row be: ms-swift drops the update, and
        the row, which holds the last step's norm, would not show it.
        It names the records of the first batch whose loss is not finite, or of the first step of whose gradient
        alone that holds; they are written into the run folder.
        """
        norms = self._norms if GRAD_NORM in values else {}
        norm_step = next((at for at, norm in norms.items() if _broken(float(norm))), None)
        said = next((f"{name} is {value} at step {step}" for name, value in values.items() if _broken(value)), "")
        if not said and norm_step is not None:
            said = f"{GRAD_NORM} is {float(norms[norm_step])} at step {norm_step}"
        # All stop, or none: one that went on would wait for the others' gradients.
        said = next(filter(None, self._ranks.gather(said)), "")
        return self._blame(split, said, norm_step) if said else None

    def _blame(self, split: Split, said: str, norm_step: int | None) -> Problem:
        """The problem that `said` is short for, with the records to look at."""
        batches = self._batches[split]
        losses = torch.stack([batch.loss.double() for batch in batches]).tolist() if batches else []
        first = next((n for n, loss in enumerate(losses) if _broken(loss)), None)
        firsts = self._ranks.gather((first, norm_step))
        number, rank = min(((n, rank) for rank, (n, _) in enumerate(firsts) if n is not None), default=(None, None))
        norm_step = min((at for _, at in firsts if at is not None), default=None)
        if number is not None and (norm_step is None or batches[number].step <= norm_step):
            step, mine = batches[number].step, batches[number : number + 1] if rank == self._ranks.rank else []
        elif norm_step is not None:
            step, rank = norm_step, None
            mine = [batch for batch in batches if batch.step == step]
        else:
            return Problem(said, f"lower the learning rate, or look for bad records: {_SHOWS_THE_WAY}")
        shares = self._ranks.gather(
            _Share(
                blamed=tuple(where for batch in mine for where in batch.records),
                source=next((batch.source for batch in batches if batch.step == step), "dataset"),
                losses=tuple(loss for loss, batch in zip(losses, batches, strict=True) if batch.step == step),
            )
        )
        if self._ranks.is_first:
            self._write(step, "the gradient's norm" if rank is None else "the loss of its batch", shares)
        # Whoever leaves first ends the others.
        self._ranks.wait()
        return self._problem(said, f"step {step}" if split == "train" else "the evaluation", rank, shares)

    def _problem(self, said: str, when: str, rank: int | None, shares: Sequence[_Share]) -> Problem:
        blamed = [where for share in shares for where in share.blamed]
        listed = ", ".join(str(where) for where in blamed[:MOST_NAMED])
        if len(blamed) > MOST_NAMED:
            listed += f" and {len(blamed) - MOST_NAMED} more"
        of_all = [loss for share in shares for loss in share.losses]
        if rank is None:
            what = f"{said}: the losses of {when} are finite, its gradient is not; it saw {listed}"
        else:
            what = f"{said}: the first such loss is that of a batch of {when}"
            what += f" on process {rank}" * (len(shares) > 1) + f", with {listed}"
        if (writer := _WRITER.get(shares[0].source)) is not None:
            what += f", whose answers {writer} wrote"
        if rank is not None and len(of_all) > 1 and all(map(_broken, of_all)):
            what += f"; and so are all {len(of_all)} losses of {when}, which points at the weights rather"
        do = f"look at these records, which {self._run_dir / NOT_FINITE_FILE_NAME} holds, and at their images"
        return Problem(what, f"{do}; if nothing is wrong with them, lower the learning rate: {_SHOWS_THE_WAY}")

    def _write(self, step: int, what: str, shares: Sequence[_Share]) -> None:
        """Write the records to blame into the run folder, each as it stands in its file."""
        found = _lines({where for share in shares for where in share.blamed})
        rows = [
            {
                "step": step, "rank": rank, "not_finite": what, "source": share.source,
                "file": where.file, "line": where.line, "record": msgspec.Raw(found.get(where, b"null")),
            }
            for rank, share in enumerate(shares)
            for where in share.blamed
        ]  # fmt: skip
        content = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        write_atomically(self._run_dir / NOT_FINITE_FILE_NAME, content)


def _broken(value: float) -> bool:
    return not math.isfinite(value)


def _lines(places: set[Where]) -> dict[Where, bytes]:
    """The lines of files at these places; without those that are there no more."""
    found = {}
    for name in {where.file for where in places}:
        with Path(name).open("rb") as file:
            for number, line in enumerate(file, 1):
                if (where := Where(name, number)) in places:
                    found[where] = line.strip()
    return found
