"""RunPlan -> worker and its outcome: the one door to `vltool.training`, opened with JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vltool.errors import MissingOnHost, Problem, RunFailed, VltoolError
from vltool.recipe.render import to_yaml
from vltool.recipe.schema import Recipe
from vltool.run.deepspeed import offloads
from vltool.run.evidence import CarriedRow, TowerRow
from vltool.run.folder import PLAN_FILE_NAME
from vltool.run.merge import MergePlan, is_merged
from vltool.run.plan import RunPlan
from vltool.run.ranks import place_in, torchrun_command, visible_gpus
from vltool.run.wire import Receiver, rebuilt, receiver

TRAINING_STACK = {
    "torch": "torch", "torchvision": "torchvision", "transformers": "transformers", "peft": "peft",
    "swift": "ms-swift", "qwen_vl_utils": "qwen-vl-utils", "tensorboard": "tensorboard",
}  # fmt: skip
"""Import name -> distribution, of what `vltool[train]` brings."""


DEFAULT_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""Set where unset, before the training stack is imported."""
SECONDS_TO_MERGE = 7200.0
SECONDS_TO_FAIL_TOGETHER = 3.0
"""For how long, after a process failed, the others may say what they know before they are ended."""


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


def require_training_stack() -> None:
    """Raise MissingOnHost when a package of `vltool[train]` is not installed."""
    missing = [distribution for name, distribution in TRAINING_STACK.items() if find_spec(name) is None]
    if missing:
        raise MissingOnHost(
            f"the training stack is not installed: {', '.join(missing)} missing", "pip install 'vltool[train]'"
        )


def train(plan: RunPlan, reporter: Reporter, *, resolved: Recipe) -> dict[str, Any]:
    """Run the plan: in this process, or through torchrun in as many as it wants on this node.

    Returns what `vltool.training.worker.run` reports.
    resolved: the recipe that the plan was made from, kept in the run folder as resolved.yaml.
    Raises MissingOnHost, and whatever error of a worker ended the run.
    """
    require_training_stack()
    uses_deepspeed = "deepspeed" in plan.arguments
    if uses_deepspeed and find_spec("deepspeed") is None:
        raise MissingOnHost(
            f"{plan.origins.get('deepspeed', 'the recipe')}: DeepSpeed is not installed",
            "pip install 'vltool[deepspeed]', or write enabled: false under deepspeed",
        )
    defaults = DEFAULT_ENVIRONMENT | {"OMP_NUM_THREADS": str(_cpu_threads(plan))} | plan.env
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    place = place_in(os.environ)
    gpus = visible_gpus(os.environ)
    if gpus and len(gpus) < plan.launch.nproc_per_node:
        raise MissingOnHost(
            f"the run wants {plan.launch.nproc_per_node} processes on this node, which has {len(gpus)} GPUs to see",
            "lower launch.nproc_per_node (auto takes one a GPU), or look at CUDA_VISIBLE_DEVICES",
        )
    if gpus:
        # One process takes one GPU: of several it would spread the model's layers over all.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[: plan.launch.nproc_per_node])
    if plan.merge is not None and not is_merged(plan.merge):
        reporter.stage("merging the earlier stage into its base")
        if (plan.launch.node_rank if place is None else place.rank) == 0:
            merge(plan)
        else:
            _wait_for_merge(plan.merge)
    if place is None and (plan.launch.processes > 1 or uses_deepspeed):
        return _Launched(plan, reporter, to_yaml(resolved)).run()
    with quiet_imports(show=plan.debug):
        from vltool.training import worker

    return worker.run(plan.to_json(), reporter, resolved_yaml=to_yaml(resolved))


def _cpu_threads(plan: RunPlan) -> int:
    """Threads of a process's work on the CPU: one, since it waits for the GPU, but for an optimizer offloaded to it."""
    if not offloads(plan.arguments.get("deepspeed")):
        return 1
    return max(1, (os.cpu_count() or 1) // plan.launch.nproc_per_node)


class _Launched:
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
        if torchrun.returncode != 0 or self._outcome is None:
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


def _wait_for_merge(wanted: MergePlan) -> None:
    """Wait for the first process of the run, which merges for all."""
    until = time.monotonic() + SECONDS_TO_MERGE
    while not is_merged(wanted):
        if time.monotonic() > until:
            raise RunFailed(
                f"no merged base in {wanted.folder} after {SECONDS_TO_MERGE / 60:.0f} minutes",
                "look at the run's first node, which writes it, and whether all nodes see the folder",
            )
        time.sleep(1)


def make_tiny(folder: Path, texts: Sequence[str], *, real_ids: bool = False) -> Path:
    """Write the random-weight checkpoint of `vltool.training.tiny` into `folder`; arguments as there."""
    require_training_stack()
    with quiet_imports(show=False):
        from vltool.training import tiny

    return tiny.make_tiny(folder, texts=tuple(texts), real_ids=real_ids)


@contextmanager
def quiet_imports(*, show: bool) -> Iterator[None]:
    """Import the training stack without what it says at import time, which concerns its own authors."""
    # DeepSpeed logs on what stdout is when it is imported, where a command's result goes.
    with redirect_stdout(sys.stderr):
        if show:
            yield
            return
        os.environ.setdefault("LOG_LEVEL", "WARNING")  # ms-swift's
        if not visible_gpus(os.environ):
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns of what it finds by itself
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def reload(run_dir: Path, checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint over the base that it names, in a new process, and compare it with the trained model.

    Returns `{"base": folder, "difference": largest difference of logits, "scale": largest logit}`.
    Raises RunFailed with the end of that process's output if it fails.
    """
    command = [sys.executable, "-m", "vltool.training.reload", str(run_dir), str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise RunFailed(f"{checkpoint} does not load in a new process: {last[0]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def merge(plan: RunPlan) -> None:
    """Merge the earlier stage that the plan names into its base, in a new process, unless that was done before.

    Raises RunFailed with the end of that process's output if it fails.
    """
    if plan.merge is None or is_merged(plan.merge):
        return
    with tempfile.TemporaryDirectory(prefix="vltool-") as folder:
        document = Path(folder) / PLAN_FILE_NAME
        document.write_bytes(plan.to_json())
        child = subprocess.Popen(
            [sys.executable, "-m", "vltool.training.merge", str(document)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        former = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            _, said = child.communicate()
        finally:
            signal.signal(signal.SIGTERM, former)
            child.terminate()
            child.wait()
    if child.returncode != 0:
        last = said.strip().splitlines()[-1:] or [f"it ended with {child.returncode}"]
        raise RunFailed(f"{plan.merge.checkpoint} cannot be merged into {plan.merge.base}: {last[0]}")
