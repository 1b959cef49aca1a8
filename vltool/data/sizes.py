"""Sizes of records' images: what they declare, what the files have, and at which size the model sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from vltool.data.headers import Header
from vltool.data.images import check_file, image_header, is_path
from vltool.data.record import ImageRef, Record
from vltool.data.tokens import seen_size
from vltool.errors import BadContent, Problem, Where


def seen(record: Record, max_pixels: int | None) -> tuple[int, int] | None:
    """The size at which the model sees the record's image, where it declares one."""
    if record.width is None or record.height is None:
        return None
    return seen_size(record.width, record.height, max_pixels=max_pixels)


def check_size(record: Record, size: tuple[int, int], ref: ImageRef, folder: Path, root: Path | None) -> None:
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


def read_sizes(
    record: Record, folder: Path, root: Path | None, max_pixels: int | None, known: Mapping[str, Header]
) -> list[tuple[int, int]]:
    """Oriented sizes in pixels of a record's images, by their headers.

    known: headers that were read before, by path. Raises BadContent, without places, for all that cannot be used.
    """
    sizes: list[tuple[int, int]] = []
    problems: list[Problem] = []
    for ref in record.images:
        try:
            header = known.get(ref) if isinstance(ref, str) else None
            if header is None:
                header = image_header(ref, folder=folder, root=root)
            size = header.width, header.height
            try:
                check_size(record, size, ref, folder, root)
            except BadContent as error:
                raise BadContent(ruled(error, "record-size")) from error
            seen_size(*size, max_pixels=max_pixels)
            sizes.append(size)
        except BadContent as error:
            problems.extend(error.problems)
    if problems:
        raise BadContent(problems)
    return sizes


def declared_sizes(record: Record, folder: Path, root: Path | None) -> list[tuple[int, int]]:
    """The size that a record declares, if it does. Raises BadContent for all images that are not there."""
    problems: list[Problem] = []
    for ref in filter(is_path, record.images):
        try:
            check_file(ref, folder=folder, root=root)
        except BadContent as error:
            problems.extend(error.problems)
    if problems:
        raise BadContent(problems)
    return [] if record.width is None or record.height is None else [(record.width, record.height)]


def ruled(error: BadContent, rule: str, where: Where | None = None) -> Iterator[Problem]:
    """An error's problems, those of no rule as found by this one, those without a place at this one."""
    return (Problem(problem.what, problem.do, problem.where or where, problem.id or rule) for problem in error.problems)
