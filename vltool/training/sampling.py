"""Sampled answers in the place of a step's own, whoever writes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

from vltool.run.distillation import SamplingPlan, Source
from vltool.run.fingerprint import checkpoint_fingerprint
from vltool.run.telemetry import append_completion
from vltool.training.collate import PROMPTS
from vltool.training.completions import CompletionsCache, prompt_key
from vltool.training.generate import answered, generate
from vltool.training.meter import Meter
from vltool.training.ranks import Ranks

Writing = Callable[[Source], AbstractContextManager[Any]]
"""Inside, the model that it gives generates as the source; to be entered by all processes."""


class Sampler:
    """Replaces the answers of one optimizer step's batches by the student's or the teacher's."""

    def __init__(
        self,
        plan: SamplingPlan,
        template: Any,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        writing: Writing,
        ranks: Ranks,
        *,
        seed: int,
        teacher: Path,
        arithmetic: Mapping[str, Any],
        run_dir: Path,
    ) -> None:
        """template: ms-swift's. collate: makes a batch of samples. teacher: its checkpoint, and arithmetic: how it is
        computed (dtype, packing), from which its cache knows it. run_dir: where some of the answers are kept. To be
        made by all processes together."""
        self._plan = plan
        self._tokenizer = template.tokenizer
        self._end_ids = (self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        self._placeholders = (template.image_token_id, template.video_token_id)
        self._collate = collate
        self._writing = writing
        self._ranks = ranks
        self._seed = seed
        self._run_dir = run_dir
        folder = plan.completions_cache
        self._cache = None if folder is None else self._open_cache(Path(folder), teacher, arithmetic)

    def rewritten(
        self, batches: list[dict[str, Any]], *, source: Source, step: int, meter: Meter
    ) -> list[dict[str, Any]]:
        """The batches of optimizer step `step` (from 0) with the source's answers; those without a record as before.

        meter: is told how many of the teacher's its cache knew. To be called by all processes, whatever their
        batches hold.
        """
        prompts = [[prompt for prompt in batch[PROMPTS].samples if prompt["input_ids"]] for batch in batches]
        cache = self._cache if source == "teacher" else None
        keys = [
            [f"{number} {place}" if cache is None else prompt_key(prompt) for place, prompt in enumerate(asked)]
            for number, asked in enumerate(prompts)
        ]
        every_key = list(chain.from_iterable(keys))
        known = {} if cache is None else cache.find(every_key)
        missing = sum(key not in known for key in every_key)
        if cache is not None:
            meter.count_answers(total=len(every_key), read=len(every_key) - missing)
        # All have looked by now and none has written, so what is known depends on no process's pace.
        if self._ranks.most(missing):
            with self._writing(source) as model:
                for number, (named, asked) in enumerate(zip(keys, prompts, strict=True)):
                    wanted = {key: prompt for key, prompt in zip(named, asked, strict=True) if key not in known}
                    if not wanted:
                        continue
                    seed = f"{self._seed} {step} {number} {self._ranks.rank}"
                    written = dict(zip(wanted, self._sampled(model, list(wanted.values()), seed), strict=True))
                    if cache is not None:
                        cache.add(written)
                    known |= written
        rewritten = []
        for batch, named, asked in zip(batches, keys, prompts, strict=True):
            samples = [answered(prompt, known[key]) for key, prompt in zip(named, asked, strict=True)]
            if samples and self._ranks.is_first:
                append_completion(self._run_dir, step + 1, source, self._tokenizer.decode(known[named[0]]))
            rewritten.append(self._collate(samples) if samples else batch)
        return rewritten

    def _sampled(self, model: Any, prompts: list[dict[str, Any]], seed: str) -> list[list[int]]:
        return generate(
            model,
            prompts,
            self._plan,
            end_ids=self._end_ids,
            pad_id=self._tokenizer.pad_token_id,
            never_ids=self._placeholders,
            seed=random.Random(seed).getrandbits(63),
        )

    def _open_cache(self, folder: Path, teacher: Path, arithmetic: Mapping[str, Any]) -> CompletionsCache:
        plan = self._plan
        # Read by one and told to all: the folder of a large teacher may lie behind a slow network.
        mine = checkpoint_fingerprint(teacher) if self._ranks.is_first else ""
        settings = {
            "teacher": self._ranks.gather(mine)[0],
            "arithmetic": dict(arithmetic),
            "temperature": plan.temperature,
            "max_completion_length": plan.max_completion_length,
            "seed": self._seed,
            "end_ids": self._end_ids,
            "never_ids": self._placeholders,
        }
        return CompletionsCache(folder, settings, rank=self._ranks.rank)
