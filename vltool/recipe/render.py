"""A resolved recipe as YAML, each line with the place that it came from; its values by key; two compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from vltool.errors import Where
from vltool.recipe.scalars import read_plain
from vltool.recipe.schema import OWN, SECTIONS, Recipe
from vltool.recipe.swift_keys import swift_table
from vltool.recipe.variables import escape

WIDTH = 100
"""Longest line of a text that has spaces to break it at."""
_COMMENTS_FROM, _COMMENTS_TO = 24, 48
"""Columns between which the comments of a document line up."""
_BARE = re.compile(r"[A-Za-z/][\w./-]*")
"""Texts that need no quotes, unless they read as something else (`true`, `null`)."""
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""Characters that JSON may leave alone, and at which YAML would break a line or stumble."""
_YAML_1_1 = re.compile("y|n|yes|no|on|off", re.IGNORECASE)
"""Texts that YAML 1.1, which other tools read, takes for truth values."""
_PIECE = re.compile(r"[^ ]+ *| +")


def to_yaml(recipe: Recipe, *, provenance: bool = True) -> str:
    """The recipe as one document that needs no other file: what was written, paths absolute, texts read in.

    With provenance, each line ends with a comment that names its origin. The document resolves to the same recipe.
    """
    return _document(_lines(document(recipe), recipe.origins if provenance else {}, "", ""))


def arguments_to_yaml(arguments: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """ms-swift's arguments as a document, each line with its origin; none is one that vltool adds."""
    return _document((f"{name}: {one_line(value)}", origins.get(name, "vltool")) for name, value in arguments.items())


def document(recipe: Recipe) -> dict[str, Any]:
    """What was written, section by section, as one tree; defaults are left out, so that they stay defaults."""
    top: dict[str, Any] = {"global_max_length": recipe.global_max_length}
    return top | {section: values for section in SECTIONS if (values := _section(recipe, section))}


@dataclass(frozen=True, slots=True)
class Difference:
    """A key at which two recipes come to different values; no place means a default."""

    key: str
    left: Any
    left_where: Where | None
    right: Any
    right_where: Where | None


def differences(left: Recipe, right: Recipe) -> list[Difference]:
    """Where two recipes differ, in the order of sections and keys; what equals a default equals its absence."""
    ours, theirs = _leaves(document(left), ""), _leaves(document(right), "")
    order = {section: at for at, section in enumerate(SECTIONS)}
    keys = sorted({*ours, *theirs}, key=lambda key: (order.get(key.split(".")[0], -1), key))
    found: list[Difference] = []
    for key in keys:
        mine, other = _at(ours, key), _at(theirs, key)
        if mine != other and not any(key.startswith(f"{around.key}.") for around in found):
            found.append(Difference(key, mine, left.origins.get(key), other, right.origins.get(key)))
    return found


def _at(leaves: Mapping[str, Any], key: str) -> Any:
    """The value of a key: a leaf, the mapping of the leaves below it, or its default."""
    if key in leaves:
        return leaves[key]
    below = {name.removeprefix(f"{key}."): value for name, value in leaves.items() if name.startswith(f"{key}.")}
    return below or _default(key)


def _leaves(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def _default(key: str) -> Any:
    section, *parts = key.split(".")
    node: Any = msgspec.to_builtins(OWN[section]()) if section in OWN else {}
    swift = swift_table().keys.get(parts[0]) if parts else None
    if swift is not None and swift.section == section and parts[0] not in node:
        node = {parts[0]: swift.default}
    for part in parts:
        node = node.get(part) if isinstance(node, dict) else None
    return node


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
    """Those values that some file wrote."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if key in recipe.origins and (not isinstance(value, dict) or not value):
            kept[name] = value
        elif isinstance(value, dict) and any(origin.startswith(f"{key}.") for origin in recipe.origins):
            kept[name] = _written(value, recipe, key)
    return kept


Line = tuple[str, str]
"""A line, and the comment that it ends with."""


def _lines(values: Mapping[str, Any], origins: Mapping[str, Where], prefix: str, indent: str) -> Iterator[Line]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield f"{indent}{_quoted(name)}:", ""
            yield from _lines(value, origins, f"{key}.", indent + "  ")
            continue
        where = origins.get(key)
        head, text = f"{indent}{_quoted(name)}: ", one_line(value)
        quoted = isinstance(value, str) and text.startswith('"')
        *before, last = _broken(head, text, indent + "    ") if quoted else [head + text]
        yield from ((line, "") for line in before)
        yield last, str(where or "")


def _broken(head: str, text: str, indent: str) -> Iterator[str]:
    r"""A quoted text after `head`, broken after spaces where it is long; `\` joins a line to the next."""
    if len(head) + len(text) <= WIDTH:
        yield head + text
        return
    start = head + '"'
    for piece in _PIECE.findall(text[1:]):
        if len(start) + len(piece) >= WIDTH and start not in (head + '"', indent):
            yield f"{start}\\"
            start = indent
        start += piece
    yield start


def _document(lines: Iterator[Line]) -> str:
    rows = list(lines)
    commented = [len(text) for text, comment in rows if comment and len(text) < _COMMENTS_TO]
    column = max([_COMMENTS_FROM, *commented])
    return "".join(
        f"{text.ljust(column)}  # {_printable(comment)}\n" if comment else f"{text}\n" for text, comment in rows
    )


def one_line(value: Any) -> str:
    """A value on one line; JSON is YAML."""
    if isinstance(value, str):
        return _quoted(escape(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(one_line(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(name)}: {one_line(item)}' for name, item in value.items())}}}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}".replace("inf", ".inf").replace("nan", ".nan")
    text = json.dumps(value)
    # YAML 1.1, which other tools read, takes 5e-05 for a text.
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _quoted(text: str) -> str:
    if _BARE.fullmatch(text) and read_plain(text) == text and not _YAML_1_1.fullmatch(text):
        return text
    return _printable(json.dumps(text, ensure_ascii=False))


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
