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
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vltool.training.chunks import Settings, Teacher, TopK, eager_chunk, logits_of

Backend = Literal["triton", "eager"]
"""What computes a chunk: the kernels of `vltool.training.kernels`, or plain torch."""

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
    teacher_topk: TopK | tuple[Tensor, Tensor] | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    ce_mask_N: Tensor | None = None,
    group_N: Tensor | None = None,
    group_count: int | None = None,
    denominator: Tensor | float | None = None,
    chunk_tokens: int = 256,
    backend: Backend | None = None,
) -> DistillationLoss:
    """Cross entropy and JSD_β over label positions, in chunks of `chunk_tokens` positions.

    labels_N: int64, already shifted (labels_N[i] is the token that student_hidden_NH[i] predicts),
        `IGNORE` where no loss applies.
    student_hidden_NH, teacher_hidden_NH: last hidden states, any float dtype; the teacher's may have
        another hidden size, with its own head of the same vocabulary. Without a teacher kd_sum is 0.
    student_head_VH, teacher_head_VH: weights of the language heads; an adapted head is passed merged.
    teacher_topk: in place of those, (logprobs_NK, ids_NK) or (logprobs_NK, ids_NK, tail_N): log p of K different
        tokens a position, at `temperature`, and of all others together. With K = V they are the whole teacher.
    ce_mask_N: bool; positions that are False are left out of the cross entropy, not of the divergence.
    group_N: int64, from 0; the sums are given for each of `group_count` groups too (by default one more than
        the largest, for which the device is waited for).
    denominator: what the sums are divided by; by default the number of label positions here. A
        training step passes the number of the whole optimizer step, so that micro-batches add up.
    backend: by default what `backend_for` says; both give the same numbers.

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
    loss, sums, groups = _FusedLoss.apply(
        student_hidden_NH.index_select(0, positions),
        student_head_VH,
        labels_N.index_select(0, positions),
        Teacher(
            hidden=teacher_hidden_NH,
            head=None if teacher_head_VH is None else teacher_head_VH.detach(),
            topk=None if teacher_topk is None else _known(*teacher_topk),
        ).at(positions),
        chosen(ce_mask_N),
        chosen(group_N),
        torch.as_tensor(denominator, dtype=torch.float64, device=student_hidden_NH.device),
        Settings(beta, temperature, ce_weight, kd_weight),
        _Work(chunk_tokens, group_count or 0, backend or backend_for(student_hidden_NH.device, student_head_VH.dtype)),
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


def _known(logprobs_NK: Tensor, ids_NK: Tensor, tail_N: Tensor | None = None) -> TopK:
    """What a caller knows of a truncated teacher; ids may be smaller integers than indices are."""
    return TopK(logprobs_NK, ids_NK.long(), tail_N)


def backend_for(device: torch.device, dtype: torch.dtype) -> Backend:
    """`triton` for logits of up to 32 bits on a GPU on which Triton's kernels run, `eager` everywhere else."""
    return "triton" if why_eager(device, dtype) is None else "eager"


def why_eager(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why plain torch computes the loss of logits of this dtype on this device; None where the kernels do."""
    if device.type != "cuda":
        return f"Triton has no kernels for {device.type}"
    if find_spec("triton") is None:
        return "triton is not installed"
    from vltool.training import kernels

    if dtype not in kernels.DTYPES:
        return f"the kernels do not take {dtype}"
    return kernels.why_unusable(device)


@dataclass(frozen=True, slots=True)
class _Work:
    """How the work is done, which changes no number."""

    chunk_tokens: int
    group_count: int
    backend: Backend


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        labels_N: Tensor,
        teacher: Teacher,
        ce_mask_N: Tensor | None,
        group_N: Tensor | None,
        denominator: Tensor,
        settings: Settings,
        work: _Work,
    ) -> tuple[Tensor, ...]:
        if work.backend == "triton":
            from vltool.training.kernels import kernel_chunk as chunk
        else:
            chunk = eager_chunk
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        # fp32 accumulation: the head's gradient is a sum over all chunks, the sums run over all tokens.
        grad_hidden_NH = torch.zeros_like(hidden_NH) if wants_hidden else None
        grad_head_VH = torch.zeros_like(head_VH, dtype=torch.float32) if wants_head else None
        sums = torch.zeros(4, dtype=torch.float64, device=hidden_NH.device)
        groups_G5 = torch.zeros(work.group_count, 5, dtype=torch.float64, device=hidden_NH.device)

        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, hidden_NH.shape[0], work.chunk_tokens):
                rows = slice(start, start + work.chunk_tokens)
                values_C4, grad_logits_CV = chunk(
                    logits_of(hidden_NH[rows], head_VH),
                    labels_N[rows],
                    teacher.at(rows),
                    None if ce_mask_N is None else ce_mask_N[rows],
                    denominator,
                    settings,
                    wants_grad=wants_hidden or wants_head,
                )
                sums += values_C4.sum(0)
                if group_N is not None:
                    groups_G5[:, :4].index_add_(0, group_N[rows], values_C4)
                    groups_G5[:, 4].index_add_(0, group_N[rows], torch.ones_like(values_C4[:, 0]))
                if grad_hidden_NH is not None and grad_logits_CV is not None:
                    grad_hidden_NH[rows] = grad_logits_CV @ head_VH
                if grad_head_VH is not None and grad_logits_CV is not None:
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
            *(None,) * 7,
        )


def jsd_upper_bound(beta: float) -> float:
    """Largest value that JSD_β can take, in nats: the entropy of (β, 1−β); infinite for β of 0 and 1."""
    if beta in (0.0, 1.0):
        return math.inf
    return -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
