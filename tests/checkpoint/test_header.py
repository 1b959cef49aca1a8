"""Headers of .safetensors files: read as the library reads them, and refused when they lie."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vltool.checkpoint.header import TensorInfo, read_header, read_places, tensor_offsets
from vltool.errors import BadContent

GOOD = {
    "__metadata__": {"format": "pt"},
    "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "a": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "empty": {"dtype": "I64", "shape": [0], "data_offsets": [32, 32]},
}


def contents(header, data=bytes(32), *, announced=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if announced is None else announced) + raw + data


def changed(**entry):
    return contents({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]} | entry})


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        return path

    return write


def test_tensors_lie_behind_the_header_and_each_other(file):
    path = file(contents(GOOD))
    start = path.stat().st_size - 32
    assert tensor_offsets(path) == [start, start + 24, start + 32]


def test_names_types_and_shapes_in_the_order_of_the_header(file):
    assert list(read_header(file(contents(GOOD))).items()) == [
        ("b", TensorInfo("F32", (2, 3))),
        ("a", TensorInfo("BF16", (4,))),
        ("empty", TensorInfo("I64", (0,))),
    ]


def test_padding_and_no_tensors(file):
    assert read_header(file(contents(json.dumps(GOOD).encode() + b"   "))).keys() == {"b", "a", "empty"}
    assert read_header(file(contents({}, b""))) == {}
    assert read_header(file(changed())) == {"a": TensorInfo("F32", (8,))}


BROKEN = {
    "empty": (b"", "0 bytes are too few"),
    "seven bytes": (bytes(7), "7 bytes are too few"),
    "header longer than the file": (contents(GOOD, b"", announced=10_000), "announces a header of 10000 bytes"),
    "header longer than any": (contents(GOOD, announced=2**64 - 1), "announces a header of 18446744073709551615"),
    "length into the data": (contents(GOOD, announced=len(json.dumps(GOOD)) + 3), "broken safetensors header"),
    "length too short": (contents(GOOD, announced=20), "broken safetensors header"),
    "no header": (contents(b""), "broken safetensors header"),
    "no JSON": (contents(b"weights"), "broken safetensors header"),
    "no UTF-8": (contents(b'{"\xff": 1}'), "broken safetensors header"),
    "UTF-16": (contents(json.dumps(GOOD).encode("utf-16")), "broken safetensors header"),
    "a list": (contents([GOOD]), "broken safetensors header"),
    "an entry that is no object": (contents({"a": 5}), "broken safetensors header"),
    "no offsets": (contents({"a": {"dtype": "F32", "shape": [8]}}), "data_offsets"),
    "one offset": (changed(data_offsets=[32]), "broken safetensors header"),
    "text for an offset": (changed(data_offsets=[0, "32"]), "broken safetensors header"),
    "a negative offset": (changed(data_offsets=[-1, 32]), "broken safetensors header"),
    "an infinite offset": (contents(b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,1e400]}}'), "broken"),
    "an offset of 4300 digits": (
        contents(b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,' + b"9" * 4300 + b"]}}"),
        "broken safetensors header",
    ),
    "text for a shape": (changed(shape="8"), "broken safetensors header"),
    "text in a shape": (changed(shape=["8"]), "broken safetensors header"),
    "a negative shape": (changed(shape=[-8]), "broken safetensors header"),
    "null for a shape": (changed(shape=None), "broken safetensors header"),
    "a number for a type": (changed(dtype=32), "broken safetensors header"),
    "deep nesting": (contents(b'{"a":' * 100_000), "broken safetensors header"),
    "deep nesting beside the fields": (
        contents(b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32],"x":' + b"[" * 100_000),
        "broken safetensors header",
    ),
    "truncated data": (contents(GOOD, bytes(31)), "it is truncated"),
    "data that no tensor owns": (contents(GOOD, bytes(33)), "describes"),
    "no tensor at all": (contents({}), "describes"),
    "a hole at the start": (changed(data_offsets=[8, 32]), "a lies at 8 to 32, the tensor before it ends at 0"),
    "backwards": (changed(data_offsets=[0, 32]).replace(b"[0, 32]", b"[9, 0] "), "a lies at 9 to 0"),
    "more elements than bytes": (changed(shape=[9]), "a takes 32 bytes, which F32 of shape (9,) does not"),
    "fewer elements than bytes": (changed(dtype="F16"), "a takes 32 bytes, which F16 of shape (8,) does not"),
    "a shape beyond all memory": (changed(shape=[2**62, 2**62]), "is more than can be addressed"),
    "overlap": (
        contents(
            {
                "a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
                "b": {"dtype": "F32", "shape": [5], "data_offsets": [12, 32]},
            }
        ),
        "b lies at 12 to 32, the tensor before it ends at 20",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_what_is_wrong(name, file):
    content, words = BROKEN[name]
    path = file(content)
    with pytest.raises(BadContent) as caught:
        read_header(path)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"{path}: ")
    assert words in str(problem)
    assert problem.do


def test_what_cannot_be_opened_is_bad_content_too(tmp_path):
    for name in ("dangling", "folder"):
        path = tmp_path / f"{name}.safetensors"
        if name == "folder":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "gone")
        with pytest.raises(BadContent, match=f"{name}.safetensors: "):
            read_header(path)


@pytest.mark.parametrize("cut", range(0, len(contents(GOOD)), 7))
def test_every_truncation_is_noticed(cut, file):
    with pytest.raises(BadContent):
        read_header(file(contents(GOOD)[:cut]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SIZES = st.integers() | st.integers(-2, 40)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16"]) | JSON,
        "shape": st.lists(SIZES, max_size=3) | JSON,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | JSON,
    }
)
HEADERS = st.dictionaries(st.text(max_size=3), ENTRIES | JSON, max_size=3) | JSON
ANY_BYTES = (
    st.binary(max_size=200)
    | st.builds(contents, HEADERS, st.binary(max_size=40))
    | st.builds(contents, st.binary(max_size=80))
)


@given(content=ANY_BYTES)
@example(content=contents(b'{"a":' * 2000))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_tensors_or_bad_content(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_header(path)
    except BadContent:
        return
    for name, info in tensors.items():
        assert isinstance(name, str)
        assert isinstance(info.dtype, str)
        assert all(type(side) is int and side >= 0 for side in info.shape)


def test_the_library_sees_the_same(tmp_path):
    library = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    path = tmp_path / "x.safetensors"
    tensors = {
        "model.visual.merger.linear_fc1.weight": np.zeros((3, 5), np.float32),
        "scalar": np.array(1.5, np.float16),
        "nothing": np.zeros((2, 0), np.int64),
        "ünï": np.zeros(7, np.uint8),
    }
    numpy.save_file(tensors, path, {"format": "pt"})
    with library.safe_open(path, "numpy") as opened:
        want = {
            name: (opened.get_slice(name).get_dtype(), tuple(opened.get_slice(name).get_shape()))
            for name in opened.keys()  # noqa: SIM118
        }
    assert {name: (info.dtype, info.shape) for name, info in read_header(path).items()} == want
    assert want.keys() == tensors.keys()


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "deep nesting beside the fields"])
def test_the_library_refuses_the_same(name, file):
    library = pytest.importorskip("safetensors")
    path = file(BROKEN[name][0])
    with pytest.raises(Exception), library.safe_open(path, "numpy"):  # noqa: B017, PT011
        pass


PLAIN = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
AS_BYTES = json.dumps(PLAIN).encode()
CORNERS = {
    "metadata of texts": contents({"__metadata__": {"a": "b"}, "a": PLAIN}),
    "metadata that is null": contents({"__metadata__": None, "a": PLAIN}),
    "metadata of numbers": contents({"__metadata__": {"a": 1}, "a": PLAIN}),
    "metadata in a list": contents({"__metadata__": [], "a": PLAIN}),
    "a type nobody knows": changed(dtype="X9"),
    "a field more": changed(zz=[1, {"a": None}]),
    "an endless number in a field more": contents(b'{"a":' + AS_BYTES[:-1] + b',"x":1e400}}'),
    "a field twice": contents(b'{"a":' + AS_BYTES[:-1] + b',"dtype":"F32"}}'),
    "a field twice, once escaped": contents(b'{"a":' + AS_BYTES[:-1] + b',"d\\u0074ype":"F32"}}'),
    "an escaped field": contents(b'{"a":' + AS_BYTES.replace(b"dtype", b"d\\u0074ype") + b"}"),
    "a tensor twice": contents(b'{"a":' + AS_BYTES + b',"a":' + AS_BYTES + b"}"),
    "an entry in a list": contents(b'{"a":["F32",[8],[0,32]]}'),
    "a longer list": contents(b'{"a":["F32",[8],[0,32],1]}'),
    "space before": contents(b" " + json.dumps({"a": PLAIN}).encode()),
    "zeros behind": contents(json.dumps({"a": PLAIN}).encode() + b"\0"),
    "half a pair": contents(b'{"\\ud800":' + AS_BYTES + b"}"),
    "minus zero": contents(b'{"a":' + AS_BYTES.replace(b"[0", b"[-0") + b"}"),
    "a float for a shape": changed(shape=[8.0]),
    "three offsets": changed(data_offsets=[0, 32, 5]),
    "overflow before a zero": contents(
        {"a": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, b""
    ),
    "a zero before overflow": contents(
        {"a": {"dtype": "F32", "shape": [0, 2**63, 2**63], "data_offsets": [0, 0]}}, b""
    ),
    "half a byte": contents({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"00"),
    "quarters of a byte": contents({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"00"),
    "nothing before something": contents({"z": PLAIN, "a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "nothing inside something": contents({"z": PLAIN, "a": {"dtype": "F32", "shape": [0], "data_offsets": [16, 16]}}),
}


def accepted_by_library(path):
    library = pytest.importorskip("safetensors")
    try:
        with library.safe_open(path, "numpy"):
            return True
    except (library.SafetensorError, OSError, ValueError, OverflowError):
        return False


def accepted_by_us(path):
    try:
        read_header(path)
    except BadContent:
        return False
    return True


@pytest.mark.parametrize("name", CORNERS)
def test_corners_of_the_format_get_the_verdict_of_the_library(name, file):
    path = file(CORNERS[name])
    assert accepted_by_us(path) == accepted_by_library(path)


@st.composite
def nearly_good(draw):
    """A good file after a few changes to bytes of its header, whose length is kept right or not."""
    raw = bytearray(json.dumps(draw(st.sampled_from([GOOD, {"a": PLAIN}, {"a": PLAIN | {"x": [1]}}]))).encode())
    pieces = st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"0", b"-", b"1", b"e", b" ", b"", b"\xff"])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 2))] = draw(pieces | st.binary(max_size=2))
    return contents(bytes(raw), announced=draw(st.none() | st.integers(0, len(raw) + 3)))


@given(content=nearly_good() | ANY_BYTES)
@settings(deadline=None, max_examples=1000)
def test_any_bytes_get_the_verdict_of_the_library(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "verdict.safetensors"
    path.write_bytes(content)
    assert accepted_by_us(path) == accepted_by_library(path)


def test_a_pointer_of_git_lfs_is_called_one(file):
    path = file(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(BadContent, match="git-lfs pointer"):
        read_header(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "x.safetensors"
    os.mkfifo(path)
    with pytest.raises(BadContent, match="no regular file"):
        read_header(path)


def test_places_are_where_the_bytes_lie(file):
    path = file(contents(GOOD))
    end = path.stat().st_size
    assert read_places(path)["a"] == (TensorInfo("BF16", (4,)), end - 8, end)


def test_a_header_is_all_that_is_read(tmp_path: Path):
    """A file of 1 TB, of which only the header exists."""
    path = tmp_path / "x.safetensors"
    size = 10**12
    path.write_bytes(contents({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}, b""))
    header = path.stat().st_size
    with path.open("r+b") as opened:
        opened.truncate(header + size)
    assert read_header(path) == {"a": TensorInfo("U8", (size,))}
