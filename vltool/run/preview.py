"""Records -> one HTML page that shows what training makes of them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from vltool.data.conversation import assistant_text
from vltool.data.dataset import CaptionDataset
from vltool.data.drawing import as_array, drawable, picture
from vltool.data.images import load_image
from vltool.data.index import JsonlIndex
from vltool.data.jsonline import decode
from vltool.data.record import InlineImage, Record, parse_record
from vltool.data.survey import spread, survey
from vltool.data.tokens import Learnt, TextCounter, image_tokens, seen_size
from vltool.errors import BadContent, InvalidInput
from vltool.run import preview_page as page
from vltool.run.preview_page import Remark
from vltool.run.variants import Variants

if TYPE_CHECKING:
    from vltool.data.augment.pipeline import Augmented

FILE_NAME = "index.html"
LONGEST_SIDE_PX = 640
LONGEST_SIDE_OF_VARIANT_PX = 448
LONGEST_LINE = 2000
"""Characters of a record that are shown as they stand, where it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file of records and how training reads it."""

    jsonl: Path
    label: str
    """Which split and dataset it is, as far as that is known."""
    reading: dict[str, Any]
    counter: TextCounter | None
    max_length: int
    learnt: Learnt
    records: int
    """Records that were judged, the first of the file."""
    bad: Sequence[int]
    """Positions of those with a finding."""
    remarks: Mapping[int, Sequence[Remark]]
    """Line -> findings there."""
    variants: Variants | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """The page that was written."""

    file: Path
    records: int
    size_bytes: int


def check_folder(folder: Path) -> None:
    """Raise InvalidInput for a folder in which a page would stand beside other things, or in place of them."""
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file", "name a folder for the preview")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise InvalidInput(f"{there} cannot be written to", "name another folder for the preview")
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    if names == {FILE_NAME}:
        with (folder / FILE_NAME).open(encoding="utf-8", errors="replace") as file:
            if page.MARK in file.read(2000):
                return
    raise InvalidInput(f"{folder} holds {min(names)}, which is no preview", "name a new folder, or empty this one")


def write_preview(
    folder: Path,
    parts: Sequence[Part],
    remarks: Sequence[Remark],
    *,
    samples: int,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write `index.html`, which needs no other file and no network, beside and renamed.

    samples: records shown of each file; up to half of them such as have findings, which stand first, the others
    evenly spaced. progress is told how many records of how many are drawn. Raises InvalidInput as `check_folder`.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside, file = folder / f".{FILE_NAME}.{os.getpid()}", folder / FILE_NAME
    chosen = [choose(part.records, part.bad, samples) for part in parts]
    total = sum(map(len, chosen))
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as out:
            for done, _ in enumerate(_written(out, parts, chosen, remarks), start=1):
                if progress is not None:
                    progress(done, total)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return Written(file, total, file.stat().st_size)


def choose(records: int, bad: Sequence[int], samples: int) -> list[int]:
    """Positions to show of `records`: those with findings first, each group in order and evenly spaced."""
    good = records - len(bad)
    shown_bad = [bad[i] for i in spread(min(len(bad), max(samples // 2, samples - good)), len(bad))]
    # A good record's rank among the good ones, plus the bad ones before it, is its position.
    good_before = [position - rank for rank, position in enumerate(bad)]
    ranks = spread(min(samples - len(shown_bad), good), good)
    return [*shown_bad, *(rank + bisect_right(good_before, rank) for rank in ranks)]


def _written(
    out: TextIO, parts: Sequence[Part], chosen: Sequence[list[int]], remarks: Sequence[Remark]
) -> Iterator[None]:
    """Write the page, and pause after each record."""
    out.write(page.head(files=len(parts), shown=sum(map(len, chosen)), remarks=remarks))
    number = 0
    for part, positions in zip(parts, chosen, strict=True):
        held = survey(part.jsonl, counter=part.counter, reading=part.reading)
        out.write(
            page.file_head(
                name=str(part.jsonl), label=part.label, records=part.records, bad=len(part.bad), shown=len(positions),
                survey=held, max_length=part.max_length if part.counter else None,
                prompted=bool(part.reading["prompts"].user),
            )
        )  # fmt: skip
        index = JsonlIndex(part.jsonl)
        dataset = CaptionDataset(part.jsonl, **part.reading)
        for position in positions:
            number += 1
            out.write(_card(part, index, dataset, position, number))
            yield
        out.write(page.file_foot())
    out.write(page.foot())


def _card(part: Part, index: JsonlIndex, dataset: CaptionDataset, position: int, number: int) -> str:
    line, where = index.read(position)
    remarks = part.remarks.get(where.line or 0, ())
    record: Record | None = None
    fields: dict[str, Any] = {}
    messages: list[dict[str, Any]] | None = None
    try:
        record = parse_record(line, where)
        messages = dataset[position].messages
        images = _images_in(messages)
    except BadContent:
        fields = _fields(line)
        images = _readable(fields.get("images") if record is None else record.images, part)
    objects = drawable(fields) if record is None else record.objects
    figures = [
        page.figure(
            picture(image, longest_side=LONGEST_SIDE_PX), objects, title="original",
            tokens=_image_tokens(part, image.size),
        )
        for image in images
    ]  # fmt: skip
    variants: list[str] = []
    if part.variants is not None and record is not None and record.objects and record.messages is None and messages:
        drawn = part.variants(as_array(images[0]), record, index=position)
        variants = [_variant(part, record, messages, title, variant) for title, variant in drawn]
    pieces = None
    if messages is not None and part.counter is not None:
        pieces = part.counter.pieces(messages, max_pixels=part.reading["max_pixels"], learnt=part.learnt)
    return page.card(
        number=number,
        where=where,
        name=_name(record),
        objects=objects,
        remarks=remarks,
        figures=figures,
        variants=variants,
        messages=messages,
        pieces=pieces,
        max_length=part.max_length,
        raw=None if messages is not None else line[: 4 * LONGEST_LINE].decode(errors="replace")[:LONGEST_LINE],
    )


def _variant(part: Part, record: Record, messages: list[dict[str, Any]], title: str, variant: Augmented) -> str:
    shown = picture(variant.image, longest_side=LONGEST_SIDE_OF_VARIANT_PX)
    size = shown.full_width, shown.full_height
    row = None
    if part.counter is not None and variant.objects:
        reading = part.reading
        augmented = msgspec.structs.replace(record, objects=variant.objects, width=size[0], height=size[1])
        answer = assistant_text(
            augmented,
            emit_norm=reading["emit_norm"],
            use_summary=reading["use_summary"],
            seen_size=seen_size(*size, max_pixels=reading["max_pixels"]),
        )
        asked = [_on_image(message, size) for message in messages[:-1]]
        row = part.counter.count([*asked, {"role": "assistant", "content": answer}], max_pixels=reading["max_pixels"])
    if variant.bypassed or variant.reverted:
        title += ", left as it was"
    return page.figure(
        shown,
        variant.objects,
        title=title,
        tokens=_image_tokens(part, size),
        row_tokens=row,
        dropped=len(variant.dropped),
    )


def _on_image(message: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A message whose image is of this size."""
    if not isinstance(message["content"], list):
        return message
    items = [{**item, "image": size} if item["type"] == "image" else item for item in message["content"]]
    return {**message, "content": items}


