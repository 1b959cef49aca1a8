"""The bytes of one JSONL line become a JSON object, or everything that is wrong with them as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from vltool.data.geometry import shown
from vltool.errors import BadContent, Problem

_KEY = re.compile(rb'"[ \t\r\n]*:')
_NOT_A_NUMBER = re.compile(rb"[:\[,\s](-?(?:NaN|Infinity))\b")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BYTE = re.compile(r"\(byte (\d+)\)")
_BOMS = ((b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


def decode(line: bytes) -> dict[str, Any]:
    """Decode one line, without its newline, to a JSON object in which no key is written twice.

    Raises BadContent, without a place.
    """
    if problem := _unlike_utf8(line):
        raise BadContent(problem)
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise BadContent(_malformed(line, error)) from None
    except RecursionError:
        raise BadContent("the line nests objects or lists too deeply", "flatten it; see the record format") from None
    if not isinstance(value, dict):
        raise BadContent(f"the line holds {shown(value)}, not a JSON object", 'write {"images": […], …} on one line')
    # Every key in the text is a `":`, and so is every `\":` inside a text; as many as there are keys: none is double.
    if len(_KEY.findall(line)) != _count_keys(value) and (twice := _written_twice(line)):
        raise BadContent(Problem(f"the key {shown(key)} is written twice in one object", "keep one") for key in twice)
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
        return Problem(f"byte {error.start + 1} of the line is not UTF-8: {error.reason}", "save the file as UTF-8")
    return None


def _malformed(line: bytes, error: msgspec.DecodeError) -> Problem:
    """The problem of a line that is no JSON, with the fix for the usual causes."""
    text = line.strip()
    byte = _BYTE.search(str(error))
    if byte and (match := _NOT_A_NUMBER.search(line, max(int(byte[1]) - 3, 0), int(byte[1]) + 10)):
        return Problem(f"{match[1].decode()} is not a number in JSON", "write a finite number, or leave the record out")
    if "range" in str(error):
        return Problem("a number of the line is too large for any image", "write finite numbers of ordinary size")
    if _LONE_SURROGATE.search(line):
        return Problem(
            "the line holds half of a surrogate pair (\\ud…), which is no character",
            "write the character itself, as json.dumps(…, ensure_ascii=False) does",
        )
    place = f" near byte {int(byte[1]) + 1}" if byte else ""
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
    count = 0
    todo: list[Any] = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            count += len(item)
            item = item.values()
        todo.extend(inner for inner in item if isinstance(inner, dict | list))
    return count


def _written_twice(line: bytes) -> list[str]:
    twice: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if key in fields:
                twice.append(key)
            fields[key] = value
        return fields

    json.loads(line, object_pairs_hook=note)
    return twice
