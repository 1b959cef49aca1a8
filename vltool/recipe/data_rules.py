"""Rules on records, prompts, packing and augmentation."""

from __future__ import annotations

import re

import msgspec

from vltool.recipe.augmentation import AnyOp
from vltool.recipe.curriculum import Curriculum, curriculum_faults, ops_faults
from vltool.recipe.settings import Settings

PLACEHOLDERS = ("dummy", "placeholder")
"""What older recipes had to write in `data.dataset`, since ms-swift insists on something there."""


def records_are_named_once(settings: Settings) -> None:
    """Records come from train_jsonl or a mixture, never from ms-swift's own datasets."""
    given = settings["data.dataset"]
    if given in PLACEHOLDERS or given in ([word] for word in PLACEHOLDERS):
        settings.note("data.dataset", "data.dataset can go: vltool puts ms-swift's placeholder there")
    elif given is not None:
        do = "name the records in custom.train_jsonl, or a mixture in custom.fusion_config"
        settings.problem("data.dataset", "data.dataset: ms-swift's datasets are not used", do)
    records, mixture = settings["custom.train_jsonl"], settings["custom.fusion_config"]
    if records is not None and mixture is not None:
        what = "custom.fusion_config and custom.train_jsonl are both given"
        do = f"write null for one of them (train_jsonl is at {settings.where('custom.train_jsonl')})"
        settings.problem("custom.fusion_config", what, do)
    elif records is None and mixture is None:
        do = "name the training records there, or a mixture in custom.fusion_config"
        settings.problem("custom.train_jsonl", "custom.train_jsonl is missing", do)


def prompts_are_texts(settings: Settings) -> None:
    """A prompt that looks like a file which vltool would not read."""
    for key in ("custom.user_prompt", "custom.system_prompt"):
        text = settings[key]
        if text and re.fullmatch(r"\S+\.\w{1,5}|\S*/\S+|.*\.txt", text):
            settings.note(key, f"{key}: {text} is the prompt itself", "to read a file, name one that ends in .txt")


def packing_tokenises_ahead(settings: Settings) -> None:
    """Packing has to know lengths before a sample is drawn."""
    if settings["training.packing"] and settings["data.lazy_tokenize"]:
        keys = ("training.packing", "data.lazy_tokenize")
        places = " and ".join(str(settings.where(key)) for key in keys)
        what = f"training.packing needs lengths beforehand, which data.lazy_tokenize puts off ({places})"
        settings.problem(settings.latest(*keys), what, "write lazy_tokenize: null under data, or packing: false")


def augmentation_has_operations(settings: Settings) -> None:
    """Augmentation that is on and does nothing."""
    if settings["custom.augmentation.enabled"] and not settings["custom.augmentation.ops"]:
        what = "custom.augmentation is enabled, but has no ops"
        settings.problem("custom.augmentation.enabled", what, "list them in ops, or extend augment_grounding")


def augmentation_parameters_agree(settings: Settings) -> None:
    """What parameters of an operation, or of a phase of the curriculum, say together."""
    written = settings["custom.augmentation.ops"]
    ops = msgspec.convert(written, tuple[AnyOp, ...])
    faults = list(ops_faults(ops))
    if (curriculum := settings["custom.augmentation.curriculum"]) is not None:
        faults += curriculum_faults(msgspec.convert(curriculum, Curriculum), ops)
    for fault in faults:
        key = f"custom.augmentation.{fault.key}"
        settings.problem(key, f"{key}: {fault.what}", fault.do)


RULES = (
    records_are_named_once,
    prompts_are_texts,
    packing_tokenises_ahead,
    augmentation_has_operations,
    augmentation_parameters_agree,
)
