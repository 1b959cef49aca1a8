"""ms-swift's arguments as data: name, section, type, default, choices and help, read without importing ms-swift.

`swift_keys.json` beside this is written by `tools/swift_keys.py`; a test holds it against the installed version.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec import inspect as types

_TYPES: dict[str, types.Type] = {
    "any": types.AnyType(),
    "bool": types.BoolType(),
    "int": types.IntType(),
    "float": types.FloatType(),
    "str": types.StrType(),
    "dict": types.DictType(types.StrType(), types.AnyType()),
    "dict[str, any]": types.DictType(types.StrType(), types.AnyType()),
    "dict[str, bool]": types.DictType(types.StrType(), types.BoolType()),
    "list[str]": types.VarTupleType(types.StrType()),
    "list[int]": types.VarTupleType(types.IntType()),
    "list[float]": types.VarTupleType(types.FloatType()),
}


class SwiftKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One argument of ms-swift's."""

    section: str
    """The section of a recipe that it is written in; `rlhf` for those of its RLHF methods alone."""
    type: tuple[str, ...]
    """Kinds of value that it takes, by the names of `_TYPES`; null means its default."""
    default: Any
    help: str
    since: str | None = None
    """The release of ms-swift that first had it under this name; `transformers` for what it inherits."""
    choices: tuple[Any, ...] = ()
    """The only values that it, or an item of its list, takes; empty when there is no such list."""

    def accepts(self) -> types.Type:
        """What `vltool.recipe.convert` holds a written value against."""
        if self.choices:
            choices = types.LiteralType(self.choices)
            return types.VarTupleType(choices) if self.type == ("list[str]",) else choices
        return types.UnionType(tuple(_TYPES[kind] for kind in self.type))


class Renamed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that means under another name what it meant before."""

    now: str
    since: str | None


class SwiftTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole table, and the versions that it was made from."""

    ms_swift: str
    transformers: str
    renamed: dict[str, Renamed]
    """Older spelling -> today's."""
    schedules: dict[str, tuple[str, ...] | None]
    """Value of `lr_scheduler_type` -> keys that its `lr_scheduler_kwargs` takes; None for any."""
    gone: dict[str, str]
    """Keys of older releases that have no equal today -> what to write."""
    keys: dict[str, SwiftKey]


@cache
def swift_table() -> SwiftTable:
    """The table that is shipped."""
    return msgspec.json.decode(Path(__file__).with_suffix(".json").read_bytes(), type=SwiftTable)
