"""The files that a recipe, or the fusion config that it names, reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vltool.data.fusion import prompt_problems
from vltool.data.policy import Policy
from vltool.errors import InvalidInput, Problem, Where
from vltool.recipe.fusion import Fusion, FusionDataset, load_fusion
from vltool.recipe.schema import Recipe
from vltool.run.data import DatasetPlan

COMPRESSED = (".gz", ".zst")


def read_datasets(
    recipe: Recipe, env: Mapping[str, str], problems: list[Problem]
) -> tuple[Fusion | None, tuple[DatasetPlan, ...], tuple[DatasetPlan, ...]]:
    """The mixture, if there is one, and the files of training and of evaluation.

    Appends to `problems` those of a fusion config.
    """
    custom = recipe.custom
    train_limits = custom.sample_limit, custom.train_sample_limit
    val_limits = custom.sample_limit, custom.val_sample_limit
    if custom.fusion_config is None:
        return None, _only(custom.train_jsonl, *train_limits), _only(custom.val_jsonl, *val_limits)
    where = recipe.where("custom.fusion_config")
    try:
        fusion = load_fusion(custom.fusion_config, env=env)
    except InvalidInput as error:
        problems += [replace(p, where=p.where or where, id=p.id or "fusion-invalid") for p in error.problems]
        return None, (), ()
    problems += prompt_problems(fusion)
    if custom.val_jsonl is not None and any(dataset.val_jsonl for dataset in fusion.datasets):
        what = "custom.val_jsonl stands beside a mixture whose datasets have a val_jsonl of their own"
        problems.append(Problem(what, "write val_jsonl: null, or take theirs out", recipe.where("custom.val_jsonl")))
    if recipe.swift.get("data", {}).get("train_dataloader_shuffle") is False:
        what = "data.train_dataloader_shuffle: a mixture has no order but a random one"
        problems.append(Problem(what, "take the line out", recipe.where("data.train_dataloader_shuffle")))
    train, val = mixed(fusion, train_limits, val_limits)
    return fusion, train, val or _only(custom.val_jsonl, *val_limits)


def mixed(
    fusion: Fusion, train_limits: Sequence[int | None] = (), val_limits: Sequence[int | None] = ()
) -> tuple[tuple[DatasetPlan, ...], tuple[DatasetPlan, ...]]:
    """The files of training and of evaluation of a mixture; the least of some limits holds for each of them."""
    train = tuple(_mixed(dataset, dataset.train_jsonl, *train_limits) for dataset in fusion.datasets)
    val = tuple(
        _mixed(dataset, dataset.val_jsonl, *val_limits) for dataset in fusion.datasets if dataset.val_jsonl is not None
    )
    return train, val


def absent_files(recipe: Recipe | None, fusion: Fusion | None, problems: list[Problem]) -> None:
    """Append to `problems` files that are not there, or that cannot be read by position.

    recipe: None where a mixture is looked at by itself.
    """
    named: list[tuple[str, str | None, Where | None]] = []
    if recipe is not None:
        files = {"custom.train_jsonl": recipe.custom.train_jsonl, "custom.val_jsonl": recipe.custom.val_jsonl}
        named += [(key, path, recipe.where(key)) for key, path in files.items()]
    if fusion is not None:
        for dataset in fusion.datasets:
            for name, path in (("train_jsonl", dataset.train_jsonl), ("val_jsonl", dataset.val_jsonl)):
                named.append((f"{dataset.key}.{name}", path, fusion.where(dataset, name)))
    for key, path, where in named:
        if path is None:
            continue
        if not Path(path).is_file():
            problems.append(Problem(f"{key}: no such file: {path}", "mend the path", where, id="path-absent"))
        elif Path(path).suffix in COMPRESSED:
            what = f"{key}: {path} is compressed, and training reads records by their position"
            do = "unpack it, or write the mixture out with vltool fuse"
            problems.append(Problem(what, do, where, id="path-absent"))


def _limit(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _only(jsonl: str | None, *limits: int | None) -> tuple[DatasetPlan, ...]:
    return () if jsonl is None else (DatasetPlan(jsonl=jsonl, limit=_limit(*limits)),)


def _mixed(dataset: FusionDataset, jsonl: str, *limits: int | None) -> DatasetPlan:
    validation = jsonl is not dataset.train_jsonl
    policy = Policy(
        dataset=dataset.name,
        user_prompt=dataset.user_prompt,
        system_prompt=dataset.system_prompt,
        augmentation_enabled=dataset.augmentation_enabled,
        curriculum_enabled=dataset.curriculum_enabled,
        max_objects=None if validation else dataset.max_objects_per_image,
        seed=dataset.seed,
    )
    limit = _limit(*limits, *(() if validation else (dataset.sample_limit,)))
    return DatasetPlan(jsonl=jsonl, limit=limit, policy=policy)
