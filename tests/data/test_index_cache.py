"""The index on disk: found, made again when it is stale or damaged, and never trusted blindly."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from vltool.data.index import JsonlIndex
from vltool.data.index_cache import SMALLEST_CACHED, Offsets, mapped, stamp
from vltool.errors import BadContent

LINES = [b'{"n": %d}' % n for n in range(400_000)]
DATA = b"\n\n".join([b"\n".join(LINES[:7]), b"\n".join(LINES[7:])])
assert len(DATA) > SMALLEST_CACHED


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLTOOL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train.jsonl"
    path.write_bytes(DATA)
    return path


def _beside(path: Path) -> Path:
    return path.with_name(".train.jsonl.vlindex")


def _is_right(index: JsonlIndex) -> None:
    assert len(index) == len(LINES)
    for i in (0, 6, 7, 199_999, len(LINES) - 1):
        line, where = index.read(i)
        assert (line, where.line) == (LINES[i], i + (1 if i < 7 else 2))


def _cached(place: Path, path: Path) -> Offsets | None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return mapped(place, stamp(descriptor))
    finally:
        os.close(descriptor)


def test_the_index_of_a_large_file_is_kept_beside_it_and_found_again(path: Path) -> None:
    _is_right(JsonlIndex(path))
    place = _beside(path)
    assert {p.name for p in path.parent.iterdir()} == {path.name, place.name}
    assert place.stat().st_mode & 0o777 == 0o644
    inode = place.stat().st_ino
    _is_right(JsonlIndex(path))
    assert place.stat().st_ino == inode  # not written again


def test_a_small_file_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLTOOL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_bytes(b"{}\n")
    JsonlIndex(tmp_path / "a.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_where_the_folder_cannot_be_written_the_cache_folder_is_used(path: Path, tmp_path: Path) -> None:
    _beside(path).mkdir()  # a file cannot be renamed to it, not even by root
    for _ in range(2):
        _is_right(JsonlIndex(path))
    assert [p.suffix for p in (tmp_path / "cache" / "index").iterdir()] == [".vlindex"]
    assert {p.name for p in path.parent.iterdir()} == {path.name, _beside(path).name}


def test_where_nothing_can_be_written_the_index_is_in_memory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _beside(path).mkdir()
    (tmp_path / "cache").write_bytes(b"")
    index = JsonlIndex(path)
    _is_right(index)
    _is_right(pickle.loads(pickle.dumps(index)))


def test_a_changed_file_is_indexed_again(path: Path) -> None:
    JsonlIndex(path)
    path.write_bytes(DATA + b"\n{}\n")
    index = JsonlIndex(path)
    assert len(index) == len(LINES) + 1
    assert index.read(len(LINES))[0] == b"{}"


def test_a_file_of_the_same_size_and_time_is_known_by_its_edges(path: Path) -> None:
    JsonlIndex(path)
    time = path.stat().st_mtime_ns
    path.write_bytes(b"\n" + DATA[:-1])
    os.utime(path, ns=(time, time))
    assert JsonlIndex(path).read(0)[1].line == 2


def test_damage_anywhere_is_noticed(path: Path) -> None:
    JsonlIndex(path)
    place = _beside(path)
    good = place.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(0, 90, 3), *rng.integers(90, len(good), 8)]:
        damaged = bytearray(good)
        damaged[at] ^= 1 << rng.integers(8)
        place.write_bytes(damaged)
        assert _cached(place, path) is None, at
    for damage in (b"", good[:40], good[:-1], good[:-8], good + b"\0" * 8, bytes(len(good))):
        place.write_bytes(damage)
        assert _cached(place, path) is None
    _is_right(JsonlIndex(path))
    assert place.read_bytes() == good


def test_an_index_of_another_file_is_not_taken(path: Path) -> None:
    JsonlIndex(path)
    place, other = _beside(path), path.with_name("other.jsonl")
    other.write_bytes(b"{}\n" + DATA)
    JsonlIndex(other)
    place.write_bytes(other.with_name(".other.jsonl.vlindex").read_bytes())
    _is_right(JsonlIndex(path))


def _build(path: Path) -> tuple[int, bytes]:
    index = JsonlIndex(path)
    return len(index), index.read(300_000)[0]


def test_processes_that_build_at_once_agree_and_leave_one_file(path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert set(pool.map(_build, [path] * 8)) == {(len(LINES), LINES[300_000])}
    assert {p.name for p in path.parent.iterdir()} == {path.name, _beside(path).name}


def _seen(index: JsonlIndex) -> tuple[bytes, int | None]:
    line, where = index.read(300_000)
    return line, where.line


def test_a_spawned_worker_is_sent_no_offsets(path: Path) -> None:
    index = JsonlIndex(path)
    assert len(pickle.dumps(index)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_seen, [index]) == [(LINES[300_000], 300_002)]


def test_a_copy_whose_cache_has_gone_is_made_again_from_the_same_data_alone(path: Path) -> None:
    sent = pickle.dumps(JsonlIndex(path))
    _beside(path).unlink()
    _is_right(pickle.loads(sent))
    _beside(path).unlink()
    path.write_bytes(b"\n" + DATA)
    with pytest.raises(BadContent, match="replaced while it was in use"):
        pickle.loads(sent)


def test_the_offsets_are_shared_pages_of_the_cache(path: Path) -> None:
    index = JsonlIndex(path)
    assert not index._offsets.starts.flags.writeable
    assert str(_beside(path)) in Path("/proc/self/maps").read_text(encoding="utf-8")
