"""What is wrong with data, and the words in which the scan before training and the sample in it both say so.

Each row breaks the third line of a file whose first is good, and is looked for with its file, line, field and value.
"""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset
from vltool.data.jsonline import DEEPEST, LONGEST_LINE
from vltool.data.record import Record, parse_record
from vltool.data.scan import scan
from vltool.errors import BadContent, InvalidInput, Problem, VltoolError, Where

HOW: dict[str, Any] = {
    "prompts": Prompts("describe"), "emit_norm": "norm1000", "use_summary": False, "max_pixels": None,
}  # fmt: skip


def _record(**changes: Any) -> dict[str, Any]:
    """A good record of a.jpg, 64 × 32, without the fields that are `...`."""
    good = {"images": ["a.jpg"], "width": 64, "height": 32, "objects": [{"desc": "cat", "bbox_2d": [1, 2, 30, 20]}]}
    return {key: value for key, value in {**good, **changes}.items() if value is not ...}


def _object(**changes: Any) -> dict[str, Any]:
    item = {"desc": "cat", "bbox_2d": [1, 2, 30, 20], **changes}
    return _record(objects=[{key: value for key, value in item.items() if value is not ...}])


def _line(**changes: Any) -> bytes:
    return json.dumps(_record(**changes)).encode()


def _image(name: str, **changes: Any) -> dict[str, Any]:
    return _record(images=[name], **changes)


def _box(numbers: str) -> bytes:
    return _line().replace(b"[1, 2, 30, 20]", numbers.encode())


