"""When a run's student has to be its teacher's equal before the first step, and how exactly."""

from __future__ import annotations

from pathlib import Path

from vltool.run.plan import RunPlan

KD_TOLERANCE = 1e-6
KD_TOLERANCE_HALF = 1e-3
"""Divergence a token: what rounding may make of nothing, in fp32 and in bf16."""


def in_half_precision(plan: RunPlan) -> bool:
    """Whether weights or arithmetic have 8 bits."""
    return bool(plan.arguments["torch_dtype"] != "float32" or plan.arguments["bf16"])


def kd_tolerance(plan: RunPlan) -> float:
    """The largest divergence a token at which two models are the same."""
    return KD_TOLERANCE_HALF if in_half_precision(plan) else KD_TOLERANCE


def why_no_equal(plan: RunPlan) -> str | None:
    """Why student and teacher may differ at the start; None where they may not."""
    distillation = plan.distillation
    if distillation is None or distillation.llm_kd_weight == 0.0:
        return "no distillation"
    if plan.resume is not None:
        return "a resumed run has moved away from its teacher"
    if plan.tuner.carried is not None or plan.merge is not None:
        return "an earlier stage has moved away from its teacher"
    if plan.tuner.tuner_type == "fourierft":
        return "FourierFT starts away from its base"
    if Path(distillation.teacher_model).resolve() != Path(plan.model).resolve():
        return "the recipe names another teacher"
    return None
