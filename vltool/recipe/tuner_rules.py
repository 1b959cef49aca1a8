"""Rules on what trains: the tuner's own keys, names of modules, towers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vltool.errors import nearest
from vltool.recipe.modules import LISTS, Part, adaptable, close_to, matched, named, part_of, saved, within
from vltool.recipe.settings import Settings, Undecided

_ADAPTERS = ("lora", "longlora", "adalora", "boft", "fourierft", "vera")
_LORAS = ("lora", "longlora", "adalora")
_READ_BY: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("lora_rank", "use_dora", "lorap_lr_ratio"), ("lora", "longlora")),
    (("lora_dtype", "target_parameters", "lora_ga_"), ("lora",)),
    (("lora_alpha", "lora_dropout", "lora_bias", "use_rslora", "init_weights"), _LORAS),
    (("target_modules", "target_regex", "modules_to_save"), _ADAPTERS),
    *(((f"{name}_",), (name,)) for name in ("adalora", "boft", "vera", "llamapro", "adapter", "reft")),
    (("fourier_",), ("fourierft",)),
    (
        (
            "freeze_parameters", "freeze_parameters_ratio", "freeze_parameters_regex", "trainable_parameters",
            "trainable_parameters_regex",
        ),
        ("full",),
    ),
)  # fmt: skip
"""Keys of `tuner`, or how they begin, and the tuners that read them (ms-swift, pipelines/train/tuner.py)."""
BY_CLASS = ("all-embedding", "all-norm")
"""ms-swift's words for modules by their class."""
WORDS = ("all-linear", *BY_CLASS)
_OVERLAYS = ("full", "adalora", "boft", "fourierft")
"""Tuners that have a shipped overlay of their name."""
NO_TARGETS = ("^$", "")
"""Target patterns that mean no module."""


def keys_fit_the_tuner(settings: Settings) -> None:
    """A key that the chosen tuner never reads would be ignored."""
    tuner = settings["tuner.tuner_type"]
    chosen = settings.where("tuner.tuner_type")
    inherited = []
    for key, readers in _tuner_keys(settings):
        if tuner in readers:
            continue
        if settings.settled_by(key, "tuner.tuner_type"):
            at = f" (at {chosen})" if settings.written("tuner.tuner_type") else ""
            do = f"take the line out, or choose {' or '.join(readers)}"
            settings.problem(key, f"{key} means nothing to tuner_type: {tuner}{at}", do)
        else:
            inherited.append(key.removeprefix("tuner."))
    if inherited:
        places = ", ".join(dict.fromkeys(str(settings.where(f"tuner.{key}")) for key in inherited))
        what = f"tuner.tuner_type: {tuner} does not read {', '.join(inherited)} ({places})"
        do = f"write {'; '.join(f'{key}: null' for key in inherited)}"
        if tuner in _OVERLAYS and not chosen.file.endswith(f"{tuner}.yaml"):
            do = f"extend the overlay {tuner} too, which clears what is inherited, in place of this line"
        settings.problem("tuner.tuner_type", what, do)


def _tuner_keys(settings: Settings) -> list[tuple[str, tuple[str, ...]]]:
    """Written keys of `tuner` that some tuners do not read, and those that do."""
    return [
        (f"tuner.{key}", readers)
        for key in settings.keys("tuner")
        for names, readers in _READ_BY
        if any(key == name or (name.endswith("_") and key.startswith(name)) for name in names)
    ]


def names_mean_modules(settings: Settings) -> None:
    """Names that no module of Qwen3-VL has would leave something untrained."""
    for key in ("target_modules", "modules_to_save"):
        for at, name in enumerate(settings[f"tuner.{key}"]):
            if name in WORDS:
                continue
            item = f"tuner.{key}[{at}]"
            if not (meant := named(name)):
                guess = nearest(name, WORDS, cutoff=0.7) or close_to(name)
                do = f"did you mean {guess}?" if guess else "names are those of transformers, model.visual.merger say"
                if "experts." in name:
                    do = "what is inside the experts of a layer are parameters, no modules: mlp.experts is one module"
                settings.problem(item, f"tuner.{key}: no module of Qwen3-VL is called {name}", do)
            elif key == "target_modules" and not any(map(adaptable, meant)):
                what = f"tuner.{key}: {name} is no linear module, which is what an adapter goes on"
                settings.problem(item, what, "name linear modules, or write it in modules_to_save to train it in full")
            elif key == "modules_to_save" and (more := set(saved(name)) - set(meant)):
                what = f"tuner.{key}: {name} also saves {', '.join(sorted(more))}, which end with it"
                settings.note(item, what, f"write the name in full, {meant[0]} say", rule="tuner-saves-more")
            elif key == "modules_to_save" and set(meant) & set(LISTS):
                what = f"tuner.{key}: {name} is a list of modules, which cannot be saved as one"
                settings.problem(item, what, f"name its modules: {name}.0, {name}.1, {name}.2")


def pattern_means_modules(settings: Settings) -> None:
    """A pattern that is none, or that matches no linear module."""
    regex = settings["tuner.target_regex"]
    if regex is None or regex in NO_TARGETS:
        return
    try:
        pattern = re.compile(regex)
    except re.error as error:
        settings.problem("tuner.target_regex", f"tuner.target_regex: {error}", "it is a Python regular expression")
        return
    if not any(matched(pattern)):
        do = "it has to match full names, model.visual.blocks.0.attn.qkv say; ^$ is the pattern for none"
        what = "tuner.target_regex matches no linear module of Qwen3-VL as a whole"
        settings.problem("tuner.target_regex", what, do)


