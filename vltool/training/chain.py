"""Puts an earlier stage's weights into this stage's adapter, frozen where this stage does not train them.

One adapter over one base then holds both stages, and disabling it is the base, which is the teacher.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor, nn

from vltool.checkpoint.architecture import Tower, in_adapter, plain_name, tower_of
from vltool.checkpoint.census import ADAPTER_WEIGHTS
from vltool.errors import RunFailed
from vltool.recipe.tuner_rules import NO_TARGETS
from vltool.run.arguments import TunerPlan, named_in, own_regex
from vltool.run.chain import ChainPlan
from vltool.run.evidence import CarriedRow

_ADAPTER = "default"


def carry(model: Any, tuner: TunerPlan) -> list[CarriedRow]:
    """Load the earlier stage that `tuner.carried` names into a model whose own adapter was just prepared.

    A smaller rank is padded: further rows of A stay random, their columns of B are zero. B takes the ratio
    of the two scalings. A module that was tuned in full keeps its copy; one that is tuned in full now gets
    the earlier LoRA folded into its copy. Returns what was carried, by tower.
    Raises RunFailed for weights that found no place.
    """
    plan = tuner.carried
    assert plan is not None
    weights = {
        _stored_name(name): tensor for name, tensor in load_file(Path(plan.checkpoint) / ADAPTER_WEIGHTS).items()
    }
    rows: dict[Tower, CarriedRow] = {}
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            plain = plain_name(name + ".").rstrip(".")
            if isinstance(module, LoraLayer) and f"{plain}.lora_A.weight" in weights:
                _load_factors(module, plain, weights, plan)
                _row(rows, plain).adapted += 1
            elif isinstance(module, ModulesToSaveWrapper):
                copy = module.modules_to_save[_ADAPTER]
                if plain in plan.saved:
                    copy.load_state_dict(_taken(weights, plain))
                    _row(rows, plain).copied += 1
                _row(rows, plain).folded += _fold(copy, plain, weights, plan)
    if weights:
        left = ", ".join(sorted(weights)[:3])
        raise RunFailed(
            f"the earlier stage's {left} found no place in this stage's adapter", "report this with plan.json"
        )
    hold(model, tuner)
    return [row for row in rows.values() if row.adapted or row.copied or row.folded]


def hold(model: Any, tuner: TunerPlan) -> None:
    """Freeze what is carried and not trained: peft trains all of an adapter, whenever it is switched on."""
    if tuner.carried is None:
        return
    own = own_regex(tuner)
    for name, parameter in model.named_parameters():
        if in_adapter(name) and ".modules_to_save." not in name:
            module = plain_name(re.split(r"\.lora_", name)[0] + ".").rstrip(".")
            parameter.requires_grad_(own not in NO_TARGETS and re.fullmatch(own, module) is not None)
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            plain = plain_name(name + ".").rstrip(".")
            saved = any(named_in(plain, wanted) for wanted in tuner.modules_to_save)
            module.modules_to_save[_ADAPTER].requires_grad_(saved or _reaches_into(own, module, plain))


def _reaches_into(own: str, wrapper: nn.Module, top: str) -> bool:
    """Whether this stage's targets reach into a module that an earlier stage tuned in full: it goes on in full."""
    inside = (plain_name(f"{top}.{name}") for name, part in wrapper.named_modules() if isinstance(part, nn.Linear))
    return own not in NO_TARGETS and any(re.fullmatch(own, name) for name in inside)


def _load_factors(module: LoraLayer, plain: str, weights: dict[str, Tensor], plan: ChainPlan) -> None:
    ratio = plan.scaling / module.scaling[_ADAPTER]
    down_RI, up_OR = weights.pop(f"{plain}.lora_A.weight"), weights.pop(f"{plain}.lora_B.weight")
    module.lora_A[_ADAPTER].weight[: plan.rank].copy_(down_RI)
    module.lora_B[_ADAPTER].weight.zero_()
    module.lora_B[_ADAPTER].weight[:, : plan.rank].copy_(up_OR * ratio)
    if (magnitude := weights.pop(f"{plain}.lora_magnitude_vector", None)) is not None:
        module.lora_magnitude_vector[_ADAPTER].weight.copy_(magnitude)


def _fold(copy: nn.Module, top: str, weights: dict[str, Tensor], plan: ChainPlan) -> int:
    """Add the earlier LoRA of the linear modules of a copy to their weights; returns how many."""
    folded = 0
    for name, linear in copy.named_modules():
        plain = f"{top}.{name}" if name else top
        if f"{plain}.lora_A.weight" in weights:
            assert isinstance(linear, nn.Linear)
            down_RI, up_OR = weights.pop(f"{plain}.lora_A.weight"), weights.pop(f"{plain}.lora_B.weight")
            linear.weight += (plan.scaling * (up_OR.float() @ down_RI.float())).to(linear.weight)
            folded += 1
    return folded


def _taken(weights: dict[str, Tensor], top: str) -> dict[str, Tensor]:
    names = [name for name in weights if name.startswith(f"{top}.") and ".lora_" not in name]
    return {name.removeprefix(f"{top}."): weights.pop(name) for name in names}


def _stored_name(name: str) -> str:
    """The name of a tensor in an adapter's file, in the base's terms."""
    return plain_name(name).replace(f".{_ADAPTER}.", ".")


def _row(rows: dict[Tower, CarriedRow], name: str) -> CarriedRow:
    tower = tower_of(name)
    return rows.setdefault(tower, CarriedRow(tower=tower))
