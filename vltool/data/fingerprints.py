"""What tells whether records, or their images, are the same: a few numbers of each, and contents of files."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vltool.data.images import is_path
from vltool.data.index import JsonlIndex
from vltool.data.messages import ImageRef, InlineImage
from vltool.data.record import Record, parse_record
from vltool.errors import Where

EDGE_BYTES = 4 << 10
NO_FILE = -1


class Fingerprints:
    """Of every record of a JSONL that training could read, in the file's order; about 60 bytes of memory each.

    Hashes are BLAKE2b of 64 bits: among ten million records two that differ are taken for the same once in 300,000
    files. Arrays are (N,), a number for each record, or (M,), one for each image, record after record.
    root: where relative image paths start, in place of the JSONL's folder. Raises as `JsonlIndex` does.
    """

    def __init__(self, jsonl: Path, *, root: Path | None) -> None:
        self._index = JsonlIndex(jsonl)
        self._base = str(root or jsonl.parent)
        self._positions, self._firsts = array("q"), array("q", [0])
        self._wholes, self._questions, self._texts = array("Q"), array("Q"), array("Q")
        self._images, self._sizes = array("Q"), array("q")

    def add(self, position: int, record: Record, messages: list[dict[str, Any]]) -> None:
        """Take in a record. messages: as `build_messages` makes them; what stands for images does not matter."""
        images = [self._image(ref) for ref in record.images]
        asked = [_text(message["content"]) for message in messages[:-1]]
        answer = _text(messages[-1]["content"])
        shown = b"".join(number.to_bytes(8, "little") for number, _ in images)
        sizes = b"".join(size.to_bytes(8, "little", signed=True) for _, size in images)
        question = "\0".join((*asked, "")).encode(errors="surrogatepass")
        text = question + answer.encode(errors="surrogatepass")
        self._positions.append(position)
        self._wholes.append(_hash(shown, text))
        self._questions.append(_hash(shown, question))
        self._texts.append(_hash(sizes, text))
        for number, size in images:
            self._images.append(number)
            self._sizes.append(size)
        self._firsts.append(len(self._images))

    def __len__(self) -> int:
        return len(self._positions)

    def where(self, i: int) -> Where:
        """The line of the i-th of these records."""
        return self._index.where(self._positions[i])

    def paths(self, i: int) -> list[str | None]:
        """Paths of its images, None for those that are no files. Raises BadContent if the file was replaced."""
        record = parse_record(*self._index.read(self._positions[i]))
        return [image_path(ref, self._base) if is_path(ref) else None for ref in record.images]

    @property
    def wholes(self) -> NDArray[np.uint64]:
        """(N,) Equal for records that show the same images by their paths and have the same texts."""
        return np.array(self._wholes, dtype=np.uint64)

    @property
    def questions(self) -> NDArray[np.uint64]:
        """(N,) Equal for records that show the same images by their paths and ask the same."""
        return np.array(self._questions, dtype=np.uint64)

    @property
    def texts(self) -> NDArray[np.uint64]:
        """(N,) Equal for records that have the same texts and show images as large on the disk, the same perhaps."""
        return np.array(self._texts, dtype=np.uint64)

    @property
    def pictured(self) -> NDArray[np.int64]:
        """(N,) How many images a record shows."""
        firsts = np.array(self._firsts, dtype=np.int64)
        return firsts[1:] - firsts[:-1]

    @property
    def images(self) -> NDArray[np.uint64]:
        """(M,) Equal for images of the same path, or the same bytes in the record."""
        return np.array(self._images, dtype=np.uint64)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(M,) Bytes of an image's file; NO_FILE for one that is none."""
        return np.array(self._sizes, dtype=np.int64)

    @property
    def firsts(self) -> NDArray[np.int64]:
        """(N,) Which of the M images is the first of a record."""
        return np.array(self._firsts[:-1], dtype=np.int64)

    @property
    def owners(self) -> NDArray[np.int64]:
        """(M,) Which of the N records shows an image."""
        return np.repeat(np.arange(len(self)), self.pictured)

    def _image(self, ref: ImageRef) -> tuple[int, int]:
        if isinstance(ref, InlineImage):
            return _hash(ref.data), NO_FILE
        if not is_path(ref):
            return _hash(ref.encode(errors="surrogatepass")), NO_FILE
        path = image_path(ref, self._base)
        try:
            size = os.stat(path).st_size  # noqa: PTH116 a Path would take as long again
        except OSError:
            size = NO_FILE
        return _hash(os.fsencode(path)), size


def image_path(ref: str, base: str) -> str:
    """Where an image's path leads, in one spelling."""
    return os.path.normpath(ref if ref.startswith("/") else f"{base}/{ref}")


def repeats(keys_N: NDArray[Any]) -> NDArray[np.int64]:
    """Which earlier one each equals, the first of them; -1 for those that equal none before them."""
    _, first_U, which_N = np.unique(keys_N, return_index=True, return_inverse=True)
    first_N = first_U[which_N.reshape(-1)]
    return np.where(first_N == np.arange(len(keys_N)), -1, first_N)


def same_contents(paths: Iterable[str]) -> list[list[str]]:
    """Groups of two and more files whose bytes are the same; those that cannot be read are in none.

    First by their sizes, then by their edges, so that few are read as a whole.
    """
    groups = [list(dict.fromkeys(paths))]
    for key in (_size, _edges, _whole):
        parted: list[list[str]] = []
        for group in groups:
            by: dict[object, list[str]] = {}
            for path in group:
                try:
                    by.setdefault(key(path), []).append(path)
                except OSError:
                    continue
            parted += [alike for alike in by.values() if len(alike) > 1]
        groups = parted
    return groups


def _size(path: str) -> int:
    return Path(path).stat().st_size


def _edges(path: str) -> bytes:
    with Path(path).open("rb") as file:
        first = file.read(EDGE_BYTES)
        file.seek(max(-EDGE_BYTES, -file.seek(0, os.SEEK_END)), os.SEEK_END)
        return first + file.read(EDGE_BYTES)


def _whole(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    """A message as one text, with a mark where an image stands."""
    if isinstance(content, str):
        return content
    return "".join("\1" if item["type"] == "image" else item["text"] for item in content)


def _hash(*parts: bytes) -> int:
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return int.from_bytes(state.digest(), "little")
