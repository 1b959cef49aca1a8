"""Findings on a checkpoint: its files, its names, its values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vltool.audit.finding import Finding, Severity
from vltool.checkpoint.adapter import part_of, read_json
from vltool.checkpoint.architecture import Tower, tower_of
from vltool.checkpoint.completeness import Completeness
from vltool.checkpoint.inspection import Inspection
from vltool.errors import BadContent, Where
from vltool.run.folder import PLAN_FILE_NAME

if TYPE_CHECKING:
    # Reading headers does without numpy.
    from vltool.checkpoint.values import Survey

_WARNINGS = ("ckpt-unfinished", "ckpt-base", "ckpt-trainer-state", "ckpt-config")
_SHOWN = 8
"""Names in the evidence of a finding."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What an adapter holds of an earlier stage and its own did not train."""

    checkpoint: str
    tensors: dict[Tower, int]


def judge(inspection: Inspection, names: Completeness, survey: Survey | None) -> list[Finding]:
    """All findings on a checkpoint. survey: what its tensors hold, where that was asked for."""
    return [*_files(inspection), *_names(inspection, names), *(_values(inspection, survey) if survey else ())]


def carried(inspection: Inspection) -> Carried | None:
    """The frozen parts of an earlier stage, by the run's plan beside the checkpoint; None where it has none."""
    plan = inspection.folder.absolute().parent / PLAN_FILE_NAME
    if not plan.is_file():
        return None
    try:
        tuner = read_json(plan).get("tuner")
        if not isinstance(tuner, dict) or not isinstance(tuner.get("carried"), dict):
            return None
        from vltool.recipe.tuner_rules import NO_TARGETS
        from vltool.run.arguments import TunerPlan, named_in, own_regex

        said = msgspec.convert(tuner, TunerPlan)
        own = re.compile(own_regex(said)) if own_regex(said) not in NO_TARGETS else None
    except (BadContent, msgspec.ValidationError, re.error):
        return None
    assert said.carried is not None
    held: dict[Tower, int] = {}
    for name in inspection.tensors:
        module = part_of(name).module
        from_before = module in said.carried.adapted or any(
            module == top or module.startswith(f"{top}.") for top in said.carried.saved
        )
        trained = (own is not None and own.fullmatch(module) is not None) or any(
            named_in(module, saved) for saved in said.modules_to_save
        )
        if from_before and not trained:
            held[tower_of(name)] = held.get(tower_of(name), 0) + 1
    return Carried(said.carried.checkpoint, held)


def _finding(rule: str, what: str, remedy: str, *, severity: Severity = "error", evidence: str = "",
             where: Path | None = None) -> Finding:  # fmt: skip
    place = Where(str(where)) if where else None
    return Finding(id=rule, severity=severity, what=what, remedy=remedy, evidence=evidence, where=place)


def _files(inspection: Inspection) -> Iterator[Finding]:
    folder, contents = inspection.folder, inspection.contents
    for problem in inspection.problems:
        severity: Severity = "warning" if problem.id in _WARNINGS else "error"
        yield _finding(problem.id, problem.what, problem.do, severity=severity, where=folder)
    if pickles := contents.of("pickled weights"):
        alone = inspection.kind in ("pickled", "broken")
        yield _finding(
            "ckpt-pickle",
            "weights are pickled, and were not opened: reading a pickle runs whatever code is in it",
            "write them as .safetensors where you trust them"
            if alone
            else "take them away: some loaders prefer them to the .safetensors",
            severity="error" if alone else "warning",
            evidence=_list([file.path.name for file in pickles]),
            where=folder,
        )
    if inspection.kind == "broken" and not contents.of("weights"):
        what = "there are no weights, though what lies beside them is here"
        yield _finding("ckpt-weights", what, "copy the checkpoint again, or use another one", where=folder)
    if inspection.kind in ("deepspeed shards", "fsdp shards"):
        deepspeed = inspection.kind == "deepspeed shards"
        yield _finding(
            "ckpt-sharded-state",
            f"there are only {'DeepSpeed' if deepspeed else 'FSDP'}'s shards, which are pickled, and no weights",
            "python zero_to_fp32.py --safe_serialization . OUT (DeepSpeed writes it into the checkpoint)"
            if deepspeed
            else "accelerate merge-weights SHARDS OUT",
            where=folder,
        )
    if inspection.kind == "full" and not (folder / "config.json").is_file():
        what = "there are weights and no config.json, so that no loader knows what they are"
        yield _finding("ckpt-config", what, "copy it from where the weights are from", severity="warning", where=folder)
    if inspection.kind == "adapter and full":
        names = sorted({inspection.tensors[name].file.name for name in inspection.full})
        yield _finding(
            "ckpt-mixture",
            "an adapter and whole weights lie in one folder, and loaders differ in which they take",
            "keep them in folders of their own",
            severity="warning",
            evidence=_list(names),
            where=folder,
        )
    yield from _state(inspection)


