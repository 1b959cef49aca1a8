"""Vision features held to the teacher's: values, gradients, and where the gradients arrive."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from vltool.checkpoint.architecture import tower_of
from vltool.run.distillation import FeatureTermPlan, VisualPlan
from vltool.training.vision_kd import FeatureTap, feature_distance, vision_terms

DISTANCES = ("mse", "cosine")


def reference(student_TD, teacher_TD, distance):
    """The same in numpy's float64, by the formulas of the specification."""
    s, t = (features.double().numpy() for features in (student_TD, teacher_TD))
    if distance == "mse":
        return float(((s - t) ** 2).mean(1).sum())
    cosine = (s * t).sum(1) / (np.linalg.norm(s, axis=1) * np.linalg.norm(t, axis=1))
    return float((1 - cosine).sum())


shapes = st.tuples(st.integers(1, 9), st.integers(2, 33), st.integers(0, 2**31))


@given(shapes, st.sampled_from(DISTANCES), st.sampled_from([None, 1.0, 7.5]))
@settings(deadline=None)
def test_the_sum_over_tokens_over_the_denominator(shape, distance, denominator):
    tokens, size, seed = shape
    generator = torch.Generator().manual_seed(seed)
    student_TD, teacher_TD = (torch.randn(tokens, size, generator=generator) for _ in range(2))
    got = feature_distance(student_TD, teacher_TD, distance, denominator=denominator)
    want = reference(student_TD, teacher_TD, distance) / (denominator or tokens)
    assert float(got) == pytest.approx(want, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_is_that_of_finite_differences(distance):
    torch.manual_seed(0)
    student_TD = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher_TD = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: feature_distance(s, teacher_TD, distance, denominator=3.0), student_TD)
    feature_distance(student_TD, teacher_TD, distance).backward()
    assert teacher_TD.grad is None


@pytest.mark.parametrize("distance", DISTANCES)
def test_bf16_features_are_compared_in_fp32(distance):
    torch.manual_seed(0)
    student_TD, teacher_TD = (torch.randn(64, 128).bfloat16() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = feature_distance(student_TD, teacher_TD, distance)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(reference(student_TD, teacher_TD, distance) / 64, rel=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_token_is_a_connected_zero(distance):
    student_TD = torch.randn(0, 4, requires_grad=True)
    total = feature_distance(student_TD, torch.randn(0, 4), distance)
    assert float(total) == 0.0
    total.backward()
    assert student_TD.grad.shape == (0, 4)


def test_what_cannot_be_compared_is_told():
    with pytest.raises(ValueError, match=r"\(2, 3\), the teacher's \(2, 4\)"):
        feature_distance(torch.zeros(2, 3), torch.zeros(2, 4), "mse")
    with pytest.raises(ValueError, match="mse or cosine"):
        feature_distance(torch.zeros(2, 3), torch.zeros(2, 3), "l1")


TERM = FeatureTermPlan(weight=2.0, distance="mse")
REACHES = {
    "vit": {"vision"},
    "aligner": {"vision", "aligner"},
    "deepstack": {"vision", "deepstack"},
}


def only(component, term=TERM):
    return VisualPlan(**{name: term if name == component else None for name in REACHES})


@pytest.fixture(scope="module")
def models(tiny):
    """A student that was perturbed, and its teacher."""
    from transformers import AutoModelForImageTextToText

    student, teacher = (AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return student, teacher


IMAGES = {
    "pixel_values": torch.linspace(-1, 1, 32 * 1536).reshape(32, 1536),
    "image_grid_thw": torch.tensor([[1, 4, 8]]),
}


@pytest.mark.parametrize("component", REACHES)
def test_gradients_reach_exactly_what_lies_before_a_component(component, models):
    student, teacher = models
    student.zero_grad()
    mine = FeatureTap(student).of_images(IMAGES)
    with torch.no_grad():
        theirs = FeatureTap(teacher).of_images(IMAGES)
    (term,) = vision_terms(mine, theirs, only(component), patches=32, merged=8).values()
    assert float(term) > 0
    term.backward()
    reached = {
        tower_of(name) for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert reached == REACHES[component]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("component", REACHES)
def test_the_gradient_through_the_tower_is_that_of_finite_differences(component, distance, models):
    """Along a random direction of all parameters of the vision tower at once, in fp64."""
    student, teacher = (copy.deepcopy(model.model.visual).double() for model in models)
    student, teacher = (SimpleNamespace(model=SimpleNamespace(visual=visual)) for visual in (student, teacher))
    images = {name: value.double() if value.is_floating_point() else value for name, value in IMAGES.items()}
    with torch.no_grad():
        theirs = FeatureTap(teacher).of_images(images)
    tap, plan = FeatureTap(student), only(component, FeatureTermPlan(weight=2.0, distance=distance))

    def term():
        (value,) = vision_terms(tap.of_images(images), theirs, plan, patches=32, merged=8).values()
        return value

    parameters = list(student.model.visual.parameters())
    gradients = torch.autograd.grad(term(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    wanted = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    values, step = [], 1e-6
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, towards in zip(parameters, direction, strict=True):
                parameter.add_(towards, alpha=sign * step)
            values.append(float(term()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("component", REACHES)
def test_a_term_is_the_weighted_mean_over_its_tokens(component, models):
    mine, theirs = (FeatureTap(model).of_images(IMAGES) for model in models)
    (term,) = vision_terms(mine, theirs, only(component), patches=32, merged=8).values()
    tokens = 32 if component == "vit" else 8
    assert all(len(features) == tokens for features in mine[component])
    assert len(mine[component]) == (3 if component == "deepstack" else 1)
    distances = [
        reference(student.detach(), teacher.detach(), "mse") / tokens
        for student, teacher in zip(mine[component], theirs[component], strict=True)
    ]
    assert float(term) == pytest.approx(2.0 * np.mean(distances), rel=1e-5)


def test_features_are_those_that_the_model_computes(models):
    student, _ = models
    features = FeatureTap(student).of_images(IMAGES)
    out = student.model.visual(IMAGES["pixel_values"], grid_thw=IMAGES["image_grid_thw"])
    torch.testing.assert_close(features["aligner"][0], out.pooler_output)
    for got, want in zip(features["deepstack"], out.deepstack_features, strict=True):
        torch.testing.assert_close(got, want)
