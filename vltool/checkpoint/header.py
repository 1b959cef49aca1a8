"""safetensors header -> names, dtypes, shapes and places; reads no tensor.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import codecs
import json
import math
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from vltool.errors import BadContent

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
LARGEST_HEADER = 16 << 20
"""Bytes that an inspection reads: a hundred thousand tensors in one file, many times what any model's shards have."""
LFS_POINTER = b"version https://git-lfs"


class TensorInfo(Struct, frozen=True):
    """One tensor of a file: its element type as the format spells it (`F32`, `BF16`) and its shape."""

    dtype: str
    shape: tuple[int, ...]


_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of an element; the library refuses other types."""
_MOST = 2**64 - 1
"""The largest number that the library reads, and the largest product of a shape in bits that it works out."""
_DEEPEST = 120
"""Nesting that the library's reader of JSON goes along with."""


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Fields(Struct, frozen=True):
    dtype: str
    shape: tuple[msgspec.Raw, ...]
    data_offsets: tuple[msgspec.Raw, msgspec.Raw]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one .safetensors file, in the order of the header.

    Raises BadContent for a file that is truncated, lies about its sizes, or is no safetensors at all.
    """
    entries, _ = _entries(path)
    return {name: TensorInfo(entry.dtype, entry.shape) for name, entry in entries.items()}


def read_places(path: Path, *, most: int = MAX_HEADER_BYTES) -> dict[str, tuple[TensorInfo, int, int]]:
    """Tensors of one .safetensors file, each with the bytes of the file that it takes: from, to.

    most: bytes of a header that is read, which takes several times its size in memory.
    Raises as `read_header` does, and for a longer header.
    """
    entries, start = _entries(path, most)
    return {
        name: (TensorInfo(entry.dtype, entry.shape), start + entry.data_offsets[0], start + entry.data_offsets[1])
        for name, entry in entries.items()
    }


def tensor_offsets(path: Path) -> list[int]:
    """Where in the file each tensor's bytes begin, in rising order. Raises as `read_header` does."""
    entries, start = _entries(path)
    return sorted(start + entry.data_offsets[0] for entry in entries.values())


def _entries(path: Path, most: int = MAX_HEADER_BYTES) -> tuple[dict[str, _Entry], int]:
    """The header, held against the file, and where the tensors' bytes begin."""
    try:
        size, raw = _read(path, most)
        # The library wants all of it in UTF-8; msgspec looks only at what it hands over.
        _check_utf8(raw)
        header = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        if (metadata := header.pop("__metadata__", None)) is not None:
            msgspec.json.decode(metadata, type=dict[str, str] | None)
        entries = {name: _entry(bytes(value)) for name, value in header.items()}
    except OSError as error:
        raise BadContent(f"{path}: cannot be read: {error.strerror}", "copy the file again") from error
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise BadContent(f"{path}: broken safetensors header: {error}", "copy the file again") from error
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, stop = entry.data_offsets
        if begin != end or stop < begin:
            raise BadContent(
                f"{path}: {name} lies at {begin} to {stop}, the tensor before it ends at {end}", "copy the file again"
            )
        if math.prod(entry.shape) * _BITS[entry.dtype] != (stop - begin) * 8:
            raise BadContent(
                f"{path}: {name} takes {stop - begin} bytes, which {entry.dtype} of shape {entry.shape} does not",
                "copy the file again",
            )
        end = stop
    if 8 + len(raw) + end != size:
        raise BadContent(
            f"{path}: its header describes {8 + len(raw) + end} bytes, the file has {size}",
            "it is truncated: copy it again",
        )
    return entries, 8 + len(raw)


def _entry(value: bytes) -> _Entry:
    """One tensor's entry, under the library's rules. Raises ValueError for what breaks them.

    Those are serde's: three fields, in an object or in a list, none of them twice; others are looked over.
    """
    as_list = value[:1] == b"["
    if b"\\" in value or value.count(b'"') != (2 if as_list else 8):
        _look_over(value)
    if as_list:
        dtype, shape, offsets = msgspec.json.decode(value, type=_LISTED)
    else:
        fields = msgspec.json.decode(value, type=_Fields)
        dtype, shape, offsets = fields.dtype, fields.shape, fields.data_offsets
    if dtype not in _BITS:
        raise ValueError(f"{dtype!r} is no type of element")
    sides = tuple(map(_number, shape))
    # In this order, as the library multiplies: what overflows on the way is refused even if a zero follows.
    product = 1
    for side in (*sides, _BITS[dtype]):
        product *= side
        if product > _MOST:
            raise ValueError(f"a shape of {list(sides)} is more than can be addressed")
    return _Entry(dtype, sides, (_number(offsets[0]), _number(offsets[1])))


_LISTED = tuple[str, tuple[msgspec.Raw, ...], tuple[msgspec.Raw, msgspec.Raw]]


def _look_over(value: bytes) -> None:
    """Refuse a field that stands twice, and what the library's reader of JSON would not read in the others."""
    pairs = json.loads(value, object_pairs_hook=list)
    if not isinstance(pairs, list):
        raise ValueError("a tensor's entry is no object")
    names = [pair[0] for pair in pairs if isinstance(pair, tuple) and pair[0] in _Fields.__struct_fields__]
    if len(set(names)) < len(names):
        raise ValueError("a field of a tensor stands twice")
    msgspec.json.decode(value)
    depth = deepest = 0
    for char in re.sub(rb'"(?:[^"\\]|\\.)*"', b"", value):
        depth += (char in b"[{") - (char in b"]}")
        deepest = max(deepest, depth)
    if deepest > _DEEPEST:
        raise ValueError("nested too deeply")


def _check_utf8(raw: bytes) -> None:
    """Raise UnicodeDecodeError for bytes that are no UTF-8, without a second copy of them all."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(raw), 1 << 20):
        decoder.decode(raw[begin : begin + (1 << 20)])
    decoder.decode(b"", final=True)


def _number(raw: msgspec.Raw) -> int:
    text = bytes(raw).strip()
    if not text.isdigit() or len(text) > 20 or int(text) > _MOST:
        raise ValueError(f"{text[:30].decode('utf-8', 'replace')} is no size")
    return int(text)


def _is_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of one that git-lfs keeps."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _read(path: Path, most: int) -> tuple[int, bytes]:
    """Size of the file, and its header as it stands there."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise BadContent(f"{path}: is no regular file", "take it away, or put the file itself there")
    size = state.st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadContent(f"{path}: {size} bytes are too few for a safetensors file", "copy the file again")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            if _is_pointer(path):
                raise BadContent(f"{path}: is a git-lfs pointer: the file itself was never fetched", "git lfs pull")
            raise BadContent(
                f"{path}: announces a header of {length} bytes, the file has {size}",
                "it is truncated or no safetensors file: copy it again",
            )
        if length > most:
            raise BadContent(
                f"{path}: has a header of {length / 1e6:.0f} MB, which was not read: no model's has more than a few",
                "write it again with the tool that made it, or take it for an attack",
            )
        return size, file.read(length)
