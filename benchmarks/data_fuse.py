"""How fast `vltool fuse` writes a mixture, against `cat INPUTS > FILE`: `python benchmarks/data_fuse.py [--quick]`.

Both in turn on the same disk, inputs cached, three times each, with a pause before; printed are medians and the ratio
of the same round, as median and range. Validation is off; hashing and the wait for the disk (cat waits for none) are
told apart. Each fusion runs in a process of its own, whose largest resident size, and that of its workers, the kernel
reports. Two inputs lie in folders of their own, so every image path is rewritten. Records are as long as those of dense
captioning, about 1 KB (the demo's are); ten million of them have 240 bytes, so that they stay in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ("red", "truck", "left", "of", "the", "old", "house", "with", "two", "windows", "near", "a", "tree", "crossing")
BLOCK = 20_000
"""Records that are made; files repeat them. Few: a process that is started inherits the largest size of this one."""
CASES = ((1_000_000, 1_044), (10_000_000, 240))
"""Records, and the bytes of one, about."""
QUICK = ((100_000, 1_044), (100_000, 240))
PAUSE_S = 15.0
RUN = """
import json, resource, sys, time
from pathlib import Path
from vltool.data.fuse import Options, fuse
from vltool.recipe.fusion import load_fusion

options = Options(validate=False, overwrite=True)
began = time.perf_counter()
done = fuse(load_fusion(sys.argv[1]), Path(sys.argv[2]), options, progress=lambda *_: None)
total = time.perf_counter() - began
largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({"total": total, "seconds": done.seconds, "mb": largest / 1024, "records": len(done.mixture)}))
"""


def measure(quick: bool = False, folder: Path | None = None) -> list[str]:
    """The lines of the report. quick: 100,000 records. folder: on the disk to measure, by default /tmp's."""
    lines = []
    for records, size in QUICK if quick else CASES:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            lines += _measured(Path(made), records, size)
    return lines


def _measured(folder: Path, records: int, size: int) -> list[str]:
    inputs = [folder / name / f"{name}.jsonl" for name in ("own", "coco")]
    _write(inputs[0], records * 7 // 10, size)
    _write(inputs[1], records * 3 // 10, size)
    config = folder / "mix.json"
    sources = [{"train_jsonl": str(inputs[1]), "ratio": 3 / 7}]
    config.write_text(json.dumps({"target": {"train_jsonl": str(inputs[0])}, "sources": sources}), encoding="utf-8")
    cats, runs = [], []
    for _ in range(3):
        _settle()
        cats.append(_cat(inputs, folder / "cat.jsonl"))
        _settle()
        command = [sys.executable, "-c", RUN, str(config), str(folder / "mixed.jsonl")]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        out_bytes = (folder / "mixed.jsonl").stat().st_size
        for path in folder.glob("mixed.jsonl*"):
            path.unlink()
    apart = [run["seconds"]["hashing"] for run in runs]
    waits = [run["seconds"].get("waiting for the disk", 0.0) for run in runs]
    work = [run["total"] - hashing - wait for run, hashing, wait in zip(runs, apart, waits, strict=True)]
    ratios = [mine / cat for mine, cat in zip(work, cats, strict=True)]
    in_bytes = sum(path.stat().st_size for path in inputs)
    median = statistics.median
    laps = ", ".join(
        f"{name} {median(run['seconds'][name] for run in runs):.2f}" for name in ("reading", "sorting", "writing")
    )
    return [
        f"fuse, {runs[0]['records']:,} records of {in_bytes / records:,.0f} bytes: "
        f"{in_bytes / 1e9:.2f} GB in, {out_bytes / 1e9:.2f} GB out",
        f"  {median(work):.2f} s ({laps}), {in_bytes / 1e9 / median(work):.2f} GB/s, "
        f"{records / median(work) / 1e6:.2f} M records/s; cat {median(cats):.2f} s",
        f"  ratio to cat {median(ratios):.1f} (from {min(ratios):.1f} to {max(ratios):.1f}); target: at most 3",
        f"  apart: hashing {median(apart):.2f} s, waiting for the disk {median(waits):.2f} s",
        f"  largest process {max(run['mb'] for run in runs):.0f} MB resident; target: at most 400",
    ]


def _settle() -> None:
    """Let neither what earlier rounds left to the disk, nor memory that they had, be a matter of who is next."""
    os.sync()
    # A virtual machine gives free memory back to its host, within seconds, and a page that was given back costs three
    # times as much to write to as one that was not: so that both begin without.
    time.sleep(PAUSE_S)


def _cat(inputs: list[Path], out: Path) -> float:
    began = time.perf_counter()
    with out.open("wb") as file:
        subprocess.run(["cat", *map(str, inputs)], stdout=file, check=True)
    seconds = time.perf_counter() - began
    out.unlink()
    return seconds


def _write(path: Path, records: int, size: int) -> None:
    path.parent.mkdir()
    draw = random.Random(path.name)
    block = b"".join(_record(draw, number, size) for number in range(min(BLOCK, records)))
    lines = block.splitlines(keepends=True)
    with path.open("wb") as file:
        for _ in range(records // len(lines)):
            file.write(block)
        file.writelines(lines[: records % len(lines)])


def _record(draw: random.Random, number: int, size: int) -> bytes:
    """A line of about that size: a photograph with boxes and polygons."""
    objects: list[dict[str, object]] = []
    wanted, length = draw.uniform(0.7, 1.3) * size, 100  # without objects
    while length < wanted - 40:  # half an object
        x, y = draw.randrange(900), draw.randrange(900)
        geometry: dict[str, object] = {"bbox_2d": [x, y, x + draw.randrange(20, 120), y + draw.randrange(20, 120)]}
        if size > 500 and draw.random() < 0.4:
            geometry = {"poly": [value + draw.randrange(120) for _ in range(draw.randrange(4, 17)) for value in (x, y)]}
        objects.append({"desc": " ".join(draw.choices(WORDS, k=draw.randrange(2, 7))), **geometry})
        length += len(json.dumps(objects[-1])) + 2
    record = {"images": [f"images/{draw.getrandbits(40):010x}_{number}.jpg"], "width": 1024, "height": 1024}
    return json.dumps(record | {"objects": objects}).encode() + b"\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 records")
    parser.add_argument("--folder", type=Path, help="where to write; needs 15 GB without --quick")
    arguments = parser.parse_args()
    for line in measure(arguments.quick, arguments.folder):
        print(line, flush=True)


if __name__ == "__main__":
    main()
