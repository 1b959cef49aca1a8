"""A teacher that was asked once: the likeliest tokens at every label position of a record, kept on disk.

A split lies in shards of `SHARD` records, each written beside and renamed, so that what was asked is not asked again
after a crash.

Suffixes: P label positions, K likeliest tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vltool.errors import BadContent, RunFailed
from vltool.training.chunks import TopK, logits_of
from vltool.training.losses import IGNORE

SHARD = 256
"""Records of a file."""
_ROWS = 256
"""Positions whose logits are made at a time."""

Split = Literal["train", "val"]


@dataclass(frozen=True, slots=True)
class Taught:
    """What is kept of a record."""

    content: int
    """`content_of` the sample that the teacher saw."""
    topk: TopK


def content_of(sample: dict[str, Any]) -> int:
    """A checksum of what the teacher sees of a sample, and of where it is asked."""
    checksum = zlib.crc32(torch.tensor([sample["input_ids"], sample["labels"]]).numpy().data)
    if (pixels := sample.get("pixel_values")) is not None:
        checksum = zlib.crc32(pixels.contiguous().view(torch.uint8).numpy().data, checksum)
    return checksum


def likeliest(hidden_PH: Tensor, head_VH: Tensor, *, k: int, temperature: float) -> TopK:
    """log p of the `k` likeliest tokens at each position (of all, where they are fewer), and of the rest, in fp32."""
    parts = []
    for rows_H in hidden_PH.split(_ROWS):
        logprobs_V = (logits_of(rows_H, head_VH).float() / temperature).log_softmax(-1)
        known, ids = logprobs_V.topk(min(k, logprobs_V.shape[-1]), dim=-1)
        parts.append((known, ids.int(), logprobs_V.scatter(-1, ids, -torch.inf).logsumexp(-1)))
    return TopK(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class TeacherCache:
    """The first `records` records of one split, as the teacher sees them."""

    def __init__(self, folder: Path, split: Split, records: int) -> None:
        self._folder = folder
        self._split = split
        self.records = records
        self._columns: dict[int, tuple[Tensor, Tensor]] = {}

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there, or not with all of their records."""
        shards = range(-(-self.records // SHARD))
        return [shard for shard in shards if self._held(shard) < min(SHARD, self.records - shard * SHARD)]

    def _held(self, shard: int) -> int:
        try:
            with safe_open(self._path(shard), framework="pt") as file:
                held: int = file.get_slice("content").get_shape()[0]
        except (OSError, SafetensorError):
            return 0
        return held

    def write(self, shard: int, rows: Sequence[Taught]) -> None:
        """Keep the records of one shard, in their order. Raises RunFailed where the disk does not take them."""
        tensors = {
            "content": torch.tensor([row.content for row in rows]),
            "ends": torch.tensor([len(row.topk.ids_NK) for row in rows]).cumsum(0),
        }
        for name in TopK._fields:
            tensors[name] = torch.cat([getattr(row.topk, name) for row in rows]).cpu().contiguous()
        path = self._path(shard)
        beside = path.with_name(f".{path.name}")
        try:
            save_file(tensors, beside)
            beside.replace(path)
        except (OSError, SafetensorError) as error:
            beside.unlink(missing_ok=True)
            raise RunFailed(f"rlhf.teacher_cache: {path} cannot be written: {error}", "make room") from error

    def read(self, index: int) -> Taught | None:
        """What the teacher said of a record; None past those that it was asked about. Raises RunFailed."""
        if index >= self.records:
            return None
        shard, row = divmod(index, SHARD)
        path = self._path(shard)
        try:
            if shard not in self._columns:
                with safe_open(path, framework="pt") as file:
                    self._columns[shard] = file.get_tensor("content"), file.get_tensor("ends")
            content, ends = self._columns[shard]
            start, end = (int(ends[row - 1]) if row else 0), int(ends[row])
            with safe_open(path, framework="pt") as file:
                topk = TopK(*(file.get_slice(name)[start:end] for name in TopK._fields))
        except (OSError, SafetensorError, IndexError) as error:
            do = "delete the folder: it is made anew"
            raise RunFailed(f"rlhf.teacher_cache: {path} cannot be read: {error}", do) from error
        return Taught(int(content[row]), topk)

    def read_for(self, index: int, sample: dict[str, Any]) -> TopK | None:
        """The same for the sample that the record is now. Raises BadContent where the teacher saw another."""
        taught = self.read(index)
        if taught is None:
            return None
        if taught.content != content_of(sample):
            what = f"rlhf.teacher_cache: the teacher in {self._folder} saw another text or image of this record"
            raise BadContent(what, "delete the folder: it is made anew")
        return taught.topk

    def _path(self, shard: int) -> Path:
        return self._folder / f"{self._split}-{shard:06d}.safetensors"


def split_by_record(topk: TopK, labels_BS: Tensor) -> Iterator[TopK]:
    """What was said at a batch's label positions, record by record."""
    counts = (labels_BS[:, 1:] != IGNORE).sum(1).tolist()
    for parts in zip(*(tensor.split(counts) for tensor in topk if tensor is not None), strict=True):
        yield TopK(*parts)
