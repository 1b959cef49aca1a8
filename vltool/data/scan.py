"""What every record of a JSONL comes to, judged as training would, without decoding pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vltool.data.conversation import Prompts, build_messages
from vltool.data.dataset import limited
from vltool.data.geometry import Grid
from vltool.data.header_reader import HeaderReader
from vltool.data.headers import Header
from vltool.data.histogram import Histogram
from vltool.data.index import JsonlIndex
from vltool.data.policy import Policy, most_text, policy_of
from vltool.data.record import Record, parse_record
from vltool.data.sizes import declared_sizes, read_sizes, ruled, seen
from vltool.data.tokens import Learnt, Measure, TextCounter
from vltool.errors import BadContent, Problem, Where

MOST_PROBLEMS = 1000
"""Problems that a scan keeps in words; it counts the others."""
PROGRESS_EVERY = 500
"""Records between two words of a scan's progress."""
COUNTED_AT_ONCE = 256
"""Records whose tokens are counted together."""
READ_AT_ONCE = 4096
"""Records whose images' headers are read together."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What every record of a JSONL came to."""

    problems: tuple[Problem, ...]
    """In the file's order, the first MOST_PROBLEMS of them."""
    problem_count: int
    """All of them."""
    bad: tuple[int, ...]
    """Positions of the records that have a problem."""
    too_long: tuple[int, ...]
    """Positions, also among `bad`, of those whose only problem is their length."""
    records: int
    """Records looked at."""
    longest: tuple[int, Where] | None
    """Tokens and place of the longest record that could be counted; None without a counter."""
    lengths: Histogram
    """Tokens of the records that could be counted; empty without a counter, as are the next three."""
    supervised: int
    """Tokens of all of these together that are labels."""
    answers: Histogram
    """Tokens of their last answers, each with its `<|im_end|>`."""
    longest_answer: tuple[int, Where] | None

    @property
    def mean_tokens(self) -> float | None:
        """Of the records that could be counted."""
        return self.lengths.mean


Each = Callable[[int, Record, list[dict[str, Any]]], None]
"""What is told of every record that training could read: its position, itself, and its messages with sizes for images.
"""


