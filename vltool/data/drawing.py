"""What a page shows of a record: its pixels as a small JPEG, and what can be drawn of objects that are not valid."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vltool.data.geometry import KINDS
from vltool.data.record import LARGEST_SIDE, Object

QUALITY = 80
"""Of JPEG, from 1 to 95."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded JPEG, its own size, and that of the image that it shows, all in pixels."""

    jpeg: bytes
    width: int
    height: int
    full_width: int
    full_height: int


def picture(image: Image.Image | NDArray[np.uint8], *, longest_side: int) -> Picture:
    """An image (RGB; an array is height × width × 3, uint8), shrunk where a side is over `longest_side` pixels."""
    full = image if isinstance(image, Image.Image) else Image.fromarray(image)
    small = full
    if max(full.size) > longest_side:
        shrink = longest_side / max(full.size)
        size = (max(1, round(full.width * shrink)), max(1, round(full.height * shrink)))
        small = full.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return Picture(buffer.getvalue(), *small.size, *full.size)


def as_array(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB image, height × width × 3, uint8, writable."""
    return np.array(image.convert("RGB"), dtype=np.uint8)


def drawable(fields: dict[str, Any]) -> tuple[Object, ...]:
    """Those objects of a record's JSON that have points, however wrong the record is otherwise.

    They are shown beside the findings, which say what is wrong with them, and trained on by nobody.
    """
    given = fields.get("objects")
    found = []
    for item in given if isinstance(given, list) else ():
        if not isinstance(item, dict):
            continue
        for kind in KINDS:
            numbers = item.get(kind)
            if not isinstance(numbers, list) or len(numbers) < 4 or (kind == "bbox_2d" and len(numbers) > 4):
                continue
            if all(type(number) in (int, float) and abs(number) <= LARGEST_SIDE for number in numbers):
                desc = item.get("desc")
                points = tuple(zip(numbers[::2], numbers[1::2], strict=False))
                found.append(Object(desc if isinstance(desc, str) else "", kind, points))
    return tuple(found)
