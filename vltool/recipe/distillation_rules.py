"""Rules on distillation: what is weighted, whose text is trained on, which vision terms can be more than zero."""

from __future__ import annotations

from vltool.recipe.modules import Part
from vltool.recipe.settings import Settings
from vltool.recipe.tuner_rules import trained_parts

BEFORE: dict[str, tuple[Part, ...]] = {
    "vit": ("vision",),
    "aligner": ("vision", "aligner"),
    "deepstack": ("vision", "deepstack"),
}
"""Component of `visual_kd` -> the parts at or before its output."""
_FREEZING = ("tuner.freeze_vit", "tuner.freeze_aligner")
_SAMPLING = ("max_completion_length", "temperature")
_TEACHERS = ("seq_kd_ratio", "teacher_completions_cache")


def distillation_is_on(settings: Settings) -> None:
    """Keys that mean nothing, or the contrary, without `rlhf_type: gkd`."""
    if settings["rlhf.rlhf_type"] is not None:
        return
    if settings["custom.trainer_variant"] == "gkd_monitor":
        what = "custom.trainer_variant: gkd_monitor distils, but rlhf.rlhf_type is not gkd"
        settings.problem("custom.trainer_variant", what, "write rlhf_type: gkd under rlhf, or remove trainer_variant")
    elif keys := settings.keys("rlhf"):
        settings.note("rlhf", f"rlhf: {', '.join(keys)} has no effect without rlhf_type: gkd")
    if settings["custom.visual_kd.enabled"]:
        what = "custom.visual_kd needs a teacher, but rlhf.rlhf_type is not gkd"
        settings.problem(
            "custom.visual_kd.enabled", what, "write rlhf_type: gkd under rlhf, or extend a recipe with it"
        )


def something_is_weighted(settings: Settings) -> None:
    """Without cross entropy and divergence nothing is left but vision terms."""
    if settings["rlhf.rlhf_type"] is None or settings["rlhf.sft_alpha"] or settings["rlhf.llm_kd_weight"]:
        return
    at = settings.latest("rlhf.llm_kd_weight", "rlhf.sft_alpha")
    what, do = "rlhf.sft_alpha and rlhf.llm_kd_weight are both 0", "give one of them a weight, sft_alpha: 1.0 say"
    if settings["custom.visual_kd.enabled"]:
        settings.note(at, f"{what}: the captions are not learnt, and vision features alone are distilled", do)
    else:
        settings.problem(at, f"{what}: nothing would be learnt", do)


def beta_is_no_weight(settings: Settings) -> None:
    """Close to 0 the divergence vanishes; at exactly 0 it is the full forward KL."""
    if settings["rlhf.rlhf_type"] and settings.written("rlhf.beta") and settings["rlhf.beta"] == 0:
        what = "rlhf.beta: exactly 0 is the full forward KL to the teacher, not none of it"
        do = "beta interpolates; for less anchoring lower llm_kd_weight, or write 0.1"
        settings.note("rlhf.beta", what, do, rule="kd-beta-zero")


def whose_text_is_trained_on(settings: Settings) -> None:
    """Captions that are never seen, and sampling keys where nothing is sampled."""
    if settings["rlhf.rlhf_type"] is None:
        return
    student, teacher = settings["rlhf.lmbda"], settings["rlhf.seq_kd"]
    if student == 1:
        what = "rlhf.lmbda: 1 trains on the student's own text alone, never on your captions"
        settings.note("rlhf.lmbda", what, "write lmbda: 0.5 to train on both", rule="kd-captions-unseen")
    elif teacher and settings["rlhf.seq_kd_ratio"] == 1:
        what = "rlhf.seq_kd replaces every caption of yours by the teacher's text: they are never trained on"
        settings.note(
            "rlhf.seq_kd", what, "write seq_kd_ratio: 0.5 beside it to train on both", rule="kd-captions-unseen"
        )
    if not student and not teacher:
        for key in _SAMPLING:
            _note_unused(settings, f"rlhf.{key}", "with lmbda 0 and no seq_kd nothing is sampled")
    if not teacher:
        for key in _TEACHERS:
            _note_unused(settings, f"rlhf.{key}", "seq_kd is not on")
    if student and settings["rlhf.llm_kd_weight"] == 0:
        what = "rlhf.lmbda: with llm_kd_weight 0, steps on the student's own text have nothing to learn from it"
        settings.note("rlhf.lmbda", what, "write lmbda: 0.0")


def a_cache_knows_the_captions(settings: Settings) -> None:
    """A cached teacher was asked about the records as they are, and about nothing else."""
    if settings["rlhf.teacher_cache"] is None or settings["rlhf.rlhf_type"] is None:
        return
    if settings["rlhf.lmbda"] or settings["rlhf.seq_kd"]:
        what = "rlhf.teacher_cache knows your captions, not text that is sampled (lmbda above 0, seq_kd)"
        settings.problem("rlhf.teacher_cache", what, "write lmbda: 0.0 and seq_kd: false, or take teacher_cache out")
    if settings["custom.augmentation.enabled"]:
        what = "rlhf.teacher_cache knows your images as they are, not augmented"
        settings.problem("rlhf.teacher_cache", what, "write augmentation: {enabled: false}, or take teacher_cache out")
    if settings["custom.fusion_config"] is not None:
        what = "rlhf.teacher_cache knows the records of one file, not a mixture drawn anew in every epoch"
        settings.problem(
            "rlhf.teacher_cache", what, "write the mixture out with vltool fuse, or take teacher_cache out"
        )
    if settings["rlhf.llm_kd_weight"] == 0:
        settings.note("rlhf.teacher_cache", "rlhf.teacher_cache has no effect: llm_kd_weight is 0", "take the line out")


def _note_unused(settings: Settings, key: str, why: str) -> None:
    """A key that does nothing, unless it is merely inherited by a recipe that turned sampling off."""
    if settings.written(key) and settings.settled_by(key, "rlhf.lmbda", "rlhf.seq_kd"):
        settings.note(key, f"{key} has no effect: {why}", "take the line out")


def vision_terms_can_be_more_than_zero(settings: Settings) -> None:
    """A term with nothing trainable at or before its output is always zero."""
    if not settings["custom.visual_kd.enabled"]:
        return
    enabled = [name for name in BEFORE if settings[f"custom.visual_kd.{name}.enabled"]]
    if not enabled:
        what = f"custom.visual_kd is enabled, but none of {', '.join(BEFORE)} is"
        settings.problem("custom.visual_kd.enabled", what, "write enabled: true for a component")
        return
    trained = trained_parts(settings)
    zero = [name for name in enabled if not trained.intersection(BEFORE[name])]
    if zero == enabled:
        what = "custom.visual_kd: every enabled term is always zero, since nothing trains in vision blocks or aligner"
        do = "write freeze_aligner: false or freeze_vit: false under tuner, or visual_kd: {enabled: false}"
        settings.problem(settings.latest("custom.visual_kd.enabled", *_FREEZING), what, do)
        return
    for name in zero:
        what = f"custom.visual_kd.{name} is always zero: nothing trains at or before its output"
        at = settings.latest(f"custom.visual_kd.{name}.enabled", *_FREEZING)
        settings.note(at, what, f"write visual_kd: {{{name}: {{enabled: false}}}}", rule="kd-term-zero")


RULES = (
    distillation_is_on,
    something_is_weighted,
    beta_is_no_weight,
    whose_text_is_trained_on,
    a_cache_knows_the_captions,
    vision_terms_can_be_more_than_zero,
)
