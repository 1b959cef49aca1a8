"""An image reference becomes pixels, or the size that its header gives.

Whatever EXIF says about the orientation has been done: sizes and pixels are those of the image as
people see it, and as its annotations were drawn.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import Image, UnidentifiedImageError

from vltool.data.downloads import fetch, forget, named
from vltool.data.headers import Header, oriented, quick_header
from vltool.data.messages import ImageRef, InlineImage
from vltool.errors import BadContent

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is opened. Not EPS, for one, which PIL hands to Ghostscript."""

_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, struct.error,
    zlib.error,
)  # fmt: skip
"""What PIL's decoders raise on damaged files."""

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what puts the image upright. Source: EXIF 2.32, tag 0x0112; PIL.ImageOps.exif_transpose."""


def load_image(ref: ImageRef, *, folder: Path, root: Path | None) -> Image.Image:
    """Decode an image to 8-bit RGB, oriented. What is transparent lies on white, as in qwen_vl_utils' to_rgb.

    16 bits a channel are scaled to 8; palettes, grey and CMYK (Adobe's inverted JPEGs, too) are converted, colour
    profiles not applied. Of an animation or a file of several pages it is the first picture.

    ref: a path relative to `root`, or to `folder` (the JSONL's) without one; an absolute path, an
    http(s) URL, a data URL, or the bytes. Raises BadContent, without a place, for an image that is
    missing, damaged, cut off, too large, or none.
    """
    with _opened(ref, folder, root) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        rgb = _to_rgb(image, _name(ref))
        return rgb.transpose(turn) if turn is not None else rgb


def image_size(ref: ImageRef, *, folder: Path, root: Path | None) -> tuple[int, int]:
    """Oriented (width, height) in pixels, from the header alone; a body that is cut off goes unseen.

    Arguments and errors as for `load_image`.
    """
    return image_header(ref, folder=folder, root=root)[:2]


def image_header(ref: ImageRef, *, folder: Path, root: Path | None) -> Header:
    """`image_size` with the orientation that gave it."""
    if is_path(ref) and (known := file_header(str((root or folder) / ref))) is not None:
        return known[0]
    with _opened(ref, folder, root) as image:
        orientation = _orientation(image)
        # Some versions of PIL turn the size of a TIFF when they open it, others when they decode it.
        width, height = image.size if image.format != "TIFF" else (image.tag_v2[256], image.tag_v2[257])  # type: ignore[attr-defined]
    return oriented(width, height, orientation)


def file_header(path: str) -> tuple[Header, os.stat_result] | None:
    """The header of a file and its status, if it can be told without PIL; else `image_header` says what it is."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        header = quick_header(descriptor, most_pixels=Image.MAX_IMAGE_PIXELS)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None if header is None else (header, status)


def is_path(ref: ImageRef) -> TypeGuard[str]:
    """Whether a reference names a file, not a URL or the image itself."""
    return isinstance(ref, str) and not ref.lower().startswith(("http://", "https://", "data:"))


def check_file(ref: str, *, folder: Path, root: Path | None) -> Path:
    """The file of an image path; raises BadContent, without a place, if none can be read there."""
    path, name = (root or folder) / ref, named(ref)
    looked = f"looked for {path if str(path).isprintable() else ascii(str(path))}"
    try:
        status = path.stat()
    except FileNotFoundError:
        base = "ROOT_IMAGE_DIR" if root else "the folder of the JSONL"
        about = "" if Path(ref).is_absolute() else f"; relative paths start from {base}, {root or folder}"
        raise BadContent(f"{name} does not exist", f"{looked}{about}") from None
    except OSError as error:
        raise BadContent(f"{name} cannot be read: {error.strerror}", looked) from error
    except ValueError as error:  # a NUL
        raise BadContent(f"{name} cannot be a path: {error}", looked) from error
    if not stat.S_ISREG(status.st_mode):
        raise BadContent(f"{name} is not a file", looked)
    if status.st_size == 0:
        raise BadContent(f"{name} is an empty file", "replace it, or drop the record")
    return path


@contextmanager
def _opened(ref: ImageRef, folder: Path, root: Path | None) -> Iterator[Image.Image]:
    """The image, not yet decoded; what goes wrong with it while it is open is said of it."""
    name = _name(ref)
    try:
        with _quiet(), _identified(ref, name, folder, root) as image:
            yield image
    except BadContent:
        _forget(ref)
        raise
    except _BOMBS as error:
        raise BadContent(
            f"{name} is too large to decode safely: {error}", "scale it down, or drop the record"
        ) from None
    except _BROKEN as error:
        _forget(ref)
        raise BadContent(f"{name} is damaged: {error}", "replace the file, or drop the record") from error


def _identified(ref: ImageRef, name: str, folder: Path, root: Path | None) -> Image.Image:
    if isinstance(ref, InlineImage):
        source: Path | io.BytesIO = io.BytesIO(ref.data)
    elif ref[:5].lower() == "data:":
        source = io.BytesIO(_data_url(ref, name))
    elif is_path(ref):
        source = check_file(ref, folder=folder, root=root)
    else:
        source = io.BytesIO(fetch(ref))
    try:
        return Image.open(source, formats=_formats())
    except UnidentifiedImageError:
        raise BadContent(f"{name} is not an image", _likely(source)) from None
    except PermissionError as error:
        raise BadContent(f"{name} cannot be read: {error.strerror}", "make the file readable") from error


def _forget(ref: ImageRef) -> None:
    """What a URL gave is no good, and shall not be found in the cache once it has been mended."""
    if isinstance(ref, str) and not is_path(ref) and ref[:5].lower() != "data:":
        forget(ref)


@contextmanager
def _quiet() -> Iterator[None]:
    """PIL warns of odd metadata, which is not ours to judge, and of bombs, which are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _name(ref: ImageRef) -> str:
    if isinstance(ref, InlineImage):
        return f"the image in bytes ({len(ref.data)} of them)"
    return named(ref)


def _likely(source: Path | io.BytesIO) -> str:
    """What a file that is no image may be."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(64)
    else:
        start = source.getvalue()[:64]
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run git lfs pull"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, such as an error saved by a downloader: fetch it again"
    return f"it begins with {start[:12]!r}; readable are {', '.join(_formats())}"


def _data_url(url: str, name: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadContent(f"{name} is not a base64 data URL", "write data:image/png;base64,…")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadContent(f"{name} is not valid base64: {error}", "encode the image again") from None


def _orientation(image: Image.Image) -> int:
    """EXIF (or XMP) orientation, 1 where there is none or it cannot be read; decodes only if it must."""
    if image.format == "PNG" and "exif" not in image.info and _more_after_pixels(image):
        image.load()
    try:
        # The base class, because PngImageFile.getexif decodes the whole image in search of a late chunk.
        orientation = Image.Image.getexif(image).get(0x0112, 1)
    except _BROKEN:  # no reason to lose an image; viewers ignore damaged EXIF, too
        return 1
    return orientation if orientation in _TURNS else 1


def _more_after_pixels(image: Image.Image) -> bool:
    """Whether a PNG has chunks behind its pixels that may hold EXIF. Source: PNG 3rd edition, 5.3."""
    file = getattr(image, "fp", None)
    if file is None:  # decoded already, late chunks included
        return False
    before, seen_pixels, found = file.tell(), False, False
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        seen_pixels |= kind == b"IDAT"
        found = seen_pixels and kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
        if found or kind == b"IEND":
            break
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(before)
    return found


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # PIL clips 16 bits to 8 where it should scale them
        values = np.asarray(image)
        if image.mode == "I" and image.format not in ("PNG", "PPM"):
            raise BadContent(f"{name} has 32 bits a channel", "convert it to 8 or 16 bits: its white is unknown")
        return Image.fromarray(np.round(values / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadContent(f"{name} holds floating-point numbers", "convert it to 8 bits: its white is unknown")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")
