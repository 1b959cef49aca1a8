"""Cross entropy and distillation divergence from hidden states, with no full logits.

Suffixes: N label positions, H hidden size, V vocabulary, K of a truncated teacher's tokens, G groups, C a chunk.

Student logits s, teacher logits t, temperature τ: p = softmax(t/τ), q = softmax(s/τ), in fp32.
β = 0: KL(p‖q); β = 1: KL(q‖p); between, with m = β·p + (1−β)·q: β·KL(p‖m) + (1−β)·KL(q‖m).
Source: Agarwal et al., "On-Policy Distillation of Language Models" (2306.13649), eq. 1; the
convention of β is that of TRL and ms-swift.

A truncated teacher knows log p of K tokens a position. It and the student become distributions over K + 1
categories, the last of which holds all other tokens: the divergence of those is at most that of the whole
ones, and equal to it for K = V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MAX_EXPONENT = 80.0
"""Largest x at which exp(x) is far from fp32's limit."""
_LEAST_MASS = 1e-12
"""Of what a truncated teacher leaves to other tokens: rounding may leave less than nothing."""
IGNORE = -100
"""Label of positions that no loss sees."""


@dataclass(frozen=True, slots=True)
class DistillationLoss:
    """The loss to differentiate, and the sums it was made of: float64 scalars on the loss's device.

    loss = (ce_weight · ce_sum + kd_weight · kd_sum) ÷ denominator; the sums themselves are unweighted.
    """

    loss: Tensor
    ce_sum: Tensor
    kd_sum: Tensor
    entropy_sum: Tensor
    """Entropy of the student's distribution (τ = 1), in nats."""
    correct: Tensor
    """Positions at which the student's likeliest token is the label."""
    tokens: Tensor
    """Positions whose label is not `IGNORE`."""
    groups: Tensor | None = None
    """[G, 5]: ce_sum, kd_sum, entropy_sum, correct and tokens of each group; None without `group_N`."""


