"""A base's config.json and headers, and what a plan trains of it -> sizes, layer by layer. Reads no tensor."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vltool.audit.towers import Text, Vision, text_of, vision_of
from vltool.audit.weights import Weight, read_weights
from vltool.checkpoint.architecture import read_architecture
from vltool.checkpoint.census import take_census
from vltool.errors import InvalidInput
from vltool.run.arguments import TunerPlan

TUNERS = ("lora", "adalora", "full")
"""Tuner kinds whose activations are known."""
_LAYER = re.compile(r"language_model\.layers\.(\d+)\.")
_BLOCK = re.compile(r"visual\.blocks\.(\d+)\.")
_MERGER = re.compile(r"visual\.merger()\.")
_DEEPSTACK = re.compile(r"visual\.deepstack_merger_list\.(\d+)\.")
_EARLY = re.compile(r"visual\.(?:patch_embed|pos_embed)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A base and what is trained of it."""

    text: Text
    vision: Vision
    weights: tuple[Weight, ...]
    layers: tuple[dict[str, Weight], ...] = field(repr=False)
    """Of each decoder layer, its tensors by name within the layer."""
    blocks: tuple[dict[str, Weight], ...] = field(repr=False)
    """Of each vision block likewise."""
    mergers: tuple[dict[str, Weight], ...] = field(repr=False)
    """Of the merger, then of each deepstack merger likewise."""

    def size(self, *, trained: bool) -> int:
        """Elements of base tensors that are trained in place, or of those that are not."""
        return sum(weight.size for weight in self.weights if weight.trained is trained)

    @property
    def copied(self) -> int:
        """Elements of trained copies of base tensors."""
        return sum(weight.elements for weight in self.weights if weight.copied)

    @property
    def adapters(self) -> int:
        """Elements of adapters that are trained."""
        return sum(weight.adapter_size for weight in self.weights if weight.adapter_trained)

    @property
    def carried(self) -> int:
        """Elements of adapters and of an earlier stage's copies that are there and stay as they are."""
        fixed = sum(weight.adapter_size for weight in self.weights if not weight.adapter_trained)
        return fixed + sum(weight.elements for weight in self.weights if weight.kept)

    @property
    def head_trained(self) -> bool:
        """Whether the language head, tied or not, is trained."""
        tied = any(weight.shared for weight in self.weights)
        names = ("lm_head.", "embed_tokens.") if tied else ("lm_head.",)
        return any(
            weight.trained or weight.copied for weight in self.weights if any(name in weight.name for name in names)
        )

    @property
    def first_trained_block(self) -> int | None:
        """The first vision block that a gradient has to reach; None where none has to."""
        if any(weight.learns for weight in self.weights if _EARLY.search(weight.name)):
            return 0
        return next((at for at, block in enumerate(self.blocks) if _learns(block)), None)

    @property
    def vision_trained(self) -> bool:
        """Whether anything in the vision tower, its mergers included, is trained."""
        return self.first_trained_block is not None or any(map(_learns, self.mergers))

    @property
    def first_trained_layer(self) -> int | None:
        """The first decoder layer that a gradient has to reach; None where none has to."""
        if self.vision_trained or any(weight.learns for weight in self.weights if "embed_tokens." in weight.name):
            return 0
        return next((at for at, layer in enumerate(self.layers) if _learns(layer)), None)


def _learns(weights: dict[str, Weight]) -> bool:
    return any(weight.learns for weight in weights.values())


def read_anatomy(folder: Path, tuner: TunerPlan, arguments: Mapping[str, Any]) -> Anatomy:
    """The base in `folder` and what a plan trains of it, from config.json and headers.

    arguments: ms-swift's, of which the adapter's rank is read. Raises InvalidInput for a config that lacks a size and
    for tuner kinds whose activations are not known; InvalidInput and BadContent for a folder without whole weights (as
    `take_census`).
    """
    if tuner.tuner_type not in TUNERS:
        raise InvalidInput(
            f"memory is planned for {', '.join(TUNERS)}, not for {tuner.tuner_type}", "start small, and watch it"
        )
    read_architecture(folder)
    config = json.loads((folder / "config.json").read_bytes())
    try:
        text, vision = text_of(config["text_config"]), vision_of(config["vision_config"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidInput(f"{folder / 'config.json'} lacks {error}, without which no memory is planned") from error
    sizes = {name: size for part in (text, vision) for name, size in asdict(part).items() if isinstance(size, int)}
    if small := [name for name, size in sizes.items() if size < 1 and name != "experts_a_token"]:
        raise InvalidInput(f"{folder / 'config.json'}: {', '.join(small)} of no size, so that no memory is planned")
    weights = read_weights(folder, tuner, arguments)
    return Anatomy(
        text=text,
        vision=vision,
        weights=weights,
        layers=_numbered(weights, _LAYER, text.layers),
        blocks=_numbered(weights, _BLOCK, vision.depth),
        mergers=(
            *_numbered(weights, _MERGER, 1),
            *_numbered(weights, _DEEPSTACK, len(vision.deepstack)),
        ),
    )


def of_teacher(folder: Path) -> int:
    """Elements of the base tensors in a folder. Raises as `take_census`."""
    return sum(math.prod(info.shape) for info in take_census(folder).tensors.values())


def _numbered(weights: tuple[Weight, ...], number: re.Pattern[str], count: int) -> tuple[dict[str, Weight], ...]:
    found: list[dict[str, Weight]] = [{} for _ in range(count)]
    for weight in weights:
        match = number.search(weight.name)
        at = int(match.group(1) or 0) if match else count
        if match and at < count:
            found[at][weight.name[match.end() :]] = weight
    return tuple(found)
