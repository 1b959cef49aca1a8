"""`chunks.eager_chunk` as Triton kernels: one pass over the logits for what torch needs a dozen for.

The gradient is written over the student's logits, so that two chunks of logits are all the memory there is.

Suffixes: C positions of a chunk, V vocabulary, K of a truncated teacher's tokens, D = K + 1 categories.
"""

from __future__ import annotations

import math
from functools import cache
from subprocess import CalledProcessError

import torch
import triton
import triton.language as tl
from torch import Tensor

from vltool.training.chunks import Settings, Teacher, TopK, divergence, log_tail

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Of logits that the kernels take; they compute in fp32."""
_BLOCK = 8192
_WARPS = 16


@cache
def why_unusable(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device; None where they can. They are tried on a few numbers, once.

    A driver, or the C compiler with which Triton builds its launcher, may be missing on a host that has a GPU.
    """
    logits_CV = torch.zeros(1, 8, device=device)
    labels_C, one = torch.zeros(1, dtype=torch.int64, device=device), torch.ones((), device=device)
    try:
        kernel_chunk(logits_CV, labels_C, Teacher(), None, one, Settings(0.5, 1.0, 1.0, 0.0), wants_grad=True)
    except (RuntimeError, OSError, CalledProcessError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no word on why'}"
    return None


def kernel_chunk(
    logits_CV: Tensor,
    labels_C: Tensor,
    teacher: Teacher,
    ce_mask_C: Tensor | None,
    denominator: Tensor,
    settings: Settings,
    *,
    wants_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `chunks.eager_chunk`. The gradient lies where the logits lay; they are lost even without one."""
    rows, vocabulary = logits_CV.shape
    weight_C = torch.full((rows,), settings.ce_weight, device=logits_CV.device)
    if ce_mask_C is not None:
        weight_C = weight_C * ce_mask_C
    teacher_CV = teacher.logits()
    values_C7 = torch.empty(rows, 7, device=logits_CV.device)
    truncated = teacher_CV is None and teacher.topk is not None
    scale = denominator.reciprocal().float()
    _whole_teacher[(rows,)](
        logits_CV,
        logits_CV if teacher_CV is None else teacher_CV,
        labels_C,
        weight_C,
        scale,
        values_C7,
        vocabulary,
        settings.kd_weight,
        settings.beta,
        1.0 / settings.temperature,
        HAS_TEACHER=teacher_CV is not None,
        FORWARD=settings.beta == 0.0,
        REVERSE=settings.beta == 1.0,
        HAS_TAU=settings.temperature != 1.0,
        # A truncated teacher's gradient needs what this pass finds out.
        WANTS_GRAD=wants_grad and not truncated,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    if truncated:
        assert teacher.topk is not None
        _truncated(logits_CV, labels_C, teacher.topk, weight_C, scale, values_C7, settings, wants_grad=wants_grad)
    if ce_mask_C is not None:
        values_C7[:, 0] *= ce_mask_C
    return values_C7[:, :4].double(), logits_CV if wants_grad else None


def _truncated(
    logits_CV: Tensor,
    labels_C: Tensor,
    topk: TopK,
    weight_C: Tensor,
    scale: Tensor,
    values_C7: Tensor,
    settings: Settings,
    *,
    wants_grad: bool,
) -> None:
    """The divergence from K known tokens and one category for all others, into `values_C7`, and the gradient.

    The known tokens are taken out of the logits and done in torch; only their tail goes through the vocabulary.
    """
    rows, vocabulary = logits_CV.shape
    tau, ids_CK = settings.temperature, topk.ids_NK
    # Everything is told from the largest logit: added to it, and taken off again, a logarithm would lose digits.
    peak_C1, log_total_C1, log_total_tau_C1 = values_C7[:, 4:].split(1, -1)
    known_CK = logits_CV.gather(-1, ids_CK).float() - peak_C1
    logq_CD, logp_CD = known_CK / tau - log_total_tau_C1, topk.logprobs_NK.float()
    tail_C = torch.full((rows,), -math.inf, device=logits_CV.device)
    if ids_CK.shape[-1] < vocabulary:
        logits_CV.scatter_(-1, ids_CK, -math.inf)
        _log_sum_exp[(rows,)](logits_CV, values_C7, tail_C, vocabulary, 1.0 / tau, BLOCK=_BLOCK, num_warps=_WARPS)
        logq_CD = torch.cat((logq_CD, tail_C[:, None] - log_total_tau_C1), -1)
        logp_CD = torch.cat((logp_CD, log_tail(topk, torch.float32)), -1)
    kd_C, grad_CD = divergence(logq_CD, logp_CD, settings.beta)
    values_C7[:, 1] = kd_C
    if not wants_grad:
        return
    grad_CD *= settings.kd_weight / tau
    if ids_CK.shape[-1] < vocabulary:
        _spread[(rows,)](
            logits_CV,
            labels_C,
            weight_C,
            values_C7,
            tail_C,
            grad_CD[:, -1].contiguous(),
            scale,
            vocabulary,
            1.0 / tau,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    grad_CK = (known_CK - log_total_C1).exp_() - (ids_CK == labels_C[:, None]).float()
    grad_CK = grad_CK.mul_(weight_C[:, None]).add_(grad_CD[:, : ids_CK.shape[-1]]).mul_(scale)
    logits_CV.scatter_(-1, ids_CK, grad_CK.to(logits_CV.dtype))


@triton.jit
def _expm1(x):
    # Taylor's series up to x⁷: at 0.35 what it leaves out is 2e-8 of it.
    series = 1.0 + x * (1 / 7)
    series = 1.0 + x * (1 / 6) * series
    series = 1.0 + x * (1 / 5) * series
    series = 1.0 + x * (1 / 4) * series
    series = 1.0 + x * (1 / 3) * series
    series = 1.0 + x * (1 / 2) * series
    return tl.where(tl.abs(x) < 0.35, x * series, tl.exp(x) - 1.0)


@triton.jit
def _log1p(y):
    # 2·artanh(z) with z = y/(2 + y), up to z⁹: the hardware's logarithm near 1 is good to 1e-7 of 1, not of itself.
    z = y / (2.0 + y)
    square = z * z
    series = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9)))
    return tl.where(tl.abs(y) < 0.35, 2.0 * z * (1.0 + square * series), tl.log(1.0 + y))


@triton.jit
def _log_ratio(d, beta):
    """log(m/q) for d = log(p/q): see `chunks.divergence`."""
    bounded = tl.minimum(d, 80.0)
    return _log1p(_expm1(bounded) * beta) + (d - bounded)


@triton.jit
def _whole_teacher(
    logits,
    teacher,
    labels,
    ce_weight,
    scale,
    values,
    vocabulary,
    kd_weight,
    beta,
    inverse_tau,
    HAS_TEACHER: tl.constexpr,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_TAU: tl.constexpr,
    WANTS_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One position: its gradient over its logits, and into `values` ce, kd, entropy, correct and, to tell them again,
    the largest logit, and log Σ exp above it at τ = 1 and at τ.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    teacher += row * vocabulary
    label = tl.load(labels + row)
    columns = tl.arange(0, BLOCK)

    # A finite start: −∞ less itself would be no number.
    peak, total, moment, total_tau, best = -1e30, 0.0, 0.0, 0.0, 0
    teacher_peak, teacher_total = -1e30, 0.0
    for start in range(0, vocabulary, BLOCK):
        inside = start + columns < vocabulary
        x = tl.load(logits + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        highest = tl.max(x, axis=0)
        best = tl.where(highest > peak, start + tl.argmax(x, axis=0), best)
        raised = tl.maximum(peak, highest)
        kept = tl.exp(peak - raised)
        above = x - raised
        e = tl.exp(above)
        moment = kept * (moment + total * (peak - raised)) + tl.sum(tl.where(e > 0.0, e * above, 0.0), axis=0)
        total = kept * total + tl.sum(e, axis=0)
        if HAS_TAU:
            total_tau = total_tau * tl.exp((peak - raised) * inverse_tau) + tl.sum(tl.exp(above * inverse_tau), axis=0)
        peak = raised
        if HAS_TEACHER:
            t = tl.load(teacher + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
            raised = tl.maximum(teacher_peak, tl.max(t, axis=0))
            teacher_total = teacher_total * tl.exp((teacher_peak - raised) * inverse_tau) + tl.sum(
                tl.exp((t - raised) * inverse_tau), axis=0
            )
            teacher_peak = raised
    if not HAS_TAU:
        total_tau = total
    log_total = tl.log(total)
    log_total_tau = tl.log(total_tau)
    log_teacher_total = tl.log(teacher_total)
    at_label = tl.load(logits + label).to(tl.float32)

    kd = 0.0
    kl_qm = 0.0
    if HAS_TEACHER:
        for start in range(0, vocabulary, BLOCK):
            inside = start + columns < vocabulary
            x = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
            t = tl.load(teacher + start + columns, mask=inside, other=0.0).to(tl.float32)
            logq = (x - peak) * inverse_tau - log_total_tau
            logp = (t - teacher_peak) * inverse_tau - log_teacher_total
            d = logp - logq
            if FORWARD:
                kd += tl.sum(tl.where(inside, tl.exp(logp) * d, 0.0), axis=0)
            elif REVERSE:
                kd += tl.sum(tl.where(inside, -tl.exp(logq) * d, 0.0), axis=0)
            else:
                log_mq = _log_ratio(d, beta)
                kd += tl.sum(tl.where(inside, tl.exp(logp) * (d - log_mq), 0.0), axis=0) * beta
                kl_qm += tl.sum(tl.where(inside, -tl.exp(logq) * log_mq, 0.0), axis=0)
        if not FORWARD and not REVERSE:
            kd += (1.0 - beta) * kl_qm

    values += row * 7
    tl.store(values, (peak - at_label) + log_total)
    tl.store(values + 1, kd)
    tl.store(values + 2, log_total - moment / total)
    tl.store(values + 3, (best == label).to(tl.float32))
    tl.store(values + 4, peak)
    tl.store(values + 5, log_total)
    tl.store(values + 6, log_total_tau)

    if WANTS_GRAD:
        scale = tl.load(scale)
        weight = tl.load(ce_weight + row) * scale
        kd_weight = kd_weight * inverse_tau * scale
        for start in range(0, vocabulary, BLOCK):
            inside = start + columns < vocabulary
            x = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
            one = tl.where(start + columns == label, 1.0, 0.0)
            logq = x - peak - log_total
            q = tl.exp(logq)
            gradient = weight * (q - one)
            if HAS_TEACHER:
                t = tl.load(teacher + start + columns, mask=inside, other=0.0).to(tl.float32)
                if HAS_TAU:
                    logq = (x - peak) * inverse_tau - log_total_tau
                    q = tl.exp(logq)
                logp = (t - teacher_peak) * inverse_tau - log_teacher_total
                d = logp - logq
                if FORWARD:
                    gradient += kd_weight * (q - tl.exp(logp))
                elif REVERSE:
                    gradient += kd_weight * q * (-d - kd)
                else:
                    gradient += kd_weight * (beta - 1.0) * q * (_log_ratio(d, beta) + kl_qm)
            tl.store(logits + start + columns, gradient, mask=inside)


@triton.jit
def _log_sum_exp(logits, values, out, vocabulary, inverse_tau, BLOCK: tl.constexpr):
    """log Σ exp of what is left of a position's logits at τ, above the largest of all of them."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    highest = tl.load(values + row * 7 + 4)
    columns = tl.arange(0, BLOCK)
    peak, total = -1e30, 0.0
    for start in range(0, vocabulary, BLOCK):
        inside = start + columns < vocabulary
        x = tl.load(logits + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        x = (x - highest) * inverse_tau
        raised = tl.maximum(peak, tl.max(x, axis=0))
        total = total * tl.exp(peak - raised) + tl.sum(tl.exp(x - raised), axis=0)
        peak = raised
    tl.store(out + row, peak + tl.log(total))


@triton.jit
def _spread(
    logits,
    labels,
    ce_weight,
    values,
    log_tail,
    tail_gradient,
    scale,
    vocabulary,
    inverse_tau,
    BLOCK: tl.constexpr,
):
    """The gradient of tokens that a truncated teacher does not know: their category's, by their share of it."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    label = tl.load(labels + row)
    scale = tl.load(scale)
    weight = tl.load(ce_weight + row) * scale
    tail_weight = tl.load(tail_gradient + row) * scale
    highest = tl.load(values + row * 7 + 4)
    log_total = tl.load(values + row * 7 + 5)
    tail = tl.load(log_tail + row)
    columns = tl.arange(0, BLOCK)
    for start in range(0, vocabulary, BLOCK):
        inside = start + columns < vocabulary
        x = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32) - highest
        one = tl.where(start + columns == label, 1.0, 0.0)
        gradient = weight * (tl.exp(x - log_total) - one) + tail_weight * tl.exp(x * inverse_tau - tail)
        tl.store(logits + start + columns, gradient, mask=inside)
