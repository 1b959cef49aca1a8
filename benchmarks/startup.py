"""How long the light commands take to start, against an empty Typer app: `python benchmarks/startup.py [--repeats N]`.

Every round runs each command once, in turn, so that what slows the machine slows them alike. Printed:
medians over the rounds, and the ratio to the empty app's run of the same round, as median and quartiles.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY = """
import typer

app = typer.Typer(add_completion=False)


@app.command()
def main() -> None:
    pass


app()
"""
BUDGETS = {"--help": 1.3, "render-config stage3_gkd_visual": 2.2}
"""At most this often the empty app's time (design, section 12)."""
COMMANDS = (
    "--version",
    "--help",
    "train --help",
    "smoke --help",
    "render-config --help",
    "render-config --list",
    "render-config --schema",
    "render-config base",
    "render-config stage3_gkd_visual",
    "render-config stage3_gkd_visual --diff base",
)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=21)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty.py")
        empty.write_text(EMPTY, encoding="utf-8")
        commands = {"(empty Typer app)": [str(empty)]}
        commands |= {command: ["-m", "vltool", *command.split()] for command in COMMANDS}
        times: dict[str, list[float]] = {command: [] for command in commands}
        for _ in range(repeats + 1):
            for command, arguments in commands.items():
                times[command].append(timed(arguments))
    floor = times["(empty Typer app)"][1:]
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, {repeats} rounds after one to warm up\n")
    print(f"{'command':45} {'median':>8} {'ratio':>6}  {'quartiles':>11}  budget")
    for command, all_taken in times.items():
        taken = all_taken[1:]
        ratios = [one / base for one, base in zip(taken, floor, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        budget = BUDGETS.get(command)
        verdict = "" if budget is None else f"{budget} {'kept' if middle <= budget else 'MISSED'}"
        print(f"{command:45} {statistics.median(taken):7.3f}s {middle:6.2f}  {low:5.2f}-{high:.2f}  {verdict}")


def timed(arguments: list[str]) -> float:
    """Seconds of one run in a process of its own."""
    env = os.environ | {"VLTOOL_MODEL": "/models/base", "VLTOOL_TRAIN_JSONL": "/data/train.jsonl"}
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