def distillation_loss(
    student_hidden_NH: Tensor,
    labels_N: Tensor,
    student_head_VH: Tensor,
    *,
    teacher_hidden_NH: Tensor | None = None,
    teacher_head_VH: Tensor | None = None,
    teacher_topk: tuple[Tensor, Tensor] | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    ce_mask_N: Tensor | None = None,
    group_N: Tensor | None = None,
    group_count: int | None = None,
    denominator: Tensor | float | None = None,
    chunk_tokens: int = 256,
) -> DistillationLoss:
    """Cross entropy and JSD_β over label positions, in chunks of `chunk_tokens` positions.

    labels_N: int64, already shifted (labels_N[i] is the token that student_hidden_NH[i] predicts),
        `IGNORE` where no loss applies.
    student_hidden_NH, teacher_hidden_NH: last hidden states, any float dtype; the teacher's may have
        another hidden size, with its own head of the same vocabulary. Without a teacher kd_sum is 0.
    student_head_VH, teacher_head_VH: weights of the language heads; an adapted head is passed merged.
    teacher_topk: in place of those, (logprobs_NK, ids_NK): log p of K different tokens a position, at
        `temperature`. With K = V they are the whole teacher.
    ce_mask_N: bool; positions that are False are left out of the cross entropy, not of the divergence.
    group_N: int64, from 0; the sums are given for each of `group_count` groups too (by default one more than
        the largest, for which the device is waited for).
    denominator: what the sums are divided by; by default the number of label positions here. A
        training step passes the number of the whole optimizer step, so that micro-batches add up.

    Differentiable once in student_hidden_NH and, when it requires grad, in student_head_VH; gradients
    are made inside the forward chunk, so no [N, V] tensor outlives one. Without any label position the
    loss is an exact zero that is still connected to student_hidden_NH.
    Raises ValueError for a β outside [0, 1], a temperature that is not positive, shapes that differ, or two
    teachers.
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if student_hidden_NH.shape[0] != labels_N.shape[0]:
        raise ValueError(f"{student_hidden_NH.shape[0]} hidden states, but {labels_N.shape[0]} labels")
    if (teacher_hidden_NH is None) != (teacher_head_VH is None):
        raise ValueError("a teacher is its hidden states and its head: pass both or neither")
    if teacher_topk is not None and teacher_hidden_NH is not None:
        raise ValueError("a teacher is its hidden states and head, or its likeliest tokens, not both")
    if teacher_topk is not None and not (
        teacher_topk[0].shape == teacher_topk[1].shape and len(teacher_topk[0]) == labels_N.shape[0]
    ):
        shapes = f"{tuple(teacher_topk[0].shape)} log-probabilities, {tuple(teacher_topk[1].shape)} ids"
        raise ValueError(f"{shapes}, but {labels_N.shape[0]} labels")
    if teacher_hidden_NH is not None and teacher_hidden_NH.shape[0] != labels_N.shape[0]:
        raise ValueError(f"{teacher_hidden_NH.shape[0]} teacher states, but {labels_N.shape[0]} labels")
    if teacher_head_VH is not None and teacher_head_VH.shape[0] != student_head_VH.shape[0]:
        raise ValueError(
            f"the student's vocabulary has {student_head_VH.shape[0]} entries, the teacher's {teacher_head_VH.shape[0]}"
        )

    positions = (labels_N != IGNORE).nonzero().squeeze(-1)

    def chosen(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().index_select(0, positions)

    if denominator is None:
        denominator = float(max(positions.numel(), 1))
    if group_N is not None and group_count is None:
        group_count = int(group_N.max()) + 1 if group_N.numel() else 0
    settings = _Settings(beta, temperature, ce_weight, kd_weight, chunk_tokens, group_count or 0)
    known = (None, None) if teacher_topk is None else teacher_topk
    loss, sums, groups = _FusedLoss.apply(
        student_hidden_NH.index_select(0, positions),
        student_head_VH,
        labels_N.index_select(0, positions),
        _Teacher(
            hidden=chosen(teacher_hidden_NH),
            head=None if teacher_head_VH is None else teacher_head_VH.detach(),
            logprobs=chosen(known[0]),
            ids=chosen(known[1]),
        ),
        chosen(ce_mask_N),
        chosen(group_N),
        torch.as_tensor(denominator, dtype=torch.float64, device=student_hidden_NH.device),
        settings,
    )
    ce_sum, kd_sum, entropy_sum, correct = sums.unbind()
    return DistillationLoss(
        loss=loss,
        ce_sum=ce_sum,
        kd_sum=kd_sum,
        entropy_sum=entropy_sum,
        correct=correct,
        tokens=(labels_N != IGNORE).sum().double(),
        groups=None if group_N is None else groups,
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    beta: float
    temperature: float
    ce_weight: float
    kd_weight: float
    chunk_tokens: int
    group_count: int


@dataclass(frozen=True, slots=True)
class _Teacher:
    """Hidden states [N, H] and head [V, H], or log-probabilities and ids of the likeliest tokens [N, K], or nothing."""

    hidden: Tensor | None
    head: Tensor | None
    logprobs: Tensor | None
    ids: Tensor | None

    def at(self, rows: slice) -> _Teacher:
        """The same at some positions."""
        hidden, logprobs, ids = (None if t is None else t[rows] for t in (self.hidden, self.logprobs, self.ids))
        return _Teacher(hidden, self.head, logprobs, ids)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        labels_N: Tensor,
        teacher: _Teacher,
        ce_mask_N: Tensor | None,
        group_N: Tensor | None,
        denominator: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, ...]:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        # fp32 accumulation: the head's gradient is a sum over all chunks, the sums run over all tokens.
        grad_hidden_NH = torch.zeros_like(hidden_NH) if wants_hidden else None
        grad_head_VH = torch.zeros_like(head_VH, dtype=torch.float32) if wants_head else None
        sums = torch.zeros(4, dtype=torch.float64, device=hidden_NH.device)
        groups_G5 = torch.zeros(settings.group_count, 5, dtype=torch.float64, device=hidden_NH.device)

        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, hidden_NH.shape[0], settings.chunk_tokens):
                rows = slice(start, start + settings.chunk_tokens)
                values_C4, grad_logits_CV = _chunk(
                    _logits(hidden_NH[rows], head_VH),
                    labels_N[rows],
                    teacher.at(rows),
                    None if ce_mask_N is None else ce_mask_N[rows],
                    settings,
                    wants_grad=wants_hidden or wants_head,
                )
                sums += values_C4.sum(0)
                if group_N is not None:
                    groups_G5[:, :4].index_add_(0, group_N[rows], values_C4)
                    groups_G5[:, 4].index_add_(0, group_N[rows], torch.ones_like(values_C4[:, 0]))
                if grad_logits_CV is not None:
                    grad_logits_CV = (grad_logits_CV / denominator).to(head_VH.dtype)
                    if grad_hidden_NH is not None:
                        grad_hidden_NH[rows] = grad_logits_CV @ head_VH
                    if grad_head_VH is not None:
                        grad_head_VH += (grad_logits_CV.T @ hidden_NH[rows].to(head_VH.dtype)).float()

        ctx.save_for_backward(grad_hidden_NH, None if grad_head_VH is None else grad_head_VH.to(head_VH.dtype))
        loss = (settings.ce_weight * sums[0] + settings.kd_weight * sums[1]) / denominator
        ctx.mark_non_differentiable(sums, groups_G5)
        return loss, sums, groups_G5

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_NH, grad_head_VH = ctx.saved_tensors
        return (
            None if grad_hidden_NH is None else grad_hidden_NH * grad_loss.to(grad_hidden_NH.dtype),
            None if grad_head_VH is None else grad_head_VH * grad_loss.to(grad_head_VH.dtype),
            *(None,) * 6,
        )


def _logits(hidden_CH: Tensor, head_VH: Tensor) -> Tensor:
    """Logits in fp32 (fp64 for fp64 inputs), the product itself in the head's dtype."""
    logits_CV = hidden_CH.to(head_VH.dtype) @ head_VH.T
    return logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()


