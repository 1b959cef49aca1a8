"""Headers of ordinary JPEG and PNG files, read without PIL, whose verdict on them this is."""

from __future__ import annotations

import os
import struct
import zlib
from typing import NamedTuple

FIRST_READ = 4 << 10
"""Bytes of a file in which most headers end."""
SECOND_READ = 160 << 10
"""Those with a preview or a colour profile, of at most two segments of 64 KiB, end here; PIL reads the others."""

_SHORT = struct.Struct(">H")
_CHUNK = struct.Struct(">I4s")
_IHDR = struct.Struct(">IIBBBBB")
_FRAME = struct.Struct(">BHHB")

_PNG = b"\x89PNG\r\n\x1a\n"
_MODES = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Colour type -> bits a channel. Source: PNG, 3rd edition, table 12."""
_PLAIN_CHUNKS = {b"PLTE": 0, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"bKGD": 0, b"tIME": 0, b"sBIT": 0}
"""Chunks before the pixels of which a size does not depend, and the bytes that each has at least."""
_LATE = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
"""What may hold an orientation behind the pixels."""

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Type of a value in EXIF -> bytes. Source: TIFF 6.0, section 2."""
_ORIENTATION, _RESOLUTION, _UNIT = 0x0112, 0x011A, 0x0128
_FORM = {_ORIENTATION: (3, 1), _RESOLUTION: (5, 1), _UNIT: (3, 1)}
"""Tag of EXIF that PIL looks at -> type and number of its values."""


class Header(NamedTuple):
    """What a header says: the oriented size in pixels, and the EXIF orientation (1 to 8) that gave it."""

    width: int
    height: int
    orientation: int


class _Cut(Exception):
    """The header goes on behind the bytes that were read."""


def quick_header(descriptor: int, *, most_pixels: int | None) -> Header | None:
    """The header of an open JPEG or PNG; None for anything else and whatever is unusual about it, damage included.

    What this returns, PIL would; where PIL has to say what is wrong, or might see something in another way, it
    returns None. most_pixels: of which PIL thinks that they are none of an honest image. Raises OSError.
    """
    for size in (FIRST_READ, SECOND_READ):
        data = os.pread(descriptor, size, 0)
        try:
            if data.startswith(b"\xff\xd8\xff"):
                header = _jpeg(data)
            elif data.startswith(_PNG):
                header = _png(data, descriptor)
            else:
                return None
        except _Cut:
            if len(data) < size:
                return None
            continue
        if header is None or (most_pixels is not None and header.width * header.height > most_pixels):
            return None
        return header
    return None


def oriented(width: int, height: int, orientation: int) -> Header:
    """The header of an image that is stored in this size."""
    return Header(height, width, orientation) if orientation >= 5 else Header(width, height, orientation)


def _jpeg(data: bytes) -> Header | None:
    """Walk from segment to segment up to the first scan. Source: ITU-T T.81, annex B."""
    at, size = 2, len(data)
    frame: tuple[int, int] | None = None
    orientation: int | None = None
    exif = xmp = False
    while True:
        if at + 4 > size:
            raise _Cut
        marker = data[at + 1]
        start, end = at + 4, at + 2 + _SHORT.unpack_from(data, at + 2)[0]
        if data[at] != 0xFF or end < start:
            return None
        if end > size:
            raise _Cut
        if marker == 0xDA:
            break
        if marker in (0xC0, 0xC1, 0xC2):
            if frame is not None or end - start < 6 or (end - start) % 3:
                return None
            bits, height, width, layers = _FRAME.unpack_from(data, start)
            if bits != 8 or layers not in (1, 3, 4):
                return None
            frame = width, height
        elif marker == 0xDB:
            if not _whole_tables(data, start, end):
                return None
        elif marker == 0xE1:
            if data.startswith(b"Exif\0\0", start):
                if exif:
                    return None
                exif, told = True, _exif(data[start + 6 : end])
                if told is None:
                    return None
                orientation = told or None
            xmp |= data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start)
        elif marker == 0xE0 or marker == 0xEE:
            if data.startswith((b"JFIF", b"Adobe"), start) and end - start < 7:
                return None
        elif marker == 0xE2:
            # Several pictures in one file, and a profile in pieces.
            if data.startswith(b"MPF\0", start) or (data.startswith(b"ICC_PROFILE\0", start) and end - start < 14):
                return None
        elif marker == 0xED:
            if data.startswith(b"Photoshop 3.0\0", start):
                return None
        elif not (0xE3 <= marker <= 0xEF or marker in (0xC4, 0xDD, 0xFE)):
            return None
        at = end
    if frame is None or 0 in frame or (xmp and orientation is None):
        return None
    return oriented(*frame, orientation if orientation is not None and orientation <= 8 else 1)


