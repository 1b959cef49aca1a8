"""Conversations: exactly the text that is trained on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vltool.data.conversation import Prompts, assistant_text, build_messages
from vltool.data.record import Item, Message, Object, Record
from vltool.errors import BadContent, InvalidInput

RECORD = Record(
    images=("a.jpg",),
    width=200,
    height=100,
    objects=(
        Object('été "x"', "bbox_2d", ((10.0, 20.0), (200.0, 100.0))),
        Object("b", "poly", ((0.0, 0.0), (100.0, 0.0), (100.0, 50.0))),
        Object("a", "line", ((1.0, 1.0), (2.0, 2.0))),
    ),
    summary="three things",
)
BARE: dict[str, Any] = {"emit_norm": "norm1000", "use_summary": False, "seen_size": None}


def test_the_answer_is_this_text() -> None:
    assert assistant_text(RECORD, **BARE) == (
        '{"object_1": {"desc": "été \\"x\\"", "bbox_2d": [50, 200, 1000, 1000]}, '
        '"object_2": {"desc": "b", "poly": [[0, 0], [500, 0], [500, 500]]}, '
        '"object_3": {"desc": "a", "line": [[5, 10], [10, 20]]}}'
    )


def test_the_answer_is_what_json_dumps_writes() -> None:
    text = assistant_text(RECORD, **BARE)
    assert json.dumps(json.loads(text), ensure_ascii=False) == text


@pytest.mark.parametrize(
    ("emit_norm", "expected"),
    [("norm100", [5, 20, 100, 100]), ("none", [5, 19, 96, 96]), ("norm1000", [50, 200, 1000, 1000])],
)
def test_grids(emit_norm: Any, expected: list[int]) -> None:
    text = assistant_text(RECORD, emit_norm=emit_norm, use_summary=False, seen_size=(96, 96))
    assert json.loads(text)["object_1"]["bbox_2d"] == expected


def test_a_summary_is_emitted_as_it_is() -> None:
    assert assistant_text(RECORD, emit_norm="norm1000", use_summary=True, seen_size=None) == "three things"


@pytest.mark.parametrize(
    ("record", "use_summary", "words"),
    [
        (Record(images=("a.jpg",), width=200, height=100, objects=RECORD.objects), True, "no summary.*use_summary"),
        (Record(summary="x"), False, "no objects.*use_summary: true"),
    ],
)
def test_a_record_without_what_is_asked_for_is_refused(record: Record, use_summary: bool, words: str) -> None:
    with pytest.raises(BadContent, match=f"(?s){words}"):
        assistant_text(record, emit_norm="norm1000", use_summary=use_summary, seen_size=None)


def test_without_a_recipe_a_record_answers_with_what_it_has() -> None:
    assert assistant_text(RECORD, emit_norm="norm1000", use_summary=None, seen_size=None).startswith("{")
    assert assistant_text(Record(summary="x"), emit_norm="norm1000", use_summary=None, seen_size=None) == "x"


@pytest.mark.parametrize("system", [None, "", "be exact"])
def test_images_stand_before_the_prompt_and_system_is_optional(system: str | None) -> None:
    pixels = object()
    messages = build_messages(RECORD, prompts=Prompts("describe", system), images=[pixels], **BARE)
    expected: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    expected += [
        {
            "role": "user",
            "content": [{"type": "image", "image": pixels}, {"type": "text", "text": "describe"}],
        },
        {"role": "assistant", "content": assistant_text(RECORD, **BARE)},
    ]
    assert messages == expected
    assert messages[-2]["content"][0]["image"] is pixels


def test_a_conversation_passes_through_with_its_images_in_order() -> None:
    record = Record(
        images=("a", "b", "c"),
        messages=(
            Message("system", (Item("text", "be "), Item("text", "brief"))),
            Message("user", (Item("image"), Item("text", "and"), Item("image"))),
            Message("assistant", "yes"),
            Message("user", (Item("text", "this?"), Item("image"))),
            Message("assistant", (Item("text", "n"), Item("text", "o"))),
        ),
    )
    for use_summary in (True, False):
        messages = build_messages(
            record, prompts=Prompts("unused", "unused"), emit_norm="none", use_summary=use_summary,
            images=[1, 2, 3], seen_size=None,
        )  # fmt: skip
        assert messages == [
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": 1},
                    {"type": "text", "text": "and"},
                    {"type": "image", "image": 2},
                ],
            },
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "text", "text": "this?"}, {"type": "image", "image": 3}]},
            {"role": "assistant", "content": "no"},
        ]
    assert assistant_text(record, **BARE) == "no"


@pytest.mark.parametrize(("user", "system"), [("see <image>", None), ("see", "<|im_end|>")])
def test_a_prompt_with_reserved_text_is_invalid_input(user: str, system: str | None) -> None:
    with pytest.raises(InvalidInput, match=r"prompt contains (<image>|<\|im_end\|>)"):
        Prompts(user, system)
