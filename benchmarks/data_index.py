"""The index of a large JSONL: building beside `wc -l`, opening, reading, decoding: `python benchmarks/data_index.py`.

Lines of 300 to 2,000 bytes, the records of the demo cut to length and repeated. Everything written is deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vltool.data.index import JsonlIndex
from vltool.data.record import parse_record

FULL_BYTES, QUICK_BYTES = 2_000_000_000, 200_000_000
LEAST_GB_PER_S = 1.5
REPEATS = 5


def measure(quick: bool = False) -> list[str]:
    """The lines of the table; writes 2 GB (200 MB) into a temporary folder, and deletes it."""
    with tempfile.TemporaryDirectory(prefix="vltool-index-") as folder:
        path = Path(folder, "records.jsonl")
        write_lines(path, QUICK_BYTES if quick else FULL_BYTES)
        size, cache = path.stat().st_size, path.with_name(f".{path.name}.vlindex")
        for _ in range(2):  # the file's pages into memory
            counted = int(subprocess.check_output(["wc", "-l", path]).split()[0])

        def build() -> None:
            cache.unlink(missing_ok=True)
            JsonlIndex(path)

        building = timed(build)
        counting = timed(lambda: subprocess.check_output(["wc", "-l", path]))
        speed = size / building / 1e9
        index = JsonlIndex(path)
        assert len(index) == counted
        opening = timed(lambda: JsonlIndex(path))
        places = random.Random(0).choices(range(len(index)), k=100_000)
        reading = timed(lambda: [index.read(place) for place in places])
        lines = [index.read(place) for place in places[:10_000]]
        decoding = timed(lambda: [parse_record(line, where) for line, where in lines])
        verdict = "kept" if speed >= LEAST_GB_PER_S else "MISSED"
        return [
            f"a JSONL of {size / 1e9:.1f} GB and {len(index):,} records, in the page cache; medians of {REPEATS}",
            f"{'index built and written, GB/s':40} {speed:10.2f}  at least {LEAST_GB_PER_S}: {verdict}",
            f"{'wc -l, GB/s':40} {size / counting / 1e9:10.2f}",
            f"{'index file, bytes a record':40} {cache.stat().st_size / len(index):10.2f}",
            f"{'cached index opened, ms':40} {1000 * opening:10.2f}",
            f"{'random reads/s, one process':40} {len(places) / reading:10,.0f}",
            f"{'records decoded and validated/s':40} {len(lines) / decoding:10,.0f}",
        ]


def write_lines(path: Path, size: int) -> None:
    """A JSONL of at least `size` bytes."""
    rng = random.Random(0)
    lines = [record(rng) for _ in range(20_000)]
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(b"".join(rng.sample(lines, 2_000)))
        file.flush()
        os.fsync(file.fileno())  # else the disk works on while the clock runs


def record(rng: random.Random) -> bytes:
    """One line of 300 to 2,000 bytes: a photograph with a few boxes and polygons."""
    length, objects = rng.randint(300, 1_850), list[dict[str, object]]()
    while True:
        x, y = rng.randint(0, 400), rng.randint(0, 400)
        box = {"bbox_2d": [x, y, x + 90, y + 70], "desc": rng.choice(("face: smiling, short brown hair", "eye: green"))}
        poly = {"poly": [x, y, x + 30, y + 8, x + 50, y + 60, x + 9, y + 70], "desc": "pressure suit: orange"}
        objects.append(rng.choice((box, poly)))
        value = {"images": ["images/astronaut.jpg"], "width": 512, "height": 512, "objects": objects}
        line = json.dumps(value).encode() + b"\n"
        if len(line) >= length:
            return line


def timed(action: Callable[[], object]) -> float:
    """Median seconds of REPEATS runs."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 MB instead of 2 GB")
    print("\n".join(measure(parser.parse_args().quick)))
