"""What the targets of `vltool check` name: recipes, checkpoints, files of records, and how training would read them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from vltool.audit.finding import Finding
from vltool.checkpoint.inspection import Inspection, inspect
from vltool.data.conversation import Prompts
from vltool.data.fusion import prompt_problems
from vltool.data.policy import Policy
from vltool.data.tokens import Learnt, TextCounter
from vltool.errors import InvalidInput, Problem, Where
from vltool.recipe.fusion import Fusion, is_fusion, load_fusion
from vltool.recipe.schema import Recipe
from vltool.recipe.validate import load_recipe
from vltool.run.data import DatasetPlan
from vltool.run.datasets import absent_files, mixed
from vltool.run.plan import RunPlan, make_plan

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
JSONL = ".jsonl"
RECIPE_SUFFIXES = (".yaml", ".yml")
FUSION_SUFFIXES = (*RECIPE_SUFFIXES, ".json")
KNOWN = "give a recipe (a file, or the name of a shipped one), a fusion config, a .jsonl, or a checkpoint folder"


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
    fusion: Fusion | None = None
    """The mixture that it is part of."""


@dataclass(frozen=True, slots=True)
class Targets:
    """All that was named, and what of it cannot be read."""

    recipes: list[tuple[RunPlan, Recipe]] = field(default_factory=list)
    """Each with its plan, once, whether it is a target or says how targets are read."""
    records: list[Records] = field(default_factory=list)
    checkpoints: list[Inspection] = field(default_factory=list)
    refused: list[Finding] = field(default_factory=list)
    """Why targets cannot be judged: wrong input, which `vltool train` would refuse too."""


def read_targets(targets: Sequence[str], *, recipe: str | None, env: Mapping[str, str] | None = None) -> Targets:
    """Find out what each target is, and read the recipes and checkpoints among them.

    recipe: how to read the .jsonl targets and the mixtures, as if this recipe named them; without it they have no
    tokenizer, and no prompt but what a mixture says. Raises InvalidInput for a recipe that nothing is read by.
    """
    if recipe is not None and not any(_is_jsonl(target) or _is_mixture(Path(target)) for target in targets):
        what = "--recipe says how to read a .jsonl or a fusion config, and none is given"
        raise InvalidInput(Problem(what, "leave it out"))
    env = dict(os.environ if env is None else env)
    found = Targets()
    for target in targets:
        try:
            _read(target, recipe, env, found)
        except InvalidInput as error:
            add_refused(found.refused, error.problems, rule=_rule_of(target), target=target)
    return found


def add_refused(refused: list[Finding], problems: Iterable[Problem], *, rule: str, target: str) -> None:
    """Add why a target cannot be judged, each reason once.

    rule: the id of problems that have none. target: where those stand that have no place.
    """
    for problem in problems:
        where = problem.where or Where(target)
        found = Finding(id=problem.id or rule, severity="error", what=problem.what, where=where, remedy=problem.do)
        if found not in refused:
            refused.append(found)


def _rule_of(target: str) -> str:
    """The id of what is wrong with a target as a whole."""
    if _is_jsonl(target):
        return "path-absent"
    if Path(target).is_dir():
        return "target-unknown"
    return "fusion-invalid" if _is_mixture(Path(target)) else "recipe-invalid"


def _is_jsonl(target: str) -> bool:
    return target.endswith(JSONL)


def _is_mixture(path: Path) -> bool:
    if path.suffix not in FUSION_SUFFIXES or not path.is_file():
        return False
    try:
        return path.suffix not in RECIPE_SUFFIXES or is_fusion(path)
    except InvalidInput:  # no YAML, which reading it as a recipe says
        return False


def _read(target: str, recipe: str | None, env: Mapping[str, str], found: Targets) -> None:
    path = Path(target)
    if _is_jsonl(target):
        if not path.is_file():
            raise InvalidInput(f"no such file: {target}", "give the path of a JSONL file")
        found.records.append(_bare(path, env) if recipe is None else _by_recipe(path, recipe, env, found))
    elif path.is_dir():
        found.checkpoints.append(inspect(path))
    elif _is_mixture(path):
        _mixture(target, recipe, env, found)
    elif path.is_file() and path.suffix not in RECIPE_SUFFIXES:
        what = f"{target} is neither a recipe, a fusion config, a .jsonl nor a checkpoint"
        raise InvalidInput(Problem(what, KNOWN, id="target-unknown"))
    else:
        _take(*_plan(target, env, found), found)


def _bare(jsonl: Path, env: Mapping[str, str]) -> Records:
    root = env.get("ROOT_IMAGE_DIR")
    reading = {
        "prompts": Prompts(""), "emit_norm": "norm1000", "use_summary": None, "max_pixels": None, "sample_limit": None,
        "root": Path(root) if root else None,
    }  # fmt: skip
    return Records(jsonl=jsonl, split=None, reading=reading)


def _by_recipe(jsonl: Path, recipe: str, env: Mapping[str, str], found: Targets) -> Records:
    plan, read_by = _plan(recipe, env, found, train_jsonl=str(jsonl.absolute()))
    return _records(jsonl, "train", DatasetPlan(jsonl=str(jsonl), limit=None), plan, read_by)


def _mixture(target: str, recipe: str | None, env: Mapping[str, str], found: Targets) -> None:
    """The files of a fusion config, read as a recipe says, or as far as it says itself how they are read."""
    if recipe is not None:
        _take(*_plan(recipe, env, found, fusion_config=target), found)
        return
    fusion = load_fusion(target, env=env)
    problems = prompt_problems(fusion)
    absent_files(None, fusion, problems)
    if problems:
        raise InvalidInput(problems)
    for split, parts in zip(SPLITS, mixed(fusion), strict=True):
        for part in parts:
            bare = _bare(Path(part.jsonl), env)
            reading = bare.reading | {"sample_limit": part.limit, "policy": part.policy}
            found.records.append(replace(bare, split=split, reading=reading, policy=part.policy, fusion=fusion))


def _take(plan: RunPlan, recipe: Recipe, found: Targets) -> None:
    """The files of a plan. Raises InvalidInput for those that are not there."""
    problems: list[Problem] = []
    absent_files(recipe, plan.data.fusion, problems)
    if problems:
        raise InvalidInput(problems)
    for split, parts in zip(SPLITS, (plan.data.train, plan.data.val), strict=True):
        found.records.extend(_records(Path(part.jsonl), split, part, plan, recipe) for part in parts)


def _plan(
    name: str,
    env: Mapping[str, str],
    found: Targets,
    *,
    train_jsonl: str | None = None,
    fusion_config: str | None = None,
) -> tuple[RunPlan, Recipe]:
    """The plan of a recipe, on other records than its own where some are named."""
    given = train_jsonl or fusion_config
    # A shipped recipe takes its records from this variable.
    env_read = env if given is None else {"VLTOOL_TRAIN_JSONL": str(Path(given).absolute()), **env}
    try:
        resolved = load_recipe(name, env=env_read)
        if given is not None:
            records = {"train_jsonl": train_jsonl, "fusion_config": fusion_config, "val_jsonl": None}
            resolved = msgspec.structs.replace(resolved, custom=msgspec.structs.replace(resolved.custom, **records))
        plan = make_plan(resolved, cwd=Path.cwd(), env=env, to_show=True)
    except InvalidInput as error:
        # Read for another target, it is still the recipe that is wrong.
        raise InvalidInput(
            replace(problem, id=problem.id or "recipe-invalid", where=problem.where or Where(name))
            for problem in error.problems
        ) from error
    if all(resolved.files != known.files for _, known in found.recipes):
        found.recipes.append((plan, resolved))
    return plan, resolved


def _records(jsonl: Path, split: Split, part: DatasetPlan, plan: RunPlan, recipe: Recipe) -> Records:
    return Records(
        jsonl=jsonl,
        split=split,
        reading=plan.data.reading(part),
        policy=part.policy,
        counter=_counter(plan, recipe),
        max_length=plan.data.max_length,
        learnt=plan.arguments.get("loss_scale", "default"),
        skips_bad=plan.data.on_bad_record == "skip",
        plan=plan,
        fusion=plan.data.fusion,
    )


def _counter(plan: RunPlan, recipe: Recipe) -> TextCounter:
    """The base's tokenizer. Raises InvalidInput, at the line that names the base, for one that cannot be read."""
    try:
        return TextCounter.from_folder(Path(plan.original))
    except InvalidInput as error:
        where = recipe.where("model.model")
        raise InvalidInput(replace(problem, where=where) for problem in error.problems) from error
