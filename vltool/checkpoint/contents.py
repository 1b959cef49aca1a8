"""A checkpoint folder -> which files lie in it and what each is for; opens none of them but pointers of git-lfs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vltool.checkpoint.header import LFS_POINTER
from vltool.errors import InvalidInput, Problem

Purpose = Literal[
    "weights", "pickled weights", "index", "optimizer", "scheduler", "random state", "trainer state", "training args",
    "deepspeed shard", "fsdp shard", "config", "other",
]  # fmt: skip

DEEPEST = 3
"""Folders below the checkpoint that are looked into: DeepSpeed's and FSDP's shards lie in one."""
MOST_FILES = 20_000
SMALLEST_REAL = 1024
"""Bytes; pointers of git-lfs are smaller."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BESIDE = ("optimizer", "probe", "rng", "random_states", "scheduler")
_UNFINISHED = (".tmp", ".incomplete", ".part", ".saving", ".lock")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a checkpoint."""

    path: Path
    size_bytes: int
    purpose: Purpose


@dataclass(frozen=True, slots=True)
class Contents:
    """Files of a checkpoint folder by name, and what is wrong with some of them."""

    folder: Path
    files: tuple[File, ...]
    problems: tuple[Problem, ...]

    def of(self, *purposes: Purpose) -> list[File]:
        """The files that serve one of the purposes."""
        return [file for file in self.files if file.purpose in purposes]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def read_contents(folder: Path) -> Contents:
    """List a folder, links followed but never in a circle.

    Raises InvalidInput for a folder that is absent or cannot be listed.
    """
    problems: list[Problem] = []
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise InvalidInput(f"{folder} is a file", "name the checkpoint folder that it lies in")
        files = tuple(_walk(folder, problems, {}, 0))
    except FileNotFoundError as error:
        raise InvalidInput(f"no such checkpoint folder: {folder}", "name a folder that holds a checkpoint") from error
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be read: {error.strerror}", "mend the link or its permissions") from error
    return Contents(folder, tuple(sorted(files, key=lambda file: file.path)), tuple(problems))


def _walk(folder: Path, problems: list[Problem], above: dict[tuple[int, int], Path], depth: int) -> Iterator[File]:
    state = folder.stat()
    if (state.st_dev, state.st_ino) in above:
        problems.append(_problem("ckpt-unreadable", f"{folder} leads back to a folder above it", "take the link away"))
        return
    above = {**above, (state.st_dev, state.st_ino): folder}
    count = 0
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = folder / name
        count += 1
        if count > MOST_FILES:
            what = f"{folder} holds more than {MOST_FILES:,} files"
            problems.append(_problem("ckpt-unreadable", what, "name the checkpoint's own folder"))
            return
        try:
            state = path.stat()
            if stat.S_ISDIR(state.st_mode):
                # A run folder's checkpoints are no part of what lies beside them.
                if depth < DEEPEST and not name.startswith((".", "checkpoint-")) and not name.endswith("-checkpoint"):
                    yield from _walk(path, problems, above, depth + 1)
                elif name == ".saving":
                    what = f"{path}: a checkpoint was being written when its run ended"
                    problems.append(_problem("ckpt-unfinished", what, "take the folder away"))
                continue
            if not stat.S_ISREG(state.st_mode):
                problems.append(_problem("ckpt-unreadable", f"{path} is no regular file", "take it away"))
                continue
            yield File(path, state.st_size, purpose := _purpose(path, depth))
            if name.endswith(_UNFINISHED):
                what = f"{path}: a file that was never finished"
                problems.append(_problem("ckpt-unfinished", what, "take it away, or copy the checkpoint again"))
            if purpose != "weights":
                problems.extend(_unread(path, state.st_size))
        except OSError as error:
            what = f"{path} cannot be read: {error.strerror}"
            problems.append(_problem("ckpt-unreadable", what, "mend the link or its permissions, or copy it again"))


def _unread(path: Path, size: int) -> Iterator[Problem]:
    """What keeps a file that is not read here from being read elsewhere; weights are looked at by their headers."""
    if not os.access(path, os.R_OK):
        yield _problem("ckpt-unreadable", f"{path} cannot be read: no permission", "mend its permissions")
    elif size < SMALLEST_REAL and path.suffix in (*_PICKLES, ".json", ".jinja", ".model", ".txt"):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                yield _problem("ckpt-lfs-pointer", f"{path} is a git-lfs pointer, not the file", "git lfs pull")
    if size == 0 and path.suffix in (*_PICKLES, ".json"):
        yield _problem("ckpt-unfinished", f"{path} is empty", "copy the checkpoint again")


def _problem(rule: str, what: str, do: str) -> Problem:
    return Problem(what, do, id=rule)


def _purpose(path: Path, depth: int) -> Purpose:
    name, suffix = path.name, path.suffix
    if name.endswith(("_optim_states.pt", "_model_states.pt")):
        return "deepspeed shard"
    if suffix == ".distcp" or name.startswith("pytorch_model_fsdp") or (name == ".metadata" and depth):
        return "fsdp shard"
    if suffix == ".safetensors":
        return "weights" if depth == 0 and not name.startswith(_BESIDE) else "other"
    if name.endswith((".safetensors.index.json", ".bin.index.json")):
        return "index"
    if name == "trainer_state.json":
        return "trainer state"
    if suffix in _PICKLES:
        for start, purpose in _BY_START:
            if name.startswith(start):
                return purpose
        return "pickled weights" if depth == 0 and suffix in (".bin", ".pt", ".pth", ".ckpt") else "other"
    return "config" if suffix == ".json" else "other"


_BY_START: tuple[tuple[str, Purpose], ...] = (
    ("optimizer", "optimizer"), ("scheduler", "scheduler"), ("rng_state", "random state"),
    ("random_states", "random state"), ("training_args", "training args"), ("scaler", "scheduler"),
)  # fmt: skip
