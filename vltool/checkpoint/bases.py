"""The base of an adapter on this host, and the names and shapes that its files give."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vltool.checkpoint.adapter import read_json
from vltool.checkpoint.census import INDEX
from vltool.checkpoint.header import LARGEST_HEADER, read_places
from vltool.errors import BadContent


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model's tensors by name; the shape is None where only the index is here."""

    folder: Path
    tensors: Mapping[str, tuple[int, ...] | None]
    tied: bool | None
    """Whether its head is its embedding; None where config.json is not here."""
    absent_shards: tuple[str, ...]


def find_base(name: str | None, *, beside: Path, env: Mapping[str, str] | None = None) -> Path | None:
    """The folder of a base that is named by a path, or by its id on a hub; None where this host has none.

    Relative paths begin at the working directory, or where the adapter lies. A hub's id is looked up in the
    caches of Hugging Face (HF_HUB_CACHE, HF_HOME) and of ModelScope (MODELSCOPE_CACHE), whichever has it.
    """
    if not name:
        return None
    env = os.environ if env is None else env
    home = Path(env.get("HOME", "/"))
    hub = Path(env.get("HF_HUB_CACHE") or Path(env.get("HF_HOME") or home / ".cache/huggingface") / "hub")
    scope = Path(env.get("MODELSCOPE_CACHE") or home / ".cache/modelscope/hub")
    snapshots = hub / f"models--{name.replace('/', '--')}" / "snapshots"
    places = [Path(name), beside / name, scope / name, scope / "models" / name]
    try:
        if not name.startswith(("/", ".")):
            places += sorted(snapshots.glob("*"), reverse=True)
        return next((place for place in places if (place / "config.json").is_file()), None)
    except (OSError, ValueError):
        # A name that is no path: too long, or with a zero byte.
        return None


def read_base(folder: Path) -> Base:
    """A base's tensors, from its index and from the headers of the shards that are here.

    Raises BadContent where neither can be read.
    """
    tensors: dict[str, tuple[int, ...] | None] = {}
    absent = []
    index = folder / INDEX
    if index.is_file():
        shards = weight_map(index)
        tensors.update(dict.fromkeys(shards))
        files = sorted(set(shards.values()))
    else:
        files = sorted(file.name for file in folder.glob("model*.safetensors"))
        if not files:
            raise BadContent(f"{folder} holds no weights in .safetensors files", "download the base again")
    for name in files:
        if (folder / name).is_file():
            tensors.update(
                {key: info.shape for key, (info, _, _) in read_places(folder / name, most=LARGEST_HEADER).items()}
            )
        else:
            absent.append(name)
    return Base(folder=folder, tensors=tensors, tied=tied_head(folder), absent_shards=tuple(absent))


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> the file that an index says it is in. Raises BadContent for an index that says nothing such."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise BadContent(f"{index} has no weight_map of names", "copy the file again")
    if outside := sorted({shard for shard in shards.values() if Path(shard).name != shard}):
        raise BadContent(f"{index} names {outside[0]!r}, which is no file beside it", "copy the file again")
    return shards


def tied_head(folder: Path) -> bool | None:
    """Whether a model's head is its embedding, by its config.json; None where that says nothing."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    # Qwen3-VL's own files say it at the top; the text's part holds where that is silent.
    tied = config.get("tie_word_embeddings", inner)
    return tied if isinstance(tied, bool) else None
