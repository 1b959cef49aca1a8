"""Streams the tensors of a checkpoint: what is not finite, what is zero, norms, a histogram of magnitudes.

Files are mapped and decoded a chunk at a time into buffers that fit a core's cache, so that memory does not grow
with the checkpoint. NaN and infinity are told from the bits: below the sign, they are the largest.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vltool.checkpoint.adapter import is_up, part_of
from vltool.checkpoint.architecture import TOWERS, Tower, tower_of
from vltool.checkpoint.inspection import Tensor
from vltool.errors import BadContent

CHUNK = 1 << 16
"""Elements decoded at a time: 512 KB of buffers."""
SAMPLED = 32
"""Of a large tensor's elements, every this many-th is in the histogram; everything else is exact."""
PIECE = 16 << 20
"""Bytes of a file that are in memory at a time."""
EDGES = tuple(range(-12, 3, 2))
"""Powers of ten between the histogram's bins; the first holds what is smaller, zero left out."""

Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(slots=True)
class Values:
    """What one tensor, or several together, hold."""

    elements: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    squares: float = 0.0
    """Sum of the squares of all finite elements."""
    largest: float = 0.0
    """Largest magnitude among the finite elements."""
    histogram: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    """Elements, those that were sampled, by magnitude, between `EDGES`."""

    @property
    def norm(self) -> float:
        """Square root of the sum of squares."""
        return math.sqrt(self.squares)

    def add(self, other: Values) -> None:
        """Count another's elements in."""
        self.elements += other.elements
        self.nan += other.nan
        self.inf += other.inf
        self.zeros += other.zeros
        self.squares += other.squares
        self.largest = max(self.largest, other.largest)
        self.histogram = [mine + theirs for mine, theirs in zip(self.histogram, other.histogram, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """The counts as one JSON object."""
        return {
            "elements": self.elements,
            "nan": self.nan,
            "inf": self.inf,
            "zeros": self.zeros,
            "norm": self.norm,
            "largest": self.largest,
            "histogram": {"edges": [10.0**edge for edge in EDGES], "counts": self.histogram},
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """What the tensors of a checkpoint hold."""

    towers: dict[Tower, Values]
    not_finite: dict[str, Values]
    """Tensors with NaN or infinity."""
    zero_up: list[str]
    """Factors `lora_B` that are zero throughout, as they were before training."""
    up_factors: int
    """How many factors `lora_B` there are."""
    zero_weights: list[str]
    """Other matrices that are zero throughout."""
    not_decoded: dict[str, int]
    """Types of element that are not looked into, and their tensors."""


def survey(tensors: Mapping[str, Tensor], *, progress: Callable[[int, int], None] | None = None) -> Survey:
    """Stream every tensor once, file by file in the order of the bytes.

    progress: told (bytes done, bytes in all) now and then. Raises BadContent for a file that cannot be read.
    """
    towers = {tower: Values() for tower in TOWERS}
    found = Survey(towers, {}, [], sum(is_up(part_of(name).kind) for name in tensors), [], {})
    done, total = 0, sum(tensor.size_bytes for tensor in tensors.values())
    for tensor in tensors.values():
        if (dtype := tensor.info.dtype) not in DECODERS and dtype not in INTEGERS:
            found.not_decoded[dtype] = found.not_decoded.get(dtype, 0) + 1
    of_tensor = Values()
    for name, tensor, raw in streamed(tensors):
        decoder = DECODERS.get(tensor.info.dtype)
        if decoder is not None:
            count(raw, decoder, of_tensor, stride=SAMPLED if tensor.elements > CHUNK else 1)
        done += raw.size
        if progress is not None:
            progress(done, total)
        if decoder is not None and of_tensor.elements == tensor.elements:
            _note(found, name, tensor, of_tensor)
            of_tensor = Values()
    return found


def _note(found: Survey, name: str, tensor: Tensor, values: Values) -> None:
    found.towers[tower_of(name)].add(values)
    if values.nan or values.inf:
        found.not_finite[name] = values
    if values.elements and values.zeros == values.elements:
        if is_up(part_of(name).kind):
            found.zero_up.append(name)
        elif len(tensor.info.shape) > 1:
            found.zero_weights.append(name)


def streamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, NDArray[np.uint8]]]:
    """Each tensor's bytes, mapped, in pieces of at most `PIECE`; valid until the next one is asked for."""
    by_file: dict[Path, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        if tensor.size_bytes:
            by_file.setdefault(tensor.file, []).append((name, tensor))
    for path, held in by_file.items():
        try:
            with path.open("rb") as file:
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BadContent(f"{path} cannot be read: {error}", "copy the file again") from error
        whole.madvise(mmap.MADV_SEQUENTIAL)
        # numpy keeps hold of what it looks into, and the mapping ends when the last view is gone.
        bytes_N = np.frombuffer(whole, np.uint8)
        for name, tensor in sorted(held, key=lambda item: item[1].begin):
            if tensor.end > bytes_N.size:
                raise BadContent(f"{path} became shorter while it was read", "wait until it is written, or copied")
            for begin in range(tensor.begin, tensor.end, PIECE):
                end = min(begin + PIECE, tensor.end)
                yield name, tensor, bytes_N[begin:end]
                # Pages that were read count as this process's memory until they are given back.
                whole.madvise(mmap.MADV_DONTNEED, 0, end // mmap.PAGESIZE * mmap.PAGESIZE)


@dataclass(frozen=True, slots=True)
class Decoder:
    """How a type of element becomes float32."""

    bits: np.dtype[Any]
    """Unsigned integers as wide as an element."""
    magnitude: int
    """Every bit but the sign."""
    infinity: int
    """The magnitude of infinity; greater ones are NaN. Where a type has none, the largest finite one."""
    has_infinity: bool
    decode: Callable[[NDArray[Any], NDArray[np.uint32]], Floats]
    """Magnitude's bits, and room for as many -> magnitude, exact but for float64 beyond 1e150."""
    squares_of_pairs: Floats | None = None
    """For bytes: sum of the squares of two elements, by the 16 bits of both."""


def count(raw: NDArray[np.uint8], decoder: Decoder, into: Values, *, stride: int = 1) -> None:
    """Count a tensor's bytes, as many as make whole elements, into `into`.

    stride: every this many-th element is in the histogram.
    """
    size = decoder.bits.itemsize
    whole = raw.size // size * size
    aligned = raw.ctypes.data % size == 0
    # Had once: what is given back and asked for again each time, the system clears page by page.
    magnitude_N, room_N = np.empty(CHUNK, decoder.bits), np.empty(CHUNK, np.uint32)
    for begin in range(0, whole, CHUNK * size):
        chunk = raw[begin : min(begin + CHUNK * size, whole)]
        # Not all tools align tensors; numpy reads elements that lie across words one by one.
        chunk = chunk if aligned else chunk.copy()
        bits_N = chunk.view(decoder.bits)
        masked_N = np.bitwise_and(bits_N, decoder.bits.type(decoder.magnitude), out=magnitude_N[: bits_N.size])
        _count_chunk(into, masked_N, decoder, stride, room_N)


def _count_chunk(
    values: Values, magnitude_N: NDArray[Any], decoder: Decoder, stride: int, room_N: NDArray[np.uint32]
) -> None:
    values.elements += magnitude_N.size
    values.zeros += magnitude_N.size - int(np.count_nonzero(magnitude_N))
    largest = int(magnitude_N.max())
    limit = decoder.infinity
    if largest > limit or (largest == limit and decoder.has_infinity):
        values.nan += int(np.count_nonzero(magnitude_N > limit))
        if decoder.has_infinity:
            values.inf += int(np.count_nonzero(magnitude_N == limit))
        magnitude_N = magnitude_N[magnitude_N < limit + (not decoder.has_infinity)]
        if not magnitude_N.size:
            return
        largest = int(magnitude_N.max())
    # The order of magnitudes is that of their bits.
    peak = float(decoder.decode(np.array([largest], decoder.bits), room_N)[0])
    values.largest = max(values.largest, peak)
    if decoder.squares_of_pairs is not None and magnitude_N.size % 2 == 0:
        values.squares += float(decoder.squares_of_pairs.take(magnitude_N.view(np.uint16), mode="clip").sum())
    else:
        floats_N = decoder.decode(magnitude_N, room_N)
        # Beyond this, squares overflow or vanish in float32.
        wide_N: Floats = floats_N if peak == 0.0 or 1e-10 < peak < 1e15 else floats_N.astype(np.float64)
        values.squares += float(np.dot(wide_N, wide_N))
    sample_N = decoder.decode(magnitude_N[::stride], room_N)
    places_N = np.searchsorted(_EDGES, sample_N[sample_N > 0], side="right")
    for place, number in enumerate(np.bincount(places_N, minlength=len(EDGES) + 1).tolist()):
        values.histogram[place] += number


_EDGES = np.array([10.0**edge for edge in EDGES], np.float32)


INTEGERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
"""Types of element that are always finite: indices, or weights that are packed."""


def _shifted(bits: int, exponent: int) -> Callable[[NDArray[Any], NDArray[np.uint32]], Floats]:
    """A decoder of narrower floats: their bits moved into float32's, times the power of two between the biases.

    numpy converts halves one by one, several times slower; and subnormal numbers come out right, too.
    """
    factor = np.float32(2.0**exponent)

    def decode(magnitude_N: NDArray[Any], room_N: NDArray[np.uint32]) -> Floats:
        shifted_N = np.left_shift(magnitude_N, bits, out=room_N[: magnitude_N.size], dtype=np.uint32)
        floats_N: Floats = shifted_N.view(np.float32)
        if exponent:
            floats_N *= factor
        return floats_N

    return decode


def _pairs(decode: Callable[[NDArray[Any], NDArray[np.uint32]], Floats], finite: int) -> Floats:
    """Sums of two squares by the bits of two bytes; bits that are no number count nothing."""
    squares_N = decode(np.arange(256, dtype=np.uint8), np.empty(256, np.uint32)) ** 2
    squares_N[finite + 1 :] = 0
    return (squares_N[:, None] + squares_N[None, :]).reshape(-1).astype(np.float32)


def _as_float32(magnitude_N: NDArray[Any], _: NDArray[np.uint32]) -> Floats:
    return magnitude_N.view(np.float32)


def _from_f64(magnitude_N: NDArray[Any], _: NDArray[np.uint32]) -> Floats:
    # Larger ones, of which no square is finite, count as this.
    return np.minimum(magnitude_N.view(np.float64), 1e150)


def _bytes(exponent_shift: int, bias: int, finite: int, *, has_infinity: bool) -> Decoder:
    decode = _shifted(exponent_shift, 127 - bias)
    limit = finite + has_infinity
    return Decoder(np.dtype("u1"), 0x7F, limit, has_infinity, decode, _pairs(decode, finite))


DECODERS: dict[str, Decoder] = {
    "BF16": Decoder(np.dtype("<u2"), 0x7FFF, 0x7F80, True, _shifted(16, 0)),
    "F16": Decoder(np.dtype("<u2"), 0x7FFF, 0x7C00, True, _shifted(13, 112)),
    "F32": Decoder(np.dtype("<u4"), 0x7FFFFFFF, 0x7F800000, True, _as_float32),
    "F64": Decoder(np.dtype("<u8"), 2**63 - 1, 0x7FF0000000000000, True, _from_f64),
    "F8_E4M3": _bytes(20, 7, 0x7E, has_infinity=False),
    "F8_E5M2": _bytes(21, 15, 0x7B, has_infinity=True),
}
"""Types of element that are looked into. OCP 8-bit floats: E4M3 has no infinity, and 0x7F is its NaN."""
