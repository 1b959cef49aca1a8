"""The bytes of one JSONL line become a JSON object, or everything that is wrong with them as JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from vltool.data.geometry import printable, shown
from vltool.errors import BadContent, Problem

DEEPEST = 64
"""Levels of objects and lists in a line, a record's own counted; every step after decoding can walk that many."""

LONGEST_LINE = 128 << 20
"""Bytes: more than the images that a record may carry in itself."""

_NESTED = frozenset((dict, list))
_KEY = re.compile(rb'"[ \t\r\n]*:')
_NAMED_KEY = re.compile(rb'"([^"\\]{1,60})"[ \t\r\n]*:')
_NOT_A_NUMBER = re.compile(rb"[:\[,\s](-?(?:NaN|Infinity))\b")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BYTE = re.compile(r"\(byte (\d+)\)")
_BOMS = ((b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


def decode(line: bytes) -> dict[str, Any]:
    """Decode one line, without its newline, to a JSON object in which no key is written twice.

    Raises BadContent, without a place.
    """
    if len(line) > LONGEST_LINE:
        what = f"the line is {len(line) / 1e6:.0f} MB long, over {LONGEST_LINE >> 20} MiB; it starts {_start(line)}"
        raise BadContent(what, "write one record a line, and large images into files beside the data")
    if problem := _unlike_utf8(line):
        raise BadContent(problem)
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise BadContent(_malformed(line, error)) from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise BadContent(f"the line holds {shown(value)}, not a JSON object", 'write {"images": […], …} on one line')
    keys = _count_keys(value)
    # Every key in the text is a `":`, and so is every `\":` inside a text; as many as there are keys: none is double.
    if len(_KEY.findall(line)) != keys and (twice := _written_twice(line)):
        raise BadContent(Problem(what, "keep one") for what in twice)
    return value


def _unlike_utf8(line: bytes) -> Problem | None:
    for mark, encoding in _BOMS:
        if line.startswith(mark):
            return Problem(
                f"the line starts with a byte order mark (BOM) of {encoding}", "save the file as UTF-8 without a BOM"
            )
    if line.endswith(b"\r"):
        return Problem("the line ends in CRLF (\\r\\n), a Windows line ending", "convert it: sed -i 's/\\r$//' FILE")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        what = f"the line is not UTF-8{_place(line, error.start)}: {error.reason}"
        return Problem(what, "save the file as UTF-8")
    return None


def _start(line: bytes) -> str:
    return shown(line[:60].decode(errors="replace"))


def _place(line: bytes, at: int) -> str:
    """Where byte `at` (from 0) of a line is, which holds no fields yet that could be named: the key before it, the text
    around it."""
    near = line[max(at - 20, 0) : at + 20].decode(errors="replace")
    keys = _NAMED_KEY.findall(line, max(at - 2000, 0), at)
    after = f", after {shown(keys[-1].decode(errors='replace'))}" if keys else ""
    return f" near byte {at + 1}{after}, at …{printable(near)}…"


def _malformed(line: bytes, error: msgspec.DecodeError) -> Problem:
    """The problem of a line that is no JSON, with the fix for the usual causes."""
    text = line.strip()
    byte = _BYTE.search(str(error))
    if byte and (match := _NOT_A_NUMBER.search(line, max(int(byte[1]) - 3, 0), int(byte[1]) + 10)):
        return Problem(
            f"{match[1].decode()} is not a number in JSON{_place(line, match.start(1))}",
            "write a finite number, or leave the record out",
        )
    if "range" in str(error):
        number = next((found for found in _NUMBER.finditer(line) if math.isinf(float(found[0]))), None)
        return Problem(
            f"a number of the line is too large for any image{_place(line, number.start()) if number else ''}",
            "write finite numbers of ordinary size",
        )
    if half := _LONE_SURROGATE.search(line):
        return Problem(
            f"the line holds half of a surrogate pair (\\ud…), which is no character{_place(line, half.start())}",
            "write the character itself, as json.dumps(…, ensure_ascii=False) does",
        )
    place = _place(line, int(byte[1])) if byte else ""
    reason = _BYTE.sub("", str(error)).removeprefix("JSON is malformed: ").strip()
    if text in (b"{", b"[", b"}", b"]"):
        do = "this looks like an indented document: write each record on one line"
    elif b"'" in text[:2]:
        do = "quote with double quotes, as json.dumps does"
    elif "trailing characters" in reason:
        do = "write one object a line and nothing after it"
    elif "truncated" in reason:
        do = "the line ends too early: write the whole object on one line"
    else:
        do = "write each line with json.dumps(record, ensure_ascii=False)"
    return Problem(f"the line is not valid JSON{place}: {reason}", do)


def _count_keys(value: dict[str, Any]) -> int:
    """The keys of an object and of all that it holds. Raises BadContent where that nests too deeply to be told of."""
    count, level = 0, list[Any]([value])
    for _ in range(DEEPEST):
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                count += len(item)
                item = item.values()
            if not _NESTED.isdisjoint(map(type, item)):  # without a look at each of the numbers of a polygon
                below += [inner for inner in item if type(inner) in _NESTED]
        if not below:
            return count
        level = below
    raise _too_deep()


def _too_deep() -> BadContent:
    return BadContent(
        f"the line nests objects or lists too deeply, over {DEEPEST} levels",
        "flatten it; see the record format",
    )


def _written_twice(line: bytes) -> list[str]:
    """What is to be said of each key that stands twice in one object."""
    twice: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if key in fields:
                known = f"{shown(fields[key])} and {shown(value)}"
                twice.append(f"the key {shown(key)} is written twice in one object, with {known}")
            fields[key] = value
        return fields

    json.loads(line, object_pairs_hook=note)
    return twice
