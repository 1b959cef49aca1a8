"""The JSON Schema of recipe files, by which editors complete, explain and check them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vltool.recipe.schema import CLOSED, OWN, REFUSED, SECTIONS, Length
from vltool.recipe.swift_keys import SwiftKey, swift_table

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE_NAME = "recipe.schema.json"
"""The schema beside the shipped recipes, which name it in their first line."""
_CLEARED = {"type": "null"}
_VARIABLE = {"type": "string", "pattern": r"\$\{"}
_TYPES: dict[str, dict[str, Any]] = {
    "any": {},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
}


def json_schema() -> dict[str, Any]:
    """The schema of one recipe file, draft 2020-12.

    Every value may be null, which clears what lies beneath, or hold a variable. A file that the schema
    accepts may still be refused: it sees neither other files nor several keys at once.
    """
    _, definitions = msgspec.json.schema_components(OWN.values(), ref_template="#/$defs/{name}")
    sections = {section: _section(section, definitions) for section in SECTIONS}
    name_or_path = {"type": "string", "description": "A recipe's path, or a shipped one's bare name."}
    used = {struct.__name__ for struct in OWN.values()}
    return {
        "$schema": DIALECT,
        "title": "vltool recipe",
        "description": f"A recipe of vltool's; keys of ms-swift {swift_table().ms_swift} beside vltool's own.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "extends": {
                "description": "What this recipe is put over; of several the later wins.",
                "anyOf": [name_or_path, {"type": "array", "items": {"anyOf": [name_or_path, _CLEARED]}}, _CLEARED],
            },
            "global_max_length": {
                "description": "The one length knob: tokens of a record, image included.",
                "anyOf": [msgspec.json.schema(Length), _CLEARED, _VARIABLE],
            },
            **sections,
        },
        "$defs": {name: _tolerant(schema) for name, schema in definitions.items() if name not in used},
    }


def _section(section: str, definitions: Mapping[str, Any]) -> dict[str, Any]:
    struct = definitions[OWN[section].__name__] if section in OWN else {}
    properties: dict[str, Any] = {name: _own(schema) for name, schema in struct.get("properties", {}).items()}
    if section not in CLOSED:
        table = swift_table()
        here = {name: key for name, key in table.keys.items() if key.section == section and name not in REFUSED}
        properties = {name: _swift(key) for name, key in here.items()} | properties
        for old, renamed in table.renamed.items():
            if renamed.now in properties and old not in properties:
                told = {"description": f"Now called {renamed.now}.", "deprecated": True}
                properties[old] = properties[renamed.now] | told
    return {
        "description": struct.get("description", f"`{section}:` keys of ms-swift's."),
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": dict(sorted(properties.items())),
    }


def _own(schema: dict[str, Any]) -> dict[str, Any]:
    told = {name: schema[name] for name in ("description", "default") if name in schema}
    bare = {name: value for name, value in schema.items() if name not in told}
    if "additionalProperties" in bare and isinstance(bare["additionalProperties"], dict):
        bare["additionalProperties"] = {"anyOf": [bare["additionalProperties"], _CLEARED]}
    return told | {"anyOf": [bare, _CLEARED, _VARIABLE]}


def _tolerant(struct: dict[str, Any]) -> dict[str, Any]:
    """A struct inside a section, whose values too may be null or hold a variable."""
    return struct | {"properties": {name: _own(schema) for name, schema in struct["properties"].items()}}


def _swift(key: SwiftKey) -> dict[str, Any]:
    kinds = [_kind(kind) for kind in key.type]
    if key.choices:
        choices = {"enum": list(key.choices)}
        kinds = (
            [{"type": "array", "items": {"anyOf": [choices, _VARIABLE]}}] if key.type == ("list[str]",) else [choices]
        )
    schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    told: dict[str, Any] = {"description": f"{key.help} (ms-swift)".lstrip()}
    if key.default is not None:
        told["default"] = key.default
    return told | {"anyOf": [schema, _CLEARED, _VARIABLE]}


def _kind(kind: str) -> dict[str, Any]:
    outer, _, inner = kind.rstrip("]").partition("[")
    if outer == "list":
        return {"type": "array", "items": {"anyOf": [_TYPES[inner], _VARIABLE]}}
    if outer == "dict":
        values = _TYPES[inner.split(", ")[1]] if inner else {}
        return {"type": "object", "additionalProperties": {"anyOf": [values, _CLEARED, _VARIABLE]}}
    return _TYPES[kind]
