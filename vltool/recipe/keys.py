"""Which section takes which key, and what a key that none takes was meant to be."""

from __future__ import annotations

from functools import cache

from msgspec import inspect as types

from vltool.errors import Problem, Where, nearest
from vltool.recipe.convert import struct_fields, suggest
from vltool.recipe.schema import CLOSED, OWN, REFUSED, SECTIONS, TOP_LEVEL
from vltool.recipe.swift_keys import SwiftKey, swift_table

LONGEST_KEY = 100
"""Characters of an unknown key that a message shows."""
OWN_KEYS = {
    section: {field.encode_name: field.type for field in struct.fields}
    for section, struct in ((name, types.type_info(own)) for name, own in OWN.items())
    if isinstance(struct, types.StructType)
}
"""Section -> our keys in it, with their types."""


def swift_keys(section: str) -> dict[str, SwiftKey]:
    """ms-swift's keys that a section takes."""
    return {} if section in CLOSED else _by_section().get(section, {})


def unknown_key(section: str, key: str, where: Where) -> Problem:
    """The problem of a key that its section, or the top level where `section` is empty, does not have."""
    dotted = f"{section}.{key}" if section else key
    shown = dotted if len(dotted) <= LONGEST_KEY else f"{dotted[:LONGEST_KEY]}…"
    return Problem(f"unknown key {shown}", _advice(section, key), where)


@cache
def _by_section() -> dict[str, dict[str, SwiftKey]]:
    sections: dict[str, dict[str, SwiftKey]] = {}
    for name, key in swift_table().keys.items():
        sections.setdefault(key.section, {})[name] = key
    return sections


def _owners(key: str) -> list[str]:
    """Sections that a key belongs in."""
    return [section for section in SECTIONS if key in OWN_KEYS.get(section, {}) or key in swift_keys(section)]


def _advice(section: str, key: str) -> str:
    """What was probably meant by a key that its section does not have."""
    table = swift_table()
    if section and key in TOP_LEVEL:
        return f"it stands at the top level, not inside {section}: begin its line at the margin"
    outer, _, inner = key.partition(".")
    if section and inner and outer in (section, *OWN_KEYS.get(section, {}), *swift_keys(section)):
        return f"write {inner}, without `{outer}.`" if outer == section else f"write {outer}: {{{inner}: …}}"
    if key in REFUSED:
        return REFUSED[key]
    if key == "dataset":
        return "name the records in custom.train_jsonl: take the line out"
    if key in table.gone:
        return f"ms-swift {table.ms_swift} no longer has it: {table.gone[key]}"
    if key in table.renamed:
        now = table.renamed[key].now
        return f"it is now called {now}, and belongs in {' or '.join(_owners(now))}"
    if owners := _owners(key):
        return f"it belongs in {' or '.join(owners)}"
    if not section:
        if key.split(".")[0] in SECTIONS and "." in key:
            return f"put the key under `{key.split('.')[0]}:`"
        return _nearest_anywhere(key) or suggest(key, TOP_LEVEL)
    if section == "rlhf" and key in table.keys:
        return "vltool's distillation has no use for this key of ms-swift's other methods: take the line out"
    known = [*OWN_KEYS.get(section, {}), *swift_keys(section)]
    if guess := nearest(key, known):
        return f"did you mean {guess}?"
    if guess := _nearest_anywhere(key):
        return guess
    if section in CLOSED:
        return suggest(key, known)
    return "neither vltool nor ms-swift has it; `vltool render-config --schema` lists every key"


def _nearest_anywhere(key: str) -> str:
    """The nearest key of any section, or of the top level."""
    known = {name: name for name in TOP_LEVEL}
    for section in SECTIONS:
        known |= {name: f"{section}.{name}" for name in (*OWN_KEYS.get(section, {}), *swift_keys(section))}
    guess = nearest(key, known, cutoff=0.8)
    return f"did you mean {known[guess]}?" if guess else ""


def cleared_nothing(path: tuple[str, ...], where: Where) -> Problem | None:
    """A null at a key that nobody knows clears nothing, which whoever wrote it should hear of."""
    section, *inner = path
    if section not in TOP_LEVEL:
        return unknown_key("", section, where)
    if not inner or section not in SECTIONS:
        return None
    name, *deeper = inner
    if name not in OWN_KEYS.get(section, {}) and name not in swift_keys(section):
        return unknown_key(section, name, where)
    wanted: types.Type | None = OWN_KEYS.get(section, {}).get(name)
    for at, part in enumerate(deeper):
        fields = struct_fields(wanted)
        if fields is None:
            return None
        if part not in fields:
            return Problem(f"unknown key {'.'.join(path[: at + 3])}", suggest(part, fields), where)
        wanted = fields[part]
    return None
