"""Headers read without PIL say what PIL says, of whole files and of damaged ones, or nothing."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import vltool.data
from vltool.data.headers import FIRST_READ, SECOND_READ, Header
from vltool.data.images import file_header, image_header
from vltool.data.messages import InlineImage
from vltool.errors import BadContent

PHOTOS = sorted((Path(vltool.data.__file__).parent / "demo" / "images").glob("*.jpg"))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def by_pil(data: bytes) -> Header | None:
    """None for what it refuses."""
    try:
        return image_header(InlineImage(data), folder=Path(), root=None)
    except BadContent:
        return None


def quick(data: bytes, folder: Path) -> Header | None:
    path = folder / "a"
    path.write_bytes(data)
    found = file_header(str(path))
    return None if found is None else found[0]


def same(data: bytes, folder: Path) -> bool:
    """Whether a file is read without PIL; that it then comes to the same is asserted."""
    found = quick(data, folder)
    assert found is None or found == by_pil(data), data[:2000]
    return found is not None


def encoded(form: str, size: tuple[int, int] = (37, 21), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 9).save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int | None, **tags: Any) -> Image.Exif:
    made = Image.Exif()
    made[0x010F] = "a maker whose name is too long for four bytes"
    if orientation is not None:
        made[0x0112] = orientation
    for tag, value in tags.items():
        made[int(tag[1:], 16)] = value
    return made


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(*segments: bytes, **options: Any) -> bytes:
    """A JPEG with these directly behind its start."""
    data = encoded("JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(made: bytes, *, before_pixels: bool) -> bytes:
    data = encoded("PNG", (64, 64))
    at = data.index(b"IDAT") - 4 if before_pixels else data.index(b"IEND") - 4
    return data[:at] + made + data[at:]


def text_chunk() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "hello")
    return info


XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
ORDINARY = {
    **{photo.name: photo.read_bytes() for photo in PHOTOS},
    "grey": encoded("JPEG", mode="L"),
    "cmyk": encoded("JPEG", mode="CMYK"),
    "progressive": encoded("JPEG", progressive=True),
    "comment": encoded("JPEG", comment=b"hello"),
    "dpi": encoded("JPEG", dpi=(300, 300)),
    "profile": encoded("JPEG", icc_profile=b"x" * 3000),
    "a large profile": encoded("JPEG", icc_profile=b"x" * 100_000),
    **{f"turned {n}": encoded("JPEG", exif=exif(n)) for n in (None, *range(10), 65535)},
    "resolution": encoded("JPEG", exif=exif(6, x011A=96.0, x0128=3)),
    "orientation in EXIF and XMP": with_segments(segment(0xE1, XMP), exif=exif(3)),
    "big-endian": with_segments(
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0" + bytes(4))
    ),
    **{f"png {mode}": encoded("PNG", mode=mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "png resolution": encoded("PNG", dpi=(90, 90)),
    "png gamma": with_chunk(chunk(b"gAMA", struct.pack(">I", 45455)), before_pixels=True),
}
UNUSUAL = {
    "webp": encoded("WEBP"),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF"),
    "orientation in XMP": with_segments(segment(0xE1, XMP)),
    "two EXIF segments": with_segments(segment(0xE1, exif(6).tobytes()), exif=exif(3)),
    "broken EXIF": with_segments(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "orientation of another type": with_segments(
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06" + bytes(4))
    ),
    "a frame within a frame": with_segments(segment(0xC0, b"\x08\0\x10\0\x10\x01\x01\x11\0")),
    "12 bits": with_segments(segment(0xC1, b"\x0c\0\x10\0\x10\x01\x01\x11\0")),
    "junk between segments": with_segments(b"\0\0\0"),
    "padding": with_segments(b"\xff\xff"),
    "a resource of Photoshop": with_segments(segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff")),
    "several pictures": with_segments(segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")),
    "short JFIF": with_segments(segment(0xE0, b"JFIF\0")),
    "a table cut off": with_segments(segment(0xDB, b"\0" * 70)),
    "no size": encoded("JPEG").replace(struct.pack(">HH", 21, 37), bytes(4)),
    "png with text": encoded("PNG", pnginfo=text_chunk()),
    "png with a late orientation": with_chunk(chunk(b"eXIf", exif(6).tobytes()[6:]), before_pixels=False),
    "png with an orientation": encoded("PNG", exif=exif(6)),
    "png with a wrong checksum": encoded("PNG")[:29] + b"oops" + encoded("PNG")[33:],
    "png of no colour type": encoded("PNG")[:25] + b"\x05" + encoded("PNG")[26:],
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files_are_read_without_pil(name: str, tmp_path: Path) -> None:
    assert same(ORDINARY[name], tmp_path)


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_are_left_to_pil(name: str, tmp_path: Path) -> None:
    assert quick(UNUSUAL[name], tmp_path) is None


def test_a_header_longer_than_what_is_read_of_it_is_left_to_pil(tmp_path: Path) -> None:
    comments = [segment(0xFE, b"x" * 60_000)] * 3
    assert len(b"".join(comments)) > SECOND_READ > FIRST_READ
    assert quick(with_segments(*comments), tmp_path) is None
    assert same(with_segments(comments[0]), tmp_path)


def test_what_pil_takes_for_a_bomb_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 36 * 21)
    assert quick(ORDINARY["grey"], tmp_path) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 21)
    assert quick(ORDINARY["grey"], tmp_path) == (37, 21, 1)


def test_a_header_comes_with_the_status_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(ORDINARY["grey"])
    assert file_header(str(tmp_path / "a")) == (Header(37, 21, 1), (tmp_path / "a").stat())
    for absent in (tmp_path, tmp_path / "b", "a\0b"):
        assert file_header(str(absent)) is None


@pytest.mark.parametrize("name", ORDINARY)
def test_wherever_a_file_is_cut_off_the_verdict_is_pil_s(name: str, tmp_path: Path) -> None:
    data = ORDINARY[name]
    draw = random.Random(0)
    ends = {*range(0, min(len(data), 700), 3), *(draw.randrange(len(data)) for _ in range(40)), len(data) - 1}
    assert {same(data[:end], tmp_path) for end in ends} == {False, True}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=1500, deadline=None)
@given(
    name=st.sampled_from(sorted(ORDINARY | UNUSUAL)),
    damage=st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=6)), min_size=1, max_size=3),
    keep=st.integers(10, 200_000),
)
def test_however_a_file_is_damaged_the_verdict_is_pil_s(
    name: str, damage: list[tuple[int, bytes]], keep: int, tmp_path: Path
) -> None:
    data = (ORDINARY | UNUSUAL)[name]
    for start, patch in damage:
        data = data[:start] + patch + data[start + len(patch) :]
    same(data[:keep], tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=600, deadline=None)
@given(
    start=st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]),
    entries=st.lists(
        st.tuples(
            st.sampled_from([0x0112, 0x011A, 0x0128, 0x010F, 0x8769, 7]), st.integers(0, 14),
            st.sampled_from([0, 1, 2, 5, 1 << 30]), st.binary(min_size=4, max_size=4),
        ),
        max_size=4,
    ),
    tail=st.binary(max_size=40),
)  # fmt: skip
def test_whatever_exif_says_the_verdict_is_pil_s(start: bytes, entries: Any, tail: bytes, tmp_path: Path) -> None:
    order = "<" if start[:1] == b"I" else ">"
    body = struct.pack(f"{order}H", len(entries))
    body += b"".join(struct.pack(f"{order}HHI", *numbers) + value for *numbers, value in entries)
    same(with_segments(segment(0xE1, b"Exif\0\0" + start + body + tail)), tmp_path)
