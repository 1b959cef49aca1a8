"""safetensors header -> names, dtypes, shapes and places; reads no tensor.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from vltool.errors import BadContent

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""


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
"""Bits of an element; a type that is not here is taken at its word."""
_Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Entry(Struct, frozen=True):
    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one .safetensors file, in the order of the header.

    Raises BadContent for a file that is truncated, lies about its sizes, or is no safetensors at all.
    """
    entries, _ = _entries(path)
    return {name: TensorInfo(entry.dtype, entry.shape) for name, entry in entries.items()}


def tensor_offsets(path: Path) -> list[int]:
    """Where in the file each tensor's bytes begin, in rising order. Raises as `read_header` does."""
    entries, start = _entries(path)
    return sorted(start + entry.data_offsets[0] for entry in entries.values())


def _entries(path: Path) -> tuple[dict[str, _Entry], int]:
    """The header, held against the file, and where the tensors' bytes begin."""
    try:
        size, raw = _read(path)
        header = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(value, type=_Entry) for name, value in header.items()}
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
        bits = _BITS.get(entry.dtype)
        if bits is not None and math.prod(entry.shape) * bits != (stop - begin) * 8:
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


def _read(path: Path) -> tuple[int, bytes]:
    """Size of the file, and its header as it stands there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadContent(f"{path}: {size} bytes are too few for a safetensors file", "copy the file again")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise BadContent(
                f"{path}: announces a header of {length} bytes, the file has {size}",
                "it is truncated or no safetensors file: copy it again",
            )
        return size, file.read(length)
