"""What a checkpoint is asserted to be, by a recipe or by a file of assertions, and where it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec import inspect as types

from vltool.audit.finding import Finding
from vltool.checkpoint.architecture import TOWERS, Tower
from vltool.checkpoint.inspection import Inspection
from vltool.errors import InvalidInput, Problem, Where
from vltool.recipe.convert import convert, suggest
from vltool.recipe.load import MapNode, load_file
from vltool.recipe.schema import TOP_LEVEL, Positive, Section
from vltool.recipe.swift_keys import swift_table
from vltool.recipe.tuner_rules import trained_parts
from vltool.recipe.validate import load_recipe

if TYPE_CHECKING:
    from vltool.checkpoint.values import Survey

AnyTower = Literal["vision", "aligner", "deepstack", "language", "head"]
PositiveFloat = Annotated[float, Meta(gt=0)]
_LORAS = ("lora", "longlora")


class Towers(Section, frozen=True, kw_only=True):
    """`towers:` of a file of assertions."""

    present: Annotated[tuple[AnyTower, ...], Meta(description="Towers of which the checkpoint holds tensors.")] = ()
    absent: Annotated[tuple[AnyTower, ...], Meta(description="Towers of which it holds none.")] = ()


class Assertions(Section, frozen=True, kw_only=True):
    """What is asserted of a checkpoint; what is not written is not looked at."""

    kind: Annotated[Literal["adapter", "full"] | None, Meta(description="An adapter, or a whole model.")] = None
    full_weights: Annotated[bool | None, Meta(description="`false`: no file of a whole model lies in the folder.")] = (
        None
    )
    towers: Annotated[Towers, Meta(description="Towers that are there, and that are not.")] = Towers()
    rank: Annotated[Positive | None, Meta(description="Rank of every LoRA.")] = None
    alpha: Annotated[PositiveFloat | None, Meta(description="lora_alpha.")] = None
    base: Annotated[str | None, Meta(description="The base, by its path or the last part of it.")] = None
    modules_to_save: Annotated[
        tuple[str, ...] | None, Meta(description="Modules held in full: these, and no others.")
    ] = None
    dtypes: Annotated[tuple[str, ...] | None, Meta(description="Types of elements, BF16 say: these, no others.")] = None
    finite: Annotated[bool, Meta(description="No NaN and no infinity; reads the values.")] = False
    trained: Annotated[bool, Meta(description="No `lora_B` that is zero throughout; reads the values.")] = False
    max_size_mb: Annotated[PositiveFloat | None, Meta(description="Most megabytes (10^6 bytes) of weights.")] = None
    min_step: Annotated[Positive | None, Meta(description="Fewest optimizer steps, by trainer_state.json.")] = None

    @property
    def need_values(self) -> bool:
        """Whether the tensors have to be read."""
        return self.finite or self.trained


def read_assertions(name: str, inspection: Inspection, *, env: Mapping[str, str] | None = None) -> Assertions:
    """The assertions of a file, or those that a recipe makes of the checkpoints of its run.

    Raises InvalidInput with every problem of the file or recipe.
    """
    path = Path(name)
    if path.is_file() and path.suffix in (".yaml", ".yml", ".json"):
        tree = load_file(path, shown=name)
        if not any(key.name in TOP_LEVEL for key, _ in tree.entries):
            return _from_tree(tree)
    return _from_recipe(name, inspection, os.environ if env is None else env)


def _from_tree(tree: MapNode) -> Assertions:
    problems: list[Problem] = []
    if not tree.entries:
        raise InvalidInput(Problem("there is no assertion", "write kind: adapter, say", tree.where))
    known = types.type_info(Assertions)
    assert isinstance(known, types.StructType)
    fields = {field.name: field for field in known.fields}
    values: dict[str, Any] = {}
    for key, node in tree.entries:
        if key.name not in fields:
            problems.append(Problem(f"unknown assertion {key.name}", suggest(key.name, fields), key.where))
        else:
            values[key.name] = convert(node, fields[key.name].type, key.name, problems)
    if problems:
        raise InvalidInput(problems)
    said = msgspec.convert(values, Assertions)
    if both := set(said.towers.present) & set(said.towers.absent):
        raise InvalidInput(
            Problem(f"towers: {', '.join(sorted(both))} cannot be present and absent", "take one out", tree.where)
        )
    return said


def _from_recipe(name: str, inspection: Inspection, env: Mapping[str, str]) -> Assertions:
    # A shipped recipe takes its base and records from variables; a checkpoint is judged where they need not be.
    stand_in = {
        "VLTOOL_MODEL": inspection.base_name or "/",
        "VLTOOL_TRAIN_JSONL": "/records.jsonl",
        "VLTOOL_STAGE1": "/",
    }
    recipe = load_recipe(name, env={**stand_in, **env})
    tuner = recipe.tuner
    settings = {f"tuner.{key}": value for key, value in msgspec.structs.asdict(tuner).items()}
    trained = trained_parts(settings)
    swift = recipe.swift.get("tuner", {})
    full = tuner.tuner_type == "full"
    chained = tuner.resume_from_checkpoint is not None and tuner.merge_previous is None
    lora = tuner.tuner_type in _LORAS and tuner.target_regex not in ("", "^$")
    absent = tuple(tower for tower in TOWERS if tower not in trained)
    base = tuner.merge_previous or recipe.model.model
    return Assertions(
        kind="full" if full else "adapter",
        full_weights=None if full else False,
        # An adapter that carries an earlier stage also holds what that one trained.
        towers=Towers(present=tuple(sorted(trained)), absent=() if full or chained else absent),
        rank=swift.get("lora_rank", swift_table().keys["lora_rank"].default) if lora else None,
        alpha=swift.get("lora_alpha", swift_table().keys["lora_alpha"].default) if lora else None,
        base=None if full else base,
        modules_to_save=None if full or chained else tuner.modules_to_save,
    )


def hold(said: Assertions, inspection: Inspection, survey: Survey | None, source: str) -> list[Finding]:
    """Where a checkpoint is not what is asserted.

    survey: its values, where the assertions need them. source: the file or recipe that says so.
    """
    return [
        Finding(id=rule, severity="error", what=what, where=Where(str(inspection.folder)),
                evidence=source, remedy=f"{source} says so")
        for rule, what in (*_broken(said, inspection), *_values(said, survey))
    ]  # fmt: skip


def _broken(said: Assertions, inspection: Inspection) -> Iterator[tuple[str, str]]:
    if said.kind is not None and said.kind not in inspection.kind.split(" and "):
        yield "expect-kind", f"it is {inspection.kind}, not {said.kind}"
    if said.full_weights is False and (inspection.full or inspection.contents.of("pickled weights")):
        files = sorted({inspection.tensors[name].file.name for name in inspection.full})
        files += [file.path.name for file in inspection.contents.of("pickled weights")]
        yield "expect-kind", f"it holds whole weights: {', '.join(files)}"
    held: set[Tower] = {tower for tower, count in inspection.towers().items() if count.tensors}
    if inspection.tied and "language" in held:
        # A tied head is the embedding, which is stored once.
        held_or_tied: set[Tower] = held | {"head"}
    else:
        held_or_tied = held
    for tower in said.towers.present:
        if tower not in held_or_tied:
            yield "expect-tower", f"{tower} is absent"
    for tower in said.towers.absent:
        if tower in held:
            yield "expect-tower", f"{tower} is present"
    yield from _adapter(said, inspection)
    if said.dtypes is not None and (others := sorted(inspection.dtypes().keys() - set(said.dtypes))):
        yield "expect-dtype", f"it holds {', '.join(others)}, not only {', '.join(said.dtypes)}"
    size_mb = sum(tensor.size_bytes for tensor in inspection.tensors.values()) / 1e6
    if said.max_size_mb is not None and size_mb > said.max_size_mb:
        yield "expect-size", f"its weights have {size_mb:,.1f} MB, more than {said.max_size_mb:,g}"
    step = inspection.progress.step if inspection.progress else None
    if said.min_step is not None and (step is None or step < said.min_step):
        yield "expect-step", f"it is of step {'unknown' if step is None else step}, not {said.min_step} or later"


def _values(said: Assertions, survey: Survey | None) -> Iterator[tuple[str, str]]:
    if survey is None:
        return
    if said.finite and survey.not_finite:
        yield (
            "expect-values",
            f"{len(survey.not_finite):,} tensors are not finite: {', '.join(list(survey.not_finite)[:3])}",
        )
    if said.finite and survey.not_decoded:
        yield "expect-values", f"whether {', '.join(survey.not_decoded)} is finite cannot be told"
    if said.trained and survey.zero_up:
        yield (
            "expect-values",
            f"{len(survey.zero_up):,} factors lora_B were not trained: {', '.join(survey.zero_up[:3])}",
        )
    if said.trained and not survey.up_factors:
        yield "expect-values", "there is no factor lora_B by which to tell whether it was trained"


def _adapter(said: Assertions, inspection: Inspection) -> Iterator[tuple[str, str]]:
    config = inspection.config
    if said.rank is not None and (ranks := list(inspection.ranks())) != [said.rank]:
        yield "expect-rank", f"its ranks are {', '.join(map(str, ranks)) or 'none'}, not {said.rank}"
    if said.alpha is not None and (config is None or config.alpha != said.alpha):
        yield "expect-rank", f"its alpha is {config.alpha if config else None}, not {said.alpha:g}"
    if said.base is not None and not _same(inspection.base_name, said.base):
        yield "expect-base", f"its base is {inspection.base_name}, not {said.base}"
    if said.modules_to_save is not None:
        whole = inspection.whole_modules()
        lost = [name for name in said.modules_to_save if not any(_within(module, name) for module in whole)]
        more = [module for module in whole if not any(_within(module, name) for name in said.modules_to_save)]
        if lost:
            yield "expect-modules", f"it does not hold {', '.join(lost)} in full"
        if more:
            yield "expect-modules", f"it holds {', '.join(more[:5])} in full, which nothing asks for"


def _within(module: str, name: str) -> bool:
    """Whether a module lies in one that ends with a name."""
    return f".{name}." in f".{module}."


def _same(named: str | None, wanted: str) -> bool:
    """Whether two names mean one base: the same path, or on another host the same last part."""
    if named is None:
        return False
    return os.path.realpath(named) == os.path.realpath(wanted) or Path(named).name == Path(wanted).name
