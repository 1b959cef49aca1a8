"""Augmented samples a second on one core, beside torchvision and PIL: `python benchmarks/data_augment.py [--quick]`.

Ours moves pixels and objects, and draws; torchvision.transforms.v2 (uint8 tensors, C × H × W) and PIL move pixels
alone, by parameters drawn from the same ranges. Photographs are the demo's at 1000 × 750, decoded beforehand. The
three take turns over all of them. Seconds are those of the processor, in one thread on one core, so that work of
others counts little. Printed are medians, and of the ratio inside one turn the median and quartiles.
Neither of the others has CLAHE: its own row has none of theirs, and in the chain their cheaper equalize stands for it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from ruamel.yaml import YAML
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from vltool.data.augment.pipeline import Pipeline
from vltool.data.record import Object, parse_record
from vltool.errors import Where

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "recipes" / "augment_grounding.yaml"
DEMO = REPOSITORY / "vltool" / "data" / "demo"
WIDTH, HEIGHT, GREY = 1000, 750, 128
TURN_S = 0.15
"""Seconds of a turn, about."""

Draw = Callable[[float, float], float]
Change = Callable[[Any, Draw], Any]
BILINEAR = {"interpolation": InterpolationMode.BILINEAR}


def measure(quick: bool = False) -> list[str]:
    """The lines of the table. quick: fewer and shorter turns."""
    turns, seconds = (3, TURN_S / 4) if quick else (7, TURN_S)
    photos = list(_photos())
    chain = [_always(op) for op in YAML(typ="safe").load(RECIPE)["custom"]["augmentation"]["ops"]]
    rows = [
        ("chain of augment_grounding", chain, _after(chain, TORCHVISION), _after(chain, PIL)),
        *((_label(ops), ops, _after(ops, TORCHVISION), _after(ops, PIL)) for ops in map(_listed, OPS)),
    ]
    with _one_core():
        lines = [
            f"augmentation, {len(photos)} photographs of {WIDTH} × {HEIGHT}, one core; samples/s, medians of {turns}",
            f"{'':28} {'vltool':>8} {'torchv.':>8} {'PIL':>8}  vltool ÷ torchvision   vltool ÷ PIL",
        ]
        for label, ops, tensor_change, photo_change in rows:
            lines.append(_row(label, _rates(ops, photos, tensor_change, photo_change, turns, seconds)))
    return lines


def _row(label: str, rates: list[list[float]]) -> str:
    ours, *others = rates
    texts = [f"{statistics.median(each):8.0f}" if each else f"{'-':>8}" for each in rates]
    ratios = []
    for other in others:
        each = [mine / its for mine, its in zip(ours, other, strict=False)]
        low, middle, high = statistics.quantiles(each, n=4) if each else (0.0, 0.0, 0.0)
        ratios.append(f"{middle:5.2f} ({low:.2f} to {high:.2f})" if each else f"{'-':>5}")
    first = ratios[0] + ("" if ratios[0].strip() == "-" else "" if float(ratios[0].split()[0]) >= 1 else " MISSED")
    return f"{label:28} {' '.join(texts)}  {first:22} {ratios[1]}"


def _rates(
    ops: list[dict[str, Any]],
    photos: list[tuple[np.ndarray, tuple[Object, ...]]],
    tensor_change: Change | None,
    photo_change: Change | None,
    turns: int,
    seconds: float,
) -> list[list[float]]:
    """Samples a second of ours, torchvision's and PIL's in each turn."""
    pipeline, rng, draws = Pipeline.from_ops(ops), np.random.default_rng(0), random.Random(0)
    tensors = [torch.from_numpy(image).permute(2, 0, 1).contiguous() for image, _ in photos]
    images = [Image.fromarray(image) for image, _ in photos]

    def ours() -> None:
        for image, objects in photos:
            pipeline.apply(image, objects, rng=rng)

    def others(change: Change, given: Sequence[Any]) -> None:
        for image in given:
            change(image, draws.uniform)

    sides: list[Callable[[], None] | None] = [ours, None, None]
    if tensor_change is not None and photo_change is not None:
        sides = [ours, partial(others, tensor_change, tensors), partial(others, photo_change, images)]
    passes = [side and max(round(seconds / _seconds(side, 2)), 1) for side in sides]
    rates: list[list[float]] = [[], [], []]
    for _ in range(turns):
        for rate, side, count in zip(rates, sides, passes, strict=True):
            if side is not None:
                rate.append(len(photos) / _seconds(side, count))
    return rates


def _seconds(action: Callable[[], None], count: int) -> float:
    """Of processor time, so that others who want this core do not count; of one call, on average over so many."""
    began = time.process_time()
    for _ in range(count):
        action()
    return (time.process_time() - began) / count


def _photos() -> Iterator[tuple[np.ndarray, tuple[Object, ...]]]:
    """The demo's photographs and objects, at one size."""
    for line in (DEMO / "photos.jsonl").read_bytes().splitlines():
        record = parse_record(line, Where("photos.jsonl"))
        with Image.open(DEMO / str(record.images[0])) as image:
            x, y = WIDTH / image.width, HEIGHT / image.height
            pixels = np.array(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))
        moved = (Object(item.desc, item.kind, tuple((x * a, y * b) for a, b in item.points)) for item in record.objects)
        yield pixels, tuple(moved)


