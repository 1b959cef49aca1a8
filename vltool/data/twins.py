"""Records that are the same as others, or show the same images, by their fingerprints and the contents of files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vltool.data.fingerprints import NO_FILE, Fingerprints, repeats, same_contents
from vltool.errors import Where


class Twin(NamedTuple):
    """A record, and an earlier one or one of another file that it is like."""

    where: Where
    of: Where


def said_again(files: Sequence[Fingerprints]) -> list[Twin]:
    """Records with the images and texts of an earlier one of these files.

    Images are the same by their paths or, where the texts are the same, by their contents. Raises BadContent if a
    file of records was replaced.
    """
    if not sum(map(len, files)):
        return []
    first_N = repeats(_joined(one.wholes for one in files))
    # Copies under other names: as large, with the same texts.
    texts_N = _joined(one.texts for one in files)
    pictured_N = _joined(one.pictured for one in files)
    texts_U, which_N = np.unique(texts_N, return_inverse=True)
    maybe_N = (first_N < 0) & (pictured_N > 0)
    several_U = np.bincount(which_N.reshape(-1)[maybe_N], minlength=len(texts_U)) > 1
    candidates = np.flatnonzero(maybe_N & several_U[which_N.reshape(-1)]).tolist()
    seen: dict[tuple[object, ...], int] = {}
    paths = {i: _paths(files, i) for i in candidates}
    alike = _alike(path for some in paths.values() for path in some)
    for i in candidates:
        images = tuple(alike[path] for path in paths[i] if path is not None)
        if len(images) == len(paths[i]):
            earlier = seen.setdefault((int(texts_N[i]), images), i)
            if earlier != i:
                first_N[i] = earlier
    return _twins(files, [(i, int(first_N[i])) for i in np.flatnonzero(first_N >= 0).tolist()])


def answered_otherwise(files: Sequence[Fingerprints]) -> list[Twin]:
    """Records with the images, by their paths, and the question of an earlier one, but not its answer."""
    if not sum(map(len, files)):
        return []
    wholes_N = _joined(one.wholes for one in files)
    pictured_N = _joined(one.pictured for one in files)
    first_N = repeats(_joined(one.questions for one in files))
    other_N = (first_N >= 0) & (pictured_N > 0) & (repeats(wholes_N) < 0) & (wholes_N != wholes_N[first_N])
    return _twins(files, [(i, int(first_N[i])) for i in np.flatnonzero(other_N).tolist()])


def leaked(val: Fingerprints, train: Sequence[Fingerprints]) -> list[Twin]:
    """Records of `val` with an image of `train`, or, where they show none, with the texts of a record of it.

    Images are the same by their paths or by their contents. Raises BadContent if a file of records was replaced.
    """
    if not len(val) or not sum(map(len, train)):
        return []
    found: dict[int, tuple[int, int]] = {}
    for number, one in enumerate(train):
        for mine, theirs in (((val.images, val.owners), (one.images, one.owners)), (_plain(val), _plain(one))):
            values_U, at_U = np.unique(theirs[0], return_index=True)
            hit_M = np.isin(mine[0], values_U)
            others = theirs[1][at_U[np.searchsorted(values_U, mine[0][hit_M])]]
            for owner, other in zip(mine[1][hit_M].tolist(), others.tolist(), strict=True):
                found.setdefault(owner, (number, other))
    _copies(val, train, found)
    return [Twin(val.where(i), train[number].where(other)) for i, (number, other) in sorted(found.items())]


def _copies(val: Fingerprints, train: Sequence[Fingerprints], found: dict[int, tuple[int, int]]) -> None:
    """Add the records whose images are copies, under other paths, of such that are trained on."""
    known_M = np.isin(val.owners, np.fromiter(found, dtype=np.int64, count=len(found)))
    sizes = np.unique(val.sizes[~known_M & (val.sizes != NO_FILE)])
    sizes = np.intersect1d(sizes, np.unique(_joined(one.sizes for one in train)))
    if not len(sizes):
        return
    theirs: dict[str, tuple[int, int]] = {}
    for number, one in enumerate(train):
        for path, owner in _files_of(one, np.isin(one.sizes, sizes)):
            theirs.setdefault(path, (number, owner))
    mine = _files_of(val, np.isin(val.sizes, sizes) & ~known_M)
    sources: dict[str, tuple[int, int]] = {}
    for group in same_contents([*theirs, *(path for path, _ in mine)]):
        source = next((theirs[path] for path in group if path in theirs), None)
        if source is not None:
            sources.update(dict.fromkeys(group, source))
    for path, owner in mine:
        if path in sources:
            found.setdefault(owner, sources[path])


def _files_of(one: Fingerprints, wanted_M: NDArray[np.bool_]) -> list[tuple[str, int]]:
    """Paths of these images, each with the record that shows it."""
    files: list[tuple[str, int]] = []
    owners_M, firsts_N = one.owners, one.firsts
    for owner in np.unique(owners_M[wanted_M]).tolist():
        start = int(firsts_N[owner])
        paths = one.paths(owner)
        files += [(path, owner) for at, path in enumerate(paths, start) if path is not None and wanted_M[at]]
    return files


def _plain(one: Fingerprints) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Fingerprints of the records without an image, and which they are."""
    at_P = np.flatnonzero(one.pictured == 0)
    return one.wholes[at_P], at_P


def _alike(paths: Iterable[str | None]) -> dict[str, str]:
    """Path -> the path that stands for all files of the same contents."""
    named = [path for path in paths if path is not None]
    same = {path: group[0] for group in same_contents(named) for path in group}
    return {path: same.get(path, path) for path in named}


def _joined(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(list(parts))


def _place(files: Sequence[Fingerprints], i: int) -> tuple[Fingerprints, int]:
    """The i-th record of all files, one after the other."""
    for one in files:
        if i < len(one):
            return one, i
        i -= len(one)
    raise IndexError(f"record {i} past the last of all files")


def _paths(files: Sequence[Fingerprints], i: int) -> list[str | None]:
    one, at = _place(files, i)
    return one.paths(at)


def _twins(files: Sequence[Fingerprints], pairs: Sequence[tuple[int, int]]) -> list[Twin]:
    twins = []
    for i, earlier in pairs:
        (one, at), (other, before) = _place(files, i), _place(files, earlier)
        twins.append(Twin(one.where(at), other.where(before)))
    return twins
