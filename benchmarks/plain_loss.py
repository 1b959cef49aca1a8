"""Cross entropy and JSD as one would write them first: full logits in fp32, autograd. What fast paths are held to.

The divergence of near equals is a small difference of large numbers, so its part is computed in float64. Label
positions are taken in slices, since all logits of a batch would not fit; each slice is plain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORE = -100
SLICE_POSITIONS = 256


@dataclass(frozen=True, slots=True)
class PlainLoss:
    """The loss, and its gradient in the hidden states."""

    loss: float
    hidden_gradient: Tensor
    """[N, H], fp32."""


def plain_loss(
    hidden_NH: Tensor,
    labels_N: Tensor,
    head_VH: Tensor,
    teacher_hidden_NH: Tensor | None = None,
    *,
    beta: float = 0.5,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
) -> PlainLoss:
    """Mean over label positions of ce_weight · CE + kd_weight · JSD_β, where 0 < β < 1, student and teacher
    having the same head; JSD alone with ce_weight 0, CE alone without a teacher. Labels are shifted already."""
    torch.set_float32_matmul_precision("highest")
    gradient_NH = torch.zeros(hidden_NH.shape, dtype=torch.float32, device=hidden_NH.device)
    total = 0.0
    positions = (labels_N != IGNORE).nonzero().squeeze(-1)
    with torch.enable_grad(), torch.autocast(hidden_NH.device.type, enabled=False):
        head = head_VH.detach().float()
        for chosen in positions.split(SLICE_POSITIONS):
            hidden = hidden_NH.detach()[chosen].float().requires_grad_()
            logits = hidden @ head.T
            loss = ce_weight * cross_entropy(logits, labels_N[chosen], reduction="sum")
            if teacher_hidden_NH is not None:
                taught = teacher_hidden_NH.detach()[chosen].float() @ head.T
                loss = loss + kd_weight * jsd(logits.double().log_softmax(-1), taught.double().log_softmax(-1), beta)
            loss = loss / len(positions)
            (gradient_NH[chosen],) = torch.autograd.grad(loss, hidden)
            total += float(loss.detach())
    return PlainLoss(total, gradient_NH)


def jsd(logq_NV: Tensor, logp_NV: Tensor, beta: float) -> Tensor:
    """β · KL(p‖m) + (1−β) · KL(q‖m) with m = β · p + (1−β) · q, summed over positions. q: the student's."""
    logm_NV = torch.logaddexp(logp_NV + math.log(beta), logq_NV + math.log1p(-beta))
    return beta * (logp_NV.exp() * (logp_NV - logm_NV)).sum() + (1 - beta) * (logq_NV.exp() * (logq_NV - logm_NV)).sum()


def relative(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ ÷ ‖reference‖."""
    return float((value.float() - reference.float()).norm() / reference.float().norm())
