"""The processes of this node, from their start through torchrun to their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vltool.errors import RunFailed, VltoolError
from vltool.run.plan import RunPlan
from vltool.run.ranks import torchrun_command
from vltool.run.reporter import Reporter
from vltool.run.wire import Receiver, rebuilt, receiver

SECONDS_TO_FAIL_TOGETHER = 3.0
"""For how long, after a process failed, the others may say what they know before they are ended."""


class Processes:
    """The processes of this node, started by torchrun, as long as they live."""

    def __init__(self, plan: RunPlan, reporter: Reporter, resolved_yaml: str) -> None:
        self._plan = plan
        self._reporter = reporter
        self._resolved_yaml = resolved_yaml
        self._ranks: dict[int, int] = {}
        self._outcome: dict[str, Any] | None = None
        self._error: VltoolError | None = None
        self._signal: int | None = None
        self._at_once = False

    def run(self) -> dict[str, Any]:
        """Start them, hear what they say, and wait for their end."""
        with tempfile.TemporaryDirectory(prefix="vltool-") as scratch:
            folder = Path(scratch)
            (folder / "plan.json").write_bytes(self._plan.to_json())
            (folder / "resolved.yaml").write_text(self._resolved_yaml, encoding="utf-8")
            logs = None if self._plan.debug else folder / "logs"
            command = torchrun_command(self._plan.launch, "vltool.training.process", [str(folder)], logs=logs)
            with receiver(folder) as heard, (folder / "torchrun.log").open("wb") as output:
                # In a session of its own: Ctrl-C in a terminal reaches this process, which passes it on.
                torchrun = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr if self._plan.debug else output,
                    stderr=None if self._plan.debug else subprocess.STDOUT,
                    start_new_session=True,
                    # A scheduler's SIGTERM reaches torchrun too: its processes need the time to save.
                    env={"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1800"} | os.environ,
                )
                with self._passing_signals_on():
                    try:
                        self._listen(torchrun, heard)
                    finally:
                        self._end(torchrun)
            said = _last_words(folder)
        if self._signal is not None and self._outcome is None:
            # Whatever else the processes said, they were told to end.
            if self._signal == signal.SIGINT:
                raise KeyboardInterrupt
            return {"step": 0, "max_steps": 0, "last_checkpoint": None, "signal": self._signal}
        if self._error is not None:
            raise self._error
        # With an outcome all has been done: torchrun tells a signal, which it got too, as a failure.
        if self._outcome is None:
            raise RunFailed(
                f"a process of the run ended without a word (torchrun's exit status is {torchrun.returncode}); "
                f"the last lines that the processes wrote:\n{said}"
            )
        return self._outcome

    def _listen(self, torchrun: subprocess.Popen[bytes], heard: Receiver) -> None:
        failed_at: float | None = None
        while torchrun.poll() is None and not self._at_once:
            for event in heard.events(timeout_s=0.1):
                self._take(*event)
            if self._error is not None:
                # The others say the same, or nothing, since they wait for this one.
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > SECONDS_TO_FAIL_TOGETHER:
                    return
        for event in heard.last_events():
            self._take(*event)

    def _take(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "here":
            self._ranks[arguments[0]] = arguments[1]
            if self._signal is not None:
                self._pass_on(self._signal)
        elif name == "outcome":
            self._outcome = arguments[0]
        elif name == "failed":
            self._error = self._error or rebuilt(*arguments[1:])
        else:
            getattr(self._reporter, name)(*arguments)

    def _end(self, torchrun: subprocess.Popen[bytes]) -> None:
        """See that nothing of the run is left."""
        if torchrun.poll() is None:
            torchrun.terminate()
            for process in self._ranks.values():
                _kill_group(process)
            try:
                torchrun.wait(SECONDS_TO_FAIL_TOGETHER)
            except subprocess.TimeoutExpired:
                _kill_group(torchrun.pid)
        torchrun.wait()

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM go to the processes, which save and stop; a second Ctrl-C ends them."""

        def receive(number: int, _: Any) -> None:
            self._at_once = self._at_once or (self._signal == number == signal.SIGINT)
            self._signal = self._signal or number
            self._pass_on(number)

        former = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int) -> None:
        for process in self._ranks.values():
            with suppress(ProcessLookupError):
                os.kill(process, number)


def _kill_group(process: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(os.getpgid(process), signal.SIGKILL)


def _last_words(folder: Path, count: int = 12) -> str:
    """The ends of what the processes wrote; of torchrun's own output, where they wrote nothing."""

    def end(file: Path) -> list[str]:
        return file.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-count:]

    files = sorted(folder.glob("logs/**/stderr.log"))
    said = [line for file in files if (lines := end(file)) for line in (f"[process {file.parent.name}]", *lines)]
    return "\n".join(said or end(folder / "torchrun.log"))
