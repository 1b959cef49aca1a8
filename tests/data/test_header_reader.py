"""Headers of many files: the same however they are read, kept for the next time, and never out of date."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vltool.data import header_cache, header_reader
from vltool.data.conversation import Prompts
from vltool.data.header_cache import HeaderCache, key_of
from vltool.data.header_reader import HeaderReader
from vltool.data.headers import Header
from vltool.data.messages import InlineImage
from vltool.data.scan import Scan, scan

COUNT = 40


@pytest.fixture
def jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of many images, every ninth of which PIL has to read, and one that is none."""
    monkeypatch.setenv("VLTOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(header_cache, "SMALLEST_KEPT", 8)
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(COUNT):
        name = f"images/{number}.{'webp' if number % 9 == 0 else 'jpg'}"
        if number == 7:
            (folder / name).write_bytes(b"no image")
        else:
            Image.new("RGB", (40 + number, 30)).save(folder / name)
        record = {"images": [name], "width": 40 + number, "height": 30, "summary": "a cat"}
        lines.append(json.dumps(record))
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "t.jsonl"


def scanned(jsonl: Path, **changes: Any) -> Scan:
    how: dict[str, Any] = {"prompts": Prompts("?"), "emit_norm": "norm1000", "use_summary": True, "max_pixels": None}
    return scan(jsonl, **how, counter=None, max_length=0, check_images=True, **changes)


def refs(jsonl: Path) -> list[str]:
    return [json.loads(line)["images"][0] for line in jsonl.read_text().splitlines()]


def read(jsonl: Path) -> dict[str, Header]:
    reader = HeaderReader(jsonl, root=None)
    found = reader.read(refs(jsonl))
    reader.save()
    return found


def beside(jsonl: Path) -> Path:
    return jsonl.with_name(".t.jsonl.vlheaders")


GOOD = {
    f"images/{n}.{'webp' if n % 9 == 0 else 'jpg'}": Header(40 + n, 30, 1) for n in range(COUNT) if n != 7
}  # fmt: skip


@pytest.mark.parametrize("fewest", [1, 10, 1000])
def test_processes_find_what_one_finds(jsonl: Path, fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_reader, "FEWEST_SPREAD", fewest)
    assert read(jsonl) == GOOD
    result = scanned(jsonl)
    assert (result.bad, result.problem_count) == ((7,), 1)
    assert "not an image" in result.problems[0].what


def test_what_is_no_file_is_not_read(jsonl: Path) -> None:
    mixed = ["https://example.com/a.jpg", "data:image/png;base64,", InlineImage(b""), "gone.jpg", "a\0b", "images"]
    assert HeaderReader(jsonl, root=None).read(mixed) == {}


def test_paths_start_from_the_root_or_the_top(jsonl: Path) -> None:
    images = jsonl.parent / "images"
    assert HeaderReader(jsonl, root=images).read(["1.jpg"]) == {"1.jpg": (41, 30, 1)}
    assert list(HeaderReader(jsonl, root=None).read([str(images / "1.jpg"), "1.jpg"])) == [str(images / "1.jpg")]


def test_the_second_time_no_file_is_opened(jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scanned(jsonl)
    assert beside(jsonl).is_file()
    opened: list[str] = []
    monkeypatch.setattr(header_reader, "file_header", lambda path: opened.append(path))
    assert scanned(jsonl) == first
    assert opened == [str(jsonl.parent / "images" / "7.jpg")]  # what was wrong with it may be mended


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_was_replaced_is_read_again(jsonl: Path, keeps_time: bool) -> None:
    read(jsonl)
    path = jsonl.parent / "images" / "1.jpg"
    before = path.stat()
    for size in ((50, 60), (60, 50)):  # as large on the disk
        Image.new("RGB", size).save(path)
        if keeps_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert read(jsonl) == GOOD | {"images/1.jpg": (*size, 1)}
    path.unlink()
    assert read(jsonl) == {ref: header for ref, header in GOOD.items() if ref != "images/1.jpg"}


def test_damage_anywhere_means_that_the_files_are_read(jsonl: Path) -> None:
    read(jsonl)
    data = beside(jsonl).read_bytes()
    assert len(HeaderCache(jsonl)) == len(GOOD)
    for damaged in (b"", data[:10], data[:-1], data[:-24], data + bytes(24), bytes(len(data))):
        beside(jsonl).write_bytes(damaged)
        assert len(HeaderCache(jsonl)) == 0
    for at in range(0, len(data), 5):
        beside(jsonl).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert len(HeaderCache(jsonl)) == 0
    assert read(jsonl) == GOOD
    assert beside(jsonl).read_bytes() == data


def test_where_the_folder_cannot_be_written_the_cache_folder_is_used(jsonl: Path, tmp_path: Path) -> None:
    beside(jsonl).mkdir()  # a file cannot be renamed to it, not even by root
    read(jsonl)
    assert [path.suffix for path in (tmp_path / "cache" / "headers").iterdir()] == [".vlheaders"]
    assert len(HeaderCache(jsonl)) == len(GOOD)


def test_a_few_headers_leave_no_trace(jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_cache, "SMALLEST_KEPT", 1000)
    read(jsonl)
    assert {path.name for path in jsonl.parent.iterdir()} == {"images", "t.jsonl"}


def add(jsonl: Path, numbers: range) -> None:
    """Look for headers of files that are known by their numbers, and keep those that are new."""
    cache = HeaderCache(jsonl)
    keys = [number.to_bytes(16, "little") for number in numbers]
    for key, known in zip(keys, cache.find(keys), strict=True):
        expected = Header(int.from_bytes(key, "little") + 1, 2**27, 8)
        assert known in (None, expected)
        if known is None:
            cache.add(key, expected)
    cache.save()


def test_what_is_not_asked_for_any_more_goes_once_it_is_the_larger_part(jsonl: Path) -> None:
    add(jsonl, range(100))
    add(jsonl, range(20, 101))
    assert len(HeaderCache(jsonl)) == 101
    add(jsonl, range(80, 121))
    assert len(HeaderCache(jsonl)) == 41
    size = beside(jsonl).stat().st_size
    assert size == 24 * 42


def test_there_is_a_bound(jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_cache, "MOST_KEPT", 50)
    add(jsonl, range(80))
    assert len(HeaderCache(jsonl)) == 50


def test_a_side_too_long_to_be_kept_is_not(jsonl: Path) -> None:
    cache = HeaderCache(jsonl)
    for number in range(20):
        cache.add(number.to_bytes(16, "little"), Header(2**28 - (number != 3), 1, 1))
    cache.save()
    assert len(HeaderCache(jsonl)) == 19


def test_a_key_stands_for_a_path_and_a_state_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    status = (tmp_path / "a").stat()
    assert key_of("a", status) == key_of("a", status) != key_of("b", status)
    (tmp_path / "a").write_bytes(b"xy")
    assert key_of("a", status) != key_of("a", (tmp_path / "a").stat())