def _whole_tables(data: bytes, at: int, end: int) -> bool:
    """Whether a segment of quantization tables, of 64 numbers of 8 or 16 bits each, comes out even."""
    while at < end:
        at += 65 if data[at] < 16 else 129
    return at == end


def _exif(data: bytes) -> int | None:
    """The orientation that EXIF tells, as written, 0 for none; None for EXIF that PIL may read otherwise.

    Source: TIFF 6.0, section 2; CIPA DC-008 (EXIF 2.32), 4.5.
    """
    order = "<" if data[:4] == b"II*\0" else ">" if data[:4] == b"MM\0*" else ""
    if not order or len(data) < 14:
        return None
    at: int = struct.unpack_from(f"{order}I", data, 4)[0]
    if at < 8 or at + 2 > len(data):
        return None
    entries = struct.unpack_from(f"{order}H", data, at)[0]
    if at + 2 + 12 * entries + 4 > len(data):
        return None
    orientation, seen = 0, set()
    for tag, kind, count, where in struct.iter_unpack(f"{order}HHII", data[at + 2 : at + 2 + 12 * entries]):
        size = _BYTES.get(kind, 0) * count
        if size == 0 or tag in seen or (tag in _FORM and (kind, count) != _FORM[tag]):
            return None
        if size > 4 and where + size > len(data):
            return None
        seen.add(tag)
        if tag == _ORIENTATION:
            orientation = where & 0xFFFF if order == "<" else where >> 16
            if orientation == 0:
                orientation = 1
    return orientation


def _png(data: bytes, descriptor: int) -> Header | None:
    """Walk from chunk to chunk, by their lengths alone behind the first pixels. Source: PNG, 3rd edition, 5."""
    if len(data) < 33:
        return None
    length, kind = _CHUNK.unpack_from(data, 8)
    width, height, bits, colour, _, filters, _ = _IHDR.unpack_from(data, 16)
    if (length, kind) != (13, b"IHDR") or not _sound(data, 8, length):
        return None
    if not width or not height or max(width, height) >= 1 << 31 or bits not in _MODES.get(colour, ()) or filters:
        return None
    at = 33
    while True:
        if at + 8 > len(data):
            raise _Cut
        length, kind = _CHUNK.unpack_from(data, at)
        if kind == b"IDAT":
            break
        if length < _PLAIN_CHUNKS.get(kind, 1 << 32):
            return None
        if at + 12 + length > len(data):
            raise _Cut
        if not _sound(data, at, length):
            return None
        at += 12 + length
    while kind != b"IEND":
        at += 12 + length
        head = data[at : at + 8] if at + 8 <= len(data) else os.pread(descriptor, 8, at)
        if len(head) < 8:
            break
        length, kind = _CHUNK.unpack(head)
        if kind in _LATE:
            return None
    return Header(width, height, 1)


def _sound(data: bytes, at: int, length: int) -> bool:
    """Whether a chunk has its checksum."""
    end = at + 8 + length
    return zlib.crc32(data[at + 4 : end]) == int.from_bytes(data[end : end + 4], "big")
