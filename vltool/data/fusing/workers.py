"""Work in forked processes, whose results come back as they are made."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn, TypeVar

from vltool.errors import BadContent, RunFailed

T = TypeVar("T")

MOST = 4
"""More processes would wait for the disk."""


def processes() -> int:
    """How many are worth having here."""
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def spread(work: Callable[[int], Iterator[T]], workers: int) -> Iterator[T]:
    """All that `work(0)` … `work(workers - 1)` yield, each in a process of its own if there are several.

    Raises what one of them raises: BadContent or OSError; the others are stopped. RunFailed for a process that
    was killed.
    """
    if workers == 1:
        yield from work(0)
        return
    context = multiprocessing.get_context("fork")
    running: dict[Connection, BaseProcess] = {}
    try:
        for number in range(workers):
            mine, theirs = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=_run, args=(work, number, theirs), daemon=True)
            process.start()
            theirs.close()
            running[mine] = process
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                try:
                    kind, value = connection.recv()
                except EOFError:
                    killed = running.pop(connection)
                    killed.join()
                    do = "most often for want of memory: close what else runs here, and try again"
                    raise RunFailed(f"a process was stopped (exit status {killed.exitcode})", do) from None
                if kind == "item":
                    yield value
                elif kind == "done":
                    running.pop(connection).join()
                elif kind == "bad":
                    raise BadContent(value)
                else:
                    raise OSError(*value)
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _run(work: Callable[[int], Iterator[T]], number: int, out: Connection) -> None:
    # Ctrl-C reaches the whole group; the parent ends its processes itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    try:
        for item in work(number):
            out.send(("item", item))
        out.send(("done", None))
    except BadContent as error:
        out.send(("bad", error.problems))
    except OSError as error:
        out.send(("os", (error.errno, error.strerror, error.filename)))


def _leave(number: int, _: object) -> NoReturn:
    # So that what is half-written is removed on the way out.
    raise SystemExit(128 + number)
