"""A position in a JSONL becomes a training sample: its messages with the pixels in them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vltool.data.conversation import Prompts, build_messages
from vltool.data.geometry import Grid
from vltool.data.images import check_file, image_header, is_path, load_image
from vltool.data.index import JsonlIndex
from vltool.data.record import ImageRef, Record, parse_record
from vltool.data.tokens import TextCounter, seen_size
from vltool.errors import BadContent, Problem, Where

MOST_PROBLEMS = 1000
"""Problems that a scan keeps in words; it counts the others."""
PROGRESS_EVERY = 500
"""Records between two words of a scan's progress."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Messages whose image items hold RGB PIL images, and the line that they came from."""

    messages: list[dict[str, Any]]
    where: Where


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


class CaptionDataset:
    """Samples of a JSONL by position, each decoded when it is asked for; safe in forked workers.

    sample_limit: only the first so many records. root: where relative image paths start, in place
    of the JSONL's folder. skip: positions of records to leave out. Other arguments as for
    `build_messages` and `seen_size`. Raises as `JsonlIndex` does.
    """

    def __init__(
        self,
        jsonl: Path,
        *,
        prompts: Prompts,
        emit_norm: Grid,
        use_summary: bool | None,
        max_pixels: int | None,
        sample_limit: int | None = None,
        root: Path | None = None,
        skip: Collection[int] = (),
    ) -> None:
        self._index = JsonlIndex(jsonl)
        self._folder, self._root = jsonl.parent, root
        self._prompts, self._emit_norm, self._use_summary = prompts, emit_norm, use_summary
        self._max_pixels = max_pixels
        self._positions = _kept(_limited(len(self._index), sample_limit), skip)
        if len(self) == 0:
            raise BadContent(Problem("every record is skipped", "correct the records", Where(str(jsonl))))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> Sample:
        """The sample at i. Raises BadContent with file:line for a record that cannot be used."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        line, where = self._index.read(int(self._positions[i]))
        record = parse_record(line, where)
        try:
            images = [load_image(ref, folder=self._folder, root=self._root) for ref in record.images]
            for ref, image in zip(record.images, images, strict=True):
                _check_size(record, image.size, ref, self._folder, self._root)
                seen_size(*image.size, max_pixels=self._max_pixels)
            messages = build_messages(
                record,
                prompts=self._prompts,
                emit_norm=self._emit_norm,
                use_summary=self._use_summary,
                images=images,
                seen_size=_seen(record, self._max_pixels),
            )
        except BadContent as error:
            raise BadContent(_placed(error, where)) from error
        return Sample(messages, where)


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
    count, records = 0, _limited(len(index), sample_limit)
    for position in range(records):
        if progress is not None and position % PROGRESS_EVERY == 0:
            progress(position, records)
        line, where = index.read(position)
        found: list[Problem] = []
        try:
            record = parse_record(line, where)
            read_headers = check_images or (counter is not None and record.width is None)
            sizes = _sizes(record, jsonl.parent, root, max_pixels, read_headers)
            messages = build_messages(
                record,
                prompts=prompts,
                emit_norm=emit_norm,
                use_summary=use_summary,
                images=sizes or record.images,
                seen_size=_seen(record, max_pixels),
            )
            if counter is not None:
                tokens = counter.count(messages, max_pixels=max_pixels)
                if longest is None or tokens > longest[0]:
                    longest = tokens, where
                if tokens > max_length:
                    too_long.append(position)
                    found.append(_too_long(tokens, max_length, where))
        except BadContent as error:
            found.extend(_placed(error, where))
        if found:
            bad.append(position)
            count += len(found)
            problems.extend(found[: MOST_PROBLEMS - len(problems)])
    return Scan(tuple(problems), count, tuple(bad), tuple(too_long), records, longest)


def _limited(records: int, sample_limit: int | None) -> int:
    return records if sample_limit is None else min(records, sample_limit)


def _kept(records: int, skip: Collection[int]) -> NDArray[np.int64]:
    dropped = np.fromiter(skip, dtype=np.int64, count=len(skip))
    return np.delete(np.arange(records), dropped[dropped < records])


def _placed(error: BadContent, where: Where) -> Iterator[Problem]:
    return (Problem(problem.what, problem.do, problem.where or where) for problem in error.problems)


def _seen(record: Record, max_pixels: int | None) -> tuple[int, int] | None:
    """The size at which the model sees the record's image, where it declares one."""
    if record.width is None or record.height is None:
        return None
    return seen_size(record.width, record.height, max_pixels=max_pixels)


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
                _check_size(record, size, ref, folder, root)
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


def _check_size(record: Record, size: tuple[int, int], ref: ImageRef, folder: Path, root: Path | None) -> None:
    """Raise BadContent, without a place, for an image of another size than the record declares."""
    if record.width is None or record.height is None or (record.width, record.height) == size:
        return
    declared, found = f"{record.width} × {record.height}", f"{size[0]} × {size[1]}"
    turned = size == (record.height, record.width)
    orientation = image_header(ref, folder=folder, root=root).orientation if turned else 1
    if orientation >= 5:
        raise BadContent(
            f"the record declares {declared}, its image is {found}: the file stores {declared}, "
            f"and its EXIF orientation ({orientation}) turns it",
            "declare the turned size and draw the objects on the turned image, or strip EXIF from the file "
            "if they were drawn on the image as it is stored",
        )
    raise BadContent(
        f"the record declares {declared}, its image is {found}",
        "width and height are swapped: correct them"
        if turned
        else "declare the size of the file, and check on which of the two sizes the objects were drawn",
    )


def _too_long(tokens: int, limit: int, where: Where) -> Problem:
    return Problem(
        f"the record is {tokens} tokens long, over the limit of {limit}",
        "raise global_max_length, lower template.max_pixels, shorten the record, or set template.truncation_strategy",
        where,
    )