def _image_tokens(part: Part, size: tuple[int, int]) -> int | None:
    if part.counter is None:
        return None
    try:
        return image_tokens(*size, max_pixels=part.reading["max_pixels"])
    except BadContent:  # too thin for the model, and shown with that finding
        return None


def _images_in(messages: list[dict[str, Any]]) -> list[Any]:
    lists = (message["content"] for message in messages if isinstance(message["content"], list))
    return [item["image"] for content in lists for item in content if item["type"] == "image"]


def _fields(line: bytes) -> dict[str, Any]:
    try:
        return decode(line)
    except BadContent:
        return {}


def _readable(given: object, part: Part) -> list[Any]:
    """The images of a record that cannot be used, as far as there are any."""
    images = []
    for ref in given if isinstance(given, list | tuple) else ():
        if not isinstance(ref, str | InlineImage) or ref == "" or (isinstance(ref, str) and "\0" in ref):
            continue
        try:
            images.append(load_image(ref, folder=part.jsonl.parent, root=part.reading["root"]))
        except BadContent:  # the findings beside it say so
            continue
    return images


def _name(record: Record | None) -> str:
    if record is None:
        return "cannot be read"
    names = [ref if isinstance(ref, str) else "bytes" for ref in record.images]
    return ", ".join(name if len(name) <= 80 else name[:40] + "…" for name in names) or "no image"
