"""A base's headers and a plan's tuner -> of every tensor, whether it trains, is copied, or bears an adapter.

Reads no tensor. The one place that works out what a plan trains: the table of trainable parameters, the memory plan
and the rules on recipes all take it from here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltool.checkpoint.architecture import Tower, read_architecture, tower_of
from vltool.checkpoint.census import take_census
from vltool.recipe.tuner_rules import NO_TARGETS
from vltool.run.arguments import TunerPlan, named_in, own_regex, union_regex, value_of

HEAD = "lm_head.weight"
_EMBEDDING = "model.language_model.embed_tokens.weight"
_BLOCK = re.compile(r"visual\.blocks\.(\d+)\.")
_NOT_LINEAR = ("embed_tokens", "pos_embed")
_ROUTER = re.compile(r"\.mlp\.gate$")
"""The gate of a mixture of experts, a module of its own kind."""
_LORAS = ("lora", "adalora")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of the base and what the plan does with it."""

    name: str
    """Of the checkpoint."""
    shape: tuple[int, ...]
    trained: bool
    copied: bool
    """Whether it is trained as a copy beside the base's own (`modules_to_save`)."""
    kept: bool = False
    """Whether there is a copy that an earlier stage trained, and that stays as it is."""
    shared: bool = False
    """Whether it is the embedding once more, as a head: nothing of its own in memory."""
    rank: int = 0
    """Of the adapter on it; 0 for none, and for adapters that have no rank."""
    adapter_size: int = 0
    """Elements that the adapter on it adds and can train; 0 for none."""
    fixed: int = 0
    """Elements that stand beside it and never train: an adapter's counters, a copy that is copied again."""
    adapter_trained: bool = False

    @property
    def module(self) -> str:
        """The module that holds it."""
        return self.name.rpartition(".")[0]

    @property
    def elements(self) -> int:
        """Elements of it, or of a copy of it."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Elements that the base has of it in memory."""
        return 0 if self.shared else self.elements

    @property
    def tower(self) -> Tower:
        """The tower it belongs to."""
        return tower_of(self.name)

    @property
    def linear(self) -> bool:
        """Whether it is the matrix of a linear layer."""
        return len(self.shape) == 2 and self.module.rpartition(".")[2] not in _NOT_LINEAR

    @property
    def learns(self) -> bool:
        """Whether a gradient is made for it or its adapter."""
        return self.trained or self.copied or (self.adapter_size > 0 and self.adapter_trained)


def read_weights(folder: Path, tuner: TunerPlan, arguments: Mapping[str, Any]) -> tuple[Weight, ...]:
    """All tensors of the base in `folder`, and the head where it is the embedding, and what a plan does with them.

    arguments: ms-swift's, of which the adapter's sizes are read. Raises InvalidInput for a folder that is no
    Qwen3-VL's (as `read_architecture`); InvalidInput and BadContent for one without whole weights (as `take_census`).
    """
    tied = read_architecture(folder).tied_head
    shapes = {name: info.shape for name, info in take_census(folder).tensors.items()}
    if tied and _EMBEDDING in shapes:
        shapes[HEAD] = shapes[_EMBEDDING]
    how = _Tuning(tuner, arguments, {name.rpartition(".")[0] for name in shapes})
    return tuple(how.weight(name, shape, shared=tied and name == HEAD) for name, shape in shapes.items())


