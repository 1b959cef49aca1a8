"""Operations in a row, on an image and its objects or, for sizes and geometry alone, without the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vltool.data.augment.spatial import SPATIAL, Canvas
from vltool.data.record import Object
from vltool.errors import InvalidInput, Problem
from vltool.recipe.augmentation import AugmentOp
from vltool.recipe.curriculum import ops_faults, read_ops


@dataclass(frozen=True, slots=True)
class Placed:
    """A size, and objects on it."""

    width: int
    height: int
    objects: tuple[Object, ...]
    """Those that are left, in their order; a box under a rotation is a polygon."""
    dropped: tuple[Object, ...]
    """Those that fell outside, as they were before."""
    cropped: bool | None = None
    """Whether a crop was taken; None where none was drawn."""
    bypassed: bool = False
    """Left as it was, by chance."""
    reverted: bool = False
    """Left as it was, because no object would have stayed."""


@dataclass(frozen=True, slots=True)
class Augmented(Placed):
    """The same with the image, uint8 RGB, height × width × 3."""

    image: NDArray[np.uint8] = field(kw_only=True)


class Pipeline:
    """Operations in the order of a recipe.

    Flips, rotations and scales between two changes of size are one matrix, and one interpolation; colours
    change after everything that moves. Each operation draws from a generator of its own, so that one's
    parameters change no other's draws.
    """

    def __init__(self, ops: Sequence[AugmentOp]) -> None:
        self._ops = tuple(ops)

    @classmethod
    def from_ops(cls, ops: Iterable[AugmentOp | Mapping[str, Any]]) -> Pipeline:
        """A pipeline of operations, or of mappings {"name": …, "params": {…}} as in recipes.

        Raises InvalidInput for what is no operation, with every problem of parameters that contradict each other.
        """
        try:
            read = read_ops(ops)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"augmentation: {error}", "see custom.augmentation.ops in the README") from error
        if faults := list(ops_faults(read)):
            raise InvalidInput([Problem(f"{fault.key}: {fault.what}", fault.do) for fault in faults])
        return cls(read)

    def place(self, width: int, height: int, objects: Sequence[Object], *, rng: np.random.Generator) -> Placed:
        """Size and objects after the operations, without pixels; what `apply` gives for the same draws.

        width, height: in pixels, the canvas on which the objects lie.
        """
        canvas, _ = self._planned(width, height, objects, rng)
        return Placed(canvas.width, canvas.height, **_outcome(canvas, objects))

    def apply(self, image_HW3: NDArray[np.uint8], objects: Sequence[Object], *, rng: np.random.Generator) -> Augmented:
        """Image and objects after the operations; the image that was given is left as it is."""
        from vltool.data.augment.pixel import COLOURS, render

        height, width = image_HW3.shape[:2]
        canvas, colours = self._planned(width, height, objects, rng)
        image_HW3 = render(image_HW3, canvas.stages)
        for op, own in colours:
            image_HW3 = COLOURS[op.name](op.params, own)(image_HW3)
        return Augmented(canvas.width, canvas.height, **_outcome(canvas, objects), image=image_HW3)

    def _planned(
        self, width: int, height: int, objects: Sequence[Object], rng: np.random.Generator
    ) -> tuple[Canvas, list[tuple[AugmentOp, np.random.Generator]]]:
        """Where everything goes, and the colours that are to change."""
        canvas = Canvas(width, height, list(enumerate(objects)))
        colours = []
        for op, own in zip(self._ops, rng.spawn(len(self._ops)), strict=True):
            if own.random() >= getattr(op.params, "prob", 1.0):
                continue
            if op.name in SPATIAL:
                SPATIAL[op.name](canvas, op.params, own)
            else:
                colours.append((op, own))
        canvas.flush()
        return canvas, colours


def _outcome(canvas: Canvas, objects: Sequence[Object]) -> dict[str, Any]:
    return {
        "objects": tuple(item for _, item in canvas.objects),
        "dropped": tuple(objects[number] for number in sorted(canvas.dropped)),
        "cropped": canvas.cropped,
    }
