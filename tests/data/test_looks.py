"""What a look at lines says is what taking each apart would say."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vltool.data.fusing.looks import HEADS, KEPT, SPACED, TAKEN_APART, TIGHT, Look, places


@given(st.lists(st.integers(0, 3), max_size=200), st.integers(0, 3))
def test_places_are_where_the_value_stands(values, wanted):
    for dtype in ("u1", "<u2", "<u4"):
        found = places(np.array(values, dtype), wanted)
        assert found.tolist() == [i for i, value in enumerate(values) if value == wanted]


def test_places_in_more_than_a_block():
    values = np.zeros(1_000_003, np.uint8)
    at = [0, 7, 8, 262_143, 262_144, 262_151, 999_999, 1_000_002]
    values[at] = 10
    assert places(values, 10).tolist() == at


def kinds(text, *, way=True, most=None):
    data = text.encode()
    ends = [match.start() for match in re.finditer(b"\n", data)]
    if not data.endswith(b"\n"):
        ends.append(len(data))
    begins = [0, *(end + 1 for end in ends[:-1])]
    return Look(way, most).kinds(data, np.array(begins), np.array(ends)).tolist()


LONG = "x" * 70
LONGER = "y" * 300


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('{"images": ["a/b.jpg"], "width": 3}', SPACED),
        ('{"images":["a/b.jpg"],"width":3}', TIGHT),
        (f'{{"images": ["{LONG}.jpg"], "width": 3}}', SPACED),
        (f'{{"images":["{LONGER}.jpg"],"width":3}}', TIGHT),
        ('{"images": ["/data/a:b.jpg"], "width": 3}', KEPT),
        (f'{{"images": ["/{LONG}.jpg"], "width": 3}}', KEPT),
        ('{"images": ["https://a.de/b.jpg"], "width": 3}', KEPT),
        ('{"images": ["data:image/png;base64,AAAA"], "width": 3}', TAKEN_APART),
        ('{"images": ["C:/a.jpg"], "width": 3}', TAKEN_APART),
        ('{"images": ["\\/data/a.jpg"], "width": 3}', TAKEN_APART),  # absolute, as some encoders write it
        ('{"images": ["a\\\\u0062.jpg"], "width": 3}', TAKEN_APART),
        ('{"images": ["a.jpg", "b.jpg"], "summary": "two"}', TAKEN_APART),
        ('{"images": [""], "width": 3, "height": 4}', TAKEN_APART),
        ('{"images": ["unended path that takes more than a look to see the end of it', TAKEN_APART),
        ('{"width": 3, "images": ["a/b.jpg"]}', TAKEN_APART),
        ('{"images": ["a.jpg"], "metadata": {"a": 1}}', TAKEN_APART),
        ('{"images": ["a.jpg"], "m\\u0065tadata": {"a": 1}}', TAKEN_APART),
        ('{"images": ["a.jpg"], "messages": []}', TAKEN_APART),
        ('{"images": ["a.jpg"], "summary": "a metadata of messages"}', SPACED),
        ('{"images": ["a.jpg"], "width": 3} ', TAKEN_APART),
        ('{"images": ["a.jpg"], "width": 3}\r', TAKEN_APART),
        ("[1]", TAKEN_APART),
        ("", TAKEN_APART),
    ],
)
def test_where_paths_are_rewritten(line, kind):
    good = '{"images": ["good.jpg"], "width": 3}'
    assert kinds(f"{good}\n{line}\n{good}\n") == [SPACED, kind, SPACED]


def test_a_last_line_without_its_newline_is_taken_apart():
    assert kinds('{"images": ["a.jpg"], "width": 3}\n{"images": ["b.jpg"], "width": 3}') == [SPACED, TAKEN_APART]


def test_where_paths_stay_the_order_of_keys_does_not_matter():
    lines = ['{"width": 3, "images": ["a.jpg"]}', '{"a": 1, "messages": []}', '{"metadata": {}, "a": 1}']
    assert kinds("\n".join(lines) + "\n", way=False) == [KEPT, KEPT, TAKEN_APART]


def test_records_with_too_many_objects_are_taken_apart():
    def line(count):
        return json.dumps({"images": ["a.jpg"], "objects": [{"desc": "a", "line": [0, 0, 1, 1]}] * count})

    text = "".join(f"{line(count)}\n" for count in (2, 3, 4))
    assert kinds(text, most=3) == [SPACED, SPACED, TAKEN_APART]
    assert kinds(text, most=None) == [SPACED] * 3


@given(
    st.lists(st.sampled_from([*'{}[]":,\\/mé ', "images", "metadata", "messages", '{"images": ["', "\n"]), max_size=60)
)
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_it_and_what_is_spliced_begins_and_ends_as_it_must(parts):
    text = "".join(parts)
    for way in (True, False):
        lines = text.removesuffix("\n").split("\n") if text else []
        for line, kind in zip(lines, kinds(text, way=way) if text else [], strict=True):
            if kind != TAKEN_APART:
                assert line.startswith('{"')
                assert line.endswith("}")
                assert '"metadata"' not in line
                assert line.encode().startswith(HEADS.get(kind, b"{"))
