"""A record becomes the messages that a model is trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from vltool.data.geometry import Grid, to_grid
from vltool.data.messages import Message
from vltool.data.record import Object, Record, reserved_in
from vltool.errors import BadContent, InvalidInput, Problem


class Prompts(Struct, frozen=True):
    """The texts around a record: what the user asks, and the system's instruction, if any.

    Raises InvalidInput for a text that the model's template would take for an instruction.
    """

    user: str
    system: str | None = None

    def __post_init__(self) -> None:
        for role, text in (("user", self.user), ("system", self.system or "")):
            if found := reserved_in(text):
                raise InvalidInput(
                    f"the {role} prompt contains {found}, which the model's template takes for an instruction",
                    f"remove it from custom.{role}_prompt; images are placed by vltool",
                )


def build_messages(
    record: Record,
    *,
    prompts: Prompts,
    emit_norm: Grid,
    use_summary: bool | None,
    images: Sequence[Any],
    seen_size: tuple[int, int] | None,
) -> list[dict[str, Any]]:
    """Messages in the form that ms-swift and transformers read.

    images: one value for each of the record's images, in order; it is put under "image" as it is
    (pixels, or a size where only lengths count). The prompts do not touch a record that brings its
    own messages. Other arguments and errors as for `assistant_text`.
    """
    assert len(images) == len(record.images), (len(images), len(record.images))
    shown = [{"type": "image", "image": image} for image in images]
    if record.messages is not None:
        remaining = iter(shown)
        return [{"role": message.role, "content": _content(message, remaining)} for message in record.messages]
    answer = assistant_text(record, emit_norm=emit_norm, use_summary=use_summary, seen_size=seen_size)
    system = [{"role": "system", "content": prompts.system}] if prompts.system else []
    return [
        *system,
        {"role": "user", "content": [*shown, {"type": "text", "text": prompts.user}]},
        {"role": "assistant", "content": answer},
    ]


def _content(message: Message, images: Any) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    if message.role != "user":  # ms-swift joins the items of user turns only
        return "".join(item.text for item in message.content)
    return [next(images) if item.type == "image" else {"type": "text", "text": item.text} for item in message.content]


def answers_with_objects(record: Record, *, use_summary: bool | None) -> bool:
    """Whether `assistant_text` is the record's objects as JSON."""
    return record.messages is None and (bool(record.objects) if use_summary is None else not use_summary)


def assistant_text(
    record: Record, *, emit_norm: Grid, use_summary: bool | None, seen_size: tuple[int, int] | None
) -> str:
    """What the model shall answer: the objects as JSON, the summary, or the last message.

    emit_norm: the grid of the coordinates; `none` needs seen_size, the (width, height) in pixels at
    which the model sees the image. use_summary: True answers with the summary, False with the
    objects, None with the objects or, where there are none, the summary. Raises BadContent, without
    a place, for a record that has not what is asked for.
    """
    if record.messages is not None:
        content = record.messages[-1].content
        return content if isinstance(content, str) else "".join(item.text for item in content)
    if not answers_with_objects(record, use_summary=use_summary):
        if record.summary is None:
            raise BadContent(
                Problem(
                    "the record has no summary, which custom.use_summary trains on",
                    "add one, or train on objects with custom.use_summary: false",
                    id="record-answer",
                )
            )
        return record.summary
    if not record.objects:
        raise BadContent(
            Problem(
                "the record has no objects to describe, only a summary",
                "add objects, train on summaries with custom.use_summary: true, or give the text as messages",
                id="record-answer",
            )
        )
    assert record.width is not None
    assert record.height is not None
    described = {}
    for number, item in enumerate(record.objects, start=1):
        points = to_grid(item.points, width=record.width, height=record.height, grid=emit_norm, seen_size=seen_size)
        described[f"object_{number}"] = {"desc": item.desc, item.kind: _written(item, points)}
    return json.dumps(described, ensure_ascii=False)


def _written(item: Object, points: list[list[int]]) -> list[Any]:
    return [*points[0], *points[1]] if item.kind == "bbox_2d" else points