def _png(width: int, height: int, kind: int = 2) -> bytes:
    """A PNG that claims a size, with next to no pixels behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]

LINES: list[tuple[str, Any, list[str]]] = [
    # Bytes that are no JSON
    ("BOM", b"\xef\xbb\xbf" + _line(), ["byte order mark", "without a BOM"]),
    ("UTF-16", json.dumps(_record()).encode("utf-16-le").join([b"\xff\xfe", b""]), ["byte order mark", "UTF-16"]),
    ("CRLF", _line() + b"\r", ["CRLF"]),
    ("Latin-1", _line().replace(b"cat", b"caf\xe9"), ["not UTF-8", 'after "desc"', "caf\ufffd"]),
    ("overlong UTF-8", _line().replace(b"cat", b"\xc0\xaf"), ["not UTF-8", 'after "desc"']),
    ("surrogate in UTF-8", _line().replace(b"cat", b"\xed\xa0\x80"), ["not UTF-8", 'after "desc"']),
    ("NUL", _line().replace(b"cat", b"c\0t"), ["not valid JSON", 'after "desc"', "c\\u0000t"]),
    ("NUL behind", _line() + b"\0", ["not valid JSON", "trailing"]),
    ("escape to half a pair", _line().replace(b"cat", b"\\ud83d!"), ["surrogate", 'after "desc"', "ud83d"]),
    ("NaN", _box("[1, 2, NaN, 20]"), ["NaN is not a number in JSON", 'after "bbox_2d"', "[1, 2, NaN, 20]"]),
    ("Infinity", _box("[1, 2, Infinity, 20]"), ["Infinity is not a number in JSON", 'after "bbox_2d"']),
    ("-Infinity", _box("[-Infinity, 2, 3, 20]"), ["-Infinity is not a number in JSON", 'after "bbox_2d"']),
    ("1e400", _box("[1, 2, 1e400, 20]"), ["too large", 'after "bbox_2d"', "1e400"]),
    ("5,000 digits", _box(f"[1, 2, {'9' * 5000}, 20]"), ["too large", 'after "bbox_2d"', "999"]),
    ("cut off", _line()[:-9], ["not valid JSON", "ends too early"]),
    ("two records", _line() + b" " + _line(), ["not valid JSON", "one object a line"]),
    ("trailing comma", _line().replace(b"20]", b"20,]"), ["not valid JSON", 'after "bbox_2d"', "20,]"]),
    ("single quotes", b"{'images': ['a.jpg']}", ["not valid JSON", "double quotes"]),
    ("indented", b"{", ["not valid JSON", "indented document"]),
    ("a list", b"[1, 2]", ["[1, 2], not a JSON object"]),
    ("a text", b'"hi"', ['"hi", not a JSON object']),
    ("leading zero", _line().replace(b"64", b"064"), ["not valid JSON", 'after "width"', "064"]),
    ("100,000 objects deep", DEEP, ["too deeply", str(DEEPEST)]),
    ("100,000 lists, open", b"[" * 100_000, ["too deeply"]),
    ("deep, but decodable", _line(width=[]).replace(b"[]", b"[" * 400 + b"]" * 400), ["too deeply"]),
    ("deep and double", b'{"a": 1, "a":' + b"[" * 400 + b"]" * 400 + b"}", ["too deeply"]),
    ("key twice", _line().replace(b"{", b'{"width": 9, ', 1), ['"width" is written twice', "9 and 64"]),
    ("key twice, nested", _line().replace(b'"cat"', b'"cat", "desc": "dog"'), ['"desc" is written twice', '"dog"']),
    ("key twice, escaped", _line().replace(b"{", b'{"w\\u0069dth": 9, ', 1), ['"width" is written twice']),
    # Fields of the record
    ("nothing", {}, ["no objects, no summary and no messages"]),
    ("unknown field", _record(objcts=[]), ["unknown field objcts: []", "did you mean objects?"]),
    ("another tool's field", _record(images=..., image="a.jpg"), ['unknown field image: "a.jpg"', "mean images?"]),
    ("unprintable field", _record(**{"a\n\x1b[31m": 1}), ['unknown field "a\\n\\u001b[31m": 1']),
    ("endless field", _record(**{"a" * 1_000_000: 1}), ["unknown field", "aaa…: 1"]),
    ("100,000 unknown fields", _record(**{f"x{n}": n for n in range(100_000)}), ["x0: 0", "99980 more unknown"]),
    ("no image", _record(images=[]), ["0 images", "exactly one"]),
    ("two images", _record(images=["a.jpg", "a.jpg"]), ["2 images", "exactly one"]),
    ("image no list", _record(images="a.jpg"), ['images is "a.jpg", not a list']),
    ("image no text", _record(images=[7]), ["images[0] is 7, not an image"]),
    ("image with NUL", _record(images=["a\0.jpg"]), ['images[0] is "a\\u0000.jpg", not an image']),
    ("image not base64", _record(images=[{"bytes": "%%"}]), ["images[0].bytes is not base64"]),
    ("no width", _record(width=...), ["width missing", "EXIF"]),
    ("width 0", _record(width=0), ["width is 0, not a whole number"]),
    ("width -1", _record(width=-1), ["width is -1"]),
    ("width 1e9", _record(width=10**9), ["width is 1000000000"]),
    ("width 10^4000", _record(width=10**4000), ["width is 1000000", "…, not a whole number"]),
    ("width 64.0", _record(width=64.0), ["width is 64.0"]),
    ("width true", _record(width=True), ["width is true"]),
    ("height text", _record(height="32"), ['height is "32"']),
    ("empty summary", _record(summary=" "), ['summary is " ", an empty text']),
    ("metadata a list", _record(metadata=[1]), ["metadata is [1], not an object"]),
    # Objects
    ("no objects", _record(objects=[]), ["objects is empty"]),
    ("objects no list", _record(objects={"desc": "x"}), ['objects is {"desc": "x"}, not a list']),
    ("object no object", _record(objects=[None]), ["objects[0] is null, not an object"]),
    ("no desc", _object(desc=...), ["objects[0] has no desc"]),
    ("empty desc", _object(desc=""), ['objects[0].desc is "", an empty text']),
    ("desc a number", _object(desc=5), ["objects[0].desc is 5, not a text"]),
    ("image_pad", _object(desc="a <|image_pad|> b"), ["objects[0].desc contains <|image_pad|>", "a <|image_pad|> b"]),
    ("im_end", _object(desc="<|im_end|>"), ["objects[0].desc contains <|im_end|>"]),
    ("<image>", _record(summary="<image>"), ["summary contains <image>"]),
    ("a file in a text", _object(desc="<img>/etc/passwd</img>"), ["objects[0].desc contains <img>/etc/passwd</img>"]),
    ("tags by the million", _object(desc="<img>" * 200_000 + "\n</img><bbox>"), ["objects[0].desc contains <bbox>"]),
    ("no geometry", _object(bbox_2d=...), ["objects[0] has no geometry"]),
    ("two geometries", _object(line=[1, 2, 3, 4]), ["objects[0] has 2 geometries, bbox_2d and line"]),
    ("null geometry", _object(bbox_2d=None), ["objects[0] has no geometry"]),
    ("box of three", _object(bbox_2d=[1, 2, 3]), ["objects[0].bbox_2d holds 3 numbers, not 4: [1, 2, 3]"]),
    ("box turned", _object(bbox_2d=[30, 2, 1, 20]), ["bbox_2d is [30, 2, 1, 20]: x1 = 30 is not smaller"]),
    ("box without area", _object(bbox_2d=[1, 2, 1, 20]), ["x1 = 1 is not smaller than x2 = 1"]),
    ("box beyond", _object(bbox_2d=[1, 2, 65, 20]), ["objects[0].bbox_2d[2] is 65", "outside 0…64"]),
    ("box below 0", _object(bbox_2d=[-0.5, 2, 30, 20]), ["objects[0].bbox_2d[0] is -0.5"]),
    ("number of 401 digits", _object(bbox_2d=[1, 2, 10**400, 20]), ["objects[0].bbox_2d[2] is 100000", "outside"]),
    ("box of texts", _object(bbox_2d=["1", 2, 30, 20]), ['objects[0].bbox_2d[0] is "1", not a number']),
    ("box with true", _object(bbox_2d=[True, 2, 30, 20]), ["objects[0].bbox_2d[0] is true, not a number"]),
    ("polygon of two", _object(bbox_2d=..., poly=[1, 2, 3, 4]), ["objects[0].poly holds 4 numbers, fewer than 6"]),
    ("polygon odd", _object(bbox_2d=..., poly=[1, 2, 3, 4, 5, 6, 7]), ["objects[0].poly holds 7 numbers, an odd"]),
    ("polygon in pairs", _object(bbox_2d=..., poly=[[1, 2], [3, 4], [5, 6]]), ["objects[0].poly is written as nested"]),
    ("points miscounted", _object(bbox_2d=..., line=[1, 2, 3, 4], line_points=3), ["line_points is 3, but line has 2"]),
    # Messages
    ("messages and objects", _record(messages=TALK), ["messages beside objects"]),
    ("no answer", {"messages": TALK[:1]}, ["nothing to learn"]),
    ("unknown role", {"messages": [{"role": "bot", "content": "x"}, TALK[1]]}, ['messages[0].role is "bot"']),
    ("url item", {"messages": [{"role": "user", "content": [{"type": "image", "url": "a.jpg"}]}, TALK[1]]},
     ["messages[0].content[0] is", 'the key of the image must be "image"']),
]  # fmt: skip

FILES: dict[str, bytes] = {
    "a.jpg": _encoded(NOISE, "JPEG"),
    "empty.jpg": b"",
    "text.jpg": b"hello, this is no picture",
    "zeros.jpg": bytes(5000),
    "lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "page.jpg": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "svg.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n",
    "bomb.png": _png(60_000, 60_000),
    "bomb2.png": _png(9_900, 9_900, 0),
    "turned.jpg": _encoded(NOISE, "JPEG", exif=TURNED),
    "other.png": _encoded(NOISE.resize((100, 50)), "PNG"),
    "thin.png": _encoded(Image.new("RGB", (1000, 1)), "PNG"),
    "soft\nname.jpg": b"",
    "cut.jpg": _encoded(NOISE, "JPEG")[:700],
    "cut.png": _encoded(NOISE, "PNG")[:3000],
    "cut.webp": _encoded(NOISE, "WEBP", quality=95)[:800],
    "flipped.png": bytes(b ^ (i == 2000) for i, b in enumerate(_encoded(NOISE, "PNG"))),
    "float.tiff": _encoded(Image.new("F", (64, 32)), "TIFF"),
    "claims.png": _png(64, 32),
}
THIN = {"width": 1000, "height": 1, "objects": [{"desc": "x", "bbox_2d": [0, 0, 1, 1]}]}

IMAGES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("missing", _image("gone.jpg"), ["image gone.jpg does not exist", "relative paths start from"]),
    ("empty", _image("empty.jpg"), ["image empty.jpg is an empty file"]),
    ("text", _image("text.jpg"), ["image text.jpg is not an image", "hello"]),
    ("zeros", _image("zeros.jpg"), ["image zeros.jpg is not an image"]),
    ("LFS pointer", _image("lfs.jpg"), ["image lfs.jpg is not an image", "git lfs pull"]),
    ("web page", _image("page.jpg"), ["image page.jpg is not an image", "web page"]),
    ("SVG", _image("svg.jpg"), ["image svg.jpg is not an image", "<svg"]),
    ("WebP cut off", _image("cut.webp"), ["image cut.webp is"]),
    ("EPS", _image("eps.jpg"), ["image eps.jpg is not an image"]),
    ("bomb", _image("bomb.png"), ["image bomb.png is too large to decode safely", "3600000000"]),
    ("bomb that PIL warns of", _image("bomb2.png"), ["image bomb2.png is too large to decode safely"]),
    ("folder", _image("folder"), ["image folder is not a file"]),
    ("pipe", _image("pipe"), ["image pipe is not a file"]),
    ("device", _image("/dev/zero"), ["image /dev/zero is not a file"]),
    ("circle of links", _image("circle"), ["image circle cannot be read", "symbolic links"]),
    ("name too long", _image("x" * 5000), ["image xxx", "cannot be read"]),
    ("newline in the name", _image("soft\nname.jpg"), ["image 'soft\\nname.jpg' is an empty file"]),
    ("the JSONL itself", _image("train.jsonl"), ["image train.jsonl is not an image"]),
    ("file URL", _image("file:///etc/passwd"), ["image file:///etc/passwd does not exist"]),
    ("closed port", _record(images=["http://127.0.0.1:1/a.jpg"]), ["image http://127.0.0.1:1/a.jpg cannot be fetched"]),
    ("data URL, no base64", _image("data:image/png,xyz"), ["image data:image/png,xyz is not a base64 data URL"]),
    ("data URL, damaged", _image("data:image/png;base64,@@"), ["is not valid base64"]),
    ("bytes, no image", _record(images=[{"bytes": base64.b64encode(b"hello").decode()}]), ["(5 of them) is not an"]),
    ("another size", _image("other.png"), ["declares 64 × 32, its image is 100 × 50"]),
    ("turned by EXIF", _image("turned.jpg"), ["declares 64 × 32, its image is 32 × 64", "EXIF orientation (6)"]),
    ("sides swapped", _image("a.jpg", width=32, height=64), ["declares 32 × 64, its image is 64 × 32", "swapped"]),
    ("too thin", _image("thin.png", **THIN), ["1000 × 1", "over 200 times"]),
]  # fmt: skip

PIXELS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("JPEG cut off", _image("cut.jpg"), ["image cut.jpg is damaged", "truncated"]),
    ("PNG cut off", _image("cut.png"), ["image cut.png is damaged"]),
    ("PNG with a flipped bit", _image("flipped.png"), ["image flipped.png is damaged"]),
    ("no white", _image("float.tiff"), ["image float.tiff holds floating-point numbers"]),
    ("header alone", _image("claims.png"), ["image claims.png is damaged"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "circle").symlink_to("circle")
    return folder


def _jsonl(folder: Path, bad: Any) -> Path:
    path = folder / "train.jsonl"
    line = bad if isinstance(bad, bytes) else json.dumps(bad, ensure_ascii=False).encode()
    path.write_bytes(_line() + b"\n\n" + line + b"\n")
    return path


def _scanned(path: Path) -> tuple[Problem, ...]:
    return scan(path, **HOW, counter=None, max_length=4096, check_images=True).problems


def _of_the_sample(path: Path) -> tuple[Problem, ...]:
    samples = CaptionDataset(path, **HOW)
    assert len(samples[0].messages) == 2  # what stands before it is none the worse
    with pytest.raises(BadContent) as caught:
        samples[1]
    return caught.value.problems


def _say(problems: tuple[Problem, ...], path: Path, words: list[str]) -> None:
    text = "\n".join(str(problem) for problem in problems)
    assert not [word for word in words if word not in text], text
    for problem in problems:
        assert problem.where == Where(str(path), 3)
        assert problem.do
        assert problem.what.isprintable()
        assert len(problem.what) < 600


def _cases(rows: list[tuple[str, Any, list[str]]]) -> Any:
    return pytest.mark.parametrize(("bad", "words"), [row[1:] for row in rows], ids=[row[0] for row in rows])


@_cases(LINES + IMAGES)
def test_scan_and_sample_refuse_it_in_the_same_words(folder: Path, bad: Any, words: list[str]) -> None:
    path = _jsonl(folder, bad)
    problems = _scanned(path)
    _say(problems, path, words)
    assert _of_the_sample(path) == problems


@_cases(PIXELS)
def test_what_only_pixels_show_stops_the_sample(folder: Path, bad: Any, words: list[str]) -> None:
    path = _jsonl(folder, bad)
    assert _scanned(path) == ()  # headers alone are read before training
    _say(_of_the_sample(path), path, words)


def _directory(path: Path) -> None:
    path.mkdir()


FILE_ROWS: list[tuple[str, Callable[[Path], object], type[VltoolError], str]] = [
    ("absent", lambda path: None, InvalidInput, "no such file"),
    ("empty", lambda path: path.write_bytes(b""), BadContent, "holds no record"),
    ("blank", lambda path: path.write_bytes(b" \n\r\n\t\n\n"), BadContent, "holds no record"),
    ("folder", _directory, InvalidInput, "it is a folder"),
    ("pipe", os.mkfifo, InvalidInput, "it is a pipe"),
    ("device", lambda path: path.symlink_to("/dev/zero"), InvalidInput, "no regular file"),
    ("circle", lambda path: path.symlink_to(path), InvalidInput, "symbolic links"),
    ("dangling", lambda path: path.symlink_to("nowhere"), InvalidInput, "no such file"),
]


@pytest.mark.parametrize(("make", "error", "words"), [row[1:] for row in FILE_ROWS], ids=[row[0] for row in FILE_ROWS])
def test_files_that_are_no_data(
    tmp_path: Path, make: Callable[[Path], object], error: type[VltoolError], words: str
) -> None:
    path = tmp_path / "train.jsonl"
    make(path)
    for call in (_scanned, lambda path: CaptionDataset(path, **HOW)):
        with pytest.raises(error, match=words) as caught:
            call(path)
        assert str(path) in str(caught.value)


LONG = """
import resource, sys
from pathlib import Path
from vltool.data.conversation import Prompts
from vltool.data.scan import scan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = scan(Path(sys.argv[1]), prompts=Prompts("describe"), emit_norm="norm1000", use_summary=False, max_pixels=None,
              counter=None, max_length=4096, check_images=True)
