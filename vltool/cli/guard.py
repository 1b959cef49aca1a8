"""From an error to a message and an exit code, around every command."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import ParamSpec

import typer

from vltool.cli.output import Output
from vltool.errors import InvalidInput, MissingOnHost, VltoolError

P = ParamSpec("P")

INTERRUPTED = 130
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def guarded(command: Callable[P, int | None]) -> Callable[P, None]:
    """Show a VltoolError as its problems and leave with its exit code; 130 for Ctrl-C.

    Under `--json` (`as_json`) the problems are a document on stdout too. What the command returns is its
    exit code; None is 0.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs) or 0
        except VltoolError as error:
            if _speaks(error):
                Output().error(error)
            code = error.exit_code
            if kwargs.get("as_json"):
                problems = [problem.to_json() for problem in error.problems]
                Output().print_json({"exit_code": code, "problems": problems})
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            Output().note(f"cannot write: {error.strerror}")
            code = MissingOnHost.exit_code
        except KeyboardInterrupt:
            Output().note("interrupted")
            code = INTERRUPTED
        raise typer.Exit(code)

    return run


def _speaks(error: VltoolError) -> bool:
    """Whether this process shows an error: of those that torchrun starts on a node, all see the same bad input."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or not isinstance(error, InvalidInput | MissingOnHost)
