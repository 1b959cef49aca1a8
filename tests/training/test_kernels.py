"""The Triton kernels against plain torch: interpreted on a CPU (see conftest.py), compiled on a GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vltool.training import kernels  # noqa: E402
from vltool.training.losses import IGNORE, backend_for, distillation_loss, why_eager  # noqa: E402

# What the interpreter's numpy says of masked lanes, whose values are thrown away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def thrice(seed, *, n, vocabulary, dtype=torch.float32, spread=1.0, teacher="whole", k=4, grouped=False, **weights):
    """The loss and its gradients by the kernels, by plain torch, and by plain torch in fp64, for the same inputs."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g) * scale).to(DEVICE, dtype)

    hidden, head = random(n, 8), random(vocabulary, 8, scale=spread)
    teacher_hidden, teacher_head = random(n, 6), random(vocabulary, 6, scale=spread)
    labels = torch.randint(0, vocabulary, (n,), generator=g).to(DEVICE)
    labels[::5] = IGNORE
    given = {}
    if teacher == "whole":
        given = {"teacher_hidden_NH": teacher_hidden, "teacher_head_VH": teacher_head}
    elif teacher == "topk":
        logp = torch.log_softmax((teacher_hidden @ teacher_head.T).double() / weights["temperature"], -1)
        known, ids = logp.topk(min(k, vocabulary))
        rest = logp.scatter(-1, ids, -torch.inf).logsumexp(-1)
        given = {"teacher_topk": (known.float(), ids, rest.float())}
    if grouped:
        given |= {"group_N": torch.arange(n, device=DEVICE) % 3, "group_count": 3}
    mask = (torch.rand(n, generator=g) < 0.7).to(DEVICE)
    outcomes = []
    for backend, exact in (("triton", dtype), ("eager", dtype), ("eager", torch.float64)):
        inputs = [tensor.to(exact, copy=True).requires_grad_() for tensor in (hidden, head)]
        out = distillation_loss(
            inputs[0], labels, inputs[1], **{name: value_in(value, exact) for name, value in given.items()},
            ce_mask_N=mask, denominator=5.0, chunk_tokens=7, backend=backend, **weights,
        )  # fmt: skip
        out.loss.backward()
        outcomes.append((out, *(tensor.grad for tensor in inputs)))
    return outcomes


def value_in(value, dtype):
    """A teacher's tensors in another dtype; whatever else is given as it is."""
    if isinstance(value, tuple):
        return tuple(value_in(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_as_right(kernel, eager, exact, tolerance):
    """The kernels are as near to fp64 as `tolerance`, or where rounding leaves more of it, as plain torch is."""
    for name in ("loss", "ce_sum", "kd_sum", "entropy_sum", "correct", "tokens", "groups"):
        got, wanted = getattr(kernel[0], name), getattr(exact[0], name)
        if wanted is not None:
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    for got, plain, wanted in zip(kernel[1:], eager[1:], exact[1:], strict=True):
        # Logits of 10 are rounded to 1e-6 in fp32, and their gradients with them.
        within = tolerance * max(float(wanted.norm()), 0.2)
        assert float((got - wanted).norm()) <= max(within, 2 * float((plain - wanted).norm()))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.sampled_from([3, 50]),
    block=st.sampled_from([32, 64]),
    teacher=st.sampled_from(["whole", "topk", None]),
    k=st.integers(1, 60),
    beta=st.sampled_from([0.0, 0.1, 0.5, 0.97, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    spread=st.sampled_from([0.01, 1.0, 2.0]),
    ce_weight=st.sampled_from([0.0, 0.3]),
    kd_weight=st.sampled_from([0.0, 1.0]),
)
def test_kernels_equal_plain_torch(block, **case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_BLOCK", block)
        assert_as_right(*thrice(**case, n=6, grouped=True), tolerance=2e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_an_identical_teacher_costs_exactly_nothing(beta):
    hidden, head = torch.randn(6, 8, device=DEVICE), torch.randn(40, 8, device=DEVICE)
    hidden.requires_grad_()
    out = distillation_loss(
        hidden, torch.arange(6, device=DEVICE), head, teacher_hidden_NH=hidden.detach(), teacher_head_VH=head,
        beta=beta, ce_weight=0.0, backend="triton",
    )  # fmt: skip
    out.loss.backward()
    assert float(out.kd_sum) == 0.0
    assert float(hidden.grad.abs().max()) == 0.0


def test_small_divergences_keep_their_digits():
    """Near its teacher the divergence is the square of a difference of 1e-3, and must not drown in rounding."""
    hidden, head = torch.randn(6, 8, device=DEVICE), torch.randn(40, 8, device=DEVICE)
    near = hidden + 1e-3 * torch.randn_like(hidden)
    labels = torch.arange(6, device=DEVICE)

    def kd(backend, dtype):
        given = {"teacher_hidden_NH": near.to(dtype), "teacher_head_VH": head.to(dtype)}
        return distillation_loss(hidden.to(dtype), labels, head.to(dtype), **given, beta=0.3, backend=backend).kd_sum

    assert float(kd("triton", torch.float32)) == pytest.approx(float(kd("eager", torch.float64)), rel=2e-2)


def test_without_a_gpu_plain_torch_is_chosen_and_says_why():
    assert backend_for(torch.device("cpu"), torch.float32) == "eager"
    assert "cpu" in why_eager(torch.device("cpu"), torch.float32)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("teacher", ["whole", "topk"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_compiled_kernels_at_a_real_vocabulary(beta, teacher):
    case = {"beta": beta, "temperature": 1.0, "ce_weight": 0.3, "kd_weight": 1.0}
    assert backend_for(torch.device("cuda"), torch.bfloat16) == "triton"
    assert_as_right(*thrice(0, n=70, vocabulary=151_936, spread=0.5, teacher=teacher, k=64, **case), tolerance=1e-4)
    half = thrice(0, n=70, vocabulary=151_936, spread=0.5, teacher=teacher, k=64, dtype=torch.bfloat16, **case)
    assert_as_right(*half, tolerance=1e-2)
