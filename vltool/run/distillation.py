"""The recipe's teacher: whose it is, and how much its logits and features weigh."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from vltool.checkpoint.architecture import Architecture
from vltool.errors import Problem
from vltool.recipe.schema import Recipe
from vltool.run.arguments import TunerPlan
from vltool.run.bases import read_checkpoint
from vltool.run.teacher_cache import CachePlan

_ADDITIVE_STARTS = ("true", "True", "gaussian")
"""Values of `init_weights` that leave the base's own weights as they are."""


_SHORT_RUN = 32
"""More steps than a smoke test takes."""

Source = Literal["dataset", "student", "teacher"]
"""Whose text a step trains on."""


class FeatureTermPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one component of the vision tower is held to the teacher's."""

    weight: float
    distance: Literal["mse", "cosine"]


class VisualPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Distillation of vision features (see `vltool.training.vision_kd`); None for a component that is not."""

    vit: FeatureTermPlan | None
    aligner: FeatureTermPlan | None
    deepstack: FeatureTermPlan | None


class SamplingPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps that train on sampled text (see `vltool.training.generate`)."""

    lmbda: float
    """Probability of the student's text."""
    seq_kd_ratio: float
    """Probability of the teacher's text in the other steps."""
    max_completion_length: int
    temperature: float
    completions_cache: str | None = None
    """Folder in which the teacher's answers are kept (see `vltool.training.completions`); None keeps none."""
    first: tuple[Source, ...] = ()
    """Whose text the first steps train on, whatever the probabilities: a smoke test has to see each."""


class DistillationPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The teacher and the weights of the loss (see `vltool.training.losses`)."""

    teacher: Literal["adapters_off", "copy"]
    """`adapters_off`: the student with its adapters disabled is the teacher; `copy`: a second, frozen model."""
    teacher_model: str
    teacher_model_type: str
    beta: float
    sft_alpha: float
    llm_kd_weight: float
    kd_temperature: float
    eval_kd_batches: int | Literal["all"]
    offload_teacher: bool = False
    """Keep a copy's weights in the host's memory between its passes."""
    cache: CachePlan | None = None
    """None: the teacher runs beside the student."""
    visual: VisualPlan | None = None
    sampling: SamplingPlan | None = None
    """None: every step trains on the operator's captions."""

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is compared with a teacher, or written by it."""
        writes = self.sampling is not None and (self.sampling.seq_kd_ratio > 0.0 or "teacher" in self.sampling.first)
        return self.llm_kd_weight > 0.0 or self.visual is not None or writes


def distillation_plan(
    recipe: Recipe,
    base: str | None,
    architecture: Architecture | None,
    tuner: TunerPlan,
    arguments: dict[str, Any],
    problems: list[Problem],
    *,
    every_source: bool,
) -> DistillationPlan | None:
    """Who teaches, and what that weighs; None without distillation.

    base: the folder of this run's base; architecture: the recipe's base's. every_source: let the first steps
    train on each kind of text that the recipe asks for. Appends to `problems` a teacher that
    cannot be compared with the student.
    """
    rlhf = recipe.rlhf
    if rlhf.rlhf_type is None:
        return None
    # Without a word on it the teacher is the recipe's base, which a merged stage has moved away from.
    wanted = recipe.model.model if rlhf.teacher_model is None else rlhf.teacher_model
    same = _same_folder(wanted, base)
    teacher = architecture
    if not same and rlhf.teacher_model is not None:
        teacher = read_checkpoint(recipe, "rlhf.teacher_model", rlhf.teacher_model, problems)
        if teacher and architecture and teacher.vocab_size != architecture.vocab_size:
            problems.append(
                Problem(
                    f"the teacher's vocabulary has {teacher.vocab_size} entries, "
                    f"the student's {architecture.vocab_size}",
                    "distillation compares them entry by entry: use a teacher of the same family",
                    recipe.where("rlhf.teacher_model"),
                )
            )
    # Disabling an adapter that moved the base's own weights does not give them back: PiSSA, `lora_bias: all`.
    plain = arguments.get("lora_bias", "none") == "none" and arguments.get("init_weights", "true") in _ADDITIVE_STARTS
    restores = tuner.tuner_type != "full" and plain
    return DistillationPlan(
        teacher="adapters_off" if same and restores else "copy",
        teacher_model=str(base if same else wanted),
        teacher_model_type=rlhf.teacher_model_type or (teacher.model_type if teacher else ""),
        beta=rlhf.beta,
        sft_alpha=rlhf.sft_alpha,
        llm_kd_weight=rlhf.llm_kd_weight,
        kd_temperature=rlhf.kd_temperature,
        eval_kd_batches=rlhf.eval_kd_batches,
        offload_teacher=rlhf.offload_teacher_model,
        cache=_cache(recipe),
        visual=_visual(recipe),
        sampling=_sampling(recipe, problems, every_source=every_source),
    )


def _sampling(recipe: Recipe, problems: list[Problem], *, every_source: bool) -> SamplingPlan | None:
    rlhf = recipe.rlhf
    ratio = rlhf.seq_kd_ratio if rlhf.seq_kd else 0.0
    if not rlhf.lmbda and not ratio:
        return None
    cache = rlhf.teacher_completions_cache if ratio else None
    if cache is not None and Path(cache).exists() and not Path(cache).is_dir():
        what = f"rlhf.teacher_completions_cache: {cache} is there already, and is no folder"
        problems.append(Problem(what, "name a folder", recipe.where("rlhf.teacher_completions_cache")))
    own, rest = rlhf.lmbda, 1 - rlhf.lmbda
    shares: dict[Source, float] = {"dataset": rest * (1 - ratio), "student": own, "teacher": rest * ratio}
    return SamplingPlan(
        lmbda=rlhf.lmbda,
        seq_kd_ratio=ratio,
        max_completion_length=rlhf.max_completion_length,
        temperature=rlhf.temperature,
        completions_cache=cache,
        first=_one_of_each(shares) if every_source else (),
    )


def _one_of_each(shares: dict[Source, float]) -> tuple[Source, ...]:
    """Each kind of text once, then the operator's, from which a short run can be seen to learn."""
    asked = [source for source, share in shares.items() if share > 0]
    return (*asked, *asked[:1] * _SHORT_RUN)


def _cache(recipe: Recipe) -> CachePlan | None:
    folder = recipe.rlhf.teacher_cache
    if folder is None or not recipe.rlhf.llm_kd_weight:
        return None
    return CachePlan(folder=folder, topk=recipe.rlhf.teacher_cache_topk)


def _visual(recipe: Recipe) -> VisualPlan | None:
    visual = recipe.custom.visual_kd
    if not visual.enabled:
        return None
    terms = {
        name: FeatureTermPlan(weight=term.weight, distance=term.distance) if term.enabled and term.weight else None
        for name, term in (("vit", visual.vit), ("aligner", visual.aligner), ("deepstack", visual.deepstack))
    }
    return VisualPlan(**terms) if any(terms.values()) else None


def _same_folder(first: str | None, second: str | None) -> bool:
    if first is None or second is None:
        return False
    return first == second or Path(first).resolve() == Path(second).resolve()