print(result.bad, result.problems[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep="\\n")
"""


def test_a_line_of_200_megabytes_is_named_and_costs_little_more_than_itself(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    (tmp_path / "a.jpg").write_bytes(FILES["a.jpg"])
    long = _line().replace(b"cat", b"c" * 200_000_000)
    assert len(long) > LONGEST_LINE
    path.write_bytes(_line() + b"\n" + long + b"\n" + _line())
    del long
    bad, problem, _, grown = subprocess.check_output([sys.executable, "-c", LONG, str(path)], text=True).splitlines()
    path.unlink()
    assert bad == "(1,)"
    assert problem.startswith(f"{path}:2: the line is 200 MB long, over 128 MiB; it starts ")
    assert int(grown) * 1024 < 2.5 * 200e6


GOOD = [
    _line(summary="a cat", metadata={"a": [1, {"b": None}]}),
    _line(objects=[{"desc": "é\u2028 \"x\": <b>", "poly": [0, 0, 64, 0, 64, 32.5e-1], "poly_points": 3}]),
    _line(objects=[{"desc": "l", "line": [0, 0, 9, 9]}] * 3),
    json.dumps({"messages": TALK, "images": ["a.jpg"]}).encode(),
    json.dumps({"summary": "x"}).encode(),
]  # fmt: skip


def _read(line: bytes) -> Record | None:
    problems: tuple[Problem, ...] = ()
    try:
        return parse_record(line, Where("train.jsonl", 1))
    except BadContent as error:
        problems = error.problems
    assert all(problem.what.isprintable() and problem.do for problem in problems)
    return None


@settings(max_examples=500, deadline=None)
@given(
    line=st.sampled_from(GOOD),
    edits=st.lists(
        st.tuples(
            st.integers(0, 200), st.integers(0, 3),
            st.binary(max_size=2) | st.sampled_from([b"0", b"9", b'"', b",", b"}", b"[", b"-", b"\\u0000", b"null"]),
        ),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_a_mutated_line_is_refused_or_means_what_it_says(line: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for at, cut, put in edits:
        line = line[:at] + put + line[at + cut :]
    record = _read(line)
    if record is None:
        return
    said = json.loads(line)
    assert [record.width, record.height, record.summary] == [said.get(key) for key in ("width", "height", "summary")]
    objects = said.get("objects") or []
    assert [item.desc for item in record.objects] == [item["desc"] for item in objects]
    for item, meant in zip(record.objects, objects, strict=True):
        assert [number for point in item.points for number in point] == meant[item.kind]


def test_there_are_enough_rows() -> None:
    assert len(LINES) + len(IMAGES) + len(PIXELS) + len(FILE_ROWS) >= 50
