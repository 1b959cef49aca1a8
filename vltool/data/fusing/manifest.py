"""What an output was made of: the plan's fingerprint, the manifest, and how far an unfinished output came."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from vltool import __version__
from vltool.data.fusing.inputs import COMPRESSED, Input
from vltool.data.fusing.shuffle import Shard, written_beside
from vltool.data.fusion import Mixture, policy
from vltool.errors import BadContent, Problem, Where

FORMAT = 1
"""Of manifest and progress, and of what a plan's fingerprint means: equal ones make equal bytes."""
PROGRESS = "progress.json"


def fingerprint(mixture: Mixture, inputs: Sequence[Input | None], epoch: int, **more: Any) -> str:
    """A hash of all that decides the output's bytes; inputs are known by path, size and time of change."""
    datasets = [
        {
            "policy": policy(dataset, mixture.split),
            "most": mixture.most(number),
            "seed": dataset.seed,
            "file": None if one is None else [str(one.path), one.stat.st_size, one.stat.st_mtime_ns],
        }
        for number, (dataset, one) in enumerate(zip(mixture.fusion.datasets, inputs, strict=True))
    ]
    document = {
        "format": FORMAT,
        "counts": mixture.counts,
        "quotas": mixture.quotas,
        "split": mixture.split,
        "seed": mixture.seed,
        "epoch": epoch,
        "datasets": datasets,
        **more,
    }
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()


def shards(out: Path, records: int, shard_size: int | None) -> list[Shard]:
    """The files of an output: OUT itself, or `00000-of-00012.jsonl` and so on inside it."""
    if shard_size is None:
        return [Shard(out, 0, records)]
    suffix = f".jsonl{out.suffix if out.suffix in COMPRESSED else ''}"
    count = max(-(-records // shard_size), 1)
    return [
        Shard(out / f"{i:05}-of-{count:05}{suffix}", i * shard_size, min((i + 1) * shard_size, records))
        for i in range(count)
    ]


def manifest_path(out: Path, shard_size: int | None) -> Path:
    """`OUT.manifest.json`, or `manifest.json` in the folder of shards."""
    return out.with_name(f"{out.name}.manifest.json") if shard_size is None else out / "manifest.json"


def read(path: Path) -> dict[str, Any] | None:
    """A manifest or progress; None where there is none that can be read."""
    try:
        document = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return document if isinstance(document, dict) else None


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document so that readers see the old one or the whole new one."""
    with written_beside(path) as beside:
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def finished(manifest: dict[str, Any] | None, plan: str, folder: Path) -> bool:
    """Whether a manifest is that of this plan, and its output is there."""
    if manifest is None or manifest.get("plan") != plan:
        return False
    return all(_is_there(folder / str(one["path"]), one["bytes"]) for one in manifest.get("outputs", ()))


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def complete(progress: dict[str, Any] | None, wanted: Sequence[Shard]) -> dict[int, int]:
    """Shards that an earlier call completed: number -> bytes."""
    known = (progress or {}).get("shards", {})
    sizes = {number: known.get(shard.path.name) for number, shard in enumerate(wanted)}
    return {number: size for number, size in sizes.items() if size is not None and _is_there(wanted[number].path, size)}


def document(
    mixture: Mixture,
    inputs: Sequence[Input | None],
    written: Sequence[tuple[Shard, int]],
    *,
    epoch: int,
    plan: str,
    image_root: Path | None,
    folder: Path,
    hashes: dict[Path, str],
) -> dict[str, Any]:
    """The manifest. hashes: sha256 of files that were hashed."""

    def hashed(path: Path) -> dict[str, str]:
        return {"sha256": hashes[path]} if path in hashes else {}

    rows = zip(mixture.fusion.datasets, inputs, mixture.counts, mixture.quotas, strict=True)
    return {
        "format": FORMAT,
        "vltool": __version__,
        "config": mixture.fusion.file,
        "plan": plan,
        "split": mixture.split,
        "seed": mixture.seed,
        "epoch": epoch,
        "records": len(mixture),
        "image_paths": f"relative to ROOT_IMAGE_DIR ({image_root})"
        if image_root
        else "relative to the output's folder",
        "inputs": [
            {
                "name": dataset.name,
                "role": dataset.role,
                "path": os.path.relpath(one.path, folder),
                "bytes": one.stat.st_size,
                **hashed(one.path),
                "records": count,
                "ratio": dataset.ratio,
                "drawn": quota,
                "max_objects_per_image": mixture.most(number),
                "policy": policy(dataset, mixture.split),
            }
            for number, (dataset, one, count, quota) in enumerate(rows)
            if one is not None
        ],
        "outputs": [
            {
                "path": os.path.relpath(shard.path, folder),
                "records": shard.end - shard.begin,
                "bytes": size,
                **hashed(shard.path),
            }
            for shard, size in written
        ],
    }


def sha256(paths: Sequence[Path], told: Callable[[int], None]) -> dict[Path, str]:
    """The sha256 of each file, two at a time. told: bytes that were read. Raises BadContent for one that went away."""

    def chunks(path: Path) -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
        except FileNotFoundError:
            raise BadContent(Problem("the file went away while it was in use", where=Where(str(path)))) from None

    def digest(path: Path) -> str:
        one = hashlib.sha256()
        for chunk in chunks(path):
            one.update(chunk)
            told(len(chunk))
        return one.hexdigest()

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(paths, pool.map(digest, paths), strict=True))
