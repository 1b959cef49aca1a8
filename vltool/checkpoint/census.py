"""A checkpoint folder -> what kind it is and which tensors it holds, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from vltool.checkpoint.architecture import TOWERS, Tower, tower_of
from vltool.checkpoint.header import TensorInfo, read_header
from vltool.errors import BadContent, InvalidInput

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TRAINER_STATE = "trainer_state.json"
INDEX = "model.safetensors.index.json"


class Census(Struct, frozen=True, kw_only=True):
    """Kind and content of one checkpoint folder."""

    folder: str
    kind: Literal["adapter", "full", "adapter and full"]
    tensors: dict[str, TensorInfo]
    base: str | None
    """`base_model_name_or_path` of an adapter."""

    def per_tower(self) -> dict[Tower, int]:
        """Number of elements of each tower's tensors."""
        counts: dict[Tower, int] = dict.fromkeys(TOWERS, 0)
        for name, info in self.tensors.items():
            elements = 1
            for side in info.shape:
                elements *= side
            counts[tower_of(name)] += elements
        return counts


def take_census(folder: Path) -> Census:
    """Read the headers of all safetensors in `folder` (not below it).

    Raises InvalidInput for a folder that is absent or holds no weights, BadContent for broken files and for
    shards that the index names and the folder lacks.
    """
    if not folder.is_dir():
        raise InvalidInput(f"no such checkpoint folder: {folder}", "name a folder that holds a whole checkpoint")
    files = sorted(folder.glob("*.safetensors"))
    adapter = [file for file in files if file.name == ADAPTER_WEIGHTS]
    full = [file for file in files if file.name.startswith("model")]
    if not adapter and not full:
        raise InvalidInput(
            f"{folder} holds no weights in .safetensors files", "name a folder that holds a whole checkpoint"
        )
    tensors: dict[str, TensorInfo] = {}
    for file in (*adapter, *full):
        tensors.update(read_header(file))
    _all_shards(folder, full)
    config = _json(folder / ADAPTER_CONFIG) if adapter else {}
    return Census(
        folder=str(folder),
        kind="adapter and full" if adapter and full else "adapter" if adapter else "full",
        tensors=tensors,
        base=config.get("base_model_name_or_path"),
    )


def last_complete(run_dir: Path) -> Path | None:
    """The newest checkpoint-N of a run folder from which training can go on; None if there is none.

    Complete means: its trainer state can be read and its weights' headers agree with their files.
    """
    found = [(step, path) for path in run_dir.glob("checkpoint-*") if (step := _step(path)) is not None]
    return next((path for _, path in sorted(found, reverse=True) if is_complete(path)), None)


def _step(folder: Path) -> int | None:
    digits = folder.name.removeprefix("checkpoint-")
    return int(digits) if digits != folder.name and digits.isdecimal() else None


def is_complete(folder: Path) -> bool:
    """Whether a folder is a checkpoint-N from which training can go on (see `last_complete`)."""
    if _step(folder) is None or not ((folder / "optimizer.pt").is_file() or _deepspeed_state(folder)):
        return False
    try:
        _json(folder / TRAINER_STATE)
        take_census(folder)
    except (InvalidInput, BadContent):
        return False
    return True


def _deepspeed_state(folder: Path) -> bool:
    """Whether the folder holds the optimizer's state as DeepSpeed saves it, which names it in a file `latest`."""
    latest = folder / "latest"
    return latest.is_file() and any((folder / latest.read_text(encoding="utf-8").strip()).glob("*optim_states.pt"))


def _all_shards(folder: Path, full: list[Path]) -> None:
    index = folder / INDEX
    if not full or not index.is_file():
        return
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise BadContent(f"{index} has no weight_map", "copy the file again")
    absent = sorted({str(shard) for shard in shards.values()} - {file.name for file in full})
    if absent:
        raise BadContent(f"{folder} lacks {', '.join(absent)}", "the checkpoint is incomplete: use another one")


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BadContent(f"{path} is missing", "the checkpoint is incomplete: use another one") from error
    except (ValueError, RecursionError) as error:
        raise BadContent(f"{path} is no JSON: {error}", "the checkpoint is incomplete: use another one") from error
    if not isinstance(document, dict):
        raise BadContent(f"{path} holds no JSON object", "the checkpoint is incomplete: use another one")
    return document
