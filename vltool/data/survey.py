"""What the records of a JSONL hold on the whole, from a spread of them: kinds of geometry, lengths in tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltool.data.conversation import build_messages
from vltool.data.geometry import Kind
from vltool.data.images import image_size
from vltool.data.index import JsonlIndex
from vltool.data.policy import Policy, policy_of
from vltool.data.record import parse_record
from vltool.data.tokens import TextCounter, seen_size
from vltool.errors import BadContent

MOST_SURVEYED = 2000
"""Records that are looked at, however long the file is."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Of the records that could be read, in the file's order."""

    looked_at: int
    kinds: dict[Kind, int]
    """Objects of each kind."""
    lengths: tuple[int, ...]
    """Tokens of each; empty without a counter."""


def spread(count: int, records: int) -> list[int]:
    """At most `count` of the positions 0 … records-1, evenly spaced, the first and the last among them."""
    if count >= records:
        return list(range(records))
    if count < 2:
        return [0][:count]
    return [i * (records - 1) // (count - 1) for i in range(count)]


def survey(jsonl: Path, *, counter: TextCounter | None, reading: dict[str, Any]) -> Survey:
    """Count kinds and tokens; records that cannot be used are left out.

    reading: as for `vltool.data.scan.scan`: prompts, emit_norm, use_summary, max_pixels, sample_limit, root, and
    policy where there is one.
    """
    index = JsonlIndex(jsonl)
    kinds: Counter[Kind] = Counter()
    lengths: list[int] = []
    limit = reading["sample_limit"]
    positions = spread(MOST_SURVEYED, len(index) if limit is None else min(limit, len(index)))
    for position in positions:
        try:
            record = parse_record(*index.read(position))
            if counter is not None:
                size = None if record.width is None or record.height is None else (record.width, record.height)
                sizes = [size or image_size(ref, folder=jsonl.parent, root=reading["root"]) for ref in record.images]
                policy = policy_of(record, reading.get("policy") or Policy())
                messages = build_messages(
                    record,
                    prompts=policy.prompts(reading["prompts"]),
                    emit_norm=reading["emit_norm"],
                    use_summary=reading["use_summary"],
                    images=sizes,
                    seen_size=None if size is None else seen_size(*size, max_pixels=reading["max_pixels"]),
                )
                lengths.append(counter.count(messages, max_pixels=reading["max_pixels"]))
        except BadContent:
            continue
        kinds.update(item.kind for item in record.objects)
    return Survey(len(positions), dict(kinds), tuple(lengths))
