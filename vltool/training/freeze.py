"""What trains, per tower: counts it, holds it against the plan, and watches that frozen means frozen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import partial

import torch
from msgspec import Struct
from torch import Tensor, nn

from vltool.checkpoint.architecture import (
    TOWERS,
    Tower,
    deepstack_index,
    in_adapter,
    plain_name,
    tensor_kind,
    tower_of,
)
from vltool.recipe.tuner_rules import NO_TARGETS
from vltool.run.arguments import TunerPlan
from vltool.run.evidence import TowerRow
from vltool.training import quantized
from vltool.training.ranks import Ranks


class Audit(Struct, kw_only=True):
    """A table per tower and what is wrong with it."""

    rows: list[TowerRow]
    problems: list[str]


def _target_modules(model: nn.Module, tuner: TunerPlan) -> Iterable[str]:
    """Names of linear modules that the plan adapts, worked out from the plan alone."""
    for name, module in model.named_modules():
        plain = plain_name(name + ".").rstrip(".")
        if not isinstance(module, nn.Linear) or ".lora_" in name:
            continue
        if tuner.target_regex is not None:
            if tuner.target_regex not in NO_TARGETS and re.fullmatch(tuner.target_regex, plain):
                yield plain
        elif "all-linear" in tuner.target_modules:
            tower = tower_of(plain)
            frozen = {
                "vision": tuner.freeze_vit,
                "aligner": tuner.freeze_aligner,
                "deepstack": tuner.freeze_aligner,
                "language": tuner.freeze_llm,
                # ms-swift's all-linear leaves the head out.
                "head": True,
            }[tower]
            if not frozen:
                yield plain
        elif any(plain == target or plain.endswith(f".{target}") for target in tuner.target_modules):
            yield plain


def expected_towers(model: nn.Module, tuner: TunerPlan) -> set[Tower]:
    """Towers that the plan trains. A name in `modules_to_save` or a target pattern overrides a freeze flag."""
    if tuner.tuner_type == "full":
        flags: dict[Tower, bool] = {
            "vision": not tuner.freeze_vit,
            "aligner": not tuner.freeze_aligner,
            "deepstack": not tuner.freeze_aligner,
            "language": not tuner.freeze_llm,
            "head": not tuner.freeze_llm and _has_own_head(model),
        }
        return {tower for tower, trains in flags.items() if trains}
    expected = {tower_of(name) for name in _target_modules(model, tuner)}
    return expected | {tower for name in tuner.modules_to_save for tower in _towers_named(model, name)}


def _towers_named(model: nn.Module, name: str) -> set[Tower]:
    """Towers of the modules that a name in `modules_to_save` means to peft, and of those inside them."""
    plain = {plain_name(module + ".").rstrip(".") for module, _ in model.named_modules()}
    tops = {module for module in plain if module == name or module.endswith(f".{name}")}
    return {tower_of(module) for module in plain if any(f"{module}.".startswith(f"{top}.") for top in tops)}


def _has_own_head(model: nn.Module) -> bool:
    """Whether the head has a weight of its own (tied ones count as the language tower's embedding)."""
    return any(tower_of(name) == "head" for name, _ in model.named_parameters())


def audit_before(model: nn.Module, tuner: TunerPlan) -> Audit:
    """Trainable parameters per tower against the plan, before step 1.

    Finds: nothing trainable, a frozen tower that trains, a tower that should train and does not, vision
    blocks outside the last ones, a fully tuned module missing from `modules_to_save`, base weights that
    train under an adapter (which its checkpoint would not hold).
    """
    expected = expected_towers(model, tuner)
    rows = {tower: TowerRow(tower=tower, should_train=tower in expected) for tower in TOWERS}
    problems = []
    strays: dict[Tower, str] = {}
    early = re.compile(r"visual\.(?:patch_embed|pos_embed|blocks\.(\d+)\.)")
    for name, parameter in model.named_parameters():
        row = rows[tower_of(name)]
        if not parameter.requires_grad:
            row.frozen += _elements(parameter)
            continue
        row.trainable += _elements(parameter)
        if tuner.tuner_type != "full" and not in_adapter(name):
            strays.setdefault(row.tower, plain_name(name))
        block = early.search(plain_name(name))
        if tuner.frozen_vit_blocks and block and int(block.group(1) or 0) < tuner.frozen_vit_blocks:
            row.problem = f"{plain_name(name)} trains, but only the last vision blocks should"
    for tower, row in rows.items():
        if row.trainable and not row.should_train:
            row.problem = "trains, but the recipe freezes it"
        elif row.should_train and not row.trainable:
            row.problem = "should train, but nothing in it does"
        elif tower in strays:
            row.problem = f"{strays[tower]} trains outside the adapter: name it in tuner.modules_to_save"
    if not any(row.trainable for row in rows.values()):
        problems.append("nothing is trainable")
    if tuner.tuner_type != "full":
        unknown = [name for name in tuner.modules_to_save if not _towers_named(model, name)]
        problems += [f"tuner.modules_to_save: the model has no module {name}" for name in unknown]
    problems += [f"{row.tower}: {row.problem}" for row in rows.values() if row.problem]
    return Audit(rows=list(rows.values()), problems=problems)


def fingerprints(model: nn.Module, *, trainable: bool = False) -> dict[str, int]:
    """A 64-bit hash of each frozen (or trainable) parameter; equal bits give equal numbers.

    AdaLoRA's counts of ranks are parameters by form only, and change as it moves ranks. Of a parameter that
    ZeRO-3 keeps in shards, it is this process's shard.
    """
    parameters = ((name, p) for name, p in model.named_parameters() if ".ranknum." not in name)
    chosen = [(name, p) for name, p in parameters if p.requires_grad is trainable]
    if not chosen:
        return {}
    hashes = torch.stack([torch.hash_tensor(quantized.as_words(getattr(p, "ds_tensor", p))).cpu() for _, p in chosen])
    return dict(zip((name for name, _ in chosen), hashes.tolist(), strict=True))


def _elements(parameter: Tensor) -> int:
    """Elements of a parameter; ZeRO-3 leaves none in those that it keeps in shards, and their number beside."""
    packed = quantized.elements(parameter)
    return int(getattr(parameter, "ds_numel", parameter.numel())) if packed is None else packed


Part = tuple[Tower, int | None]
"""A tower, or one of the deepstack mergers by its number."""


class GradientAudit:
    """Follows the gradients of the first steps until every part has shown that it trains.

    It listens as each gradient is made, before anything averages or shards it, and `observe` is called once
    an optimizer step. By the first step in which it received input, some tensor of each part must have a
    finite, non-zero gradient on some process; and by its second update at a learning rate above zero, every
    kind of tensor of it (LoRA's first factors start without one, as their partners are zero). The towers of
    vision receive none from batches without an image.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._model = model
        self._ranks = ranks
        self._parts: dict[Part, dict[str, bool]] = {}
        self._norms: list[tuple[Part, str, str, Tensor]] = []
        self._updates: dict[Part, int] = {}
        self.done = False
        self._handles = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                part, kind = (tower_of(name), deepstack_index(name)), tensor_kind(name)
                self._parts.setdefault(part, {}).setdefault(kind, False)
                self._handles.append(parameter.register_hook(partial(self._hear, part, kind, name)))

    def _hear(self, part: Part, kind: str, name: str, gradient: Tensor) -> None:
        self._norms.append((part, kind, name, gradient.detach().float().norm()))

    def observe(self, *, saw_images: bool, learning_rate: float) -> list[tuple[Tower, str]]:
        """Judge the gradients of one step. Returns what is wrong, by tower; empty while all is well."""
        broken: list[tuple[Tower, str]] = [
            (tower_of(name), f"{plain_name(name)} is frozen, but has a gradient")
            for name, parameter in self._model.named_parameters()
            if parameter.grad is not None and not parameter.requires_grad
        ]
        # One transfer for all norms: each `.item()` would wait for the device.
        values = torch.stack([norm for *_, norm in self._norms]).tolist() if self._norms else []
        shown: set[tuple[Part, str]] = set()
        for (part, kind, name, _), value in zip(self._norms, values, strict=True):
            if not math.isfinite(value):
                broken.append((part[0], f"the gradient of {plain_name(name)} is not finite"))
            elif value > 0.0:
                shown.add((part, kind))
        self._norms.clear()
        together = self._ranks.gather((broken, shown))
        broken = list(dict.fromkeys(found for theirs, _ in together for found in theirs))
        for part, kind in set().union(*(theirs for _, theirs in together)):
            self._parts[part][kind] = True
        for part, kinds in self._parts.items():
            tower, merger = part
            if tower not in ("language", "head") and not saw_images:
                continue
            self._updates[part] = self._updates.get(part, 0) + (learning_rate > 0.0)
            name = "" if merger is None else f"merger {merger} "
            if not any(kinds.values()):
                broken.append((tower, f"{name}should train, but no gradient reaches it"))
            elif self._updates[part] >= 2:
                broken += [(tower, f"{name}gets no gradient in its {kind}") for kind, got in kinds.items() if not got]
        self.done = bool(broken) or all(map(self._shown, self._parts))
        if self.done:
            self.close()
        return broken

    def wants(self, *, saw_images: bool) -> bool:
        """Whether a step could show anything new; without an image, vision cannot. Forgets the step if not."""
        if self.done:
            return False
        wants = saw_images or not all(self._shown(part) for part in self._parts if part[0] in ("language", "head"))
        if not wants:
            self.forget()
        return wants

    def forget(self) -> None:
        """Leave the step out."""
        self._norms.clear()

    def _shown(self, part: Part) -> bool:
        return self._updates.get(part, 0) >= 2 and all(self._parts[part].values())

    def without_input(self) -> list[Tower]:
        """Towers that have received no input yet."""
        return list(dict.fromkeys(part[0] for part in self._parts if part not in self._updates))

    def close(self) -> None:
        """Listen no longer."""
        for handle in self._handles:
            handle.remove()

    def per_tower(self) -> dict[Tower, bool]:
        """Whether each tower with trainable tensors got gradients in all of its parts."""
        result: dict[Tower, bool] = {}
        for (tower, _), kinds in self._parts.items():
            result[tower] = result.get(tower, True) and any(kinds.values())
        return result
