"""Nodes become plain values that fit the schema's types, or problems in the words of whoever wrote them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from msgspec import inspect as types

from vltool.errors import Problem, nearest
from vltool.recipe.load import MapNode, Node, ScalarNode, SeqNode
from vltool.recipe.scalars import read_plain

_LEADING_ZERO = re.compile(r"[+-]?0\d+")
_WORDS = {"on": "true", "yes": "true", "y": "true", "off": "false", "no": "false", "n": "false"}
"""What YAML 1.1 reads as truth values, and YAML 1.2 as text."""


def to_plain(node: Node, key: str, problems: list[Problem]) -> Any:
    """The node's value as dicts, lists and scalars; integers that begin with a zero are problems."""
    if isinstance(node, MapNode):
        return {name.name: to_plain(value, f"{key}.{name.name}", problems) for name, value in node.entries}
    if isinstance(node, SeqNode):
        return [to_plain(item, f"{key}[{i}]", problems) for i, item in enumerate(node.items)]
    assert isinstance(node, ScalarNode)
    if node.plain and _LEADING_ZERO.fullmatch(node.text):
        what = f"{key}: {node.text} begins with a zero, which some read as octal"
        problems.append(Problem(what, f"write {int(node.text)}, or '{node.text}' in quotes if it is text", node.where))
    return node.value


def convert(node: Node, wanted: types.Type, key: str, problems: list[Problem]) -> Any:
    """The node's value, as `to_plain` gives it, once it fits the type `wanted`; nothing is coerced.

    Every leaf that does not fit adds its own problem, and so does every unknown key of a struct.
    """
    options = _options(wanted)
    tagged = {str(option.tag): option for option in options if isinstance(option, types.StructType) and option.tag}
    if tagged and isinstance(node, MapNode):
        return _tagged(node, tagged, key, problems)
    for option in options:
        if isinstance(option, types.AnyType):
            return to_plain(node, key, problems)
        if isinstance(node, MapNode) and isinstance(option, types.StructType):
            return _struct(node, option, key, problems)
        if isinstance(node, MapNode) and isinstance(option, types.DictType):
            return {
                name.name: convert(value, option.value_type, f"{key}.{name.name}", problems)
                for name, value in node.entries
            }
        if isinstance(node, SeqNode) and isinstance(option, types.VarTupleType):
            return [convert(item, option.item_type, f"{key}[{i}]", problems) for i, item in enumerate(node.items)]
        if isinstance(node, SeqNode) and isinstance(option, types.TupleType):
            if len(node.items) != len(option.item_types):
                what = f"{key}: {len(node.items)} items are not {_describe(option)}"
                problems.append(Problem(what, f"write {len(option.item_types)}", node.where))
            pairs = zip(node.items, option.item_types, strict=False)
            return [convert(item, inner, f"{key}[{i}]", problems) for i, (item, inner) in enumerate(pairs)]
    before = len(problems)
    value = to_plain(node, key, problems)
    if len(problems) == before and not any(_fits(value, option) for option in options):
        what = f"{key}: {_shown(node)} is not {', nor '.join(dict.fromkeys(filter(None, map(_describe, options))))}"
        problems.append(Problem(what, _advice(node, options, key), node.where))
    return value


def _struct(node: MapNode, struct: types.StructType, key: str, problems: list[Problem]) -> dict[str, Any]:
    fields = {field.encode_name: field.type for field in struct.fields}
    values = {}
    for name, value in node.entries:
        dotted = f"{key}.{name.name}"
        if name.name in fields:
            values[name.name] = convert(value, fields[name.name], dotted, problems)
        else:
            problems.append(Problem(f"unknown key {dotted}", suggest(name.name, fields), name.where))
    required = [field.encode_name for field in struct.fields if field.required]
    written = {name.name for name, _ in node.entries}
    problems += [Problem(f"{key}.{name} is missing", where=node.where) for name in required if name not in written]
    return values


def _tagged(node: MapNode, structs: dict[str, types.StructType], key: str, problems: list[Problem]) -> dict[str, Any]:
    """A mapping whose type one of its keys names."""
    field = str(next(iter(structs.values())).tag_field)
    named = next((value for name, value in node.entries if name.name == field), None)
    if named is None:
        problems.append(Problem(f"{key}.{field} is missing", f"one of {', '.join(structs)}", node.where))
        return {}
    tag = named.value if isinstance(named, ScalarNode) else None
    if tag not in structs:
        what = f"{key}.{field}: {_shown(named)} is not one of {', '.join(structs)}"
        guess = nearest(str(tag), structs)
        problems.append(Problem(what, f"did you mean {guess}?" if guess else "", named.where))
        return {}
    rest = replace(node, entries=tuple(entry for entry in node.entries if entry[0].name != field))
    return {field: tag, **_struct(rest, structs[tag], key, problems)}


def struct_fields(wanted: types.Type | None) -> dict[str, types.Type] | None:
    """The keys of a mapping that a type wants, with theirs; None when it takes any, or is no mapping."""
    for option in _options(wanted) if wanted else ():
        if isinstance(option, types.StructType):
            return {field.encode_name: field.type for field in option.fields}
    return None


def suggest(word: str, choices: Any) -> str:
    """What to write in place of an unknown word."""
    guess = nearest(word, choices)
    return f"did you mean {guess}?" if guess else f"known here: {', '.join(choices)}"


def _options(wanted: types.Type) -> tuple[types.Type, ...]:
    if isinstance(wanted, types.Metadata):
        return _options(wanted.type)
    if isinstance(wanted, types.UnionType):
        return tuple(option for inner in wanted.types for option in _options(inner))
    return (wanted,)


