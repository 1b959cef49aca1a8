"""A base whose linear layers are packed into 4 bits by bitsandbytes, which stays frozen under an adapter (QLoRA).

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2305.14314).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


def keep_packed(model: nn.Module) -> None:
    """Leave packed weights as they are.

    On a CPU with AVX-512 bitsandbytes packs them anew at the first pass in evaluation mode, for good: no training step
    could read them then, and to an audit they would have changed.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast("Any", module).support_avx512bf16_for_cpu = False


def elements(parameter: Tensor) -> int | None:
    """Elements of a packed parameter; None for any other."""
    state = getattr(parameter, "quant_state", None)
    return None if state is None else math.prod(state.shape)


def as_words(tensor: Tensor) -> Tensor:
    """The same bits, of packed bytes as 64-bit words: torch's hash of a tensor is as wide as one of its elements."""
    if tensor.dtype != torch.uint8:
        return tensor.detach()
    flat = tensor.detach().flatten()
    return nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)


def packed_among(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Modules that hold packed weights, which no gradient changes, of those that `modules_to_save` names."""
    return [
        name
        for name, module in model.named_modules()
        if name.endswith(tuple(names)) and any(elements(parameter) is not None for parameter in module.parameters())
    ]


def settings_of(model: Any) -> dict[str, Any] | None:
    """How a model was packed, as transformers' configs say it; None for one that was not."""
    config = getattr(model.config, "quantization_config", None)
    return None if config is None else dict(config.to_dict())
