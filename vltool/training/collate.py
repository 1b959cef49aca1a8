"""Records -> model inputs, in dataloader workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from vltool.data.dataset import CaptionDataset
from vltool.errors import BadContent, Problem

FAILURE = "vltool_failure"
"""Key of a batch that could not be made; its value is the tuple of problems."""

Encode = Callable[[list[dict[str, Any]]], dict[str, Any]]
"""Messages -> input ids, labels, pixel values of one sample. Raises BadContent without a place."""


class EncodedRecords(Dataset[dict[str, Any]]):
    """The records of a file, encoded where they are asked for.

    A record that cannot be encoded becomes a sample that holds its problems: an exception raised in a
    worker would reach the user wrapped in that worker's traceback.
    """

    def __init__(self, records: CaptionDataset, encode: Encode) -> None:
        self._records = records
        self._encode = encode

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        where = None
        try:
            sample = self._records[index]
            where = sample.where
            return self._encode(sample.messages)
        except BadContent as error:
            return {FAILURE: tuple(Problem(p.what, p.do, p.where or where) for p in error.problems)}


class Collator:
    """Pads samples into a batch; a failed sample makes the batch a failure."""

    def __init__(self, pad: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._pad = pad

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        failures = [problem for sample in samples for problem in sample.get(FAILURE, ())]
        return {FAILURE: tuple(failures)} if failures else self._pad(samples)


def raise_failure(batch: dict[str, Any]) -> None:
    """Raise BadContent for a batch that holds problems; otherwise do nothing."""
    if FAILURE in batch:
        raise BadContent(batch[FAILURE])