def scan(
    jsonl: Path,
    *,
    prompts: Prompts,
    emit_norm: Grid,
    use_summary: bool | None,
    max_pixels: int | None,
    counter: TextCounter | None,
    max_length: int,
    check_images: bool,
    sample_limit: int | None = None,
    root: Path | None = None,
    policy: Policy | None = None,
    learnt: Learnt = "default",
    each: Each | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Judge every record as training would, without decoding pixels.

    check_images reads the header of each local image and compares its oriented size with the
    declared one; without it headers are read only where no size is declared, and files need but
    exist. Remote images are fetched only where their size is needed. Lengths, with a counter, are
    exact; one above max_length tokens is a problem. each is told of the records in the file's order, but for those
    that have another problem than their length. progress is told, every so often, how many records of how many are
    done. Raises as `JsonlIndex` and `HeaderReader.read` do.
    """
    index = JsonlIndex(jsonl)
    records = limited(len(index), sample_limit)
    tally = _Tally(max_length)
    headers = HeaderReader(jsonl, root=root)

    def reads_headers(record: Record) -> bool:
        return check_images or (counter is not None and record.width is None)

    def built(record: Record, known: Mapping[str, Header]) -> list[dict[str, Any]]:
        its = policy_of(record, policy or Policy())
        record = most_text(record, its.max_objects)
        folder = jsonl.parent
        if reads_headers(record):
            sizes = read_sizes(record, folder, root, max_pixels, known)
        else:
            sizes = declared_sizes(record, folder, root)
        return build_messages(
            record,
            prompts=its.prompts(prompts),
            emit_norm=emit_norm,
            use_summary=use_summary,
            images=sizes or record.images,
            seen_size=seen(record, max_pixels),
        )

    try:
        for batch, known in _batches(index, records, headers, reads_headers):
            conversations: dict[int, list[dict[str, Any]]] = {}
            for one in batch:
                if progress is not None and one.position % PROGRESS_EVERY == 0:
                    progress(one.position, records)
                try:
                    if one.record is not None:
                        conversations[one.position] = built(one.record, known)
                except BadContent as error:
                    one.found.extend(ruled(error, "record-image", one.where))
            measures: dict[int, Measure] = {}
            if counter is not None:
                # Sizes that counting would refuse are refused above, so that no record spoils the others' count.
                measured = counter.measure_many(list(conversations.values()), max_pixels=max_pixels, learnt=learnt)
                measures = dict(zip(conversations, measured, strict=True))
            for one in batch:
                tally.add(one, measures.get(one.position))
                if each is not None and one.record is not None and one.position in conversations:
                    each(one.position, one.record, conversations[one.position])
    finally:
        headers.save()  # those that an impatient user waited for, too
    return tally.scan(records)


@dataclass(frozen=True, slots=True)
class _Read:
    """A record as far as it was read."""

    position: int
    where: Where
    record: Record | None
    found: list[Problem]


@dataclass(slots=True)
class _Tally:
    """What a scan has found so far."""

    max_length: int
    problems: list[Problem] = field(default_factory=list)
    count: int = 0
    bad: list[int] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    longest: tuple[int, Where] | None = None
    longest_answer: tuple[int, Where] | None = None
    lengths: Counter[int] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    supervised: int = 0

    def add(self, one: _Read, measure: Measure | None) -> None:
        if measure is not None:
            self.lengths[measure.tokens] += 1
            self.answers[measure.answer] += 1
            self.supervised += measure.supervised
            if self.longest is None or measure.tokens > self.longest[0]:
                self.longest = measure.tokens, one.where
            if self.longest_answer is None or measure.answer > self.longest_answer[0]:
                self.longest_answer = measure.answer, one.where
            if measure.tokens > self.max_length:
                self.too_long.append(one.position)
                one.found.append(_too_long(measure.tokens, self.max_length, one.where))
        if one.found:
            self.bad.append(one.position)
            self.count += len(one.found)
            self.problems.extend(one.found[: MOST_PROBLEMS - len(self.problems)])

    def scan(self, records: int) -> Scan:
        return Scan(
            problems=tuple(self.problems),
            problem_count=self.count,
            bad=tuple(self.bad),
            too_long=tuple(self.too_long),
            records=records,
            longest=self.longest,
            lengths=Histogram.of(self.lengths),
            supervised=self.supervised,
            answers=Histogram.of(self.answers),
            longest_answer=self.longest_answer,
        )


def _batches(
    index: JsonlIndex, records: int, headers: HeaderReader, reads_headers: Callable[[Record], bool]
) -> Iterator[tuple[list[_Read], Mapping[str, Header]]]:
    """Records, so many as are counted at once, with the headers that are known of their images."""
    for start in range(0, records, READ_AT_ONCE):
        window = [_read(index, position) for position in range(start, min(start + READ_AT_ONCE, records))]
        looked_at = (one.record for one in window if one.record is not None and reads_headers(one.record))
        known = headers.read(ref for record in looked_at for ref in record.images)
        for at in range(0, len(window), COUNTED_AT_ONCE):
            yield window[at : at + COUNTED_AT_ONCE], known


def _read(index: JsonlIndex, position: int) -> _Read:
    line, where = index.read(position)
    try:
        return _Read(position, where, parse_record(line, where), [])
    except BadContent as error:
        return _Read(position, where, None, list(ruled(error, "record-image", where)))


def _too_long(tokens: int, limit: int, where: Where) -> Problem:
    return Problem(
        f"the record is {tokens} tokens long, over the limit of {limit}",
        "raise global_max_length, lower template.max_pixels, shorten the record, or set template.truncation_strategy",
        where,
        "record-length",
    )
