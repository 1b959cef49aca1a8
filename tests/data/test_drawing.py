"""Pictures of a page: small, and true to what they show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vltool.data.drawing import as_array, drawable, picture
from vltool.data.record import Object


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (640, 480)), ((1280, 320), (640, 160)), ((3, 6400), (1, 640))]
)
def test_only_what_is_larger_is_shrunk(size, expected):
    shown = picture(Image.new("RGB", size, "red"), longest_side=640)
    decoded = Image.open(io.BytesIO(shown.jpeg))
    assert decoded.format == "JPEG"
    assert decoded.size == (shown.width, shown.height) == expected
    assert (shown.full_width, shown.full_height) == size


def test_an_array_is_shown_as_its_image_is():
    image = Image.linear_gradient("L").convert("RGB")
    pixels = as_array(image)
    assert (pixels.shape, pixels.dtype) == ((256, 256, 3), np.uint8)
    assert picture(pixels, longest_side=99) == picture(image, longest_side=99)


def test_what_has_points_is_drawn_however_wrong_it_is():
    fields = {
        "objects": [
            {"desc": "out", "bbox_2d": [0, 0, 9999, 5]},
            {"poly": [1, 2, 3, 4, 5]},
            {"desc": "huge", "line": [1, 2, 3, 1e308]},
            {"desc": "words", "bbox_2d": ["1", 2, 3, 4]},
            {"desc": "many", "bbox_2d": [1, 2, 3, 4, 5, 6]},
            7,
        ]
    }
    assert drawable(fields) == (
        Object("out", "bbox_2d", ((0, 0), (9999, 5))), Object("", "poly", ((1, 2), (3, 4))),
    )  # fmt: skip
    assert drawable({"objects": "none"}) == drawable({}) == ()
