"""The fused loss against plain fp64 autograd, and its exact edges."""

from __future__ import annotations

import itertools
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
        # Logits of 10 are rounded to 1e-6 in fp32, and their gradients with them.
        scale = max(float(wanted.norm()), 5e-2)
        assert float((grad.double() - wanted).norm()) <= 1e-5 * scale


def truncated_reference(logits, logp, ids, beta, temperature):
    """JSD_β over the K known tokens and one category for all others, written out in fp64."""
    q = torch.softmax(logits / temperature, -1)
    p_known, q_known = logp.exp(), q.gather(-1, ids)
    p = torch.cat((p_known, (1 - p_known.sum(-1, keepdim=True)).clamp(min=1e-12)), -1)
    q = torch.cat((q_known, q.scatter(-1, ids, 0.0).sum(-1, keepdim=True)), -1).clamp(min=1e-300)
    if beta in (0.0, 1.0):
        first, second = (p, q) if beta == 0.0 else (q, p)
        return (first * (first / second).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)


def likeliest(logits, k, temperature):
    """A truncated teacher, as fp32 can hold it: what it leaves to other tokens is known to 1e-7 at best."""
    logp, ids = torch.log_softmax(logits / temperature, -1).topk(k)
    return logp.float().double(), ids


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 17),
    vocabulary=st.integers(3, 60),
    k=st.integers(1, 59),
    beta=st.sampled_from(BETAS) | st.floats(0.01, 0.99),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    spread=st.sampled_from([0.1, 1.0]),
    chunk=st.integers(1, 30),
)
def test_a_truncated_teacher_equals_a_plain_fp64_reference(seed, n, vocabulary, k, beta, temperature, spread, chunk):
    hidden, labels, head, teacher_hidden, teacher_head, _ = case(seed, n, 5, vocabulary, 0.3, spread)
    keep = labels != IGNORE
    logp, ids = likeliest(teacher_hidden @ teacher_head.T, min(k, vocabulary - 1), temperature)
    hidden.requires_grad_()
    want = truncated_reference((hidden @ head.T)[keep], logp[keep], ids[keep], beta, temperature).sum()
    (want_grad,) = torch.autograd.grad(want / 7.0, hidden, allow_unused=True)

    hidden32 = hidden.detach().float().requires_grad_()
    got = distillation_loss(
        hidden32, labels, head.float(), teacher_topk=(logp.float(), ids), beta=beta, temperature=temperature,
        ce_weight=0.0, kd_weight=1.0, denominator=7.0, chunk_tokens=chunk,
    )  # fmt: skip
    got.loss.backward()
    assert float(got.kd_sum) == pytest.approx(float(want.detach()), rel=1e-4, abs=1e-5)
    scale = max(float(want_grad.norm()), 5e-2)
    assert float((hidden32.grad.double() - want_grad).norm()) <= 1e-4 * scale


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_all_tokens_of_a_teacher_are_the_whole_teacher(beta, temperature):
    hidden, labels, head, teacher_hidden, teacher_head, _ = case(11, 29, 5, 43, 0.3, 0.5)
    options = {"beta": beta, "temperature": temperature, "ce_weight": 0.3, "kd_weight": 1.0, "chunk_tokens": 8}
    whole = hidden.clone().requires_grad_()
    want = distillation_loss(
        whole, labels, head, teacher_hidden_NH=teacher_hidden, teacher_head_VH=teacher_head, **options
    )
    want.loss.backward()
    logp, ids = likeliest(teacher_hidden @ teacher_head.T, 43, temperature)
    known = hidden.clone().requires_grad_()
    got = distillation_loss(known, labels, head, teacher_topk=(logp, ids), **options)
    got.loss.backward()
    assert float(got.loss.detach()) == pytest.approx(float(want.loss.detach()), rel=1e-6)
    assert relative(known.grad, whole.grad) <= 1e-6


def test_fewer_tokens_show_less_of_the_divergence():
    hidden, labels, head, teacher_hidden, teacher_head, _ = case(13, 29, 5, 43, 0.0, 0.5)
    sums = []
    for k in (1, 4, 16, 42, 43):
        topk = likeliest(teacher_hidden @ teacher_head.T, k, 1.0)
        sums.append(float(distillation_loss(hidden, labels, head, teacher_topk=topk, beta=0.5).kd_sum))
    assert all(fewer <= more + 1e-6 for fewer, more in itertools.pairwise(sums))
    assert sums[0] < 0.8 * sums[-1]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 23), count=st.integers(1, 4), chunk=st.integers(1, 9))
def test_groups_add_up_to_the_whole_and_are_what_each_would_be_alone(seed, n, count, chunk):
    hidden, labels, head, teacher_hidden, teacher_head, mask = case(seed, n, 5, 31, 0.3, 1.0)
    group = torch.randint(0, count, (n,), generator=torch.Generator().manual_seed(seed))
    options = {
        "teacher_hidden_NH": teacher_hidden, "teacher_head_VH": teacher_head, "beta": 0.3, "ce_mask_N": mask,
        "chunk_tokens": chunk,
    }  # fmt: skip
    whole = distillation_loss(hidden, labels, head, group_N=group, group_count=count, **options)
    together = torch.stack((whole.ce_sum, whole.kd_sum, whole.entropy_sum, whole.correct, whole.tokens))
    torch.testing.assert_close(whole.groups.sum(0), together)
    for number in range(count):
        alone = distillation_loss(hidden, labels.masked_fill(group != number, IGNORE), head, **options)
        want = torch.stack((alone.ce_sum, alone.kd_sum, alone.entropy_sum, alone.correct, alone.tokens))
        torch.testing.assert_close(whole.groups[number], want)
    assert distillation_loss(hidden, labels, head, **options).groups is None
    assert distillation_loss(hidden, labels, head, group_N=group, **options).groups.shape == (int(group.max()) + 1, 5)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"teacher_topk": (torch.zeros(3, 2), torch.zeros(3, 4).long())}, r"\(3, 2\) log-probabilities, \(3, 4\) ids"),
        ({"teacher_topk": (torch.zeros(2, 2), torch.zeros(2, 2).long())}, "but 3 labels"),
        (
            {
                "teacher_topk": (torch.zeros(3, 2), torch.zeros(3, 2).long()),
                "teacher_hidden_NH": torch.zeros(3, 2),
                "teacher_head_VH": torch.zeros(5, 2),
            },
            "not both",
        ),
    ],
)
def test_a_truncated_teacher_that_does_not_fit_is_told(teacher, said):
    with pytest.raises(ValueError, match=said):
        distillation_loss(torch.zeros(3, 2), torch.zeros(3).long(), torch.zeros(5, 2), **teacher)


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