class _Tuning:
    """A tuner's settings, by which tensors are told apart."""

    def __init__(self, tuner: TunerPlan, arguments: Mapping[str, Any], modules: set[str]) -> None:
        """modules: all of the base that hold tensors."""
        self._tuner, self._arguments = tuner, arguments
        self._full = tuner.tuner_type == "full"
        self._own = NO_TARGETS[0] if self._full else own_regex(tuner)
        carried = tuner.carried
        self._adapted = self._own if carried is None else union_regex(tuner, carried)
        saved = () if self._full else tuner.modules_to_save
        # A module that an earlier stage tuned in full goes on in full where this stage's targets reach into it.
        self._goes_on = tuple(
            top
            for top in (carried.saved if carried else ())
            if any(named_in(module, top) and _fits(self._own, module) for module in modules)
        )
        self._copied = (*saved, *self._goes_on)
        self._kept = () if carried is None else tuple(top for top in carried.saved if top not in self._goes_on)

    def weight(self, name: str, shape: tuple[int, ...], *, shared: bool) -> Weight:
        """What is done with a tensor."""
        module = name.rpartition(".")[0]
        copied = any(named_in(module, top) for top in self._copied)
        kept = not copied and any(named_in(module, top) for top in self._kept)
        size = fixed = 0
        if not copied and not kept and name.endswith(".weight") and _fits(self._adapted, module):
            size, fixed = self._adapter(shape, embedding=module.endswith(_NOT_LINEAR))
        elif copied:
            # A saved module inside a saved module: of the outer copy's part there is a copy again.
            fixed = (_saved_around(module, self._copied) - 1) * math.prod(shape)
        return Weight(
            name=name,
            shape=shape,
            trained=self._full and not shared and _trains(self._tuner, name),
            copied=copied,
            kept=kept,
            shared=shared,
            rank=self.rank if size and self._tuner.tuner_type in _LORAS else 0,
            adapter_size=size,
            fixed=fixed,
            adapter_trained=size > 0 and _fits(self._own, module),
        )

    @property
    def rank(self) -> int:
        """The adapter's at its start."""
        return int(value_of(self._arguments, "adalora_init_r" if self._tuner.tuner_type == "adalora" else "lora_rank"))

    def _adapter(self, shape: tuple[int, ...], *, embedding: bool) -> tuple[int, int]:
        """Elements of an adapter on a weight of this shape, output first: those that train, those that never do.

        Source: `update_layer` of peft 0.20's tuners/{lora,adalora,boft,fourierft}/layer.py; for PiSSA, `pissa_init`
        in the first of them, which keeps no more singular vectors than there are.
        """
        if len(shape) < 2:
            return 0, 0
        wide, reads = shape[0], math.prod(shape[1:])
        kind = self._tuner.tuner_type
        if kind == "lora":
            pissa = str(value_of(self._arguments, "init_weights")).startswith("pissa")
            rank = min(self.rank, wide, reads) if pissa else self.rank
            magnitudes = (reads if embedding else wide) if value_of(self._arguments, "use_dora") else 0
            return rank * (reads + wide) + magnitudes, 0
        if kind == "adalora":
            # A singular value for each rank; ranknum counts them.
            return self.rank * (reads + wide + 1), 1
        if kind == "boft":
            blocks, side = value_of(self._arguments, "boft_block_num"), value_of(self._arguments, "boft_block_size")
            if not side and not blocks:
                return 0, 0
            blocks, side = (reads // side, side) if side else (blocks, reads // blocks)
            return int(value_of(self._arguments, "boft_n_butterfly_factor")) * blocks * side * side + wide, 0
        return int(value_of(self._arguments, "fourier_n_frequency")), 0


def adaptable(weight: Weight, tuner_type: str) -> bool:
    """Whether an adapter of this kind can go on the module of a weight; peft refuses the others.

    Source: `dispatch_default` and `_create_new_module` of peft 0.20's tuners.
    """
    if not weight.name.endswith(".weight") or _ROUTER.search(weight.module):
        return False
    if tuner_type == "lora":
        # Convolutions and embeddings as well.
        return len(weight.shape) >= 2
    return weight.linear


def _saved_around(module: str, saved: tuple[str, ...]) -> int:
    """How many of the modules around one, itself included, are saved ones."""
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return sum(any(name.endswith(top) for top in saved) for name in names)


def _fits(pattern: str, module: str) -> bool:
    return pattern not in NO_TARGETS and re.fullmatch(pattern, module) is not None


def _trains(tuner: TunerPlan, name: str) -> bool:
    tower = tower_of(name)
    if tower == "vision":
        block = _BLOCK.search(name)
        early = tuner.frozen_vit_blocks and (block is None or int(block.group(1)) < tuner.frozen_vit_blocks)
        return not tuner.freeze_vit and not early
    return not (tuner.freeze_aligner if tower in ("aligner", "deepstack") else tuner.freeze_llm)
