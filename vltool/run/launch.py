"""RunPlan -> worker and its outcome: the one door to `vltool.training`, opened with JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vltool.errors import MissingOnHost, RunFailed
from vltool.recipe.render import to_yaml
from vltool.recipe.schema import Recipe
from vltool.run.deepspeed import offloads
from vltool.run.evidence import TowerRow
from vltool.run.folder import PLAN_FILE_NAME
from vltool.run.merge import MergePlan, is_merged
from vltool.run.plan import RunPlan
from vltool.run.processes import Processes
from vltool.run.ranks import place_in, visible_gpus
from vltool.run.reporter import Reporter

TRAINING_STACK = {
    "torch": "torch", "torchvision": "torchvision", "transformers": "transformers", "peft": "peft",
    "swift": "ms-swift", "qwen_vl_utils": "qwen-vl-utils", "tensorboard": "tensorboard",
}  # fmt: skip
"""Import name -> distribution, of what `vltool[train]` brings."""


DEFAULT_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""Set where unset, before the training stack is imported."""
SECONDS_TO_MERGE = 7200.0


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
    if plan.arguments.get("quant_method") == "bnb" and find_spec("bitsandbytes") is None:
        raise MissingOnHost(
            f"{plan.origins['quant_method']}: bitsandbytes, which packs the base into 4 bits, is not installed",
            "pip install 'vltool[quantization]', or take quant_method out",
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
        return Processes(plan, reporter, to_yaml(resolved)).run()
    with quiet_imports(show=plan.debug):
        from vltool.training import worker

    return worker.run(plan.to_json(), reporter, resolved_yaml=to_yaml(resolved))


def _cpu_threads(plan: RunPlan) -> int:
    """Threads of a process's work on the CPU: one, since it waits for the GPU, but for an optimizer offloaded to it."""
    if not offloads(plan.arguments.get("deepspeed")):
        return 1
    return max(1, (os.cpu_count() or 1) // plan.launch.nproc_per_node)


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


def count_deep(plan: RunPlan) -> list[TowerRow]:
    """What trains, counted on the plan's model without its weights (see `vltool.training.deep`).

    Raises MissingOnHost without the training stack, InvalidInput for a tuner that cannot be made.
    """
    require_training_stack()
    with quiet_imports(show=False):
        from vltool.training import deep

    return deep.count(plan)


@contextmanager
def quiet_imports(*, show: bool) -> Iterator[None]:
    """Import the training stack without what it says at import time, which concerns its own authors."""
    # DeepSpeed logs on what stdout is when it is imported, where a command's result goes.
    with redirect_stdout(sys.stderr):
        if show:
            yield
            return
        os.environ.setdefault("LOG_LEVEL", "WARNING")  # ms-swift's
        # peft imports it wherever it is installed, and on some CPUs it warns of a kernel that it does without.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
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
