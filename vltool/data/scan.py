"""What every record of a JSONL comes to, judged as training would, without decoding pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltool.data.conversation import Prompts, build_messages
from vltool.data.dataset import limited
from vltool.data.geometry import Grid
from vltool.data.images import check_file, image_header, is_path
from vltool.data.index import JsonlIndex
from vltool.data.policy import Policy, most_text, policy_of
from vltool.data.record import Record, parse_record
from vltool.data.sizes import check_size, seen
from vltool.data.tokens import TextCounter, seen_size
from vltool.errors import BadContent, Problem, Where

MOST_PROBLEMS = 1000
"""Problems that a scan keeps in words; it counts the others."""
PROGRESS_EVERY = 500
"""Records between two words of a scan's progress."""
COUNTED_AT_ONCE = 256
"""Records whose tokens are counted together."""


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
    mean_tokens: float | None
    """Of the records that could be counted."""


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
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Judge every record as training would, without decoding pixels.

    check_images reads the header of each local image and compares its oriented size with the
    declared one; without it headers are read only where no size is declared, and files need but
    exist. Remote images are fetched only where their size is needed. Lengths, with a counter, are
    exact; one above max_length tokens is a problem. progress is told, every so often, how many
    records of how many are done. Raises as `JsonlIndex` does.
    """
    index = JsonlIndex(jsonl)
    problems: list[Problem] = []
    bad: list[int] = []
    too_long: list[int] = []
    longest: tuple[int, Where] | None = None
    counted, total = 0, 0
    count, records = 0, limited(len(index), sample_limit)

    def built(record: Record) -> list[dict[str, Any]]:
        its = policy_of(record, policy or Policy())
        record = most_text(record, its.max_objects)
        read_headers = check_images or (counter is not None and record.width is None)
        sizes = _sizes(record, jsonl.parent, root, max_pixels, read_headers)
        return build_messages(
            record,
            prompts=its.prompts(prompts),
            emit_norm=emit_norm,
            use_summary=use_summary,
            images=sizes or record.images,
            seen_size=seen(record, max_pixels),
        )

    for start in range(0, records, COUNTED_AT_ONCE):
        batch: list[tuple[int, Where, list[Problem]]] = []
        conversations: dict[int, list[dict[str, Any]]] = {}
        for position in range(start, min(start + COUNTED_AT_ONCE, records)):
            if progress is not None and position % PROGRESS_EVERY == 0:
                progress(position, records)
            line, where = index.read(position)
            found: list[Problem] = []
            try:
                conversations[position] = built(parse_record(line, where))
            except BadContent as error:
                found.extend(_ruled(error, "record-image", where))
            batch.append((position, where, found))
        lengths: dict[int, int] = {}
        if counter is not None:
            # Sizes that counting would refuse are refused above, so that no record spoils the others' count.
            counts = counter.count_many(list(conversations.values()), max_pixels=max_pixels)
            lengths = dict(zip(conversations, counts, strict=True))
        for position, where, found in batch:
            if (tokens := lengths.get(position)) is not None:
                counted, total = counted + 1, total + tokens
                if longest is None or tokens > longest[0]:
                    longest = tokens, where
                if tokens > max_length:
                    too_long.append(position)
                    found.append(_too_long(tokens, max_length, where))
            if found:
                bad.append(position)
                count += len(found)
                problems.extend(found[: MOST_PROBLEMS - len(problems)])
    mean = total / counted if counted else None
    return Scan(tuple(problems), count, tuple(bad), tuple(too_long), records, longest, mean)


def _sizes(
    record: Record, folder: Path, root: Path | None, max_pixels: int | None, read_headers: bool
) -> list[tuple[int, int]]:
    """Oriented sizes of a record's images; [] where they are neither declared nor read.

    Raises BadContent for all images that cannot be used.
    """
    sizes: list[tuple[int, int]] = []
    problems: list[Problem] = []
    for ref in record.images:
        try:
            if read_headers:
                header = image_header(ref, folder=folder, root=root)
                size = header.width, header.height
                try:
                    check_size(record, size, ref, folder, root)
                except BadContent as error:
                    raise BadContent(_ruled(error, "record-size")) from error
                seen_size(*size, max_pixels=max_pixels)
                sizes.append(size)
            elif is_path(ref):
                check_file(ref, folder=folder, root=root)
        except BadContent as error:
            problems.extend(error.problems)
    if problems:
        raise BadContent(problems)
    if not read_headers and record.width is not None and record.height is not None:
        sizes.append((record.width, record.height))
    return sizes


def _too_long(tokens: int, limit: int, where: Where) -> Problem:
    return Problem(
        f"the record is {tokens} tokens long, over the limit of {limit}",
        "raise global_max_length, lower template.max_pixels, shorten the record, or set template.truncation_strategy",
        where,
        "record-length",
    )


def _ruled(error: BadContent, rule: str, where: Where | None = None) -> Iterator[Problem]:
    """An error's problems, those of no rule as found by this one, those without a place at this one."""
    return (Problem(problem.what, problem.do, problem.where or where, problem.id or rule) for problem in error.problems)
