"""A checkpoint folder -> all that its headers and the documents beside them say. Reads no tensor, unpickles nothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from vltool.checkpoint.adapter import (
    AdapterConfig,
    finite,
    is_adapted,
    layer_index,
    part_of,
    rank_in,
    read_config,
    read_json,
)
from vltool.checkpoint.architecture import TOWERS, Tower, tower_of
from vltool.checkpoint.bases import Base, find_base, read_base, tied_head, weight_map
from vltool.checkpoint.census import ADAPTER_CONFIG, TRAINER_STATE, last_complete
from vltool.checkpoint.contents import Contents, read_contents
from vltool.checkpoint.header import LARGEST_HEADER, TensorInfo, read_places
from vltool.errors import BadContent, InvalidInput, Problem

T = TypeVar("T")
Kind = Literal["adapter", "full", "adapter and full", "deepspeed shards", "fsdp shards", "pickled", "broken"]

_EARLIER = re.compile(r"\d+_adapters\.safetensors")
"""MLX keeps earlier steps beside adapters.safetensors."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint and where its bytes lie."""

    info: TensorInfo
    file: Path
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.info.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in its file."""
        return self.end - self.begin


@dataclass(slots=True)
class TowerCount:
    """What a checkpoint holds of one tower."""

    tensors: int = 0
    elements: int = 0
    size_bytes: int = 0
    layers: dict[int, int] = field(default_factory=dict)
    """Block, layer or merger -> elements."""
    kinds: Counter[str] = field(default_factory=Counter)
    """`lora_A`, `weight`, … -> tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What trainer_state.json says."""

    step: int | None
    epoch: float | None
    best_metric: float | None
    best_checkpoint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """All that is known of a checkpoint without a tensor read."""

    folder: Path
    kind: Kind
    contents: Contents
    config: AdapterConfig | None
    base_name: str | None
    base: Base | None
    tensors: Mapping[str, Tensor]
    full: frozenset[str]
    """Names that come from files of whole models, beside an adapter's."""
    tied: bool | None
    progress: Progress | None
    problems: tuple[Problem, ...]
    """What is wrong with the files themselves; each has the id of its rule."""

    def towers(self) -> dict[Tower, TowerCount]:
        """What is held of every tower."""
        counts = {tower: TowerCount() for tower in TOWERS}
        for name, tensor in self.tensors.items():
            count = counts[tower_of(name)]
            count.tensors += 1
            count.elements += tensor.elements
            count.size_bytes += tensor.size_bytes
            part = part_of(name)
            count.kinds[part.kind] += 1
            if (layer := layer_index(part.module)) is not None:
                count.layers[layer] = count.layers.get(layer, 0) + tensor.elements
        return counts

    def dtypes(self) -> dict[str, int]:
        """Type of element -> bytes of weights."""
        found: Counter[str] = Counter()
        for tensor in self.tensors.values():
            found[tensor.info.dtype] += tensor.size_bytes
        return dict(found)

    def ranks(self) -> dict[int, int]:
        """Rank, as the factors' shapes say -> adapted modules."""
        of_module = {}
        for name, tensor in self.tensors.items():
            part = part_of(name)
            if part.adapts and (rank := rank_in(part.kind, tensor.info.shape)) is not None:
                of_module[part.module] = rank
        return dict(sorted(Counter(of_module.values()).items()))

    def whole_modules(self) -> list[str]:
        """Modules that an adapter holds in full."""
        parts = [part_of(name) for name in self.tensors if name not in self.full]
        return sorted({part.module for part in parts if not part.adapts})

    def to_json(self) -> dict[str, Any]:
        """The inspection as one JSON object; what is not known is null."""
        config = self.config
        adapter = None
        if config is not None:
            adapter = {
                "tool": config.tool,
                "kind": config.kind,
                "version": config.version,
                "rank": config.rank,
                "alpha": config.alpha,
                "rank_pattern": dict(config.rank_pattern),
                "targets": config.targets if isinstance(config.targets, str) else list(config.targets or ()),
                "modules_to_save": list(config.modules_to_save),
                "bias": config.bias,
            }
        progress = self.progress
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "adapter": adapter,
            "base": self.base_name,
            "base_folder": str(self.base.folder) if self.base else None,
            "tensors": len(self.tensors),
            "elements": sum(tensor.elements for tensor in self.tensors.values()),
            "bytes": sum(tensor.size_bytes for tensor in self.tensors.values()),
            "folder_bytes": self.contents.size_bytes,
            "dtypes": self.dtypes(),
            "ranks": {str(rank): count for rank, count in self.ranks().items()},
            "whole_modules": self.whole_modules(),
            "tied_head": self.tied,
            "towers": {
                tower: {
                    "tensors": count.tensors,
                    "elements": count.elements,
                    "bytes": count.size_bytes,
                    "kinds": dict(count.kinds),
                    "layers": {str(layer): elements for layer, elements in sorted(count.layers.items())},
                }
                for tower, count in self.towers().items()
            },
            "trainer_state": None
            if progress is None
            else {
                "step": progress.step,
                "epoch": progress.epoch,
                "best_metric": progress.best_metric,
                "best_checkpoint": progress.best_checkpoint,
            },
            "files": [
                {"name": str(file.path.relative_to(self.folder)), "bytes": file.size_bytes, "purpose": file.purpose}
                for file in self.contents.files
                if file.purpose not in ("config", "other")
            ],
        }


