"""The fused loss against plain fp64 autograd, and its exact edges."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vltool.training.losses import IGNORE, distillation_loss, jsd_upper_bound  # noqa: E402

BETAS = (0.0, 0.1, 0.5, 1.0)


def reference(hidden, labels, head, teacher_hidden, teacher_head, beta, temperature, ce_weight, kd_weight, ce_mask, n):
    """CE and JSD_β written out from their definitions: full logits, fp64."""
    keep = labels != IGNORE
    s = (hidden @ head.T)[keep]
    labels = labels[keep]
    ce = torch.nn.functional.cross_entropy(s, labels, reduction="none")
    if ce_mask is not None:
        ce = ce * ce_mask[keep]
    kd = torch.zeros((), dtype=s.dtype)
    if teacher_hidden is not None:
        logq = torch.log_softmax(s / temperature, -1)
        logp = torch.log_softmax((teacher_hidden @ teacher_head.T)[keep] / temperature, -1)
        q, p = logq.exp(), logp.exp()
        if beta == 0.0:
            kd = (p * (logp - logq)).sum()
        elif beta == 1.0:
            kd = (q * (logq - logp)).sum()
        else:
            logm = torch.logaddexp(logp + math.log(beta), logq + math.log(1 - beta))
            kd = beta * (p * (logp - logm)).sum() + (1 - beta) * (q * (logq - logm)).sum()
    return (ce_weight * ce.sum() + kd_weight * kd) / n, ce.sum(), kd


def case(seed, n, hidden_size, vocabulary, ignored, spread):
    """fp64 tensors whose values are exact in fp32, so that both sides see the same inputs."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, hidden_size, generator=g).double()
    teacher_hidden = torch.randn(n, hidden_size + 1, generator=g).double()
    head = (torch.randn(vocabulary, hidden_size, generator=g) * spread).double()
    teacher_head = (torch.randn(vocabulary, hidden_size + 1, generator=g) * spread).double()
    labels = torch.randint(0, vocabulary, (n,), generator=g)
    labels[torch.rand(n, generator=g) < ignored] = IGNORE
    mask = torch.rand(n, generator=g) < 0.5
    return hidden, labels, head, teacher_hidden, teacher_head, mask


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 23),
    vocabulary=st.integers(2, 60),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
    beta=st.sampled_from(BETAS) | st.floats(0.01, 0.99),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    ce_weight=st.sampled_from([0.0, 0.3, 1.0]),
    kd_weight=st.sampled_from([0.0, 0.5, 1.0]),
    masked=st.booleans(),
    with_teacher=st.booleans(),
    chunk=st.integers(1, 30),
)
def test_value_and_gradients_equal_a_plain_fp64_reference(
    seed, n, vocabulary, ignored, spread, beta, temperature, ce_weight, kd_weight, masked, with_teacher, chunk
):
    hidden, labels, head, teacher_hidden, teacher_head, mask = case(seed, n, 5, vocabulary, ignored, spread)
    mask = mask if masked else None
    if not with_teacher:
        teacher_hidden = teacher_head = None
    denominator = 7.0
    for tensor in (hidden, head):
        tensor.requires_grad_()
    want, want_ce, want_kd = reference(
        hidden, labels, head, teacher_hidden, teacher_head, beta, temperature, ce_weight, kd_weight, mask, denominator
    )
    want_grads = torch.autograd.grad(want, (hidden, head), allow_unused=True) if want.requires_grad else (None, None)

    hidden32 = hidden.detach().float().requires_grad_()
    head32 = head.detach().float().requires_grad_()
    got = distillation_loss(
        hidden32,
        labels,
        head32,
        teacher_hidden_NH=None if teacher_hidden is None else teacher_hidden.float(),
        teacher_head_VH=None if teacher_head is None else teacher_head.float(),
        beta=beta,
        temperature=temperature,
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        ce_mask_N=mask,
        denominator=denominator,
        chunk_tokens=chunk,
    )
    got.loss.backward()

    assert float(got.tokens) == int((labels != IGNORE).sum())
    for value, wanted in ((got.loss, want), (got.ce_sum, want_ce), (got.kd_sum, want_kd)):
        assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5, abs=1e-5)
    for grad, wanted in zip((hidden32.grad, head32.grad), want_grads, strict=True):
        wanted = torch.zeros_like(grad).double() if wanted is None else wanted
        scale = max(float(wanted.norm()), 1e-2)
        assert float((grad.double() - wanted).norm()) <= 1e-5 * scale


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_relative_error_of_the_divergence_alone(beta, temperature, device):
    hidden, labels, head, teacher_hidden, teacher_head, _ = case(3, 37, 5, 211, 0.3, 0.5)
    hidden.requires_grad_()
    want, _, _ = reference(hidden, labels, head, teacher_hidden, teacher_head, beta, temperature, 0.0, 1.0, None, 26.0)
    (want_grad,) = torch.autograd.grad(want, hidden)
    hidden32, head32, teacher32, teacher_head32 = (
        t.detach().float().to(device) for t in (hidden, head, teacher_hidden, teacher_head)
    )
    got = distillation_loss(
        hidden32.requires_grad_(), labels.to(device), head32, teacher_hidden_NH=teacher32,
        teacher_head_VH=teacher_head32, beta=beta, temperature=temperature, ce_weight=0.0, kd_weight=1.0,
        denominator=26.0, chunk_tokens=10,
    )  # fmt: skip
    got.loss.backward()
    assert relative(got.loss.detach().cpu(), want.detach()) <= 1e-5
    assert relative(hidden32.grad.cpu(), want_grad) <= 1e-5


