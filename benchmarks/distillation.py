"""SFT and distillation, of ms-swift's own trainers and of vltool, side by side: see benchmarks/README.md.

`python benchmarks/distillation.py [--size 4b|tiny] [--cells GLOB,...] [--list] [--json FILE]`

Each cell runs in a process of its own, so that memory peaks are clean and a failure of one costs the others nothing;
the processes of the next cells import their libraries while one measures, and wait.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

from distillation_levers import LEVERS, LOSS_PATHS
from distillation_setup import SIZES, prepare
from distillation_tables import print_tables

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "OMP_NUM_THREADS": "1",
    "LOG_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1", "USE_HF": "1",
}  # fmt: skip
"""For both sides alike: what vltool sets where it is unset, and nothing that asks the network."""
SHAPES = ("image", "text")
CENTRE = "vltool-gkd-image-on"
SECONDS_A_CELL = 100.0
SECONDS_TO_END = 30.0
"""What a cell that started in time has after the deadline."""
AHEAD = 4
"""Processes at a time: one works, the others import."""
GIB_FOR = {"4b": 12, "8b": 20}
"""Room that checkpoint and records take."""
FOR_MEMORY = ("aligner-on", "aligner-off")
"""Cells that run where they are named only, with and without checkpointing: the memory plan is held against them."""


def cell_names() -> list[str]:
    """All cells, what matters most first: a run that reaches its deadline leaves out the rest."""

    def main(shape: str, checkpointing: str) -> list[str]:
        return [f"{who}-{what}-{shape}-{checkpointing}" for what in ("sft", "gkd") for who in ("swift", "vltool")]

    return [
        "gemm",
        *(f"loss-{name}" for name in LOSS_PATHS),
        *(name for checkpointing in ("on", "off") for shape in SHAPES for name in main(shape, checkpointing)),
        *(f"lever-{name}" for name in LEVERS),
    ]  # fmt: skip


def main() -> int:
    """Measure and print."""
    options = _options()
    globs = options.cells.split(",")
    names = [name for name in cell_names() if any(fnmatch(name, glob) for glob in globs)]
    names += [name for name in FOR_MEMORY if name in globs]
    if not names:
        print(f"no cell is called {options.cells}: see --list", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(names))
        return 0
    if options.child is not None:
        return _child(options.child, options.size, Path(options.folder), Path(options.checkpoints))
    # Shares of the GEMM rate are shown beside every time.
    names = ["gemm", *(name for name in names if name != "gemm")]
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="distillation-") as folder,
        tempfile.TemporaryDirectory(prefix="distillation-", dir=_checkpoints(options)) as checkpoints,
    ):
        measured = dict(_measure(names, options, Path(folder), checkpoints, started + options.deadline))
        if options.logs is not None:
            _keep_logs(Path(folder), Path(options.logs))
    seconds = time.monotonic() - started
    print_tables(measured, size=options.size, centre=CENTRE, seconds=seconds)
    for name in [name for name in FOR_MEMORY if "peak_gib" in measured.get(name, {})]:
        print(f"{name}: {measured[name]['step_ms']:.1f} ms, peak {measured[name]['peak_gib']:.2f} GiB")
    if options.json is not None:
        document = {"size": options.size, "seconds": seconds, "cells": measured}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="4b", help="tiny: the same way on a CPU, in minutes")
    parser.add_argument("--cells", default="*", metavar="GLOB,...", help="only the cells that one of these matches")
    parser.add_argument("--list", action="store_true", help="print the names of those cells, and run none")
    parser.add_argument("--json", metavar="FILE", help="write all that was measured into FILE")
    parser.add_argument("--logs", metavar="DIR", help="keep what each cell printed in DIR")
    parser.add_argument("--deadline", type=float, default=500.0, help="seconds after which no cell starts any more")
    parser.add_argument("--checkpoints", default="/dev/shm", metavar="DIR", help="where the checkpoint is written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _checkpoints(options: argparse.Namespace) -> str | None:
    """The folder for the checkpoint: memory where it has room, since every cell reads it; None for the usual one."""
    folder = options.checkpoints
    needs = GIB_FOR.get(options.size, 0) * 2**30
    return folder if Path(folder).is_dir() and shutil.disk_usage(folder).free > needs else None


# --- processes --------------------------------------------------------------------------------------------


class Child:
    """A process that imports, waits for a word, does its cell and ends."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path, checkpoints: str) -> None:
        self.name = name
        self._result = folder / f"{name}.json"
        self._log = folder / f"{name}.log"
        command = [sys.executable, __file__, "--child", name, "--size", options.size]
        command += ["--folder", str(folder), "--checkpoints", checkpoints]
        env = os.environ | {key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def result(self, seconds: float) -> dict[str, Any]:
        """Let it work; what it measured, or {"error": …}."""
        started = time.monotonic()
        try:
            self._process.communicate(b"go\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            self.end()
            return {"error": f"took longer than {seconds:.0f} s", "seconds": seconds}
        except BrokenPipeError:
            self._process.wait()
        self._end_workers()
        took = {"seconds": time.monotonic() - started}
        if self._result.is_file():
            return json.loads(self._result.read_text(encoding="utf-8")) | took
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return {"error": f"ended with {self._process.returncode}: {''.join(said)}"} | took

    def end(self) -> None:
        """Not needed, or not any more."""
        self._end_workers()
        self._process.communicate()

    def _end_workers(self) -> None:
        """End what is left of its session: loaders' workers would hold on to its GPU memory for seconds."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _measure(
    names: list[str], options: argparse.Namespace, folder: Path, checkpoints: str, deadline: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each cell's result, in turn; none where the time is up."""
    order = ["prepare", *names]
    ready: deque[Child] = deque()
    to_come = iter(order)
    for name in order:
        ready.extend(Child(coming, options, folder, checkpoints) for coming in islice(to_come, AHEAD - len(ready)))
        child = ready.popleft()
        if time.monotonic() > deadline:
            child.end()
            yield name, {"error": "left out: the deadline has passed"}
            continue
        result = child.result(min(SECONDS_A_CELL, deadline + SECONDS_TO_END - time.monotonic()))
        progress = f"{name:24} {result.get('seconds', 0.0):6.1f} s  {result.get('error', '')}"
        print(progress[:120], file=sys.stderr, flush=True)
        yield name, result
        if name == "prepare" and "error" in result:
            break
    for child in ready:
        child.end()


def _child(name: str, size: str, folder: Path, checkpoints: Path) -> int:
    """Do one cell when told to."""
    began = time.monotonic()
    if name != "prepare":
        import distillation_cells as cells

        if name.startswith("swift-gkd"):
            import swift.rlhf_trainers.gkd_trainer  # noqa: F401 - by now, rather than when its turn has come
    imported = time.monotonic()
    if not sys.stdin.readline():
        return 1  # the parent is gone
    told = time.monotonic()
    try:
        if name == "prepare":
            result = prepare(folder, size, checkpoints)
        else:
            made = json.loads((folder / "prepare.json").read_text(encoding="utf-8"))
            result = cells.run_cell(name, made, SIZES[size])
    except Exception as error:  # noqa: BLE001 - a cell that fails is a row that says so
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    result["process_s"] = {"imports": imported - began, "waits": told - imported, "works": time.monotonic() - told}
    (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's farewell to a model and its loaders, which can take as long as the cell.
    os._exit(0)


def _keep_logs(folder: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        (to / log.name).write_bytes(log.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
