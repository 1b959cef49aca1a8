"""Where an image's pixels and its objects go; computed from sizes alone.

Matrices are 3 × 3, float64, and map continuous pixels (x, y, 1) of the image before to those after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vltool.data.augment.clip import clipped
from vltool.data.record import Object
from vltool.recipe.augmentation import ExpandToFitAffine, Params, RandomCrop, ResizeByScale, Rotate, Scale

Matrix = NDArray[np.float64]
_WHOLE_LINE = 1.0 - 1e-9
_STILL = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@dataclass(frozen=True, slots=True)
class Warp:
    """All that moves pixels between two changes of size: one matrix, onto a canvas of this size."""

    matrix: Matrix
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Resize:
    """Another size of the whole image."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of the image, from its top left corner."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Pad:
    """Grey at the right and the bottom."""

    width: int
    height: int


Stage = Warp | Resize | Crop | Pad


@dataclass(slots=True)
class Canvas:
    """An image's size and objects as operations go by, and what they will do to its pixels."""

    width: int
    height: int
    objects: list[tuple[int, Object]]
    """Each with its number before all operations."""
    stages: list[Stage] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    """Numbers of the objects that fell outside."""
    cropped: bool | None = None
    """Whether a crop was taken; None where none was drawn."""
    _pending: Matrix = field(default_factory=lambda: np.eye(3))
    """The affine operations since the last change of size, as one matrix."""

    def hflip(self, params: Params, rng: np.random.Generator) -> None:
        """x → width − x."""
        self._affine(_matrix(-1.0, 0.0, self.width, 0.0, 1.0, 0.0))

    def vflip(self, params: Params, rng: np.random.Generator) -> None:
        """y → height − y."""
        self._affine(_matrix(1.0, 0.0, 0.0, 0.0, -1.0, self.height))

    def rotate(self, params: Rotate, rng: np.random.Generator) -> None:
        """About the centre; positive degrees turn clockwise on screen."""
        low, high = params.deg or (-(params.max_deg or 0.0), params.max_deg or 0.0)
        degrees = uniform(rng, low, high)
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        if degrees % 90.0 == 0.0:
            cos, sin = round(cos), round(sin)
        self._about_centre(cos, -sin, sin, cos)

    def scale(self, params: Scale, rng: np.random.Generator) -> None:
        """About the centre."""
        factor = uniform(rng, params.lo, params.hi)
        self._about_centre(factor, 0.0, 0.0, factor)

    def resize_by_scale(self, params: ResizeByScale, rng: np.random.Generator) -> None:
        """Both sides by one factor, then to the nearest multiples."""
        if params.scales is not None:
            factor = params.scales[rng.integers(len(params.scales))]
        else:
            factor = uniform(rng, 0.8 if params.lo is None else params.lo, 1.2 if params.hi is None else params.hi)
        self.flush()
        step = params.align_multiple or 1
        width, height = (max(step, round(side * factor / step) * step) for side in (self.width, self.height))
        zoom = _matrix(width / self.width, 0.0, 0.0, 0.0, height / self.height, 0.0)
        self._to(zoom, width, height, Resize(width, height))

    def random_crop(self, params: RandomCrop, rng: np.random.Generator) -> None:
        """A part of the image, unless too little would be left of its objects."""
        share = uniform(rng, *params.scale)
        ratio = math.exp(uniform(rng, math.log(params.aspect_ratio[0]), math.log(params.aspect_ratio[1])))
        across, down = rng.random(), rng.random()
        self.flush()
        area = share * self.width * self.height
        # A ratio that does not fit gives way, so that the share of the area is the one that was drawn.
        wide = min(max(math.sqrt(area * ratio), area / self.height), self.width)
        width, height = max(round(wide), 1), max(round(area / wide), 1)
        left, top = math.floor(across * (self.width - width + 1)), math.floor(down * (self.height - height + 1))
        shift = _matrix(1.0, 0.0, -left, 0.0, 1.0, -top)
        stays = []
        for number, item in self.objects:
            moved = clipped(_moved(item, shift), width, height)
            if moved is not None and item.kind == "line" and params.skip_if_line and moved.coverage < _WHOLE_LINE:
                self.cropped = bool(self.cropped)
                return
            if moved is not None and moved.coverage >= params.min_coverage:
                stays.append((number, moved.object))
        self.cropped = bool(self.cropped)
        if len(stays) < min(params.min_objects, len(self.objects)):
            return
        self.cropped = True
        left_over = {number for number, _ in stays}
        self.dropped += [number for number, _ in self.objects if number not in left_over]
        self.objects, self.width, self.height = stays, width, height
        self.stages.append(Crop(left, top, width, height))

    def pad_to_multiple(self, params: Any, rng: np.random.Generator) -> None:
        """Grey at the right and the bottom."""
        self.flush()
        self._pad(params.multiple)

    def expand_to_fit_affine(self, params: ExpandToFitAffine, rng: np.random.Generator) -> None:
        """A canvas that holds the whole image as it was turned, of aligned size and not above max_pixels."""
        corners = self._pending @ np.array([[0, self.width, self.width, 0], [0, 0, self.height, self.height], [1] * 4])
        low, high = corners[:2].min(axis=1), corners[:2].max(axis=1)
        # Less a hair: sums of products end a little beside the whole numbers that they mean.
        wanted = np.maximum(np.ceil(high - low - 1e-6), 1.0)
        width, height = (math.ceil(side / params.multiple) * params.multiple for side in wanted)
        zoom = 1.0
        if params.max_pixels is not None and width * height > params.max_pixels:
            width, height = _largest_canvas(wanted, params.multiple, params.max_pixels)
            zoom = min(width / wanted[0], height / wanted[1], 1.0)
        self._pending = _matrix(zoom, 0.0, -zoom * low[0], 0.0, zoom, -zoom * low[1]) @ self._pending
        if np.array_equal(self._pending, np.eye(3)):
            self._pad(params.multiple)
        else:
            self.flush(width, height)

    def flush(self, width: int | None = None, height: int | None = None) -> None:
        """Let what is pending happen, onto a canvas of another size where one is given."""
        matrix, self._pending = self._pending, np.eye(3)
        if not np.array_equal(matrix, np.eye(3)):
            size = (width or self.width, height or self.height)
            self._to(matrix, *size, Warp(matrix, *size))

    def _affine(self, matrix: Matrix) -> None:
        self._pending = matrix @ self._pending

    def _about_centre(self, a: float, b: float, c: float, d: float) -> None:
        x, y = self.width / 2, self.height / 2
        self._affine(_matrix(a, b, x - a * x - b * y, c, d, y - c * x - d * y))

    def _pad(self, multiple: int) -> None:
        width, height = (math.ceil(side / multiple) * multiple for side in (self.width, self.height))
        if (width, height) != (self.width, self.height):
            self._to(np.eye(3), width, height, Pad(width, height))

    def _to(self, matrix: Matrix, width: int, height: int, stage: Stage) -> None:
        """Move the objects onto another canvas; drop those that it does not hold."""
        kept = []
        for number, item in self.objects:
            moved = clipped(_moved(item, matrix), width, height)
            if moved is None:
                self.dropped.append(number)
            else:
                kept.append((number, moved.object))
        self.objects, self.width, self.height = kept, width, height
        self.stages.append(stage)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from low to high, exactly low where both are one."""
    share = rng.random()
    return low if low == high else low + (high - low) * share


def _matrix(a: float, b: float, x: float, c: float, d: float, y: float) -> Matrix:
    return np.array([[a, b, x], [c, d, y], [0.0, 0.0, 1.0]])


def _moved(item: Object, matrix: Matrix) -> Object:
    """An object after a matrix; a box that no longer stands upright is the polygon of its corners."""
    (a, b, x0), (c, d, y0) = rows = matrix[:2].tolist()
    if rows == _STILL:
        return item
    points: Iterable[tuple[float, float]] = item.points
    kind = item.kind
    upright = (b == 0.0 and c == 0.0) or (a == 0.0 and d == 0.0)
    if kind == "bbox_2d" and not upright:
        (x1, y1), (x2, y2) = item.points
        kind, points = "poly", ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    moved = tuple([(a * x + b * y + x0, c * x + d * y + y0) for x, y in points])
    if kind == "bbox_2d":
        xs, ys = zip(*moved, strict=True)
        moved = ((min(xs), min(ys)), (max(xs), max(ys)))
    return Object(item.desc, kind, moved)


def _largest_canvas(wanted: NDArray[np.float64], multiple: int, max_pixels: int) -> tuple[int, int]:
    """Sides that are multiples, near the wanted ratio, of no more than so many pixels."""
    zoom = math.sqrt(max_pixels / (wanted[0] * wanted[1]))
    width, height = (max(math.floor(side * zoom / multiple), 1) * multiple for side in wanted)
    if width * height > max_pixels:  # long and thin: one side is at the least that there is, and the other gives way
        longest = max_pixels // multiple // multiple * multiple
        width, height = min(width, longest), min(height, longest)
    return width, height


SPATIAL: dict[str, Callable[[Canvas, Any, np.random.Generator], None]] = {
    "hflip": Canvas.hflip,
    "vflip": Canvas.vflip,
    "rotate": Canvas.rotate,
    "scale": Canvas.scale,
    "resize_by_scale": Canvas.resize_by_scale,
    "random_crop": Canvas.random_crop,
    "pad_to_multiple": Canvas.pad_to_multiple,
    "expand_to_fit_affine": Canvas.expand_to_fit_affine,
}
"""Operations that move pixels; all others change their colours."""