def _chunk(
    logits_CV: Tensor,
    labels_C: Tensor,
    teacher: _Teacher,
    ce_mask_C: Tensor | None,
    settings: _Settings,
    *,
    wants_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """ce, kd, entropy and correct [C, 4] in float64, and the gradient of ce_weight·ce + kd_weight·kd by the logits."""
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
    if teacher.hidden is not None or teacher.ids is not None:
        tau = settings.temperature
        student_CV = logprobs_CV if tau == 1.0 else (logits_CV / tau).log_softmax(-1)
        if teacher.ids is None:
            assert teacher.hidden is not None
            assert teacher.head is not None
            teacher_logits_CV = _logits(teacher.hidden, teacher.head)
            teacher_CV = (teacher_logits_CV if tau == 1.0 else teacher_logits_CV / tau).log_softmax(-1)
            kd_C, kd_grad_CV = _divergence(student_CV, teacher_CV, settings.beta)
        else:
            assert teacher.logprobs is not None
            kd_C, kd_grad_CV = _truncated(student_CV, teacher.logprobs, teacher.ids, settings.beta)
        kd_grad_CV = kd_grad_CV.div_(tau)

    values_C4 = torch.stack((ce_C, kd_C, entropy_C, correct_C.to(ce_C.dtype)), dim=1).double()
    if not wants_grad:
        return values_C4, None
    grad_CV = probs_CV * weight_C[:, None]
    grad_CV.scatter_add_(-1, labels_C[:, None], -weight_C[:, None])
    if kd_grad_CV is not None:
        grad_CV.add_(kd_grad_CV, alpha=settings.kd_weight)
    return values_C4, grad_CV


def _divergence(logq_CV: Tensor, logp_CV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
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


def _truncated(logq_CV: Tensor, logp_CK: Tensor, ids_CK: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """As `_divergence`, from a teacher of whom K tokens are known, all others being one category."""
    known_CK, logp_CK = logq_CV.gather(-1, ids_CK), logp_CK.to(logq_CV.dtype)
    if ids_CK.shape[-1] == logq_CV.shape[-1]:
        kd_C, grad_CK = _divergence(known_CK, logp_CK, beta)
        return kd_C, torch.zeros_like(logq_CV).scatter_(-1, ids_CK, grad_CK)
    # Of the student, the logarithm of a sum; of the teacher, what is left of 1, which fp32 would round away.
    others_CV = logq_CV.scatter(-1, ids_CK, -math.inf)
    logq_tail_C1 = others_CV.logsumexp(-1, keepdim=True)
    mass_C1 = logp_CK.double().exp().sum(-1, keepdim=True)
    logp_tail_C1 = (1 - mass_C1).clamp(min=_LEAST_MASS).log().to(logq_CV.dtype)
    kd_C, grad_CD = _divergence(torch.cat((known_CK, logq_tail_C1), -1), torch.cat((logp_CK, logp_tail_C1), -1), beta)
    # A category's gradient is spread over its tokens as its probability is.
    grad_CV = (others_CV - logq_tail_C1).exp_().mul_(grad_CD[:, -1:])
    return kd_C, grad_CV.scatter_(-1, ids_CK, grad_CD[:, :-1])


def jsd_upper_bound(beta: float) -> float:
    """Largest value that JSD_β can take, in nats: the entropy of (β, 1−β); infinite for β of 0 and 1."""
    if beta in (0.0, 1.0):
        return math.inf
    return -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
