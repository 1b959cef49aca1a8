"""One JSONL line becomes a `Record`, or all of its problems; nothing is repaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from msgspec import Struct

from vltool.data.fields import RESERVED, reserved_in
from vltool.data.geometry import KINDS, Kind, Points, read_points, shown
from vltool.data.jsonline import decode
from vltool.data.messages import ImageRef, InlineImage, Item, Message, MessageReader
from vltool.errors import BadContent, Problem, Where

__all__ = [
    "RESERVED",
    "ImageRef",
    "InlineImage",
    "Item",
    "Message",
    "Object",
    "Record",
    "parse_record",
    "reserved_in",
]

LARGEST_SIDE = 1_000_000
"""Pixels; no decoder here opens a longer side, so a larger number is a slip of the pen."""


class Object(Struct, frozen=True):
    """One named thing: a box (its two corners), a polygon or a polyline, in pixels."""

    desc: str
    kind: Kind
    points: Points


class Record(Struct, frozen=True, kw_only=True):
    """A valid record. `width`, `height`: pixels of the oriented image, always there with `objects`.

    Exactly one image with `objects`; with `messages`, as many as these have image items.
    """

    images: tuple[ImageRef, ...] = ()
    objects: tuple[Object, ...] = ()
    width: int | None = None
    height: int | None = None
    summary: str | None = None
    messages: tuple[Message, ...] | None = None
    metadata: dict[str, Any] | None = None


_OBJECT_FIELDS = ("desc", *KINDS, "poly_points", "line_points")
_OBJECT_FORM = 'write {"desc": "…", "bbox_2d": [x1, y1, x2, y2]}'


def parse_record(line: bytes, where: Where) -> Record:
    """Read one line of a JSONL, without its newline. A field that is null counts as absent.

    Raises BadContent with every problem of the line, each at `where`.
    """
    reader = _RecordReader()
    try:
        record = reader.record(decode(line))
    except BadContent as error:
        raise BadContent(
            Problem(problem.what, problem.do, where, problem.id or "record-json") for problem in error.problems
        ) from None
    if reader.problems:
        raise BadContent(Problem(problem.what, problem.do, where, problem.id) for problem in reader.problems)
    return record


class _RecordReader(MessageReader):
    def record(self, value: dict[str, Any]) -> Record:
        fields = self.fields(value, "", Record.__struct_fields__, "; data that is not trained on goes into metadata")
        width, height = (
            self.whole_number(fields[name], name, 1, LARGEST_SIDE, "write pixels of the oriented image")
            if name in fields
            else None
            for name in ("width", "height")
        )
        images = self.images(fields.get("images"))
        objects = self.read_objects(fields.get("objects"), width, height)
        summary = self.text(fields["summary"], "summary") if "summary" in fields else None
        messages: tuple[Message, ...] | None = None
        if "messages" in fields:
            messages, images = self.messages(fields["messages"], images)
        metadata = fields.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            self.say(f"metadata is {shown(metadata)}, not an object", 'write {"name": value, …}')
        self.together(fields, images)
        return Record(
            images=images,
            objects=objects,
            width=width,
            height=height,
            summary=summary,
            messages=messages,
            metadata=metadata,
        )

    def together(self, fields: dict[str, Any], images: Sequence[ImageRef]) -> None:
        """Judge what the fields say together; what was already found wrong alone is not said again."""
        objects, given = fields.get("objects"), fields.get("images", [])
        count = max(len(images), len(given) if isinstance(given, list) else 1)
        if not objects and "summary" not in fields and "messages" not in fields:
            what = "the record has no objects" if objects is None else "objects is empty, and the record has"
            self.say(f"{what}, no summary and no messages".replace("has,", "has"), "give at least one of them")
        for other in ("objects", "summary"):
            if "messages" in fields and fields.get(other):
                self.say(f"the record has messages beside {other}", "messages stand in its place: keep one of the two")
        if objects and count != 1:
            self.say(f"the record has {count} images; one with objects has exactly one", "give the image it describes")
        missing = [name for name in ("width", "height") if name not in fields]
        if objects and missing:
            self.say(
                f"{' and '.join(missing)} missing; a record with objects declares the size of its image",
                "add width and height, in pixels of the image with its EXIF orientation applied",
                rule="record-size",
            )
        elif len(missing) == 1:
            self.say(
                f"{missing[0]} missing beside the other side",
                "give both width and height, or neither",
                rule="record-size",
            )
        elif not objects and not missing and count != 1:
            self.say(
                f"width and height describe one image, and the record has {count}",
                "leave width and height out",
                rule="record-size",
            )

    def read_objects(self, value: object, width: int | None, height: int | None) -> tuple[Object, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            self.say(f"objects is {shown(value)}, not a list", "write a list of objects, [{…}, …]")
            return ()
        read = [self.read_object(item, f"objects[{i}]", width, height) for i, item in enumerate(value)]
        return tuple(item for item in read if item is not None)

    def read_object(self, value: object, name: str, width: int | None, height: int | None) -> Object | None:
        if not isinstance(value, dict):
            self.say(f"{name} is {shown(value)}, not an object", _OBJECT_FORM)
            return None
        fields = self.fields(value, name, _OBJECT_FIELDS)
        if "desc" not in fields:
            self.say(f"{name} has no desc", "add the description of the object")
        desc = self.text(fields["desc"], f"{name}.desc") if "desc" in fields else ""
        kinds: list[Kind] = [kind for kind in KINDS if kind in fields]
        if len(kinds) != 1:
            found = f"has {len(kinds)} geometries, {' and '.join(kinds)}" if kinds else "has no geometry"
            self.say(f"{name} {found}", "give exactly one of bbox_2d, poly and line", rule="record-geometry")
        read: Points = ()
        for kind in kinds:
            read, problems = read_points(fields[kind], kind=kind, field=f"{name}.{kind}", width=width, height=height)
            self.problems += [replace(problem, id="record-geometry") for problem in problems]
        for kind in ("poly", "line"):
            if f"{kind}_points" in fields:
                self.count_of_points(fields[f"{kind}_points"], fields.get(kind), f"{name}.{kind}_points", kind)
        return Object(desc, kinds[0], read) if kinds else None

    def count_of_points(self, declared: object, numbers: object, name: str, kind: str) -> None:
        if not isinstance(numbers, list):
            if numbers is None:
                self.say(
                    f"{name} is {shown(declared)}, and there is no {kind}",
                    f"drop {kind}_points",
                    rule="record-geometry",
                )
        elif type(declared) is not int or declared != len(numbers) // 2:
            self.say(
                f"{name} is {shown(declared)}, but {kind} has {len(numbers) // 2} points",
                f"correct one of them, or drop {kind}_points",
                rule="record-geometry",
            )
