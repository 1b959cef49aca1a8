"""Where the coordinates stand in an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from vltool.data.geometry import KINDS, Kind

# Strings are read whole, so nothing that a description quotes is taken for a key.
_STRING_OR_GEOMETRY = re.compile(
    rf'"(?P<kind>{"|".join(KINDS)})": (?P<value>\[[-0-9, \[\]]*\])' r'|"[^"\\]*(?:\\.[^"\\]*)*"'
)


@dataclass(frozen=True, slots=True)
class Span:
    """The characters start … end - 1 of a text: the coordinates of one geometry, from bracket to bracket."""

    start: int
    end: int
    kind: Kind


def geometry_spans(answer: str) -> tuple[Span, ...]:
    """The geometries of an answer of objects, in order.

    answer: as `assistant_text` writes objects. A span is the JSON array of the coordinates: its brackets and
    separators belong to it, the key before it does not.
    """
    return tuple(
        Span(*found.span("value"), cast(Kind, found["kind"]))
        for found in _STRING_OR_GEOMETRY.finditer(answer)
        if found["kind"] is not None
    )
