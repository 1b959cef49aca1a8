"""Which label tokens hold coordinates, and of which kind of geometry: of a sample, then of a batch.

A token counts for a geometry if any of its characters lies in the JSON array of the coordinates, so that one of
Qwen's that joins the last bracket with what follows it (`]},`) does too.

Suffixes: P label positions of a sample or batch, N all positions of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vltool.data.geometry import KINDS
from vltool.data.geometry_spans import Span
from vltool.training.changes import SHORT
from vltool.training.losses import IGNORE

GEOMETRIES = tuple(SHORT[kind] for kind in KINDS)
"""Kinds of geometry as metrics name them. The number of each, from 1, stands for it; 0 is no geometry."""
GEOMETRY = "vltool_geometry"
"""Key under which these numbers lie: in a sample one for each of its tokens, in a batch one for each label position."""


def number_tokens(tokenizer: Any, answer: str, spans: Sequence[Span], labels: Sequence[int]) -> Tensor:
    """The number of the geometry of each token of a sample, as int8.

    answer: the piece of text that the template tokenizes last, from which the last labels come. spans: of its
    geometries. Where labels were cut to a beginning or an end of the answer's tokens, those are numbered; where
    they are something else, all are 0.
    """
    numbers = np.zeros(len(labels), dtype=np.int8)
    if not spans:
        return torch.from_numpy(numbers)
    encoded = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(encoded["input_ids"])
    starts, ends = np.array(encoded["offset_mapping"], dtype=np.int32).T.copy()
    of_answer = np.zeros(len(ids), dtype=np.int8)
    for span in spans:
        of_answer[(starts < span.end) & (ends > span.start)] = KINDS.index(span.kind) + 1
    written = np.array(labels)
    positions = np.flatnonzero(written != IGNORE)
    learnt = written[positions]
    count = min(len(learnt), len(ids))
    candidates = []
    if np.array_equal(learnt[len(learnt) - count :], ids[len(ids) - count :]):
        candidates.append(of_answer[len(ids) - count :])
    if len(learnt) < len(ids) and np.array_equal(learnt, ids[:count]):
        candidates.append(of_answer[:count])
    # A few tokens may begin and end the answer alike, and be coordinates in one place only.
    if candidates and np.array_equal(candidates[0], candidates[-1]):
        numbers[positions[len(positions) - count :]] = candidates[0]
    return torch.from_numpy(numbers)


def collated(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The numbers at all label positions of a batch, in order; nothing where no sample has any, as sampled text."""
    if not any(GEOMETRY in sample for sample in samples):
        return {}
    parts = []
    for sample in samples:
        learnt = torch.tensor(sample["labels"][1:]) != IGNORE
        numbers = sample.get(GEOMETRY)
        parts.append(torch.zeros(int(learnt.sum()), dtype=torch.int8) if numbers is None else numbers[1:][learnt])
    return {GEOMETRY: torch.cat(parts)}


def numbered(batch: Mapping[str, Any], labels_N: Tensor) -> Tensor | None:
    """The number at every one of these positions of a batch, 0 where no label is; None where it has none."""
    numbers_P: Tensor | None = batch.get(GEOMETRY)
    if numbers_P is None:
        return None
    # Not by index, for whose size the device would be waited for.
    return torch.zeros_like(labels_N).masked_scatter_(labels_N != IGNORE, numbers_P.long())
