"""Sizes that records declare: whether their images have them, and at which size the model sees those."""

from __future__ import annotations

from pathlib import Path

from vltool.data.images import image_header
from vltool.data.record import ImageRef, Record
from vltool.data.tokens import seen_size
from vltool.errors import BadContent


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
