"""The coordinates in an answer, all of them and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vltool.data.conversation import Prompts, assistant_text
from vltool.data.dataset import CaptionDataset
from vltool.data.geometry import KINDS, Kind
from vltool.data.geometry_spans import geometry_spans
from vltool.data.record import Object, Record

QUOTING = ('"bbox_2d": [1, 2]', '{"poly": [[1, 2], [3, 4]]}', '\\", "line": [[0, 0]]', "bbox_2d", '"', "\\", "[1, 2]")
"""Descriptions that look like what stands around them."""

descriptions = st.lists(st.sampled_from(QUOTING) | st.text(max_size=8), min_size=1, max_size=4).map("".join)


@st.composite
def objects(draw: st.DrawFn) -> Object:
    kind: Kind = draw(st.sampled_from(KINDS))
    fewest, most = (2, 2) if kind == "bbox_2d" else (2, 12)
    point = st.tuples(st.floats(0, 640), st.floats(0, 480))
    return Object(draw(descriptions), kind, tuple(draw(st.lists(point, min_size=fewest, max_size=most))))


@settings(max_examples=200, deadline=None)
@given(given_objects=st.lists(objects(), min_size=1, max_size=6), grid=st.sampled_from(["none", "norm100", "norm1000"]))
def test_spans_are_the_values_of_the_geometries(given_objects: list[Object], grid: Any) -> None:
    record = Record(images=("a",), width=640, height=480, objects=tuple(given_objects))
    answer = assistant_text(record, emit_norm=grid, use_summary=False, seen_size=(320, 256))
    found = [(span.kind, json.loads(answer[span.start : span.end])) for span in geometry_spans(answer)]
    assert found == [(kind, value) for item in json.loads(answer).values() for kind, value in list(item.items())[1:]]
    # Each once, and the kinds are those of the record: JSON itself keeps no order of what is equal.
    assert [kind for kind, _ in found] == [item.kind for item in given_objects]


def test_only_answers_made_of_objects_have_geometries(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    described = {"width": 64, "height": 64, "objects": [{"desc": "a", "bbox_2d": [0, 0, 32, 64]}]}
    text = '{"object_1": {"desc": "a", "bbox_2d": [0, 0, 500, 1000]}}'
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
    lines: list[dict[str, Any]] = [described, described | {"summary": text}, {"summary": text}, {"messages": turns}]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({"images": ["a.png"]} | line) + "\n" for line in lines), encoding="utf-8")
    spans = {}
    for use_summary in (None, False, True):
        dataset = CaptionDataset(
            path, prompts=Prompts("?"), emit_norm="norm1000", use_summary=use_summary, max_pixels=None
        )
        asked = range(4) if use_summary is None else (0, 1) if use_summary is False else (1, 2)
        samples = [dataset[place] for place in asked]
        assert {sample.messages[-1]["content"] for sample in samples} == {text}
        spans[use_summary] = [len(sample.geometry) for sample in samples]
    assert spans == {None: [1, 1, 0, 0], False: [1, 1], True: [0, 0]}