def _fits(value: Any, wanted: types.Type) -> bool:
    match wanted:
        case types.NoneType():
            return value is None
        case types.BoolType():
            return isinstance(value, bool)
        case types.StrType():
            return isinstance(value, str)
        case types.LiteralType(values=values):
            # In Python true equals 1, in a recipe it does not.
            return any(value == one and type(value) is type(one) for one in values)
        case types.IntType():
            return type(value) is int and _within(value, wanted)
        case types.FloatType():
            return type(value) in (int, float) and math.isfinite(value) and _within(value, wanted)
    return False


def _within(value: float, wanted: types.IntType | types.FloatType) -> bool:
    return (
        (wanted.ge is None or value >= wanted.ge)
        and (wanted.gt is None or value > wanted.gt)
        and (wanted.le is None or value <= wanted.le)
        and (wanted.lt is None or value < wanted.lt)
    )


def _describe(wanted: types.Type) -> str:
    match wanted:
        case types.BoolType():
            return "true or false"
        case types.StrType():
            return "text"
        case types.LiteralType(values=(only,)):
            return str(only)
        case types.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case types.IntType():
            return f"a whole number{_bounds(wanted)}"
        case types.FloatType():
            return f"a number{_bounds(wanted)}"
        case types.VarTupleType():
            return "a list"
        case types.TupleType(item_types=items):
            return f"a list of {len(items)}"
        case types.DictType() | types.StructType():
            return "a mapping"
    return ""


def _bounds(wanted: types.IntType | types.FloatType) -> str:
    if wanted.ge is not None and wanted.le is not None:
        return f" from {_number(wanted.ge)} to {_number(wanted.le)}"
    low = "" if wanted.ge is None else f" of at least {_number(wanted.ge)}"
    low = f" above {_number(wanted.gt)}" if wanted.gt is not None else low
    high = "" if wanted.le is None else f" of at most {_number(wanted.le)}"
    high = f" below {_number(wanted.lt)}" if wanted.lt is not None else high
    return " and".join(filter(None, (low, high)))


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _shown(node: Node) -> str:
    if isinstance(node, ScalarNode):
        text = node.text if len(node.text) <= 60 else f"{node.text[:57]}..."
        return repr(text) if isinstance(node.value, str) else text or "nothing"
    return "a mapping" if isinstance(node, MapNode) else "a list"


def _advice(node: Node, options: tuple[types.Type, ...], key: str) -> str:
    """How to write what was probably meant."""
    name = key.rsplit(".", 1)[-1]
    kinds = {type(option) for option in options}
    choices = [str(choice) for option in options if isinstance(option, types.LiteralType) for choice in option.values]
    if isinstance(node, SeqNode) and types.StrType in kinds and len(node.items) == 1:
        return f"write {name}: {_shown(node.items[0])}, without brackets"
    if not isinstance(node, ScalarNode) or node.value is None:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else ""
    value = node.value
    if isinstance(value, int | float) and any(isinstance(option, types.TupleType) for option in options):
        return f"write {name}: [{node.text}, {node.text}]"
    for option in options:
        if isinstance(option, types.StructType) and (shortened := _as_struct(value, node.text, option)):
            return f"write {name}: {shortened}" if "[" not in name else f"write {shortened}"
    if not isinstance(value, str):
        return _advice_on_number(node, kinds, choices, name)
    if node.from_shell and types.VarTupleType not in kinds:
        return f"that is the environment's value: {_shown(node)} came from a variable"
    if types.BoolType in kinds and value.lower() in _WORDS:
        return f"YAML 1.2 reads `{value}` as text: write {_WORDS[value.lower()]}"
    meant = read_plain(value if node.plain else value.strip())
    if isinstance(meant, str):
        meant = read_plain(value.replace("_", ""))
    if not isinstance(meant, str) and any(_fits(meant, option) for option in options):
        why = f"YAML 1.2 reads `{value}`" if node.plain else "the quotes make it"
        return f"{why} {'as ' if node.plain else ''}text: write {name}: {value.strip().replace('_', '')}"
    if guess := nearest(value.lower(), choices):
        return f"did you mean {guess}?"
    if types.VarTupleType in kinds and value.startswith("["):
        return "a variable holds one item: write a list of several"
    if value.startswith("$") and value[1:].isidentifier():
        return f"write ${{{value[1:]}}} for the variable"
    return f"write {name}: [{value}]" if types.VarTupleType in kinds else ""


def _as_struct(value: Any, text: str, struct: types.StructType) -> str:
    """How a mapping is written for which only its switch or its name was given."""
    names = {field.encode_name for field in struct.fields}
    if isinstance(value, bool) and "enabled" in names:
        return f"{{enabled: {text}}}"
    return f"{{name: {text}}}" if isinstance(value, str) and "name" in names else ""


def _advice_on_number(node: ScalarNode, kinds: set[type[types.Type]], choices: list[str], name: str) -> str:
    value = node.value
    if isinstance(value, float) and not math.isfinite(value):
        return "write a finite number"
    if types.BoolType in kinds and value in (0, 1):
        return f"write {name}: {'true' if value else 'false'}"
    if types.IntType in kinds and isinstance(value, float) and value.is_integer():
        return f"write {name}: {int(value)}"
    if value is False and "no" in choices:
        return f"write {name}: 'no', in quotes"
    if types.StrType in kinds:
        return "put the variable in quotes" if node.from_shell else f"put it in quotes: '{node.text}'"
    return f"one of {', '.join(choices)}" if len(choices) > 1 else ""
