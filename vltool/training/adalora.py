"""What AdaLoRA adds to a loss: its factors should stay orthogonal. peft adds it only to losses that it makes itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def orthogonality(model: Any) -> Tensor | None:
    """The weighted penalty of a prepared AdaLoRA model, once an optimizer step; None without AdaLoRA.

    The mean over the factors P (r × in) and Q (out × r) of ‖PPᵀ − I‖ and ‖QᵀQ − I‖ (Frobenius).
    Source: Zhang et al., "Adaptive Budget Allocation" (2303.10512), eq. 4, and peft, tuners/adalora/model.py.
    """
    config = getattr(model, "peft_config", {}).get("default")
    weight = getattr(config, "orth_reg_weight", 0.0)
    if not weight:
        return None
    penalties = []
    for name, factor in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram_RR = factor @ factor.T if ".lora_A." in name else factor.T @ factor
            penalties.append(torch.linalg.matrix_norm(gram_RR - torch.eye(len(gram_RR), device=gram_RR.device)))
    return weight * torch.stack(penalties).mean()
