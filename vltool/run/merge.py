"""An earlier stage's adapter, and the merged base that becomes this stage's. Reads headers, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from vltool.checkpoint.architecture import Architecture, plain_name
from vltool.checkpoint.census import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Census, take_census
from vltool.errors import BadContent, InvalidInput, Problem, Where
from vltool.run.chain import moves_the_base
from vltool.run.fingerprint import fingerprint

FILE_NAME = "vltool_merge.json"
"""In a merged base: the `MergePlan` that it was made by."""

_EARLIER, _HERE = "tuner.resume_from_checkpoint", "tuner.merge_previous"
_KINDS = ("LORA", "ADALORA", "BOFT", "FOURIERFT")
"""peft's types of adapters that are merged, each of them tested."""
_DTYPES = ("F32", "BF16", "F16")
_TIED = ("lm_head", "model.language_model.embed_tokens")


class FilePrint(Struct, frozen=True, kw_only=True):
    """What `vltool.run.fingerprint` says of a file."""

    path: str
    bytes: int
    mtime: float
    sha256_of_edges: str


class MergePlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which adapter goes into which base, and where the result is written."""

    base: str
    checkpoint: str
    folder: str
    base_files: tuple[FilePrint, ...]
    checkpoint_files: tuple[FilePrint, ...]


def read_merge(
    checkpoint: Path,
    folder: Path,
    *,
    base: Path,
    architecture: Architecture,
    run_dir: Path,
    at_checkpoint: Where | None,
    at_folder: Where | None,
) -> MergePlan:
    """The plan to merge the adapter in `checkpoint` into `base`, as a checkpoint of its own in `folder`.

    architecture: the base's. run_dir: this stage's run folder. at_checkpoint, at_folder: the places in the
    recipe that name them. Raises InvalidInput with every reason for which it cannot be done.
    """
    try:
        census = take_census(checkpoint)
    except (InvalidInput, BadContent) as error:
        raise InvalidInput(Problem(f"{_EARLIER}: {p.what}", p.do, at_checkpoint) for p in error.problems) from error
    if census.kind != "adapter":
        what = f"{_EARLIER}: {checkpoint} is a whole model, there is nothing to merge"
        do = f"name it in model.model, as this stage's base, and leave out {_EARLIER} and {_HERE}"
        raise InvalidInput(Problem(what, do, at_checkpoint))
    config: dict[str, Any] = json.loads((checkpoint / ADAPTER_CONFIG).read_bytes())
    problems = [
        Problem(f"{_EARLIER}: {what}", do, at_checkpoint)
        for what, do in _refusals(config, census, base, architecture.tied_head)
    ]
    files = sorted(base.glob("model*.safetensors"))
    try:
        stored = {info.dtype for info in take_census(base).tensors.values()} if files else set()
    except BadContent as error:
        raise InvalidInput(Problem(f"model.model: {p.what}", p.do, at_checkpoint) for p in error.problems) from error
    if others := sorted(stored - {*_DTYPES}):
        what = f"{_HERE}: the base holds {', '.join(others)} weights, which cannot be merged into"
        problems.append(Problem(what, "name a base in bfloat16 or float32", at_folder))
    plan = MergePlan(
        base=str(base.resolve()),
        checkpoint=str(checkpoint.resolve()),
        folder=str(folder),
        base_files=_prints(files),
        checkpoint_files=_prints([checkpoint / ADAPTER_CONFIG, checkpoint / ADAPTER_WEIGHTS]),
    )
    if run_dir.resolve().is_relative_to(folder.resolve()):
        what = f"{_HERE}: the run folder {run_dir} lies in {folder}"
        problems.append(Problem(what, "the merged base needs a folder of its own", at_folder))
    elif folder.exists() and not is_merged(plan) and (not folder.is_dir() or any(folder.iterdir())):
        what = f"{_HERE}: {folder} is there already, and is not {checkpoint} as it is now, merged into {base}"
        problems.append(Problem(what, "name a new folder, or remove this one", at_folder))
    if problems:
        raise InvalidInput(problems)
    return plan


def is_merged(plan: MergePlan) -> bool:
    """Whether the plan's folder holds its result already."""
    try:
        done = msgspec.json.decode((Path(plan.folder) / FILE_NAME).read_bytes(), type=MergePlan)
    except (OSError, msgspec.MsgspecError):
        return False
    # The folder may have been moved, with all that it holds.
    return msgspec.structs.replace(done, folder=plan.folder) == plan


def _prints(files: list[Path]) -> tuple[FilePrint, ...]:
    return tuple(msgspec.convert(fingerprint(file.resolve()), FilePrint) for file in files)


def _refusals(config: dict[str, Any], census: Census, base: Path, tied: bool) -> list[tuple[str, str]]:
    """Why an adapter cannot be merged into the base, and what to do."""
    found = []
    kind = config.get("peft_type")
    if kind not in _KINDS:
        found.append((f"its adapter is {kind}, which cannot be merged", f"use one of {', '.join(_KINDS)}"))
    elif kind in ("BOFT", "FOURIERFT") and config.get("modules_to_save"):
        what = f"its adapter is {kind} with modules_to_save, which peft cannot merge"
        found.append((what, "train that stage again without modules_to_save, or with lora, dora or adalora"))
    if moves_the_base(config):
        what = f"its adapter lies over a base that init_lora_weights: {config['init_lora_weights']} has changed"
        found.append((what, "convert it to a plain LoRA with the tool that made it"))
    if census.base is None or Path(census.base).resolve() != base.resolve():
        found.append((f"its base is {census.base}, the recipe's is {base}", "name the same base in model.model"))
    apart = sorted({name for tensor in census.tensors for name in _TIED if plain_name(tensor).startswith(f"{name}.")})
    if tied and apart:
        what = f"it changes {' and '.join(apart)}, and the base keeps one matrix for {' and '.join(_TIED)}"
        found.append((what, "a merged base could not hold both: train that stage without it"))
    return found
