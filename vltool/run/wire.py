"""What the processes of a run tell the one that launched them, over a socket of this host."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from threading import Thread
from typing import Any

from vltool import errors
from vltool.errors import MissingOnHost, Problem, VltoolError
from vltool.run.evidence import CarriedRow, TowerRow

LONGEST_ADDRESS = 107
"""Bytes of a socket's path on Linux (`sun_path`, less its end)."""

Event = tuple[str, tuple[Any, ...]]
"""Name and arguments. `here` (rank, process id), `failed` (rank, class, problems, details), `outcome` (dict); the
other names are those of a reporter's methods."""
_LAST_CALL: Event = ("last call", ())
"""What the launching process itself says when all others have ended."""
_SECONDS_TO_BE_TAKEN_IN = 30.0


class Sender:
    """A process's end; also its reporter (see `vltool.run.reporter.Reporter`): of all, the first process speaks."""

    def __init__(self, address: str, *, rank: int) -> None:
        self._rank = rank
        self._connection = Client(address, family="AF_UNIX")
        self._send("here", rank, os.getpid())

    def _send(self, name: str, *arguments: Any) -> None:
        event: Event = (name, arguments)
        self._connection.send(event)

    def _report(self, name: str, *arguments: Any) -> None:
        if self._rank == 0:
            self._send(name, *arguments)

    def stage(self, text: str) -> None:
        """See `Reporter`."""
        self._report("stage", text)

    def towers(self, rows: Sequence[TowerRow]) -> None:
        """See `Reporter`."""
        self._report("towers", list(rows))

    def carried(self, checkpoint: str, rows: Sequence[CarriedRow]) -> None:
        """See `Reporter`."""
        self._report("carried", checkpoint, list(rows))

    def progress(self, what: str, done: int, total: int) -> None:
        """See `Reporter`."""
        self._report("progress", what, done, total)

    def row(self, row: dict[str, int | float]) -> None:
        """See `Reporter`."""
        self._report("row", row)

    def warn(self, problem: Problem) -> None:
        """See `Reporter`."""
        self._report("warn", problem)

    def failed(self, error: VltoolError) -> None:
        """This process ends with an error that the user is to read."""
        self._send("failed", self._rank, type(error).__name__, error.problems, error.details)

    def crashed(self, traceback: str) -> None:
        """This process ends with an error that is a defect."""
        self._send(
            "failed", self._rank, "RunFailed", (Problem(f"process {self._rank} of the run broke:\n{traceback}"),), {}
        )

    def close(self) -> None:
        """Say nothing more."""
        self._connection.close()

    def outcome(self, outcome: dict[str, Any]) -> None:
        """The run is over, and came to this."""
        self._send("outcome", outcome)


@dataclass(slots=True)
class Receiver:
    """The launching process's end."""

    address: str
    _listener: Listener
    _connections: list[Connection[Event, Event]]

    def accept(self) -> None:
        """Take in whoever calls, until the listener is closed."""
        while True:
            try:
                self._connections.append(self._listener.accept())
            except OSError:
                return

    def events(self, timeout_s: float) -> Iterator[Event]:
        """What has come, waiting for it at most so long; none where nothing came."""
        for ready in wait(tuple(self._connections), timeout=timeout_s):
            assert isinstance(ready, Connection)
            try:
                yield ready.recv()
            except (EOFError, ConnectionResetError):
                self._connections.remove(ready)

    def last_events(self) -> Iterator[Event]:
        """All that processes which have ended left unread."""
        # Callers are taken in in turn: once this one has been, so have all before it.
        with Client(self.address, family="AF_UNIX") as own:
            own.send(_LAST_CALL)
        until = time.monotonic() + _SECONDS_TO_BE_TAKEN_IN
        all_in = False
        while True:
            found = list(self.events(timeout_s=0.1))
            all_in = all_in or _LAST_CALL in found or time.monotonic() > until
            yield from (event for event in found if event != _LAST_CALL)
            if all_in and not found:
                return


@contextmanager
def receiver(folder: Path) -> Iterator[Receiver]:
    """Listen on a socket in `folder`, which others may not look into.

    Raises MissingOnHost for a folder whose path is too long for a socket's.
    """
    address = str(folder / "events")
    if len(os.fsencode(address)) > LONGEST_ADDRESS:
        raise MissingOnHost(f"no socket can lie in {folder}: its path is too long", "set TMPDIR to a shorter path")
    with Listener(address, family="AF_UNIX", backlog=64) as listener:
        end = Receiver(address, listener, [])
        Thread(target=end.accept, daemon=True).start()
        yield end


def rebuilt(kind: str, problems: Sequence[Problem], details: Mapping[str, int | None]) -> VltoolError:
    """The error that a process sent."""
    error = getattr(errors, kind)(problems, **details)
    assert isinstance(error, VltoolError)
    return error
