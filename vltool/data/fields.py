"""The fields of a decoded record, one by one, with everything that is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from vltool.data.geometry import shown
from vltool.errors import Problem, nearest

RESERVED: tuple[str, ...] = (
    *(
        f"<|{name}|>"
        for name in (
            "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end",
            "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad",
            "audio_start", "audio_end", "audio_pad", "fim_prefix", "fim_middle", "fim_suffix", "fim_pad",
            "repo_name", "file_sep", "placeholder",
        )
    ),
    "<image>", "<video>", "<audio>", "<start-image>", "<bbox>", "<ref-object>", "{{ROUND0}}", "{{ROUND1}}",
)  # fmt: skip
"""Text that Qwen's tokenizer or ms-swift's templates take for an instruction; `<img>…</img>` is one more.

Source: tokenizer_config.json of Qwen3-VL; `special_tokens`, `_replace_image_tags` and
`_concat_context_list` of ms-swift 4.6's swift/template/base.py.
"""
_RESERVED = re.compile("|".join(map(re.escape, RESERVED)))
_IMG_TAG = re.compile("<img>.+?</img>")

_OTHER_NAMES = {
    "image": "images", "image_path": "images", "conversations": "messages", "conversation": "messages",
    "bbox": "bbox_2d", "box": "bbox_2d", "polygon": "poly", "quad": "poly", "segmentation": "poly",
    "polyline": "line", "label": "desc", "caption": "desc", "description": "desc", "value": "content", "from": "role",
}  # fmt: skip
"""Names that other tools give to our fields."""
MOST_UNKNOWN = 20
"""Unknown fields of one object that are named; of the others, their number is told."""


def reserved_in(text: str) -> str | None:
    """The first reserved text in a prompt or record, or None."""
    match = _RESERVED.search(text)
    return match[0] if match else _img_tag(text)


def _img_tag(text: str) -> str | None:
    """Line by line and from the first `<img>` of each alone: where that finds no end, none behind it does, and a
    text of nothing but `<img>` is not looked through once for each."""
    for line in text.split("\n") if "</img>" in text else ():
        if (start := line.find("<img>")) >= 0 and (match := _IMG_TAG.match(line, start)):
            return match[0]
    return None


class FieldReader:
    """Collects problems while it reads; what it returns counts only if there are none."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def say(self, what: str, do: str, *, rule: str = "record-field") -> None:
        self.problems.append(Problem(what, do, id=rule))

    def fields(self, value: dict[str, Any], name: str, known: Sequence[str], hint: str = "") -> dict[str, Any]:
        """The fields of the object `name` that are there and not null; unknown ones are problems."""
        prefix = f"{name}." if name else ""
        unknown = [key for key in value if key not in known]
        for key in unknown[:MOST_UNKNOWN]:
            close = _meant(key, tuple(known))
            do = f"did you mean {close}?" if close else f"known here: {', '.join(known)}"
            plain = key if key.isprintable() and len(key) <= 60 else shown(key)
            self.say(f"unknown field {prefix}{plain}: {shown(value[key])}", do + hint)
        if more := len(unknown) - MOST_UNKNOWN if len(unknown) > MOST_UNKNOWN else 0:
            self.say(f"{name or 'the record'} has {more} more unknown fields", f"known here: {', '.join(known)}{hint}")
        return {key: item for key, item in value.items() if item is not None and key in known}

    def whole_number(self, value: object, name: str, low: int, high: int, do: str) -> int | None:
        if type(value) is int and low <= value <= high:
            return value
        self.say(f"{name} is {shown(value)}, not a whole number from {low} to {high}", do, rule="record-size")
        return None

    def text(self, value: object, name: str, *, empty: bool = False) -> str:
        """A text that may enter a conversation; one of spaces alone counts as empty."""
        if not isinstance(value, str):
            self.say(f"{name} is {shown(value)}, not a text", 'write it in double quotes: "…"')
            return ""
        if not empty and not value.strip():
            self.say(
                f"{name} is {shown(value)}, an empty text",
                "write what the model shall say, or drop it",
                rule="record-text",
            )
        self.unreserved(value, name)
        return value

    def unreserved(self, text: str, name: str) -> None:
        if found := reserved_in(text):
            found = found if len(found) <= 60 else found[:59] + "…"
            self.say(
                f"{name} contains {found}, which the model's template takes for an instruction: {shown(text)}",
                "remove it from the text",
                rule="record-text",
            )


@lru_cache(maxsize=1024)
def _meant(key: str, known: tuple[str, ...]) -> str | None:
    """The field that was most likely meant; kept, because a slip is made in every record of a file."""
    if (other := _OTHER_NAMES.get(key)) in known:
        return other
    return nearest(key, known) if len(key) <= 60 else None
