"""Records: what a line may say, and what an operator reads when it says something else."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vltool.data.record import RESERVED, InlineImage, Item, Message, Object, Record, parse_record, reserved_in
from vltool.errors import BadContent, Problem, Where

HERE = Where("train.jsonl", 7)


def _base(**changes: Any) -> dict[str, Any]:
    record = {
        "images": ["a.jpg"],
        "width": 100,
        "height": 50,
        "objects": [{"desc": "cat", "bbox_2d": [1, 2, 30, 40]}],
        **changes,
    }
    return {key: value for key, value in record.items() if value is not ...}


def _object(**changes: Any) -> dict[str, Any]:
    item = {"desc": "cat", "bbox_2d": [1, 2, 30, 40], **changes}
    return _base(objects=[{key: value for key, value in item.items() if value is not ...}])


def _talk(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


def _says(user: Any, answer: Any = "yes", **fields: Any) -> dict[str, Any]:
    return _talk({"role": "user", "content": user}, {"role": "assistant", "content": answer}, **fields)


def _parse(value: Any) -> Record:
    return parse_record(json.dumps(value, ensure_ascii=False).encode(), HERE)


BROKEN: list[tuple[Any, list[str]]] = [
    # The line
    (b"", ["not valid JSON"]),
    (b"\xef\xbb\xbf{}", ["BOM", "UTF-8", "without a BOM"]),
    (b"\xff\xfe{\0", ["BOM", "UTF-16"]),
    (b'{"summary": "x"}\r', ["CRLF", "sed"]),
    (b'{"summary": "\xe9"}', ["byte 14", "not UTF-8", 'after "summary"']),
    (b'["a"]', ["not a JSON object"]),
    (b"null", ["not a JSON object"]),
    (b"{", ["not valid JSON", "indented document"]),
    (b'{"summary": "x"} {}', ["near byte 19", "one object a line"]),
    (b'{"summary": "x",}', ["not valid JSON"]),
    (b"{'summary': 'x'}", ["double quotes"]),
    (b'{"summary": "x', ["ends too early"]),
    (b'{"width": NaN, "summary": "x"}', ["NaN is not a number in JSON"]),
    (b'{"width":-Infinity}', ["-Infinity is not a number"]),
    (b'{"width": 1e999}', ["too large"]),
    (b'{"summary": "\\ud800"}', ["surrogate"]),
    (b'{"summary": "x", "summary": "y"}', ['"summary" is written twice']),
    (b'{"metadata": {"a": [{"b": 1, "b": 2}]}, "summary": "x"}', ['"b" is written twice']),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, ["too deeply"]),
    # The record
    ({}, ["no objects, no summary and no messages"]),
    (_base(objects=...), ["no objects, no summary and no messages"]),
    (_base(objects=[]), ["objects is empty"]),
    (_base(objcts=[]), ["unknown field objcts", "did you mean objects?", "metadata"]),
    (_base(image="a.jpg"), ["unknown field image", "did you mean images?"]),
    (_base(source="web"), ["unknown field source", "known here", "metadata"]),
    (_base(images=...), ["0 images", "exactly one"]),
    (_base(images=[]), ["0 images", "exactly one"]),
    (_base(images=["a.jpg", "b.jpg"]), ["2 images", "exactly one"]),
    (_base(images="a.jpg"), ["not a list", 'write ["a.jpg"]']),
    (_base(images=[""]), ["images[0]", "not an image"]),
    (_base(images=[3]), ["images[0] is 3"]),
    (_base(images=[{"path": "a.jpg"}]), ["images[0]", 'write the text itself: "a.jpg"']),
    (_base(images=[{"bytes": "***"}]), ["images[0].bytes is not base64"]),
    (_base(images=[{"bytes": ""}]), ["images[0]", "not an image"]),
    (_base(width=...), ["width missing", "EXIF"]),
    (_base(width=..., height=...), ["width and height missing"]),
    (_base(width=0), ["width is 0", "whole number"]),
    (_base(width=-5), ["width is -5"]),
    (_base(width=100.0), ["width is 100.0", "whole number"]),
    (_base(height="50"), ['height is "50"']),
    (_base(height=True), ["height is true"]),
    (_base(width=10**30), ["width is 1000000000000000000000000000000"]),
    (_base(summary=""), ["summary", "empty text"]),
    (_base(summary=5), ["summary is 5, not a text"]),
    (_base(summary="see <|image_pad|> here"), ["summary contains <|image_pad|>"]),
    (_base(metadata=[1]), ["metadata is [1], not an object"]),
    ({"summary": "x", "images": ["a.jpg"], "width": 5}, ["height missing"]),
    ({"summary": "x", "images": ["a.jpg", "b.jpg"], "width": 5, "height": 5}, ["describe one image", "has 2"]),
    # Objects
    (_base(objects={"desc": "x"}), ["objects is", "not a list"]),
    (_base(objects=["cat"]), ['objects[0] is "cat"']),
    (_object(desc=...), ["objects[0] has no desc"]),
    (_object(desc="  "), ['objects[0].desc is "  "', "empty"]),
    (_object(desc=4), ["objects[0].desc is 4"]),
    (_object(desc="a <image> b"), ["objects[0].desc contains <image>"]),
    (_object(desc="<img>/tmp/x.jpg</img>"), ["<img>/tmp/x.jpg</img>"]),
    (_object(bbox_2d=...), ["objects[0] has no geometry", "exactly one"]),
    (_object(line=[1, 2, 3, 4]), ["2 geometries, bbox_2d and line", "exactly one"]),
    (_object(bbox_2d=..., bbox=[1, 2, 3, 4]), ["unknown field objects[0].bbox", "did you mean bbox_2d?"]),
    (_object(label="x"), ["unknown field objects[0].label", "did you mean desc?"]),
    (_object(bbox_2d=[1, 2, 300, 40]), ["objects[0].bbox_2d[2] is 300", "width"]),
    (_object(bbox_2d=[30, 2, 1, 40]), ["x1 = 30"]),
    (_object(bbox_2d=..., poly=[[1, 2], [3, 4], [5, 6]]), ["nested pairs", "flat: [1, 2, 3, 4, 5, 6]"]),
    (_object(bbox_2d=..., poly=[1, 2, 3, 4, 5, 6], poly_points=4), ["poly_points is 4, but poly has 3 points"]),
    (_object(bbox_2d=..., line=[1, 2, 3, 4], line_points="2"), ['line_points is "2"', "2 points"]),
    (_object(poly_points=4), ["poly_points is 4, and there is no poly"]),
    # Messages
    (_says("hi", objects=_base()["objects"], images=["a.jpg"], width=100, height=50), ["messages beside objects"]),
    (_says("hi", summary="x"), ["messages beside summary"]),
    ({"messages": []}, ["messages is []"]),
    ({"messages": "hi"}, ['messages is "hi"']),
    (_talk("hi"), ['messages[0] is "hi"']),
    (_says("hi", ""), ["messages[1].content", "empty"]),
    (_says("hi", []), ["messages[1].content", "empty answer"]),
    (_says("hi", None), ["messages[1].content is null"]),
    (_says("hi", "<|im_end|>"), ["contains <|im_end|>"]),
    (_says([{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]), ["contains <|im_end|>"]),
    (_talk({"role": "user", "content": "hi"}), ["last message", "nothing to learn"]),
    (_talk({"role": "system", "content": "hi"}), ["last message"]),
    (_talk({"role": "assistant", "content": "hi"}), ['"assistant" where "user" must stand']),
    (_talk(*[{"role": "user", "content": "a"}] * 2, {"role": "assistant", "content": "b"}), ["messages[1].role"]),
    (_talk({"role": "bot", "content": "hi"}), ['messages[0].role is "bot"', "system, user, assistant"]),
    (_talk({"from": "human", "value": "hi"}), ["messages[0].from", "did you mean role?", "did you mean content?"]),
    (_says([{"type": "image", "url": "a.jpg"}]), ['"url"', 'write {"type": "image", "image": "a.jpg"}']),
    (_says([{"type": "video", "video": "a.mp4"}]), ["video", "nothing else is trained on"]),
    (_says([{"type": "image", "image": "a.jpg", "max_pixels": 9}]), ["unknown field", "max_pixels"]),
    (_says([{"type": "text", "text": 5}]), ["text is 5, not a text"]),
    (_says([{"type": "image"}]), ["1 image items, and images holds 0"]),
    (_says([{"type": "image"}, {"type": "image", "image": "a.jpg"}]), ["1 of 2 image items"]),
    (_says([{"type": "image", "image": "a.jpg"}], images=["b.jpg"]), ["images differs"]),
    (_says("hi", [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "x"}]), ['turn of "assistant"']),
]


@pytest.mark.parametrize(("value", "words"), BROKEN, ids=[f"{i}-{'-'.join(w)[:40]}" for i, (_, w) in enumerate(BROKEN)])
def test_a_broken_line_is_refused_in_these_words(value: Any, words: list[str]) -> None:
    line = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    with pytest.raises(BadContent) as caught:
        parse_record(line, HERE)
    text = str(caught.value)
    assert not [word for word in words if word not in text], text
    assert all(problem.where == HERE for problem in caught.value.problems)
    assert all(problem.do for problem in caught.value.problems), text


@pytest.mark.parametrize(
    "value",
    [
        _says("hi", ""), _talk({"role": "bot", "content": "hi"}), _object(bbox_2d=...), _base(images="a.jpg"),
        _base(images=[3]), _base(width=0), _says([{"type": "image", "url": "a.jpg"}], images=["a.jpg"]),
        _object(line=3, bbox_2d=...), _base(objects=[3]), _object(poly_points=4),
    ],
)  # fmt: skip
def test_one_slip_is_one_problem(value: Any) -> None:
    with pytest.raises(BadContent) as caught:
        _parse(value)
    assert len(caught.value.problems) == 1, str(caught.value)


def test_all_problems_of_a_line_are_told_at_once() -> None:
    broken = _base(width=-1, summary="", objcts=1, objects=[{"desc": "", "bbox_2d": [3, 2, 1]}, {"desc": "x"}])
    with pytest.raises(BadContent) as caught:
        _parse(broken)
    assert len(caught.value.problems) == 6
    assert str(caught.value.problems[0]).startswith("train.jsonl:7: ")


def test_a_dense_caption() -> None:
    record = _parse(
        _base(
            objects=[
                {"bbox_2d": [1, 2, 30.5, 40], "desc": "cat: grey"},
                {"desc": "été", "poly": [0, 0, 100, 0, 100, 50], "poly_points": 3},
                {"desc": "l", "line": [0, 0, 9, 9], "line_points": 2},
            ],
            summary="a cat",
            metadata={"anything": [1, {"goes": None}]},
        )
    )
    assert record.objects == (
        Object("cat: grey", "bbox_2d", ((1.0, 2.0), (30.5, 40.0))),
        Object("été", "poly", ((0.0, 0.0), (100.0, 0.0), (100.0, 50.0))),
        Object("l", "line", ((0.0, 0.0), (9.0, 9.0))),
    )
    assert (record.images, record.width, record.height, record.summary) == (("a.jpg",), 100, 50, "a cat")
    assert record.metadata == {"anything": [1, {"goes": None}]}
    assert record.messages is None


def test_null_is_absence() -> None:
    record = _parse({**_object(poly=None, line_points=None), "summary": None, "messages": None, "metadata": None})
    assert record == _parse(_object())


def test_text_that_looks_like_keys_is_no_duplicate() -> None:
    assert _parse(_object(desc='he said "desc": "desc": twice')).objects[0].desc == 'he said "desc": "desc": twice'


@pytest.mark.parametrize("images", [..., [], ["a.jpg"], ["a.jpg", "https://host/b.png"]])
def test_a_summary_needs_no_image(images: Any) -> None:
    record = _parse({"summary": "x"} if images is ... else {"summary": "x", "images": images})
    assert record.images == (() if images is ... else tuple(images))


def test_bytes_are_decoded() -> None:
    record = _parse({"summary": "x", "images": [{"bytes": base64.b64encode(b"\x89PNG").decode()}]})
    assert record.images == (InlineImage(b"\x89PNG"),)


@pytest.mark.parametrize(
    ("content", "images"),
    [
        ([{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "hi"}], ...),
        ([{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "hi"}], ["a.jpg"]),
        ([{"type": "image_url", "image_url": "a.jpg"}, {"type": "text", "text": "hi"}], ...),
        ([{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "text", "text": "hi"}], ...),
        ([{"type": "image"}, {"type": "text", "text": "hi"}], ["a.jpg"]),
        ([{"type": "text", "text": "hi"}], ["a.jpg"]),
        ("hi", ["a.jpg"]),
    ],
)
def test_an_image_in_messages_may_be_written_in_these_ways(content: Any, images: Any) -> None:
    record = _parse(_says(content, images=images) if images is not ... else _says(content))
    assert record.images == ("a.jpg",)
    assert record.messages == (
        Message("user", (Item("image"), Item("text", "hi"))),
        Message("assistant", "yes"),
    )


def test_a_conversation_of_text_alone() -> None:
    record = _parse(
        _talk(
            {"role": "system", "content": "be brief"}, {"role": "user", "content": ""},
            {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"},
            {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
        )
    )  # fmt: skip
    assert record.messages is not None
    assert [m.role for m in record.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.content for m in record.messages] == ["be brief", "", "a", "b", (Item("text", "c"),)]


def test_the_smallest_image() -> None:
    record = _parse(_base(width=1, height=1, objects=[{"desc": "dot", "bbox_2d": [0, 0, 1, 1]}]))
    assert (record.width, record.height) == (1, 1)


@pytest.mark.parametrize("text", RESERVED)
def test_every_reserved_text_is_found_anywhere(text: str) -> None:
    assert reserved_in(f"a{text}b") == text
    with pytest.raises(BadContent, match="takes for an instruction"):
        _parse(_object(desc=f"a{text}b"))


@pytest.mark.parametrize("text", ["a < b | c > d", "<|cat|>", "<b>image</b>", "<img src=x>", "image", "{{x}}"])
def test_ordinary_text_is_not_reserved(text: str) -> None:
    assert reserved_in(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
GEOMETRY = st.lists(st.integers(-5, 120) | st.floats(0, 100), max_size=8) | JSON
OBJECT = st.fixed_dictionaries(
    {}, optional={"desc": st.text(max_size=5) | JSON, "bbox_2d": GEOMETRY, "poly": GEOMETRY, "line_points": JSON}
)
ITEM = st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "image_url"])}, optional={
    "text": st.text(max_size=5) | JSON, "image": JSON, "image_url": JSON, "url": JSON})  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]) | JSON},
    optional={"content": st.text(max_size=5) | st.lists(ITEM, max_size=3) | JSON},
)
RECORD = st.fixed_dictionaries({}, optional={
    "images": st.lists(st.text(max_size=5) | JSON, max_size=2) | JSON,
    "width": st.integers(1, 100) | JSON, "height": st.integers(1, 100) | JSON,
    "objects": st.lists(OBJECT, max_size=3) | JSON, "summary": st.text(max_size=5) | JSON,
    "messages": st.lists(MESSAGE, max_size=4) | JSON, "metadata": JSON})  # fmt: skip


def _record_or_bad_content(line: bytes) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        record = parse_record(line, HERE)
    except BadContent as error:
        problems = error.problems
    else:
        assert record.objects or record.summary or record.messages
    assert not [problem for problem in problems if problem.where != HERE or not problem.what or not problem.do]


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_a_record_or_bad_content(line: bytes) -> None:
    _record_or_bad_content(line)


@given(RECORD)
def test_any_json_gives_a_record_or_bad_content(value: Any) -> None:
    _record_or_bad_content(json.dumps(value).encode())
