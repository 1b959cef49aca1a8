"""All that is measured of the data: `python benchmarks/data.py [--quick] [--only augment,index,fuse]`.

Augmentation beside torchvision and PIL, the index beside `wc -l`, fusion beside `cat`, in that order, one at a time
and each in a process of its own, whose memory is part of what is measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

PARTS = ("augment", "index", "fuse")


def main() -> None:
    """Measure and print, each part as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer repeats: a minute or two in all")
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="PARTS", help=f"some of {','.join(PARTS)}")
    arguments = parser.parse_args()
    for part in arguments.only:
        # Others may work on the same cores; what they take is in every figure that is not a ratio.
        print(f"## {part}, load average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores", flush=True)
        script = Path(__file__).with_name(f"data_{part}.py")
        subprocess.run([sys.executable, script, *(["--quick"] if arguments.quick else [])], check=True)


def _parts(text: str) -> tuple[str, ...]:
    wanted = text.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in wanted)


if __name__ == "__main__":
    main()
