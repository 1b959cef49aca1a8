"""Images: every way to name one, every orientation, every colour mode, every damage."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from vltool.data.images import image_header, image_size, load_image
from vltool.data.record import InlineImage
from vltool.errors import BadContent

FORMATS = ["JPEG", "PNG", "WEBP", "TIFF"]


def _picture(width: int = 48, height: int = 32) -> Image.Image:
    """Four quarters of different colour, so that each orientation looks different."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    return Image.fromarray(pixels)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _with_orientation(image: Image.Image, form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(image, form, exif=exif, **({"quality": 95} if form in ("JPEG", "WEBP") else {}))


def _load(ref: Any, folder: Path = Path()) -> Image.Image:
    return load_image(ref, folder=folder, root=None)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_to_pixels_and_size(form: str, orientation: int) -> None:
    if form == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    data = _with_orientation(_picture(), form, orientation)
    with Image.open(io.BytesIO(data)) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    found = _load(InlineImage(data))
    assert found.size == expected.size == ((32, 48) if orientation >= 5 else (48, 32))
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert image_size(InlineImage(data), folder=Path(), root=None) == found.size
    assert image_header(InlineImage(data), folder=Path(), root=None).orientation == orientation


def _late_exif(data: bytes, orientation: int) -> bytes:
    """A PNG whose eXIf chunk stands behind the pixels, where exiftool used to put it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:-12] + chunk + data[-12:]


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    data = _late_exif(_encoded(_picture(), "PNG"), 6)
    assert image_size(InlineImage(data), folder=Path(), root=None) == (32, 48)
    assert _load(InlineImage(data)).size == (32, 48)


def test_the_size_of_a_plain_png_needs_no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _encoded(_picture(), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert image_size(InlineImage(data), folder=Path(), root=None) == (48, 32)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"\0" * 40])
def test_damaged_exif_costs_no_image(exif: bytes) -> None:
    data = InlineImage(_encoded(_picture(), "JPEG", exif=exif))
    assert image_size(data, folder=Path(), root=None) == (48, 32)
    found = _load(data)  # and without a warning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = Image.open(io.BytesIO(data.data))
        assert np.array_equal(np.asarray(found), np.asarray(stored))


def test_an_orientation_that_does_not_exist_is_none() -> None:
    assert _load(InlineImage(_with_orientation(_picture(), "JPEG", 77))).size == (48, 32)


def _pixel(image: Image.Image, form: str = "PNG") -> tuple[int, ...]:
    found = _load(InlineImage(_encoded(image, form)))
    assert found.mode == "RGB"
    value = found.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def test_transparent_pixels_lie_on_white() -> None:
    assert _pixel(Image.new("RGBA", (4, 4), (255, 0, 0, 0))) == (255, 255, 255)
    assert _pixel(Image.new("RGBA", (4, 4), (255, 0, 0, 255))) == (255, 0, 0)
    assert _pixel(Image.new("RGBA", (4, 4), (0, 0, 0, 128))) == (127, 127, 127)
    assert _pixel(Image.new("LA", (4, 4), (0, 0))) == (255, 255, 255)
    assert _pixel(Image.new("LA", (4, 4), (9, 255))) == (9, 9, 9)


def test_a_palette_may_be_transparent_or_not() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert _pixel(palette) == (10, 20, 30)
    palette.info["transparency"] = 0
    assert _pixel(palette) == (255, 255, 255)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_not_clipped(value: int, expected: int) -> None:
    deep = Image.fromarray(np.full((4, 4), value, np.uint16))
    assert _pixel(deep) == (expected,) * 3
    assert _pixel(deep, "TIFF") == (expected,) * 3


def test_cmyk_and_grey_and_two_tones() -> None:
    red = _pixel(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert red[0] > 240
    assert max(red[1:]) < 20
    assert _pixel(Image.new("L", (4, 4), 77)) == (77, 77, 77)
    assert _pixel(Image.new("1", (4, 4), 1)) == (255, 255, 255)


def test_inverted_cmyk_of_adobe_and_plain_cmyk_look_alike() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    jpeg = _encoded(ink, "JPEG", quality=95)
    assert b"Adobe" in jpeg
    for data in (jpeg, _encoded(ink, "TIFF")):
        colour = _load(InlineImage(data)).getpixel((8, 8))
        assert isinstance(colour, tuple)
        assert np.abs(np.subtract(colour, (255, 0, 0))).max() < 12


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_it_is_the_first_picture(form: str) -> None:
    if form == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    frames = [Image.new("RGB", (48, 32), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = InlineImage(_encoded(frames[0], form, save_all=True, append_images=frames[1:], **options))
    with Image.open(io.BytesIO(data.data)) as stored:
        assert getattr(stored, "n_frames", 1) == 3
    assert np.array_equal(np.asarray(_load(data)), np.asarray(frames[0]))


@pytest.mark.parametrize(("mode", "words"), [("F", "floating-point"), ("I", "32 bits")])
def test_modes_without_a_known_white_are_refused(mode: str, words: str) -> None:
    with pytest.raises(BadContent, match=words):
        _load(InlineImage(_encoded(Image.new(mode, (4, 4)), "TIFF")))


def test_paths_start_from_the_folder_the_root_or_the_top(tmp_path: Path) -> None:
    for name, size in {"data/a.png": (1, 2), "images/a.png": (3, 4), "root/a.png": (5, 6)}.items():
        path = tmp_path / name
        path.parent.mkdir()
        Image.new("RGB", size).save(path)
    folder, root = tmp_path / "data", tmp_path / "root"
    assert _load("a.png", folder).size == (1, 2)
    assert _load("../images/a.png", folder).size == (3, 4)
    assert load_image("a.png", folder=folder, root=root).size == (5, 6)
    assert load_image(str(folder / "a.png"), folder=folder, root=root).size == (1, 2)


def test_data_urls(tmp_path: Path) -> None:
    body = base64.b64encode(_encoded(_picture(), "PNG")).decode()
    assert _load(f"data:image/png;base64,{body}").size == (48, 32)
    assert _load(f"DATA:image/png;base64,{body}").size == (48, 32)
    for url, words in {
        "data:image/png;base64,@@@": "not valid base64",
        "data:image/png,abc": "not a base64 data URL",
        f"data:image/png;base64,{body[:40]}": "not an image|damaged",
    }.items():
        with pytest.raises(BadContent, match=words) as caught:
            _load(url)
        assert len(str(caught.value)) < 400


def test_what_is_missing_says_where_it_was_sought(tmp_path: Path) -> None:
    for call in (load_image, image_size):
        with pytest.raises(BadContent) as caught:
            call("images/gone.jpg", folder=tmp_path, root=None)
        text = str(caught.value)
        assert "image images/gone.jpg does not exist" in text
        assert str(tmp_path / "images/gone.jpg") in text
        assert "folder of the JSONL" in text
        with pytest.raises(BadContent, match="ROOT_IMAGE_DIR"):
            call("gone.jpg", folder=Path(), root=tmp_path)
        assert caught.value.problems[0].where is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    for call in (load_image, image_size):
        with pytest.raises(BadContent, match=words):
            call("a.jpg", folder=tmp_path, root=None)


def test_what_a_file_holds_counts_and_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_encoded(_picture(), "PNG"))
    assert np.array_equal(np.asarray(_load("a.jpg", tmp_path)), np.asarray(_picture()))


def test_folders_and_unusable_paths(tmp_path: Path) -> None:
    for ref, words in {".": "not a file", "x" * 5000: "cannot be read", "a.jpg/b.jpg": "cannot be read"}.items():
        (tmp_path / "a.jpg").write_bytes(b"x")
        with pytest.raises(BadContent, match=words):
            _load(ref, tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_in_half_is_noticed(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = _encoded(noise, form)
    with pytest.raises(BadContent, match=r"damaged|not an image"):
        _load(InlineImage(data[: len(data) // 2]))


@pytest.mark.parametrize("limit", [1000, 400])  # a warning of PIL, and its error
def test_a_decompression_bomb_is_refused_before_it_is_decoded(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = InlineImage(_encoded(_picture(), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for call in (load_image, image_size):
        with pytest.raises(BadContent, match="too large to decode safely"):
            call(data, folder=Path(), root=None)


SOURCES = {form: _with_orientation(_picture(), form, 6) for form in ["JPEG", "PNG", "TIFF", "GIF", "BMP"]}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    form=st.sampled_from(sorted(SOURCES)),
    start=st.integers(0, 400),
    patch=st.binary(min_size=1, max_size=8),
    keep=st.integers(20, 10_000),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_damage_gives_pixels_or_bad_content(form: str, start: int, patch: bytes, keep: int) -> None:
    data = SOURCES[form]
    ref = InlineImage((data[:start] + patch + data[start + len(patch) :])[:keep])
    for call in (load_image, image_size):
        try:
            call(ref, folder=Path(), root=None)
        except BadContent:
            continue
