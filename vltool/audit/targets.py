"""What the targets of `vltool check` name: files of records, and how training would read each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vltool.audit.finding import Finding
from vltool.data.conversation import Prompts
from vltool.data.policy import Policy
from vltool.data.tokens import Learnt, TextCounter
from vltool.errors import InvalidInput, Problem
from vltool.recipe.schema import Recipe
from vltool.recipe.validate import load_recipe
from vltool.run.data import DatasetPlan
from vltool.run.plan import RunPlan, make_plan

Split = Literal["train", "val"]
JSONL = ".jsonl"
RECIPE_SUFFIXES = (".yaml", ".yml")
KNOWN = "give a recipe (a file, or the name of a shipped one) or a .jsonl of records"


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A file of records with all that decides what training makes of them."""

    jsonl: Path
    split: Split | None
    """None where no recipe says so."""
    reading: dict[str, Any]
    """Arguments of `scan` and `CaptionDataset`."""
    counter: TextCounter | None = None
    """None without a tokenizer; then nothing is said about lengths."""
    max_length: int = 0
    """Tokens that a record may have; counts with `counter` only."""
    learnt: Learnt = "default"
    skips_bad: bool = False
    """Whether training leaves bad records out, in place of stopping at them."""
    policy: Policy = field(default_factory=Policy)
    """Which dataset of a mixture it is, and what that says."""
    plan: RunPlan | None = None


@dataclass(frozen=True, slots=True)
class Targets:
    """All that was named, and what was to be said while reading it."""

    records: list[Records] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def read_targets(targets: Sequence[str], *, recipe: str | None, env: Mapping[str, str] | None = None) -> Targets:
    """Find out what each target is, and read the recipes among them.

    recipe: how to read the .jsonl targets, as this recipe's training records; without it they have no prompt and
    no tokenizer. Raises InvalidInput with the problems of all targets.
    """
    env = dict(os.environ if env is None else env)
    found = Targets()
    problems: list[Problem] = []
    for target in targets:
        try:
            _read(target, recipe, env, found)
        except InvalidInput as error:
            problems.extend(error.problems)
    if recipe is not None and not any(_is_jsonl(target) for target in targets):
        problems.append(Problem("--recipe says how to read a .jsonl, and none is given", "leave it out"))
    if problems:
        raise InvalidInput(dict.fromkeys(problems))
    return found


def _is_jsonl(target: str) -> bool:
    return target.endswith(JSONL)


def _read(target: str, recipe: str | None, env: Mapping[str, str], found: Targets) -> None:
    path = Path(target)
    if _is_jsonl(target):
        if not path.is_file():
            raise InvalidInput(f"no such file: {target}", "give the path of a JSONL file")
        found.records.append(_bare(path, env) if recipe is None else _by_recipe(path, recipe, env, found))
    elif path.is_dir():
        raise InvalidInput(f"{target} is a folder, which check cannot judge", KNOWN)
    elif path.is_file() and path.suffix not in RECIPE_SUFFIXES:
        raise InvalidInput(f"{target} is neither a recipe nor a .jsonl", KNOWN)
    else:
        _recipe(target, env, found)


def _bare(jsonl: Path, env: Mapping[str, str]) -> Records:
    root = env.get("ROOT_IMAGE_DIR")
    reading = {
        "prompts": Prompts(""), "emit_norm": "norm1000", "use_summary": None, "max_pixels": None, "sample_limit": None,
        "root": Path(root) if root else None,
    }  # fmt: skip
    return Records(jsonl=jsonl, split=None, reading=reading)


def _by_recipe(jsonl: Path, recipe: str, env: Mapping[str, str], found: Targets) -> Records:
    # A shipped recipe takes its records from this variable, and here they are given.
    plan, _ = _plan(recipe, {"VLTOOL_TRAIN_JSONL": str(jsonl.absolute()), **env}, found)
    return _records(jsonl, "train", DatasetPlan(jsonl=str(jsonl), limit=None), plan)


def _recipe(name: str, env: Mapping[str, str], found: Targets) -> None:
    plan, resolved = _plan(name, env, found)
    splits: dict[Split, tuple[DatasetPlan, ...]] = {"train": plan.data.train, "val": plan.data.val}
    for split, parts in splits.items():
        for part in parts:
            if not Path(part.jsonl).is_file():
                key = f"custom.{split}_jsonl"
                raise InvalidInput(Problem(f"{key}: no such file: {part.jsonl}", "mend the path", resolved.where(key)))
            found.records.append(_records(Path(part.jsonl), split, part, plan))


def _plan(name: str, env: Mapping[str, str], found: Targets) -> tuple[RunPlan, Recipe]:
    resolved = load_recipe(name, env=env)
    for note in resolved.notes:
        finding = Finding(id="recipe-note", severity="note", what=note.what, where=note.where, remedy=note.do)
        if finding not in found.findings:
            found.findings.append(finding)
    return make_plan(resolved, cwd=Path.cwd(), env=env, to_show=True), resolved


def _records(jsonl: Path, split: Split, part: DatasetPlan, plan: RunPlan) -> Records:
    return Records(
        jsonl=jsonl,
        split=split,
        reading=plan.data.reading(part),
        policy=part.policy,
        counter=TextCounter.from_folder(Path(plan.original)),
        max_length=plan.data.max_length,
        learnt=plan.arguments.get("loss_scale", "default"),
        skips_bad=plan.data.on_bad_record == "skip",
        plan=plan,
    )