def _state(inspection: Inspection) -> Iterator[Finding]:
    progress, folder = inspection.progress, inspection.folder
    if progress is None:
        return
    step = folder.absolute().name.removeprefix("checkpoint-")
    if step != folder.absolute().name and step.isdecimal() and progress.step not in (None, int(step)):
        what = f"the folder is that of step {step}, trainer_state.json that of step {progress.step}"
        yield _finding("ckpt-trainer-state", what, "name the folder by its step", severity="warning", where=folder)
    if not inspection.contents.of("optimizer", "deepspeed shard", "fsdp shard"):
        what = "the optimizer's state is not here: a run cannot go on from it, though a next stage can"
        yield _finding("ckpt-resume", what, "keep the whole folder to resume", severity="note", where=folder)


def _names(inspection: Inspection, names: Completeness) -> Iterator[Finding]:
    config, base, folder = inspection.config, inspection.base, inspection.folder
    adapter = inspection.kind.startswith("adapter")
    if adapter and base is None and inspection.base_name:
        what = f"its base {inspection.base_name} is not on this host"
        yield _finding("ckpt-base-absent", what, "--base DIR names where it is", severity="note", where=folder)
    if base is not None and base.absent_shards:
        what = f"the base {base.folder} lacks {_list(list(base.absent_shards))}"
        yield _finding("ckpt-base", what, "download it again", severity="warning", where=base.folder)
    if config is not None and config.moves_the_base():
        what = f"init_lora_weights: {config.start} changes the base, and its file on disk is another"
        yield _finding("ckpt-base-moved", what, "convert it to a plain LoRA with the tool that made it",
                       severity="warning", where=folder)  # fmt: skip
    told = (
        ("ckpt-missing", names.missing, "absent", "save it again from the trained model", "error"),
        ("ckpt-unexpected", names.unexpected, "there that nothing asks for",
         "the configuration or the base may be another's", "warning"),
        ("ckpt-shape", names.misshapen, "of another shape than the base's", "name the base that it was trained on",
         "error"),
        ("ckpt-rank", names.ranks, "of another rank than the configuration's",
         "take adapter_config.json from the run that made the weights", "error"),
    )  # fmt: skip
    for rule, found, words, remedy, severity in told:
        if found:
            what = f"{len(found):,} tensor{'s are' if len(found) > 1 else ' is'} {words}: {_list(found)}"
            yield _finding(rule, what, remedy, severity=severity, evidence=_list(found, 200), where=folder)  # type: ignore[arg-type]
    whole = inspection.whole_modules()
    trained = [any(module.endswith(end) for module in whole) for end in ("embed_tokens", "lm_head")]
    if adapter and inspection.tied and sum(trained) == 1:
        yield _finding(
            "ckpt-tied",
            "the base's head is its embedding, and the adapter holds only one of the two in full",
            "after merging they differ: set tie_word_embeddings: false there, or train both",
            severity="warning",
            where=folder,
        )


def _values(inspection: Inspection, survey: Survey) -> Iterator[Finding]:
    folder = inspection.folder
    for name, values in survey.not_finite.items():
        what = f"{name} holds {values.nan:,} NaN and {values.inf:,} infinite of {values.elements:,} elements"
        yield _finding("ckpt-not-finite", what, "go back to an earlier checkpoint", where=inspection.tensors[name].file)
    if survey.zero_up:
        every = len(survey.zero_up) == survey.up_factors
        what = f"{len(survey.zero_up):,} of {survey.up_factors:,} factors lora_B are zero throughout"
        yield _finding(
            "ckpt-untrained",
            f"{what}: {'nothing was trained' if every else 'their modules were not trained'}",
            "see which towers received a gradient in the run's log",
            severity="error" if every else "warning",
            evidence=_list(survey.zero_up, 200),
            where=folder,
        )
    if survey.zero_weights:
        what = f"{len(survey.zero_weights):,} weights are zero throughout: {_list(survey.zero_weights)}"
        yield _finding("ckpt-zero", what, "see whether they were ever written", severity="warning", where=folder)
    if survey.not_decoded:
        types = ", ".join(f"{count:,} of {dtype}" for dtype, count in sorted(survey.not_decoded.items()))
        yield _finding("ckpt-not-decoded", f"values of {types} were not looked into", "", severity="note", where=folder)


def _list(names: list[str], most: int = _SHOWN) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
