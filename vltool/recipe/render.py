"""A resolved recipe as YAML, each line with the place that it came from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from vltool.recipe.scalars import read_plain
from vltool.recipe.schema import OWN, SECTIONS, Recipe
from vltool.recipe.variables import escape

_BARE = re.compile(r"[A-Za-z/][\w./-]*")
"""Texts that need no quotes, unless they read as something else (`true`, `null`)."""
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""Characters that JSON may leave alone, and at which YAML would break a line or stumble."""


def to_yaml(recipe: Recipe) -> str:
    """The recipe as one document that needs no other file: what was written, paths absolute, texts read in.

    Each line ends with a comment that names its origin. The document resolves to the same recipe.
    """
    top: dict[str, Any] = {"global_max_length": recipe.global_max_length}
    top |= {section: values for section in SECTIONS if (values := _section(recipe, section))}
    return "\n".join(_lines(top, recipe, "", "")) + "\n"


def _section(recipe: Recipe, section: str) -> dict[str, Any]:
    """What was written in a section, ours and ms-swift's, in the order of its keys."""
    values: dict[str, Any] = {}
    if section in OWN:
        values = _written(msgspec.to_builtins(getattr(recipe, section)), recipe, section)
    values |= recipe.swift.get(section, {})
    # These two repeat the one length knob.
    values.pop({"model": "max_model_len", "template": "max_length"}.get(section, ""), None)
    return dict(sorted(values.items()))


def _written(values: Mapping[str, Any], recipe: Recipe, prefix: str) -> dict[str, Any]:
    """Those values that some file wrote; defaults are left out, so that they stay defaults."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if key in recipe.origins and (not isinstance(value, dict) or not value):
            kept[name] = value
        elif isinstance(value, dict) and any(origin.startswith(f"{key}.") for origin in recipe.origins):
            kept[name] = _written(value, recipe, key)
    return kept


def _lines(values: Mapping[str, Any], recipe: Recipe, prefix: str, indent: str) -> Iterator[str]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield f"{indent}{_quoted(name)}:"
            yield from _lines(value, recipe, f"{key}.", indent + "  ")
        else:
            # The length may have been written as template.max_length.
            where = recipe.origins.get(key) or recipe.origins.get("template.max_length" if not indent else key)
            yield f"{indent}{_quoted(name)}: {_leaf(value)}" + (f"  # {_printable(str(where))}" if where else "")


def _leaf(value: Any) -> str:
    """A value on one line; JSON is YAML."""
    if isinstance(value, str):
        return _quoted(escape(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(_leaf(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(name)}: {_leaf(item)}' for name, item in value.items())}}}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}".replace("inf", ".inf").replace("nan", ".nan")
    return json.dumps(value)


def _quoted(text: str) -> str:
    if _BARE.fullmatch(text) and read_plain(text) == text:
        return text
    return _printable(json.dumps(text, ensure_ascii=False))


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