@contextmanager
def _one_core() -> Iterator[None]:
    """Everything on one core, in one thread."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, cores)


OPS: list[tuple[str, dict[str, Any]] | list[tuple[str, dict[str, Any]]]] = [
    ("hflip", {}),
    ("vflip", {}),
    ("rotate", {"max_deg": 5.0}),
    ("scale", {"lo": 0.9, "hi": 1.1}),
    ("resize_by_scale", {"lo": 0.8, "hi": 1.2}),
    ("random_crop", {"min_objects": 0, "min_coverage": 0.0, "skip_if_line": False}),
    ("pad_to_multiple", {"multiple": 32}),
    [("rotate", {"max_deg": 5.0}), ("expand_to_fit_affine", {"multiple": 32})],
    ("color_jitter", {"brightness": [0.7, 1.3], "contrast": [0.7, 1.3], "saturation": [0.7, 1.3]}),
    ("gamma", {"gamma": [0.7, 1.4]}),
    ("hsv", {"hue": [-10.0, 10.0], "saturation": [0.9, 1.1], "value": [0.9, 1.1]}),
    ("clahe", {"clip_limit": [1.0, 3.0], "tile_grid_size": [8, 8]}),
    ("auto_contrast", {}),
    ("sharpness", {"factor": [0.5, 1.5]}),
]


def _listed(row: Any) -> list[dict[str, Any]]:
    return [_always({"name": name, "params": params}) for name, params in (row if isinstance(row, list) else [row])]


def _always(op: dict[str, Any]) -> dict[str, Any]:
    """An operation that chance does not leave out."""
    params = dict(op.get("params", {}))
    if op["name"] not in ("pad_to_multiple", "expand_to_fit_affine"):
        params["prob"] = 1.0
    return {"name": op["name"], "params": params}


def _label(ops: list[dict[str, Any]]) -> str:
    return ", ".join(str(op["name"]) for op in ops)


def _after(ops: list[dict[str, Any]], table: dict[str, Callable[[dict[str, Any]], Change]]) -> Change | None:
    """All operations in their order; None for CLAHE alone, which the others do not have."""
    if [op["name"] for op in ops] == ["clahe"]:
        return None
    changes = [table[op["name"]](op["params"]) for op in ops]

    def change(image: Any, draw: Draw) -> Any:
        for one in changes:
            image = one(image, draw)
        return image

    return change


def _multiple(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _part(height: int, width: int, draw: Draw) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part like random_crop's."""
    area, ratio = draw(0.6, 1.0) * height * width, draw(0.8, 1.25)
    down, across = min(round((area / ratio) ** 0.5), height), min(round((area * ratio) ** 0.5), width)
    return round(draw(0, height - down)), round(draw(0, width - across)), down, across


def _resized(height: int, width: int, draw: Draw) -> list[int]:
    factor = draw(0.8, 1.2)
    return [round(side * factor / 32) * 32 for side in (height, width)]


def _tv_rotate(params: dict[str, Any]) -> Change:
    most = params["max_deg"]
    return lambda image, draw: tv.rotate(image, draw(-most, most), fill=[GREY] * 3, **BILINEAR)


def _tv_scale(params: dict[str, Any]) -> Change:
    span = params["lo"], params["hi"]
    return lambda image, draw: tv.affine(image, 0.0, [0, 0], draw(*span), [0.0, 0.0], fill=[GREY] * 3, **BILINEAR)


def _tv_pad(params: dict[str, Any]) -> Change:
    def change(image: torch.Tensor, draw: Draw) -> torch.Tensor:
        height, width = image.shape[-2:]
        beside, below = (_multiple(side, params["multiple"]) - side for side in (width, height))
        return tv.pad(image, [0, 0, beside, below], fill=GREY)

    return change


def _tv_color_jitter(params: dict[str, Any]) -> Change:
    def change(image: torch.Tensor, draw: Draw) -> torch.Tensor:
        image = tv.adjust_brightness(image, draw(*params["brightness"]))
        image = tv.adjust_contrast(image, draw(*params["contrast"]))
        return tv.adjust_saturation(image, draw(*params["saturation"]))

    return change


def _tv_hsv(params: dict[str, Any]) -> Change:
    def change(image: torch.Tensor, draw: Draw) -> torch.Tensor:
        image = tv.adjust_hue(image, draw(*params["hue"]) / 360)
        image = tv.adjust_saturation(image, draw(*params["saturation"]))
        return tv.adjust_brightness(image, draw(*params["value"]))

    return change


