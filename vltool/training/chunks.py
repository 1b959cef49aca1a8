"""The loss of one chunk of label positions, in plain torch; kernels hold themselves against it.

Suffixes: C positions of a chunk, H hidden size, V vocabulary, K of a truncated teacher's tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_MAX_EXPONENT = 80.0
"""Largest x at which exp(x) is far from fp32's limit."""
_LEAST_MASS = 1e-12
"""Of what a truncated teacher leaves to other tokens: rounding may leave less than nothing."""


class TopK(NamedTuple):
    """What is known of a truncated teacher at N positions: log p of K different tokens, at the loss's temperature."""

    logprobs_NK: Tensor
    ids_NK: Tensor
    tail_N: Tensor | None = None
    """log p of all other tokens together. Without it, it is what the K leave of 1, which fp32 knows to 1e-7."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all chunks."""

    beta: float
    temperature: float
    ce_weight: float
    kd_weight: float


@dataclass(frozen=True, slots=True)
class Teacher:
    """Hidden states [N, H] and head [V, H], or what a truncated one knows, or nothing."""

    hidden: Tensor | None = None
    head: Tensor | None = None
    topk: TopK | None = None

    def at(self, rows: slice | Tensor) -> Teacher:
        """The same at some positions, without gradient."""

        def chosen(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach()[rows]

        topk = self.topk
        if topk is not None:
            topk = TopK(topk.logprobs_NK[rows], topk.ids_NK[rows], chosen(topk.tail_N))
        return Teacher(chosen(self.hidden), self.head, topk)

    def logits(self) -> Tensor | None:
        """Its logits [C, V] in the head's dtype; None for one that is truncated, or none."""
        return None if self.hidden is None or self.head is None else logits_of(self.hidden, self.head)


def logits_of(hidden_CH: Tensor, head_VH: Tensor) -> Tensor:
    """Logits [C, V], product and result in the head's dtype."""
    return hidden_CH.to(head_VH.dtype) @ head_VH.T


def eager_chunk(
    logits_CV: Tensor,
    labels_C: Tensor,
    teacher: Teacher,
    ce_mask_C: Tensor | None,
    denominator: Tensor,
    settings: Settings,
    *,
    wants_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """ce, kd, entropy and correct [C, 4] in float64, and the gradient of the loss by the logits, in their dtype.

    The loss is (ce_weight·ce + kd_weight·kd) ÷ denominator; the values are neither weighted nor divided.
    Computed in fp32 (fp64 for fp64 logits).
    """
    dtype = logits_CV.dtype
    if dtype != torch.float64:
        logits_CV = logits_CV.float()
    logprobs_CV = logits_CV.log_softmax(-1)
    probs_CV = logprobs_CV.exp()
    ce_C = -logprobs_CV.gather(-1, labels_C[:, None]).squeeze(-1)
    weight_C = torch.full_like(ce_C, settings.ce_weight)
    if ce_mask_C is not None:
        ce_C = ce_C.masked_fill(~ce_mask_C, 0.0)
        weight_C = weight_C.masked_fill(~ce_mask_C, 0.0)
    entropy_C = -(probs_CV * logprobs_CV).sum(-1)
    correct_C = logits_CV.argmax(-1) == labels_C

    kd_C = torch.zeros_like(ce_C)
    kd_grad_CV = None
    tau = settings.temperature
    teacher_logits_CV = teacher.logits()
    if teacher_logits_CV is not None or teacher.topk is not None:
        student_CV = logprobs_CV if tau == 1.0 else (logits_CV / tau).log_softmax(-1)
        if teacher_logits_CV is not None:
            teacher_CV = teacher_logits_CV.to(logits_CV.dtype)
            teacher_CV = (teacher_CV if tau == 1.0 else teacher_CV / tau).log_softmax(-1)
            kd_C, kd_grad_CV = divergence(student_CV, teacher_CV, settings.beta)
        else:
            assert teacher.topk is not None
            kd_C, kd_grad_CV = _truncated(student_CV, teacher.topk, settings.beta)
        kd_grad_CV = kd_grad_CV.div_(tau)

    values_C4 = torch.stack((ce_C, kd_C, entropy_C, correct_C.to(ce_C.dtype)), dim=1).double()
    if not wants_grad:
        return values_C4, None
    grad_CV = probs_CV * weight_C[:, None]
    grad_CV.scatter_add_(-1, labels_C[:, None], -weight_C[:, None])
    if kd_grad_CV is not None:
        grad_CV.add_(kd_grad_CV, alpha=settings.kd_weight)
    return values_C4, (grad_CV / denominator).to(dtype)


def divergence(logq_CV: Tensor, logp_CV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Divergence of student q from teacher p per position, and its gradient by the logits of q.

    Everything is a function of d = log p − log q, so that equal distributions give an exact zero. Through
    softmax, a derivative g by q becomes q·(g − Σ q·g) by its logits.
    """
    d_CV = logp_CV - logq_CV
    q_CV = logq_CV.exp()
    if beta == 0.0:
        # KL(p‖q); by the logits: q − p.
        p_CV = logp_CV.exp()
        return (p_CV * d_CV).sum(-1), q_CV - p_CV
    if beta == 1.0:
        # KL(q‖p); by q: −d, up to a constant, and Σ q·d is −KL itself.
        kl_C = -(q_CV * d_CV).sum(-1)
        return kl_C, d_CV.neg_().sub_(kl_C[:, None]).mul_(q_CV)
    # log(m/q) = log(1 + β(p/q − 1)); where p/q would overflow, log β + d, to which this comes down as well.
    bounded_CV = d_CV.clamp(max=_MAX_EXPONENT)
    log_mq_CV = torch.log1p(torch.expm1(bounded_CV).mul_(beta)).add_(d_CV - bounded_CV)
    kl_pm_C = d_CV.sub_(log_mq_CV).mul_(logp_CV.exp()).sum(-1)
    kl_qm_C = -(q_CV * log_mq_CV).sum(-1)
    # By q, the terms of KL(p‖m) and of m inside KL(q‖m) add up to a constant: (1−β)·log(q/m) is left.
    grad_CV = log_mq_CV.add_(kl_qm_C[:, None]).mul_(q_CV).mul_(beta - 1)
    return beta * kl_pm_C + (1 - beta) * kl_qm_C, grad_CV


def log_tail(topk: TopK, dtype: torch.dtype) -> Tensor:
    """log p [C, 1] of all tokens but the K."""
    if topk.tail_N is not None:
        return topk.tail_N[:, None].to(dtype)
    # What is left of 1, which fp32 would round away.
    mass_C1 = topk.logprobs_NK.double().exp().sum(-1, keepdim=True)
    return (1 - mass_C1).clamp(min=_LEAST_MASS).log().to(dtype)


def _truncated(logq_CV: Tensor, topk: TopK, beta: float) -> tuple[Tensor, Tensor]:
    """As `divergence`, from a teacher of whom K tokens are known, all others being one category."""
    ids_CK, logp_CK = topk.ids_NK, topk.logprobs_NK.to(logq_CV.dtype)
    known_CK = logq_CV.gather(-1, ids_CK)
    if ids_CK.shape[-1] == logq_CV.shape[-1]:
        kd_C, grad_CK = divergence(known_CK, logp_CK, beta)
        return kd_C, torch.zeros_like(logq_CV).scatter_(-1, ids_CK, grad_CK)
    others_CV = logq_CV.scatter(-1, ids_CK, -math.inf)
    logq_tail_C1 = others_CV.logsumexp(-1, keepdim=True)
    kd_C, grad_CD = divergence(
        torch.cat((known_CK, logq_tail_C1), -1), torch.cat((logp_CK, log_tail(topk, logq_CV.dtype)), -1), beta
    )
    # A category's gradient is spread over its tokens as its probability is.
    grad_CV = (others_CV - logq_tail_C1).exp_().mul_(grad_CD[:, -1:])
    return kd_C, grad_CV.scatter_(-1, ids_CK, grad_CD[:, :-1])
