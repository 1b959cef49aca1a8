"""Records -> model inputs, in dataloader workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset, get_worker_info

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
        self._deaf = False
        self._over = multiprocessing.RawValue("b", 0)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        where = None
        self._leave_signals_to_the_trainer()
        try:
            sample = self._records[index]
            where = sample.where
            return self._encode(sample.messages)
        except BadContent as error:
            return {FAILURE: tuple(Problem(p.what, p.do, p.where or where) for p in error.problems)}

    def close(self) -> None:
        """The run is over: workers may be ended by a signal again."""
        self._over.value = 1

    def _leave_signals_to_the_trainer(self) -> None:
        """In a worker, ignore Ctrl-C and SIGTERM during the run: they reach the whole process group."""
        if not self._deaf and get_worker_info() is not None:
            self._deaf = True
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if self._over.value else None)


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