def inspect(folder: Path, *, base: Path | None = None) -> Inspection:
    """Read what a checkpoint folder's headers and documents say.

    base: where its base is, in place of what it says itself. What is broken becomes a problem of the
    inspection; InvalidInput is raised for a folder that is absent or holds no checkpoint at all.
    """
    contents = read_contents(folder)
    problems = list(contents.problems)
    full: set[str] = set()
    tensors = _read_tensors(contents, problems, full)
    has_config = (folder / ADAPTER_CONFIG).exists()
    kind = _kind(contents, tensors, full, has_config=has_config)
    config = None
    if kind.startswith("adapter") or has_config:
        config = _tried(lambda: read_config(folder / ADAPTER_CONFIG), "ckpt-adapter-config", problems)
    name = str(base) if base else config.base if config else _started_from(folder)
    found = base or find_base(name, beside=folder)
    if found is not None and found.resolve() == folder.resolve():
        found = None
    return Inspection(
        folder=folder,
        kind=kind,
        contents=contents,
        config=config,
        base_name=name,
        base=_tried(lambda: read_base(found), "ckpt-base", problems) if found is not None else None,
        tensors=tensors,
        full=frozenset(full),
        tied=_tried(lambda: tied_head(found or folder), "ckpt-config", problems),
        progress=_progress(folder, problems),
        problems=tuple(problems),
    )


def _tried(read: Callable[[], T], rule: str, problems: list[Problem]) -> T | None:
    """What can be read; None after noting why it cannot."""
    try:
        return read()
    except BadContent as error:
        problems.extend(
            replace(problem, id="ckpt-lfs-pointer" if "git-lfs" in problem.what else rule) for problem in error.problems
        )
        return None


def _read_tensors(contents: Contents, problems: list[Problem], full: set[str]) -> dict[str, Tensor]:
    """Tensors of all files of weights; names of those that are no adapter's are added to `full`."""
    found: dict[str, Tensor] = {}
    maps = {file.path.name: _tried(lambda: weight_map(file.path), "ckpt-index", problems)  # noqa: B023
            for file in contents.of("index") if file.path.parent == contents.folder
            and file.path.name.endswith(".safetensors.index.json")}  # fmt: skip
    listed = {shard for shards in maps.values() for shard in (shards or {}).values()}
    files = [file.path for file in contents.of("weights") if not _EARLIER.match(file.path.name)]
    for path in files:
        adapts = path.name.startswith("adapter")
        if maps and not adapts and listed and path.name not in listed and path.name.startswith("model"):
            what = f"{path} is named by no index, and nothing would load it"
            problems.append(Problem(what, "take it away, or mend the index", id="ckpt-index"))
            continue
        held = _tried(lambda: read_places(path, most=LARGEST_HEADER), "ckpt-header", problems)  # noqa: B023
        if held is None:
            continue
        adapts = adapts or is_adapted(held)
        for name, (info, begin, end) in held.items():
            if name in found:
                what = f"{name} stands in {found[name].file.name} and in {path.name}"
                problems.append(Problem(what, "keep the one that is to be loaded", id="ckpt-index"))
            found[name] = Tensor(info, path, begin, end)
        if not adapts:
            full.update(held)
    present = {path.name for path in files}
    for index, shards in maps.items():
        _check_index(contents.folder / index, shards or {}, found, present, problems)
    return found


def _check_index(
    index: Path, shards: Mapping[str, str], found: Mapping[str, Tensor], present: set[str], problems: list[Problem]
) -> None:
    """Hold an index against the files beside it."""
    absent = sorted(set(shards.values()) - present)
    for shard in absent:
        names = [name for name, place in shards.items() if place == shard]
        what = f"{index.parent / shard} is missing, and with it {_some(names)}"
        problems.append(Problem(what, "copy the shard too", id="ckpt-shard-missing"))
    read = {tensor.file.name for tensor in found.values()}
    lost = [name for name, place in shards.items() if place in read
            and (name not in found or found[name].file.name != place)]  # fmt: skip
    if lost:
        what = f"{index} names tensors that their files do not hold: {_some(lost)}"
        problems.append(Problem(what, "copy the checkpoint again", id="ckpt-index"))
    extra = [name for name, tensor in found.items() if tensor.file.name in shards.values() and name not in shards]
    if extra:
        what = f"{index} does not name {_some(extra)}, so that they would not be loaded"
        problems.append(Problem(what, "write the index again with the tool that made it", id="ckpt-index"))


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _started_from(folder: Path) -> str | None:
    """The checkpoint that a fully tuned one started from, as ms-swift notes it in args.json."""
    try:
        model = read_json(folder / "args.json").get("model")
    except BadContent:
        return None
    return model if isinstance(model, str) else None


def _progress(folder: Path, problems: list[Problem]) -> Progress | None:
    path = folder / TRAINER_STATE
    if not path.exists():
        return None
    state = _tried(lambda: read_json(path), "ckpt-trainer-state", problems)
    if state is None:
        return None
    step, best = state.get("global_step"), state.get("best_model_checkpoint")
    return Progress(
        step=step if isinstance(step, int) else None,
        epoch=finite(state.get("epoch")),
        best_metric=finite(state.get("best_metric")),
        best_checkpoint=best if isinstance(best, str) else None,
    )


def _kind(contents: Contents, tensors: Mapping[str, Tensor], full: set[str], *, has_config: bool) -> Kind:
    if len(full) < len(tensors):
        return "adapter and full" if full else "adapter"
    if tensors:
        return "full"
    if contents.of("weights"):
        return "broken"
    if contents.of("deepspeed shard"):
        return "deepspeed shards"
    if contents.of("fsdp shard"):
        return "fsdp shards"
    if contents.of("pickled weights"):
        return "pickled"
    if has_config or any(file.path.parent == contents.folder for file in contents.of("index", "trainer state")):
        return "broken"
    last = last_complete(contents.folder)
    do = f"name one of its checkpoints: {last}" if last else "name a folder that holds a checkpoint"
    raise InvalidInput(f"{contents.folder} holds no weights", do)
