"""What trains, per tower: counts it, holds it against the plan, and watches that frozen means frozen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

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
            row.frozen += parameter.numel()
            continue
        row.trainable += parameter.numel()
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

    AdaLoRA's counts of ranks are parameters by form only, and change as it moves ranks.
    """
    parameters = ((name, p) for name, p in model.named_parameters() if ".ranknum." not in name)
    chosen = [(name, p) for name, p in parameters if p.requires_grad is trainable]
    if not chosen:
        return {}
    hashes = torch.stack([torch.hash_tensor(p.detach()).cpu() for _, p in chosen])
    return dict(zip((name for name, _ in chosen), hashes.tolist(), strict=True))


class GradientAudit:
    """Follows the gradients of the first steps until every part has shown that it trains.

    `observe` is called before each optimizer step, with gradients in place. A part is a tower, or one of
    the deepstack mergers. By the first step in which it received input, some tensor of each part must have
    a finite, non-zero gradient; and by the second update at a learning rate above zero, every kind of
    tensor of it (LoRA's first factors start without one, as their partners are zero).
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts: dict[tuple[Tower, int | None], dict[str, bool]] = {}
        self._updates = 0
        self.done = False
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = (tower_of(name), deepstack_index(name))
                self._parts.setdefault(key, {}).setdefault(tensor_kind(name), False)

    def observe(self, model: nn.Module, *, saw_images: bool, learning_rate: float) -> list[tuple[Tower, str]]:
        """Look at the gradients of one step. Returns what is wrong, by tower; empty while all is well."""
        broken: list[tuple[Tower, str]] = []
        checks: list[tuple[tuple[Tower, int | None], str, str, Tensor]] = []
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            key = (tower_of(name), deepstack_index(name))
            if not parameter.requires_grad:
                broken.append((key[0], f"{plain_name(name)} is frozen, but has a gradient"))
                continue
            checks.append((key, tensor_kind(name), name, parameter.grad.detach().float().norm()))
        # One transfer for all norms: each `.item()` would wait for the device.
        norms = torch.stack([norm for *_, norm in checks]).tolist() if checks else []
        for (key, kind, name, _), value in zip(checks, norms, strict=True):
            if not math.isfinite(value):
                broken.append((key[0], f"the gradient of {plain_name(name)} is not finite"))
            elif value > 0.0:
                self._parts[key][kind] = True
        self._updates += learning_rate > 0.0
        for (tower, merger), kinds in self._parts.items():
            if tower not in ("language", "head") and not saw_images:
                continue
            part = "" if merger is None else f"merger {merger} "
            if not any(kinds.values()):
                broken.append((tower, f"{part}should train, but no gradient reaches it"))
            elif self._updates >= 2:
                broken += [(tower, f"{part}gets no gradient in its {kind}") for kind, got in kinds.items() if not got]
        shown = all(got for kinds in self._parts.values() for got in kinds.values())
        self.done = bool(broken) or (self._updates >= 2 and shown)
        return broken

    def per_tower(self) -> dict[Tower, bool]:
        """Whether each tower with trainable tensors got gradients in all of its parts."""
        result: dict[Tower, bool] = {}
        for (tower, _), kinds in self._parts.items():
            result[tower] = result.get(tower, True) and any(kinds.values())
        return result