def trained_parts(settings: Settings | Mapping[str, Any]) -> set[Part]:
    """The parts of the model in which something trains, by the recipe alone.

    Raises Undecided for a target pattern that is none.
    """
    frozen = {
        "vision": settings["tuner.freeze_vit"],
        "aligner": settings["tuner.freeze_aligner"],
        "deepstack": settings["tuner.freeze_aligner"],
        "language": settings["tuner.freeze_llm"],
    }
    by_flags: set[Part] = {part for part in ("vision", "aligner", "deepstack", "language") if not frozen[part]}
    if settings["tuner.tuner_type"] not in _ADAPTERS:
        return by_flags
    regex, targets = settings["tuner.target_regex"], settings["tuner.target_modules"]
    if regex is not None:
        adapted = {part_of(module) for module in ([] if regex in NO_TARGETS else matched(_compiled(regex)))}
    elif "all-linear" in targets:
        adapted = by_flags
    else:
        adapted = {part_of(module) for name in targets for module in named(name)}
    copied = {
        part_of(inner) for name in settings["tuner.modules_to_save"] for top in saved(name) for inner in within(top)
    }
    return adapted | copied


def _compiled(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise Undecided from error


def something_trains(settings: Settings) -> None:
    """Everything frozen."""
    trained, full = trained_parts(settings), settings["tuner.tuner_type"] == "full"
    by_name = {*settings["tuner.target_modules"], *settings["tuner.modules_to_save"]} & set(BY_CLASS)
    if full and any(settings.written(f"tuner.trainable_parameters{suffix}") for suffix in ("", "_regex")):
        return
    if not trained and not by_name:
        what = "nothing would train: freeze_llm, freeze_vit and freeze_aligner freeze all that the tuner targets"
        do = "write false for what should train" + ("" if full else ", or name it in modules_to_save")
        at = settings.latest("tuner.freeze_llm", "tuner.freeze_vit", "tuner.freeze_aligner", "tuner.tuner_type")
        for key in ("target_regex", "target_modules"):
            # Targets that name no module leave nothing to train, whatever the flags say.
            if not full and settings[f"tuner.{key}"] in (*NO_TARGETS, []):
                what = f"nothing would train: tuner.{key} targets no module, and modules_to_save names none"
                at = settings.latest(f"tuner.{key}", "tuner.modules_to_save")
                break
        settings.problem(at, what, do)


def flags_say_what_trains(settings: Settings) -> None:
    """Adapter targets by name or pattern reach what they reach, whatever the freeze flags say."""
    key = "tuner.target_modules" if settings["tuner.target_regex"] is None else "tuner.target_regex"
    if settings["tuner.tuner_type"] not in _ADAPTERS or "all-linear" in settings[key] or settings[key] in NO_TARGETS:
        return
    trained = trained_parts(settings)
    for flag, part in (("freeze_llm", "language"), ("freeze_vit", "vision"), ("freeze_aligner", "aligner")):
        flag = f"tuner.{flag}"
        if not settings.written(flag) or not settings.settled_by(flag, key):
            continue
        trains = part in trained or (part == "aligner" and "deepstack" in trained)
        if settings[flag] == trains:
            reach = "reaches it" if trains else "reaches nothing there"
            what = f"{flag}: {str(settings[flag]).lower()}, but {key.split('.')[1]} ({settings.where(key)}) {reach}"
            do = "targets decide: make the two agree, or write target_modules: [all-linear]"
            settings.note(flag, what, do, rule="tuner-flags")


def vision_blocks_are_counted_where_they_train(settings: Settings) -> None:
    """`last_vit_blocks` limits `freeze_vit: false` and nothing else."""
    if settings["tuner.last_vit_blocks"] is None:
        return
    other = None
    if settings["tuner.freeze_vit"]:
        other = "freeze_vit"
    elif settings["tuner.target_regex"] is not None and settings["tuner.tuner_type"] != "full":
        other = "target_regex"
    if other:
        key = "tuner.last_vit_blocks"
        at = settings.latest(key, f"tuner.{other}")
        beside = settings.elsewhere(f"tuner.{other}", at) if settings.written(f"tuner.{other}") else ""
        what = f"{key}{settings.elsewhere(key, at)} has no effect beside {other}{beside}"
        do = "write freeze_vit: false" if other == "freeze_vit" else "say in the pattern which blocks train"
        settings.problem(at, what, f"{do}, or last_vit_blocks: null")


def merging_needs_an_earlier_stage(settings: Settings) -> None:
    """`merge_previous` says where the earlier stage's merged weights go."""
    if settings["tuner.merge_previous"] is not None and settings["tuner.resume_from_checkpoint"] is None:
        what = "tuner.merge_previous: there is no earlier stage to merge"
        settings.problem("tuner.merge_previous", what, "name its checkpoint in tuner.resume_from_checkpoint")


def copies_can_be_merged(settings: Settings) -> None:
    """peft cannot merge these adapters when they carry copies of modules."""
    tuner = settings["tuner.tuner_type"]
    if tuner in ("boft", "fourierft") and settings["tuner.modules_to_save"]:
        what = f"tuner.modules_to_save: beside {tuner} it trains and reloads, but cannot be merged into the base"
        do = "serve it as an adapter, or choose lora, dora or adalora"
        settings.note("tuner.modules_to_save", what, do, rule="tuner-merge")


RULES = (
    keys_fit_the_tuner,
    names_mean_modules,
    pattern_means_modules,
    something_trains,
    flags_say_what_trains,
    vision_blocks_are_counted_where_they_train,
    merging_needs_an_earlier_stage,
    copies_can_be_merged,
)
