"""The teacher's answers on disk, written once for all epochs, processes and runs that ask the same.

    DIR/<hash of teacher and sampling settings>/settings.json       what that is, to read
                                               /rank-0-<hex>.jsonl  {"prompt": hash, "tokens": [...]} a line

Every process appends to a file of its own and reads those of all: nodes may share the folder over a network, where
locks are not to be trusted. A cached answer is one draw, which is used again.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from vltool.errors import RunFailed
from vltool.run.evidence import to_json, write_atomically


def prompt_key(prompt: Mapping[str, Any]) -> str:
    """A hash of all that the model reads of a prompt: its tokens, which the template made, and its pixels."""
    digest = hashlib.sha256(array("q", prompt["input_ids"]).tobytes())
    for name in ("image_grid_thw", "pixel_values"):
        if (tensor := prompt.get(name)) is not None:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).flatten().numpy())
    return digest.hexdigest()[:32]


class CompletionsCache:
    """Answers of one teacher at one setting, by the keys of their prompts."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, rank: int = 0) -> None:
        """folder: what the recipe names. settings: all that answers depend on beside their prompts.

        Raises RunFailed where nothing can be kept.
        """
        document = json.dumps(settings, sort_keys=True)
        self._folder = folder / hashlib.sha256(document.encode()).hexdigest()[:16]
        self._own = self._folder / f"rank-{rank}-{uuid4().hex}.jsonl"
        # Unsigned ints of 4 bytes: as Python's own, those of 100 000 answers would take a gigabyte.
        self._answers: dict[str, array[int]] = {}
        self._seen: dict[Path, int] = {self._own: 0}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if rank == 0 and not (self._folder / "settings.json").exists():
                write_atomically(self._folder / "settings.json", to_json(dict(settings)))
        except OSError as error:
            raise _cannot_keep(self._folder, error) from error

    def find(self, keys: Iterable[str]) -> dict[str, list[int]]:
        """The answers that are known; looks for what others have written meanwhile, if some are not.

        Raises RunFailed for a folder that is gone or cannot be read.
        """
        keys = list(keys)
        if any(key not in self._answers for key in keys):
            try:
                self._read_on()
            except OSError as error:
                raise _cannot_keep(self._folder, error) from error
        return {key: list(self._answers[key]) for key in keys if key in self._answers}

    def add(self, answers: Mapping[str, Sequence[int]]) -> None:
        """Keep answers. Raises RunFailed where that is impossible."""
        lines = [json.dumps({"prompt": key, "tokens": list(tokens)}) + "\n" for key, tokens in answers.items()]
        try:
            with self._own.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError as error:
            raise _cannot_keep(self._own, error) from error
        for key, tokens in answers.items():
            self._answers.setdefault(key, array("I", tokens))

    def _read_on(self) -> None:
        """Take up the lines of all other files that are new since the last look."""
        for path in sorted(self._folder.glob("rank-*.jsonl")):
            start = self._seen.get(path, 0)
            if path == self._own or path.stat().st_size == start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                content = file.read()
            # The last line may be half written: by a process that goes on, or by one that died and will not.
            whole = content[: content.rfind(b"\n") + 1]
            self._seen[path] = start + len(whole)
            for line in whole.splitlines():
                if (answer := _answer(line)) is not None:
                    # Of two answers to one prompt, each process keeps to the first that it saw.
                    self._answers.setdefault(*answer)


def _answer(line: bytes) -> tuple[str, array[int]] | None:
    """A line's key and tokens; None for one that a broken disk left, whose answer is written again."""
    try:
        entry = json.loads(line)
        return str(entry["prompt"]), array("I", entry["tokens"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def _cannot_keep(path: Path, error: OSError) -> RunFailed:
    return RunFailed(
        f"{path}: the teacher's answers cannot be kept there: {error.strerror}",
        "name another folder in rlhf.teacher_completions_cache, or take the line out",
    )
