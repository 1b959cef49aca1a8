"""Where a run writes, and the checkpoint that it goes on from."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from vltool.checkpoint.census import is_complete, last_complete
from vltool.errors import Problem
from vltool.recipe.schema import Recipe

PLAN_FILE_NAME = "plan.json"
"""In a folder that a run of vltool has made its own."""


def choose_folder(recipe: Recipe, cwd: Path, now: datetime, problems: list[Problem]) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint to go on from or None. Writes nothing.

    The default is `runs/<recipe>/<UTC time>` under `cwd`. A folder in use is a problem, unless the run
    resumes in it; `auto` also takes one up whose run died before its first checkpoint, from the start, so
    that a scheduler can launch the same recipe again and again.
    """
    wanted, resume = recipe.training.output_dir, recipe.training.resume_from_checkpoint
    run_dir = Path(wanted) if wanted else cwd / "runs" / recipe.name / now.strftime("%Y%m%dT%H%M%SZ")
    where = recipe.where("training.resume_from_checkpoint" if resume else "training.output_dir")
    checkpoint: Path | None = None
    if resume == "auto":
        runs = [run_dir] if wanted else sorted((cwd / "runs" / recipe.name).glob("*"), reverse=True)
        checkpoint = next((found for run in runs if (found := last_complete(run))), None)
        run_dir = checkpoint.parent if checkpoint else run_dir
    elif resume is not None:
        checkpoint = Path(resume)
        run_dir = run_dir if wanted else checkpoint.parent
        if not checkpoint.is_dir():
            problems.append(
                Problem(f"no such checkpoint: {checkpoint}", "name one, or say auto", where, id="path-absent")
            )
        elif not is_complete(checkpoint):
            what = f"{checkpoint} is no complete checkpoint-N folder with the optimizer's state"
            problems.append(Problem(what, "name one, or say auto", where))
    if run_dir.exists() and not run_dir.is_dir():
        problems.append(Problem(f"the run folder {run_dir} is a file", "choose another training.output_dir", where))
    elif _in_use(run_dir) and not _resumes(run_dir, resume, checkpoint):
        do = "choose another training.output_dir"
        if resume == "auto":
            do += ": this one holds neither a complete checkpoint nor the beginning of a run"
        elif resume is None:
            do += ", or go on with training.resume_from_checkpoint: auto"
        problems.append(Problem(f"the run folder {run_dir} is not empty", do, where))
    return run_dir, checkpoint


def _in_use(run_dir: Path) -> bool:
    return run_dir.is_dir() and any(run_dir.iterdir())


def _resumes(run_dir: Path, resume: str | None, checkpoint: Path | None) -> bool:
    if checkpoint is not None:
        return checkpoint.parent.resolve() == run_dir.resolve()
    return resume == "auto" and (run_dir / PLAN_FILE_NAME).is_file()
