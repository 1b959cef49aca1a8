"""Distances between the student's and the teacher's vision features, whose gradients reach the student.

Suffixes: T tokens (patches before the merger, placeholder tokens after it), D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vltool.run.distillation import VisualPlan
from vltool.training.shared_vision import visual_of

Distance = Literal["mse", "cosine"]


def feature_distance(
    student_TD: Tensor, teacher_TD: Tensor, distance: Distance, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Sum over tokens of how far the student's features are from the teacher's, divided by `denominator`.

    distance: `mse`, the mean over features of the squared difference; `cosine`, 1 − cosine similarity.
    denominator: by default the number of tokens. A training step passes that of the whole optimizer step.

    Computed in fp32 (fp64 for fp64 features); the scalar is float64. Differentiable in student_TD, not in
    teacher_TD. Without any token it is an exact zero that is still connected to student_TD.
    Raises ValueError for shapes that differ and for an unknown distance.
    """
    if student_TD.shape != teacher_TD.shape:
        raise ValueError(
            f"the student's features are {tuple(student_TD.shape)}, the teacher's {tuple(teacher_TD.shape)}"
        )
    exact = torch.float64 if student_TD.dtype == torch.float64 else torch.float32
    with torch.autocast(student_TD.device.type, enabled=False):
        if teacher_TD.is_inference():
            # Autograd keeps what a cosine needs, but nothing that was made in inference mode.
            teacher_TD = teacher_TD.clone()
        student_TD, teacher_TD = student_TD.to(exact), teacher_TD.detach().to(exact)
        if distance == "mse":
            distance_T = (student_TD - teacher_TD).square().mean(-1)
        elif distance == "cosine":
            distance_T = 1 - functional.cosine_similarity(student_TD, teacher_TD, dim=-1)
        else:
            raise ValueError(f"distance is mse or cosine, got {distance}")
        total = distance_T.double().sum()
    return total / (max(len(distance_T), 1) if denominator is None else denominator)


Features = dict[str, list[Tensor]]
"""What one forward pass made of its images, [T, D] each: `vit`, what enters the merger; `aligner`, what leaves it;
`deepstack`, what leaves each deepstack merger, in their order."""


class FeatureTap:
    """Takes the features of a model's vision tower as they pass.

    They are taken at the mergers, outside of what gradient checkpointing runs twice.
    """

    def __init__(self, model: Any) -> None:
        self._visual = visual_of(model)
        self._open: Features | None = None
        self._handles = [
            self._visual.merger.register_forward_pre_hook(self._before_merger),
            self._visual.merger.register_forward_hook(self._after_merger),
            *(merger.register_forward_hook(self._after_deepstack) for merger in self._visual.deepstack_merger_list),
        ]

    def _before_merger(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._keep("vit", args[0])

    def _after_merger(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._keep("aligner", output)

    def _after_deepstack(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._keep("deepstack", output)

    def _keep(self, component: str, features_TD: Tensor) -> None:
        if self._open is not None:
            self._open.setdefault(component, []).append(features_TD)

    @contextmanager
    def listening(self) -> Iterator[Features]:
        """Inside, keep the features of the one forward pass that is made."""
        self._open = {}
        try:
            yield self._open
        finally:
            self._open = None

    def of_images(self, inputs: Mapping[str, Any]) -> Features:
        """Run the vision tower alone, on the images of a model's inputs."""
        with self.listening() as features:
            self._visual(inputs["pixel_values"].to(self._visual.dtype), grid_thw=inputs["image_grid_thw"])
        return features

    def close(self) -> None:
        """Take the hooks away again."""
        for handle in self._handles:
            handle.remove()


def enabled_components(plan: VisualPlan) -> tuple[str, ...]:
    """Names of the components that are distilled, in the order of `vision_terms`."""
    return tuple(name for name in ("vit", "aligner", "deepstack") if getattr(plan, name) is not None)


def vision_terms(
    student: Features, teacher: Features, plan: VisualPlan, *, patches: float, merged: float
) -> dict[str, Tensor]:
    """The weighted distance of each component of `plan`.

    patches, merged: what the sums over patches and over placeholder tokens are divided by.
    """
    terms = {}
    for name in enabled_components(plan):
        term = getattr(plan, name)
        tokens = patches if name == "vit" else merged
        distances = [
            feature_distance(mine_TD, theirs_TD, term.distance, denominator=tokens)
            for mine_TD, theirs_TD in zip(student[name], teacher[name], strict=True)
        ]
        terms[name] = term.weight * torch.stack(distances).mean()
    return terms