def test_gradient_passes_gradcheck():
    hidden, labels, head, teacher_hidden, teacher_head, _ = case(5, 6, 3, 11, 0.2, 1.0)
    assert torch.autograd.gradcheck(
        lambda h, w: distillation_loss(
            h, labels, w, teacher_hidden_NH=teacher_hidden[:, :4], teacher_head_VH=teacher_head[:, :4],
            beta=0.3, temperature=1.3, ce_weight=0.4, kd_weight=0.9, chunk_tokens=4,
        ).loss,
        (hidden.requires_grad_(), head.requires_grad_()),
    )  # fmt: skip


@pytest.mark.parametrize("beta", [*BETAS, 0.9])
def test_an_identical_teacher_costs_exactly_nothing(beta):
    hidden, labels, head, *_ = case(1, 40, 8, 500, 0.2, 2.0)
    hidden, head = hidden.float().requires_grad_(), head.float()
    got = distillation_loss(
        hidden, labels, head, teacher_hidden_NH=hidden, teacher_head_VH=head, beta=beta, ce_weight=0.0
    )
    got.loss.backward()
    assert float(got.kd_sum) == 0.0
    assert float(hidden.grad.abs().max()) <= 1e-7


def test_no_label_gives_an_exact_zero_that_is_connected():
    hidden, _, head, teacher_hidden, teacher_head, _ = case(2, 5, 4, 9, 0.0, 1.0)
    hidden.requires_grad_()
    got = distillation_loss(
        hidden, torch.full((5,), IGNORE), head, teacher_hidden_NH=teacher_hidden, teacher_head_VH=teacher_head
    )
    got.loss.backward()
    assert float(got.loss.detach()) == 0.0
    assert float(got.tokens) == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_micro_batches_add_up_to_the_whole_batch():
    hidden, labels, head, teacher_hidden, teacher_head, _ = case(4, 20, 5, 30, 0.3, 1.0)
    tokens = float((labels != IGNORE).sum())

    def run(rows):
        part = hidden[rows].clone().requires_grad_()
        out = distillation_loss(
            part, labels[rows], head, teacher_hidden_NH=teacher_hidden[rows], teacher_head_VH=teacher_head,
            beta=0.5, ce_weight=0.3, denominator=tokens,
        )  # fmt: skip
        out.loss.backward()
        return float(out.loss.detach()), part.grad

    whole, whole_grad = run(slice(0, 20))
    parts = [run(slice(0, 3)), run(slice(3, 20))]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-12)
    assert torch.allclose(torch.cat([grad for _, grad in parts]), whole_grad, rtol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_far_apart_distributions_stay_finite_and_right(beta):
    """p/q beyond what fp32 can hold: log(p/q) is 400 here."""
    hidden = torch.tensor([[200.0], [-200.0]], dtype=torch.float64, requires_grad=True)
    head = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    teacher = (-hidden).detach()
    want, _, want_kd = reference(hidden, labels, head, teacher, head, beta, 1.0, 0.0, 1.0, None, 2.0)
    (want_grad,) = torch.autograd.grad(want, hidden)
    hidden32 = hidden.detach().float().requires_grad_()
    got = distillation_loss(
        hidden32, labels, head.float(), teacher_hidden_NH=teacher.float(), teacher_head_VH=head.float(), beta=beta,
        ce_weight=0.0,
    )  # fmt: skip
    got.loss.backward()
    assert float(got.kd_sum) == pytest.approx(float(want_kd.detach()), rel=1e-5)
    assert torch.allclose(hidden32.grad.double(), want_grad, rtol=1e-5, atol=1e-30)
    if 0 < beta < 1:
        assert float(got.kd_sum) / 2 == pytest.approx(jsd_upper_bound(beta), rel=1e-5)


def test_bf16_is_as_close_to_fp64_as_its_inputs_are():
    hidden, labels, head, teacher_hidden, teacher_head, _ = case(6, 64, 16, 300, 0.0, 0.3)
    hidden, head, teacher_hidden, teacher_head = (
        t.bfloat16().double() for t in (hidden, head, teacher_hidden, teacher_head)
    )
    want, _, _ = reference(hidden, labels, head, teacher_hidden, teacher_head, 0.5, 1.0, 1.0, 1.0, None, 64.0)
    got = distillation_loss(
        hidden.bfloat16(), labels, head.bfloat16(), teacher_hidden_NH=teacher_hidden.bfloat16(),
        teacher_head_VH=teacher_head.bfloat16(), beta=0.5,
    )  # fmt: skip
    assert float(got.loss) == pytest.approx(float(want), rel=5e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": 1.5}, "beta must lie in"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1"),
        ({"labels_N": torch.zeros(3, dtype=torch.long)}, "2 hidden states, but 3 labels"),
        ({"teacher_hidden_NH": torch.zeros(2, 4)}, "both or neither"),
        ({"teacher_hidden_NH": torch.zeros(2, 4), "teacher_head_VH": torch.zeros(9, 4)}, "vocabulary has 7 entries"),
    ],
)
def test_impossible_arguments_are_named(change, words):
    arguments = {
        "student_hidden_NH": torch.zeros(2, 4),
        "labels_N": torch.zeros(2, dtype=torch.long),
        "student_head_VH": torch.zeros(7, 4),
    } | change
    with pytest.raises(ValueError, match=words):
        distillation_loss(**arguments)
