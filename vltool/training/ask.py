"""Asks the teacher about every record before step 1, where its word is cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vltool.run.plan import RunPlan
from vltool.run.reporter import Reporter
from vltool.training.collate import EncodedRecords, raise_failure
from vltool.training.ranks import Ranks
from vltool.training.teacher_cache import SHARD, Split, Taught, TeacherCache, content_of
from vltool.training.trainer import CaptionTrainer

_CONTENTS = "vltool_contents"


class AskTeacher(TrainerCallback):
    """Fills the caches of training and validation records; shards are dealt out to processes."""

    def __init__(
        self,
        trainer: CaptionTrainer,
        records: list[EncodedRecords],
        ranks: Ranks,
        reporter: Reporter,
        *,
        in_step: bool,
    ) -> None:
        """in_step: a pass of the teacher's may take all processes."""
        self._trainer = trainer
        self._records = records
        self._ranks = ranks
        self._reporter = reporter
        self._in_step = in_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask what has not been asked; only now a model in shards can run. Raises BadContent."""
        for records in self._records:
            if records.cache is not None:
                # One process's look at the folder: another may write into it already.
                self._fill(records, records.cache, self._ranks.gather(records.cache.missing())[0])
                records.reads_cache = True
        self._trainer.dismiss_teacher()

    def _fill(self, records: EncodedRecords, cache: TeacherCache, missing: list[int]) -> None:
        size = self._trainer.args.per_device_train_batch_size
        for begun in range(0, len(missing), self._ranks.count):
            self._reporter.progress("asking the teacher", begun * SHARD, len(missing) * SHARD)
            together = [range(shard * SHARD, min((shard + 1) * SHARD, cache.records)) for shard in missing[begun:]]
            together = together[: self._ranks.count]
            mine = together[self._ranks.rank] if self._ranks.rank < len(together) else range(0)
            indices = list(mine)
            if self._in_step:
                # One past the last record is a filler, with which a process keeps step.
                indices += [records.records] * (max(map(len, together)) - len(indices))
            rows: list[Taught] = []
            for batch in self._asked(records, [indices[at : at + size] for at in range(0, len(indices), size)]):
                contents = batch.pop(_CONTENTS)
                topks = self._trainer.ask(batch)
                rows += [Taught(content, topk) for content, topk in zip(contents, topks, strict=True)]
            if mine:
                cache.write(mine.start // SHARD, rows[: len(mine)])
            self._ranks.wait()

    def _asked(self, records: EncodedRecords, batches: list[list[int]]) -> Iterator[dict[str, Any]]:
        for batch in self._trainer.loader(records, batches, collate=_with_contents(self._trainer.data_collator)):
            raise_failure(batch)
            yield batch


def make_cache(plan: RunPlan, split: Split, records: int) -> TeacherCache | None:
    """Where the teacher's word on so many records of a split is kept; of validation, those that it is asked about."""
    kd = plan.distillation
    if kd is None or kd.cache is None:
        return None
    if split == "val" and kd.eval_kd_batches != "all":
        records = min(records, kd.eval_kd_batches * plan.arguments.get("per_device_eval_batch_size", 1))
    return TeacherCache(Path(kd.cache.folder), split, records)


def _with_contents(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
        contents = [content_of(sample) if "input_ids" in sample else 0 for sample in samples]
        return collate(samples) | {_CONTENTS: contents}

    return collated
