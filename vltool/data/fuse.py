"""An epoch of a mixture as JSONL, with a manifest: what training would see, ready to be looked at or shipped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vltool.data.fusing import manifest
from vltool.data.fusing.gather import STRETCH_BYTES, Gathered, fit_in_memory
from vltool.data.fusing.inputs import COMPRESSED, Input, Table, check_files, count_compressed, nameless, survey
from vltool.data.fusing.lines import Rewriter, way_to
from vltool.data.fusing.looks import Look
from vltool.data.fusing.shuffle import BUCKET_BYTES, Buckets, Shard, Source, bounds, sort_in, write_out
from vltool.data.fusing.workers import processes, spread
from vltool.data.fusion import Mixture, Split, plan_evaluation, plan_mixture, policy
from vltool.data.record import parse_record
from vltool.errors import BadContent, InvalidInput, Problem, Where
from vltool.recipe.fusion import Fusion

MOST_PROBLEMS = 200
"""Problems that a check of records keeps in words; it counts the others."""
WORTH_A_PROCESS = 32 << 20
"""Bytes of input from which several processes are faster than one."""
_TELL_EVERY = 1000

Progress = Callable[[str, int, int], None]
"""(what is done, how much of it, of how much)."""


@dataclass(frozen=True, slots=True)
class Options:
    """How an epoch is written."""

    seed: int = 42
    epoch: int = 0
    split: Split = "train"
    shard_size: int | None = None
    """Records of a file; None: one file."""
    validate: bool = True
    hashing: bool = True
    resume: bool = False
    overwrite: bool = False
    image_root: Path | None = None
    """Where relative image paths start, whatever the JSONL; they are not rewritten then."""


@dataclass(frozen=True, slots=True)
class Fused:
    """What was written."""

    mixture: Mixture
    manifest: Path
    outputs: tuple[Path, ...]
    up_to_date: bool = False
    """Everything was there already; nothing was written."""
    kept: int = 0
    """Shards that an earlier call had completed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What took how long: reading, checking, sorting, writing, waiting for the disk, hashing."""


def plan(fusion: Fusion, *, split: Split, seed: int, progress: Progress) -> Mixture:
    """The mixture of a fusion, from the sizes of its files; writes nothing. Errors as for `fuse`."""
    paths = _paths(fusion, split)
    counts = [0] * len(paths)
    for number, path in enumerate(paths):
        if path is None:
            continue
        if path.suffix in COMPRESSED:
            counts[number] = count_compressed(path)
        else:
            with ExitStack() as files:
                one = Input(path, path.parent, files)
                told = _Told(progress, f"reading {path.name}", one.bytes)
                counts[number] = survey([one], _workers(one.bytes), told).counts()[0]
    return _mixture(fusion, counts, split, seed)


def fuse(fusion: Fusion, out: Path, options: Options, *, progress: Progress) -> Fused:
    """Write an epoch of a mixture to `out`: a JSONL, or a folder of them where a shard's size is given.

    Names that end in .gz or .zst are compressed. Needs free space beyond the output while it
    works, at most as much again, and about 30 bytes of memory a record.
    Raises InvalidInput for files that are not there and an `out` that would be
    written over, BadContent for bad records (then nothing was written), OSError without space.
    """
    with ExitStack() as files:
        return _fuse(fusion, out, options, progress, files)


def _fuse(fusion: Fusion, out: Path, options: Options, progress: Progress, files: ExitStack) -> Fused:
    clock = _Clock()
    paths = _paths(fusion, options.split)
    _check_place(out, options, [path for path in paths if path is not None])
    folder = out if options.shard_size else out.parent
    inputs = [None if path is None else Input(path, out.parent, files) for path in paths]
    size = sum(one.bytes for one in inputs if one)
    workers = _workers(size)
    ways = ["" if one is None or options.image_root else way_to(one.path.parent, folder) for one in inputs]
    looks = None
    if fit_in_memory(inputs):
        most = [None if options.split == "val" else dataset.max_objects_per_image for dataset in fusion.datasets]
        looks = [Look(bool(way), limit) for way, limit in zip(ways, most, strict=True)]
    table = survey(inputs, workers, _Told(progress, "reading", size), looks)
    mixture = _mixture(fusion, table.counts(), options.split, options.seed)
    made_by = manifest.fingerprint(
        mixture, inputs, options.epoch, ways=ways, shard_size=options.shard_size,
        compressed=out.suffix if out.suffix in COMPRESSED else "",
    )  # fmt: skip
    shards = manifest.shards(out, len(mixture), options.shard_size)
    place = manifest.manifest_path(out, options.shard_size)
    outputs = tuple(shard.path for shard in shards)
    clock.lap("reading")
    if not options.overwrite and manifest.finished(manifest.read(place), made_by, folder):
        return Fused(mixture, place, outputs, up_to_date=True, seconds=clock.seconds)
    done = _kept(out, shards, made_by, options)

    codes_N = mixture.codes(options.epoch)
    entries_N = _entries(codes_N) if options.validate or looks is None else None
    if options.validate:
        assert entries_N is not None
        _validate(table, entries_N, mixture, workers, progress)
        clock.lap("checking")
    if options.shard_size:
        _open_folder(out, made_by, done, anew=options.overwrite)
    place.unlink(missing_ok=True)
    stretches = bounds(
        shards, size * len(mixture) // max(sum(table.counts()), 1), BUCKET_BYTES if looks is None else STRETCH_BYTES
    )
    rewriters = [
        Rewriter(policy(dataset, options.split), ways[number], mixture.most(number),
                 _keeper(mixture, number, options.epoch))
        for number, dataset in enumerate(fusion.datasets)
    ]  # fmt: skip
    source: Source
    if entries_N is None or looks is not None:
        source = Gathered(table, mixture, codes_N, rewriters, stretches)
    else:
        spill = [files.enter_context(nameless(folder)) for _ in range(workers)]
        source = buckets = Buckets(stretches, codes_N, spill)
        sort_in(table, entries_N, buckets, rewriters, mixture, _Told(progress, "sorting", len(mixture)))
        _require_unchanged(inputs)
    del entries_N
    clock.lap("sorting")
    sizes, waited_s = dict(done), 0.0
    for written in write_out(source, shards, list(done), _Told(progress, "writing", len(mixture)), workers=workers):
        sizes[written.number] = written.bytes
        if options.shard_size:
            manifest.write(out / manifest.PROGRESS, _progress(made_by, shards, sizes))
        waited_s += written.waited_s
    _require_unchanged(inputs)
    clock.lap("writing", waited_s)
    hashes: dict[Path, str] = {}
    if options.hashing:
        hashed = list(dict.fromkeys([*(path for path in paths if path is not None), *outputs]))
        total = sum(path.stat().st_size for path in hashed)
        hashes = manifest.sha256(hashed, _Told(progress, "hashing", total))
        clock.lap("hashing")
    document = manifest.document(
        mixture, inputs, [(shard, sizes[i]) for i, shard in enumerate(shards)], epoch=options.epoch, plan=made_by,
        image_root=options.image_root, folder=folder, hashes=hashes,
    )  # fmt: skip
    manifest.write(place, document)
    if options.shard_size:
        (out / manifest.PROGRESS).unlink(missing_ok=True)
    return Fused(mixture, place, outputs, kept=len(done), seconds=clock.seconds)


def _require_unchanged(inputs: Sequence[Input | None]) -> None:
    for one in inputs:
        if one is not None:
            one.unchanged()


def _paths(fusion: Fusion, split: Split) -> list[Path | None]:
    """The file of each dataset; raises InvalidInput for all that are not there, or if there is none."""
    key = f"{split}_jsonl"
    paths = [None if (path := getattr(d, key)) is None else Path(path) for d in fusion.datasets]
    if not any(paths):
        raise InvalidInput(f"no dataset of {fusion.file} has a {key}", f"write {key} where records are to come from")
    found = zip(fusion.datasets, paths, strict=True)
    check_files([(path, fusion.where(dataset, key)) for dataset, path in found if path is not None])
    return paths


def _mixture(fusion: Fusion, counts: list[int], split: Split, seed: int) -> Mixture:
    return plan_mixture(fusion, counts, seed=seed) if split == "train" else plan_evaluation(fusion, counts)


def _workers(size: int) -> int:
    return processes() if size >= WORTH_A_PROCESS else 1


def _check_place(out: Path, options: Options, inputs: list[Path]) -> None:
    """Raises InvalidInput for a place where nothing can be written, whatever the plan."""
    if not out.parent.is_dir():
        raise InvalidInput(f"no such folder: {out.parent}", "make it, or write elsewhere")
    if any(path.exists() and out.exists() and path.samefile(out) for path in inputs):
        raise InvalidInput(f"{out} is one of the inputs", "write elsewhere")
    if options.shard_size is None and out.is_dir():
        raise InvalidInput(f"{out} is a folder", "name a file, or give --shard-size to fill a folder")
    if options.shard_size is not None and out.exists() and not out.is_dir():
        raise InvalidInput(f"{out} is a file", "with --shard-size, name a folder")


def _kept(out: Path, shards: list[Shard], plan: str, options: Options) -> dict[int, int]:
    """Shards that are complete already; raises InvalidInput if `out` holds something else."""
    if options.overwrite or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    if options.shard_size is None:
        what = f"{out} is there already, and not what this plan gives"
        raise InvalidInput(what, "give --overwrite, or write elsewhere")
    progress = manifest.read(out / manifest.PROGRESS)
    if progress is None:
        raise InvalidInput(f"{out} holds other files", "give --overwrite, or write elsewhere")
    if progress.get("plan") != plan:
        what = f"{out} was begun with another plan, or the inputs have changed since"
        raise InvalidInput(what, "give --overwrite to begin anew, or write elsewhere")
    if not options.resume:
        raise InvalidInput(f"{out} is unfinished", "give --resume to go on, or --overwrite to begin anew")
    return manifest.complete(progress, shards)


def _open_folder(out: Path, plan: str, done: dict[int, int], *, anew: bool) -> None:
    """Make the folder of shards, or clear what an earlier call wrote there, and note that it is unfinished."""
    out.mkdir(exist_ok=True)
    if anew:
        for path in out.glob("[0-9]*-of-[0-9]*.jsonl*"):
            path.unlink()
    if not done:
        manifest.write(out / manifest.PROGRESS, _progress(plan, [], {}))


def _progress(plan: str, shards: list[Shard], sizes: dict[int, int]) -> dict[str, Any]:
    names = {shards[number].path.name: size for number, size in sorted(sizes.items())}
    return {"format": manifest.FORMAT, "plan": plan, "shards": names}


def _entries(codes_N: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """`record << 32 | position` of every position, ascending."""
    entries_N = codes_N.astype(np.uint64)
    entries_N <<= np.uint64(32)
    entries_N |= np.arange(len(codes_N), dtype=np.uint32)
    entries_N.sort()
    return entries_N


def _keeper(mixture: Mixture, number: int, epoch: int) -> Callable[[int, int], tuple[int, ...] | None]:
    return lambda objects, position: mixture.kept(number, objects, epoch=epoch, position=position)


def _validate(table: Table, entries_N: NDArray[np.uint64], mixture: Mixture, workers: int, progress: Progress) -> None:
    """Raises BadContent with the problems of every record that is drawn, the first MOST_PROBLEMS in words."""

    def work(worker: int) -> Iterator[tuple[int, int, list[Problem], int]]:
        for i in range(worker, len(table.pieces), workers):
            number, piece = table.pieces[i]
            one = table.inputs[number]
            assert one is not None
            first, entries_M = table.drawn(i, entries_N, mixture)
            drawn = set(((entries_M >> np.uint64(32)).astype(np.int64) - first).tolist())
            found: list[Problem] = []
            record = checked = count = 0
            for n, line in enumerate(one.lines(piece.start, piece.end) if drawn else ()):
                if not line or line.isspace():
                    continue
                if record in drawn:
                    checked += 1
                    try:
                        parse_record(line, Where(str(one.path), int(table.first_line[i]) + n + 1))
                    except BadContent as error:
                        count += len(error.problems)
                        found += error.problems[: MOST_PROBLEMS - len(found)]
                    if checked % _TELL_EVERY == 0:
                        yield i, _TELL_EVERY, [], 0
                record += 1
            yield i, checked % _TELL_EVERY, found, count

    told = _Told(progress, "checking", sum(map(min, mixture.counts, mixture.quotas)))
    problems: dict[int, list[Problem]] = {}
    count = 0
    for i, checked, found, bad in spread(work, workers):
        told(checked)
        count += bad
        if found:
            problems[i] = found
    if count:
        shown = [problem for i in sorted(problems) for problem in problems[i]][:MOST_PROBLEMS]
        if count > len(shown):
            shown.append(Problem(f"and {count - len(shown):,} problems more", "correct these first"))
        raise BadContent(shown)


class _Told:
    """Adds up what was done."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._tell = partial(progress, what)
        self._done, self._total = 0, total

    def __call__(self, count: int) -> None:
        self._done += count
        self._tell(self._done, self._total)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, what: str, waited_s: float = 0.0) -> None:
        now = time.perf_counter()
        self.seconds[what] = round(now - self._last - waited_s, 3)
        if waited_s:
            self.seconds["waiting for the disk"] = round(waited_s, 3)
        self._last = now


def image_root() -> Path | None:
    """ROOT_IMAGE_DIR, where it is set."""
    root = os.environ.get("ROOT_IMAGE_DIR")
    return Path(root) if root else None
