"""The index: every record, its own line number, in any process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vltool.data.index import JsonlIndex
from vltool.errors import BadContent, InvalidInput

RECORD = b'{"some": "text"}\n'


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(data)
    return path


@settings(deadline=None)
@given(lines=st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=30), last=st.booleans())
def test_every_record_is_found_with_its_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], last: bool
) -> None:
    path = _file(tmp_path_factory.mktemp("index"), b"\n".join(lines) + (b"\n" if last else b""))
    expected = [(line, number) for number, line in enumerate(lines, start=1) if line.strip(b" \t\r\v\f")]
    if not expected:
        with pytest.raises(BadContent):
            JsonlIndex(path)
        return
    index = JsonlIndex(path)
    found = [index.read(i) for i in range(len(index))]
    assert [(line, where.line) for line, where in found] == expected
    assert {where.file for _, where in found} == {str(path)}


def test_positions_beyond_the_end_are_index_errors(tmp_path: Path) -> None:
    index = JsonlIndex(_file(tmp_path, b"{}\n"))
    for position in (-1, 1):
        with pytest.raises(IndexError):
            index.read(position)


def test_an_absent_file_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no such file: .*gone\.jsonl"):
        JsonlIndex(tmp_path / "gone.jsonl")


def test_a_folder_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot read"):
        JsonlIndex(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"  \r\n\t\n"])
def test_a_file_without_records_is_bad_content(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadContent, match="holds no record"):
        JsonlIndex(_file(tmp_path, data))


def test_a_pipe_is_invalid_input_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="it is a pipe"):
        JsonlIndex(tmp_path / "pipe")


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = _file(tmp_path, b'{"a": 1}\n{"a": 2}\n')
    late, open_already = JsonlIndex(path), JsonlIndex(path)
    open_already.read(0)
    path.write_bytes(b'{"a": 1}\n')
    for index in (late, open_already):
        with pytest.raises(BadContent, match=r"data\.jsonl:2: the file became shorter"):
            index.read(1)


def test_a_file_in_the_place_of_the_indexed_one_is_noticed(tmp_path: Path) -> None:
    path = _file(tmp_path, b'{"a": 1}\n{"a": 2}\n')
    index = JsonlIndex(path)
    path.write_bytes(b'{"b": 100}\n{"b": 200}\n')
    with pytest.raises(BadContent, match=r"data\.jsonl:1: the file was replaced by another"):
        index.read(0)


def test_a_file_that_grows_or_is_touched_stays_as_it_was_indexed(tmp_path: Path) -> None:
    path = _file(tmp_path, b'{"a": 1}\n{"a": 2}')
    index = JsonlIndex(path)
    with path.open("ab") as file:
        file.write(b'\n{"a": 3}\n')
    assert _read_all(index) == [b'{"a": 1}', b'{"a": 2}']
    assert len(JsonlIndex(path)) == 3


def test_a_file_that_grows_while_it_is_indexed_is_no_data_yet(tmp_path: Path) -> None:
    path = _file(tmp_path, RECORD * (16 << 20 >> 4))
    done = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            while not done.is_set():
                file.write(RECORD)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        with pytest.raises(BadContent, match="changed while it was indexed"):
            JsonlIndex(path)
    finally:
        done.set()
        thread.join()


def _read_all(index: JsonlIndex) -> list[bytes]:
    return [index.read(i)[0] for i in range(len(index))]


def test_forked_workers_threads_and_copies_read_the_same(tmp_path: Path) -> None:
    lines = [b'{"n": %d}' % n for n in range(500)]
    index = JsonlIndex(_file(tmp_path, b"\n".join(lines)))
    index.read(0)  # open before the fork
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(_read_all, [index] * 4) == [lines] * 4
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda i: index.read(i)[0], range(500))) == lines
    assert _read_all(pickle.loads(pickle.dumps(index))) == lines


def test_dropping_an_index_closes_its_file(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        JsonlIndex(_file(tmp_path, b"{}\n")).read(0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_memory_is_a_few_bytes_a_record(tmp_path: Path) -> None:
    records = 100_000
    path = _file(tmp_path, b'{"images": ["a.jpg"], "summary": "x"}\n' * records)
    tracemalloc.start()
    index = JsonlIndex(path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == records
    assert held / records < 12
