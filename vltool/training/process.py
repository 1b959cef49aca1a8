"""One of several processes of a run, as torchrun starts it: `python -m vltool.training.process FOLDER`.

FOLDER holds plan.json, resolved.yaml and the socket on which the launching process listens.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from vltool.errors import VltoolError
from vltool.run.launch import quiet_imports
from vltool.run.plan import RunPlan
from vltool.run.wire import Sender


def main(folder: Path) -> int:
    """Run the plan's part of this process; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Until the run listens itself there is nothing to save.
        signal.signal(number, lambda received, _: os._exit(128 + received))
    plan_json = (folder / "plan.json").read_bytes()
    sender = Sender(str(folder / "events"), rank=int(os.environ["RANK"]))
    sys.excepthook = lambda *error: sender.crashed("".join(traceback.format_exception(*error)))
    try:
        with quiet_imports(show=RunPlan.from_json(plan_json).debug):
            from vltool.training import worker
        outcome = worker.run(plan_json, sender, resolved_yaml=(folder / "resolved.yaml").read_text(encoding="utf-8"))
    except VltoolError as error:
        sender.failed(error)
        return error.exit_code
    sender.outcome(outcome)
    return 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # At an ordinary exit, threads of gloo and DeepSpeed may abort the process, whose work is done.
    os._exit(status)