TORCHVISION: dict[str, Callable[[dict[str, Any]], Change]] = {
    "hflip": lambda params: lambda image, draw: tv.horizontal_flip(image),
    "vflip": lambda params: lambda image, draw: tv.vertical_flip(image),
    "rotate": _tv_rotate,
    "scale": _tv_scale,
    "resize_by_scale": lambda params: lambda image, draw: tv.resize(image, _resized(*image.shape[-2:], draw)),
    "random_crop": lambda params: lambda image, draw: tv.crop(image, *_part(*image.shape[-2:], draw)),
    "pad_to_multiple": _tv_pad,
    # The canvas is then of the size that this turn needs.
    "expand_to_fit_affine": _tv_pad,
    "color_jitter": _tv_color_jitter,
    "gamma": lambda params: lambda image, draw: tv.adjust_gamma(image, draw(*params["gamma"])),
    "hsv": _tv_hsv,
    "clahe": lambda params: lambda image, draw: tv.equalize(image),
    "auto_contrast": lambda params: lambda image, draw: tv.autocontrast(image),
    "sharpness": lambda params: lambda image, draw: tv.adjust_sharpness(image, draw(*params["factor"])),
}
"""The nearest in torchvision.transforms.v2.functional, by the name of our operation."""


def _pil_scale(params: dict[str, Any]) -> Change:
    def change(image: Image.Image, draw: Draw) -> Image.Image:
        inverse = 1.0 / draw(params["lo"], params["hi"])
        x, y = ((1.0 - inverse) * side / 2 for side in image.size)
        how, at = Image.Transform.AFFINE, (inverse, 0.0, x, 0.0, inverse, y)
        return image.transform(image.size, how, at, Image.Resampling.BILINEAR, fillcolor=(GREY,) * 3)

    return change


def _pil_rotate(params: dict[str, Any]) -> Change:
    most, how = params["max_deg"], Image.Resampling.BILINEAR
    return lambda image, draw: image.rotate(draw(-most, most), how, fillcolor=(GREY,) * 3)


def _pil_resize(image: Image.Image, draw: Draw) -> Image.Image:
    height, width = _resized(image.height, image.width, draw)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _pil_crop(image: Image.Image, draw: Draw) -> Image.Image:
    top, left, height, width = _part(image.height, image.width, draw)
    return image.crop((left, top, left + width, top + height))


def _pil_pad(params: dict[str, Any]) -> Change:
    def change(image: Image.Image, draw: Draw) -> Image.Image:
        width, height = (_multiple(side, params["multiple"]) for side in image.size)
        return ImageOps.expand(image, (0, 0, width - image.width, height - image.height), (GREY,) * 3)

    return change


def _pil_color_jitter(params: dict[str, Any]) -> Change:
    def change(image: Image.Image, draw: Draw) -> Image.Image:
        image = ImageEnhance.Brightness(image).enhance(draw(*params["brightness"]))
        image = ImageEnhance.Contrast(image).enhance(draw(*params["contrast"]))
        return ImageEnhance.Color(image).enhance(draw(*params["saturation"]))

    return change


def _pil_gamma(params: dict[str, Any]) -> Change:
    def change(image: Image.Image, draw: Draw) -> Image.Image:
        power = draw(*params["gamma"])
        return image.point([round(255 * (value / 255) ** power) for value in range(256)] * 3)

    return change


def _pil_hsv(params: dict[str, Any]) -> Change:
    def change(image: Image.Image, draw: Draw) -> Image.Image:
        turn = round(draw(*params["hue"]) * 256 / 360)
        curve = [(value + turn) % 256 for value in range(256)]
        for key in ("saturation", "value"):
            factor = draw(*params[key])
            curve += [min(round(value * factor), 255) for value in range(256)]
        return image.convert("HSV").point(curve).convert("RGB")

    return change


PIL: dict[str, Callable[[dict[str, Any]], Change]] = {
    "hflip": lambda params: lambda image, draw: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "vflip": lambda params: lambda image, draw: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "rotate": _pil_rotate,
    "scale": _pil_scale,
    "resize_by_scale": lambda params: _pil_resize,
    "random_crop": lambda params: _pil_crop,
    "pad_to_multiple": _pil_pad,
    "expand_to_fit_affine": _pil_pad,
    "color_jitter": _pil_color_jitter,
    "gamma": _pil_gamma,
    "hsv": _pil_hsv,
    "clahe": lambda params: lambda image, draw: ImageOps.equalize(image),
    "auto_contrast": lambda params: lambda image, draw: ImageOps.autocontrast(image),
    "sharpness": lambda params: lambda image, draw: ImageEnhance.Sharpness(image).enhance(draw(*params["factor"])),
}
"""The nearest in PIL, by the name of our operation."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    print("\n".join(measure(parser.parse_args().quick)))


if __name__ == "__main__":
    main()
