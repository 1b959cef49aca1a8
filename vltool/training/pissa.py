"""PiSSA's checkpoints: a plain LoRA over the recipe's base, although training moved the base's own weights.

PiSSA splits a weight W into its largest singular vectors and a frozen rest: W = R + s·B₀A₀. Training turns
B₀A₀ into BA, which over W is s·(BA − B₀A₀) = s·[B, −B₀][A; A₀], a LoRA of twice the rank.
Source: Meng et al. (2404.02948); peft's own conversion (`subtract_mutated_init`) is the same, but leaves out
the copies of `modules_to_save` and DoRA's magnitudes.

Suffixes: R rank, I inputs, O outputs of a linear module.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from vltool.checkpoint.census import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from vltool.errors import InvalidInput
from vltool.run.evidence import to_json

_ADAPTER = "default"


def start_factors(model: Any) -> dict[str, Tensor]:
    """Copies of the factors that a prepared model starts from, by their names in a checkpoint; none without PiSSA."""
    if not _is_pissa(model):
        return {}
    return {
        f"{name}.{part}.weight": getattr(module, part)[_ADAPTER].weight.detach().cpu().clone()
        for name, module in _layers(model)
        for part in ("lora_A", "lora_B")
    }


def make_plain(folder: Path, started: dict[str, Tensor]) -> None:
    """Rewrite an adapter just saved in `folder`, from R to W as its base. started: as `start_factors` gave them."""
    config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    rank, rank_rule = config["r"], math.sqrt if config["use_rslora"] else float
    weights = load_file(folder / ADAPTER_WEIGHTS)
    for name, first in started.items():
        axis = 0 if ".lora_A." in name else 1
        trained, first = _padded(weights[name], rank, axis), _padded(first, rank, axis)
        weights[name] = torch.cat((trained, first if axis == 0 else -first), dim=axis)
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    alpha = config["lora_alpha"] * rank_rule(2)
    config |= {"r": 2 * rank, "lora_alpha": int(alpha) if alpha.is_integer() else alpha, "init_lora_weights": True}
    (folder / ADAPTER_CONFIG).write_bytes(to_json(config))


def take_up(model: Any, checkpoint: Path, *, at: str | None) -> None:
    """Put a freshly prepared PiSSA model on the rest R from which the run of `checkpoint` started.

    The decomposition may come out otherwise now: on another device, or drawn at random (`pissa_niter_N`).
    at: the place of `init_weights` in the recipe. Does nothing without PiSSA.
    Raises InvalidInput for a checkpoint that `make_plain` did not write for this adapter.
    """
    if not _is_pissa(model):
        return
    weights = load_file(checkpoint / ADAPTER_WEIGHTS)
    rank = json.loads((checkpoint / ADAPTER_CONFIG).read_bytes()).get("r")
    if rank != 2 * model.peft_config[_ADAPTER].r or any(f"{n}.lora_A.weight" not in weights for n, _ in _layers(model)):
        raise InvalidInput(
            f"{at}: " * bool(at) + f"{checkpoint} is no checkpoint of a PiSSA run with these targets and this rank",
            "go on with the recipe that the run was started with",
        )
    with torch.no_grad():
        for name, module in _layers(model):
            down_RI, up_OR = module.lora_A[_ADAPTER].weight, module.lora_B[_ADAPTER].weight
            first_RI = weights[f"{name}.lora_A.weight"][rank // 2 :][: len(down_RI)].to(down_RI)
            first_OR = -weights[f"{name}.lora_B.weight"][:, rank // 2 :][:, : len(down_RI)].to(up_OR)
            if torch.equal(first_RI, down_RI) and torch.equal(first_OR, up_OR):
                continue
            rest_OI = module.get_base_layer().weight
            moved_OI = up_OR @ down_RI - first_OR @ first_RI
            rest_OI.copy_((rest_OI.float() + module.scaling[_ADAPTER] * moved_OI).to(rest_OI))
            down_RI.copy_(first_RI)
            up_OR.copy_(first_OR)


def load_trained(model: Any, checkpoint: Path, started: dict[str, Tensor]) -> None:
    """Load what a PiSSA run had trained by `checkpoint` into its model, which `take_up` has prepared."""
    weights = load_file(checkpoint / ADAPTER_WEIGHTS)
    for name, first in started.items():
        weights[name] = weights[name][: first.shape[0], : first.shape[1]].contiguous()
    set_peft_model_state_dict(model, weights)


def _is_pissa(model: Any) -> bool:
    config = getattr(model, "peft_config", {}).get(_ADAPTER)
    return str(getattr(config, "init_lora_weights", None)).startswith("pissa")


def _layers(model: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _padded(factor: Tensor, rank: int, axis: int) -> Tensor:
    """A factor with zeros up to the rank: a module narrower than it has only as many singular vectors."""
    missing = list(factor.shape)
    missing[axis] = rank - factor.shape[axis]
    return torch.cat((factor, factor.new_zeros(missing)), dim=axis)
