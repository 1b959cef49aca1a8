"""RunPlan -> worker and its outcome: the one door to `vltool.training`, opened with JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vltool.errors import MissingOnHost, Problem, RunFailed
from vltool.recipe.render import to_yaml
from vltool.recipe.schema import Recipe
from vltool.run.evidence import CarriedRow, TowerRow
from vltool.run.plan import RunPlan

TRAINING_STACK = {
    "torch": "torch", "torchvision": "torchvision", "transformers": "transformers", "peft": "peft",
    "swift": "ms-swift", "qwen_vl_utils": "qwen-vl-utils", "tensorboard": "tensorboard",
}  # fmt: skip
"""Import name -> distribution, of what `vltool[train]` brings."""


DEFAULT_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""Set where unset, before the training stack is imported."""


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
    """Run the plan in this process. Returns what `vltool.training.worker.run` reports.

    resolved: the recipe that the plan was made from, kept in the run folder as resolved.yaml.
    Raises MissingOnHost, and whatever error of the worker ended the run.
    """
    require_training_stack()
    for name, value in (DEFAULT_ENVIRONMENT | plan.env).items():
        os.environ.setdefault(name, value)
    # One process takes one GPU; of several it would spread the model's layers over all.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    with quiet_imports(show=plan.debug):
        from vltool.training import worker

    return worker.run(plan.to_json(), reporter, resolved_yaml=to_yaml(resolved))


def make_tiny(folder: Path, texts: Sequence[str]) -> Path:
    """Write the random-weight checkpoint of `vltool.training.tiny` into `folder`."""
    require_training_stack()
    with quiet_imports(show=False):
        from vltool.training import tiny

    return tiny.make_tiny(folder, texts=tuple(texts))


@contextmanager
def quiet_imports(*, show: bool) -> Iterator[None]:
    """Import the training stack without what it says at import time, which concerns its own authors."""
    if show:
        yield
        return
    os.environ.setdefault("LOG_LEVEL", "WARNING")  # ms-swift's
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
