"""safetensors header -> names, dtypes, shapes; reads no tensor.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from msgspec import Struct

from vltool.errors import BadContent

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""


class TensorInfo(Struct, frozen=True):
    """One tensor of a file: its element type as the format spells it (`F32`, `BF16`) and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one .safetensors file, in the order of the header.

    Raises BadContent for a file that is truncated, lies about its sizes, or is no safetensors at all.
    """
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
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise BadContent(f"{path}: broken safetensors header: {error}", "copy the file again") from error
    if 8 + length + end != size:
        raise BadContent(
            f"{path}: its header describes {8 + length + end} bytes, the file has {size}",
            "it is truncated: copy it again",
        )
    return tensors
