"""What went wrong, where, and what to do: every error a user can meet.

    VltoolError              a message for the user; exit code 1
    ├── BadContent           records or checkpoints hold something wrong; exit code 1
    ├── RunFailed            the run stopped after its worker had started; exit code 1
    │   └── OutOfMemory      for want of memory on a GPU
    ├── InvalidInput         usage, an invalid recipe or an absent path; exit code 2
    └── MissingOnHost        a package, GPU or disk this host lacks; exit code 3

Broken invariants are `assert`s and never reach a user as one of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import ClassVar


@dataclass(frozen=True, slots=True, order=True)
class Where:
    """A place in a text file; lines and columns are counted from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what it is, what to do about it, and where it stands."""

    what: str
    do: str = ""
    where: Where | None = None
    id: str = field(default="", compare=False)
    """The rule that found it, by which reports group and choose; empty where nobody chooses. Problems are equal by
    their words and their place, whichever rule says them."""

    def to_json(self) -> dict[str, str | int | None]:
        """The problem as a flat JSON object; what is not known is null."""
        where = self.where or Where("")
        place = {"file": where.file or None, "line": where.line, "column": where.column}
        return {"what": self.what, "do": self.do, **place}

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  {self.do}" if self.do else head


class VltoolError(Exception):
    """Base of all errors that are shown to the user, one line each, without a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problems: Problem | str | Iterable[Problem], do: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(problems, do)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        assert self.problems, "an error without a problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @property
    def details(self) -> dict[str, int | None]:
        """Further arguments, by name, of which another process makes the same error again."""
        return {}


class BadContent(VltoolError):
    """Records or checkpoints that were read hold something wrong."""


class RunFailed(VltoolError):
    """The run stopped after its worker had started."""


class OutOfMemory(RunFailed):
    """The run stopped for want of memory on a GPU."""

    def __init__(
        self,
        problems: Problem | str | Iterable[Problem],
        do: str = "",
        *,
        peak_bytes: int | None = None,
        gpu_bytes: int | None = None,
    ) -> None:
        """peak_bytes: the most that was in use by tensors at once. gpu_bytes: the GPU's memory. None: not known."""
        super().__init__(problems, do)
        self.peak_bytes = peak_bytes
        self.gpu_bytes = gpu_bytes

    @property
    def details(self) -> dict[str, int | None]:
        """See `VltoolError`."""
        return {"peak_bytes": self.peak_bytes, "gpu_bytes": self.gpu_bytes}


class InvalidInput(VltoolError):
    """Wrong usage, an invalid recipe, or a path that does not exist; nothing was written."""

    exit_code = 2


class MissingOnHost(VltoolError):
    """This host lacks a package, a GPU or disk space; nothing was written."""

    exit_code = 3


def nearest(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The choice that `word` was most likely meant to be, or None if none is close.

    cutoff: how alike they have to be, from 0 to 1 (difflib's ratio); a choice that begins as the word does is
    close as well, unless more than that is asked for.
    """
    known = list(choices)
    if matches := get_close_matches(word, known, n=1, cutoff=cutoff):
        return matches[0]
    if len(word) < 4 or cutoff > 0.6:
        return None
    return min((choice for choice in known if choice.startswith(word[: max(4, len(word) - 2)])), key=len, default=None)
