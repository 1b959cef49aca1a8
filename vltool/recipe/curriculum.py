"""`custom.augmentation.curriculum:` phases over a run, in which parameters go from one value to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from vltool.errors import nearest
from vltool.recipe.augmentation import OPS, AnyOp, AugmentOp, Probability


class Phase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the run, at whose end its parameters have reached these values; one of until_percent and until_step."""

    until_percent: Annotated[
        Annotated[float, Meta(gt=0.0, le=100.0)] | None, Meta(description="Where it ends, in percent of the run.")
    ] = None
    until_step: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="The optimizer step at which it ends.")
    ] = None
    bypass_prob: Annotated[Probability | None, Meta(description="`bypass_prob` at its end.")] = None
    ops: Annotated[dict[str, dict[str, Any]], Meta(description="Operation -> parameter -> value at its end.")] = {}


class Curriculum(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Phases, one after the other; past the last, its values stay."""

    phases: Annotated[tuple[Phase, ...], Meta(description="In the order of their ends.")]


class Fault(NamedTuple):
    """What is wrong, where below `custom.augmentation`, and what to do."""

    key: str
    what: str
    do: str


def ops_faults(ops: Sequence[AugmentOp]) -> Iterator[Fault]:
    """What is wrong with what the parameters of each operation say together."""
    for number, op in enumerate(ops):
        for name, what, do in params_faults(op):
            key = f"ops[{number}].params"
            yield Fault(f"{key}.{name}" if name else f"ops[{number}]", f"{op.name}: {what}", do)


def params_faults(op: AugmentOp) -> Iterator[Fault]:
    """The same of one, each at the name of a parameter, or "" for what is missing."""
    params = msgspec.structs.asdict(op.params)
    for name, value in params.items():
        if isinstance(value, tuple) and name not in ("scales", "tile_grid_size") and value[0] > value[1]:
            yield Fault(
                name, f"{name} goes from {value[0]:g} down to {value[1]:g}", f"write [{value[1]:g}, {value[0]:g}]"
            )
    if op.name == "rotate" and (params["max_deg"] is None) == (params["deg"] is None):
        both = params["deg"] is not None
        what = "max_deg and deg are both given" if both else "no angle"
        yield Fault("deg" if both else "", what, "write one of max_deg: 5.0 and deg: [-5.0, 5.0]")
    lo, hi = params.get("lo"), params.get("hi")
    if op.name == "resize_by_scale":
        if params["scales"] is not None and (lo, hi) != (None, None):
            yield Fault("scales", "scales stands beside lo or hi", "write scales, or lo and hi")
        elif params["scales"] == ():
            yield Fault("scales", "scales is empty", "list factors, or write lo and hi")
        lo, hi = 0.8 if lo is None else lo, 1.2 if hi is None else hi
    if lo is not None and hi is not None and lo > hi:
        yield Fault("lo", f"lo is {lo:g}, above hi, {hi:g}", "write the smaller factor as lo")
    if op.name == "expand_to_fit_affine" and (params["max_pixels"] or 2**31) < params["multiple"] ** 2:
        yield Fault("max_pixels", f"no canvas of multiples of {params['multiple']} has so few pixels", "raise it")


def curriculum_faults(curriculum: Curriculum, ops: Sequence[AugmentOp]) -> Iterator[Fault]:
    """What is wrong with the phases of these operations."""
    used = [name for name in ("until_percent", "until_step") if any(getattr(p, name) for p in curriculum.phases)]
    if not curriculum.phases:
        yield Fault("curriculum.phases", "the curriculum has no phase", "write [{until_percent: 50, ops: {…}}]")
    before, reached = 0.0, list(ops)
    for number, phase in enumerate(curriculum.phases):
        key = f"curriculum.phases[{number}]"
        ends = [end for end in (phase.until_percent, phase.until_step) if end is not None]
        if len(ends) != 1:
            what = "a phase ends at until_percent or until_step, one of them"
            yield Fault(key, what, "write until_percent: 50, say")
        elif len(used) == 1 and ends[0] <= before:
            yield Fault(key, f"the phase ends at {ends[0]:g}, not after the one before it", "put phases in order")
        before = max([before, *ends])
        for name, params in phase.ops.items():
            yield from _phase_faults(f"{key}.ops.{name}", name, params, reached)
    if len(used) == 2:
        yield Fault("curriculum.phases", "some phases end by percent, others by step", "write all ends in one unit")


def _phase_faults(key: str, name: str, params: Mapping[str, Any], reached: list[AugmentOp]) -> Iterator[Fault]:
    """What is wrong with what a phase says of one operation; `reached`, at the phase before, goes to its end."""
    meant = [number for number, op in enumerate(reached) if op.name == name]
    if not meant:
        names = {op.name for op in reached}
        guess = nearest(name, names) or nearest(name, OPS)
        do = f"did you mean {guess}?" if guess in names else "list it under ops too"
        yield Fault(key, f"{name} is none of the ops", do)
        return
    valid = dict[str, Any]()
    for param, value in params.items():
        if fault := _value_fault(f"{key}.{param}", param, value, [reached[number] for number in meant]):
            yield fault
        else:
            valid[param] = value
    told = False
    for number in meant:
        agreed = next(params_faults(reached[number]), None) is None
        reached[number] = with_params(reached[number], valid)
        # Together only: a phase may move both ends of a range past where one of them was.
        if agreed and not told and (found := next(params_faults(reached[number]), None)):
            told = True
            at = found.key if found.key in valid else next(reversed(valid))
            yield Fault(f"{key}.{at}", f"{name}: {found.what}", found.do)


def _value_fault(key: str, param: str, value: Any, ops: Sequence[AugmentOp]) -> Fault | None:
    """What is wrong with a parameter's value by itself, for operations of one name."""
    name, known = ops[0].name, msgspec.structs.asdict(ops[0].params)
    if param not in known:
        guess = nearest(param, known)
        return Fault(key, f"{name} has no {param}", f"did you mean {guess}?" if guess else "")
    if any(not _moves(getattr(op.params, param)) for op in ops):
        what = f"{name}.{param} cannot go from {known[param]!r} to another value bit by bit"
        return Fault(key, what, "numbers and ranges of numbers can; give the op its first value")
    try:
        with_params(ops[0], {param: value})
    except msgspec.ValidationError as error:
        what = f"{name}.{param}: {str(error).partition(' - at ')[0]}"
        return Fault(key, what, "write a value that the op itself could have")
    return None


def _moves(value: Any) -> bool:
    """Whether a value can be interpolated: floats, and ranges of them."""
    if isinstance(value, tuple):
        return len(value) == 2 and all(isinstance(end, float) for end in value)
    return isinstance(value, float)


def with_params(op: AugmentOp, params: Mapping[str, Any]) -> AugmentOp:
    """The operation with some parameters at other values. Raises msgspec.ValidationError for those that cannot be."""
    document = msgspec.to_builtins(op)
    document["params"] |= params
    moved: AugmentOp = msgspec.convert(document, AnyOp)
    return moved


def read_ops(ops: Iterable[AugmentOp | Mapping[str, Any]]) -> tuple[AugmentOp, ...]:
    """Operations from mappings of name and params. Raises msgspec.ValidationError for what is none."""
    return tuple(op if isinstance(op, AugmentOp) else msgspec.convert(op, AnyOp) for op in ops)
