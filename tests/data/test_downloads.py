"""Images from URLs: fetched once, tried again where that may help, and never more than was asked for."""

from __future__ import annotations

import http.server
import io
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vltool.data import downloads
from vltool.data.downloads import fetch
from vltool.data.images import image_size, load_image
from vltool.errors import BadContent


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), "red").save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()


class _Server(http.server.ThreadingHTTPServer):
    asked: Counter[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is what some of these tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        first = self.server.asked[self.path] == 1
        match self.path.split("?")[0]:
            case "/a.png" | "/%C3%A9.png":
                self.answer(200, PNG)
            case "/unannounced.png":
                self.answer(200, PNG, length=None)
            case "/busy.png":
                self.answer(503 if first else 200, b"" if first else PNG)
            case "/down.png":
                self.answer(500)
            case "/mended.png":
                self.answer(200, b"<html>we are moving</html>" if first else PNG)
            case "/short.png":
                self.answer(200, PNG[:-20], length=len(PNG))
            case "/short-once.png":
                self.answer(200, PNG[:-20] if first else PNG, length=len(PNG))
            case "/long.png":
                self.answer(200, PNG, length=len(PNG) // 2)
            case "/nothing.png":
                self.answer(200)
            case "/slow.png":
                time.sleep(1.5 if first else 0)
                self.answer(200, PNG)
            case "/drip.png":
                self.answer(200, length=1000)
                for _ in range(20):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            case "/hop":
                self.answer(302, location="/a.png")
            case "/loop":
                self.answer(302, location="/loop")
            case "/to":
                self.answer(302, location=self.path.partition("?")[2])
            case _:
                self.answer(404)

    def answer(self, code: int, body: bytes = b"", *, length: int | None = -1, location: str = "") -> None:
        self.send_response(code)
        if location:
            self.send_header("Location", location)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[_Server]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("VLTOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.01)
    downloads._opener.cache_clear()  # it remembers the proxies of its making
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.asked = Counter()
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _size(url: str) -> tuple[int, int]:
    return load_image(url, folder=Path(), root=None).size


@pytest.mark.parametrize(("path", "asked"), [
    ("/a.png", 1), ("/unannounced.png", 1), ("/hop", 1), ("/busy.png", 2), ("/short-once.png", 2), ("/é.png", 1),
])  # fmt: skip
def test_an_image_is_fetched_once(server: _Server, path: str, asked: int) -> None:
    for _ in range(2):
        assert _size(server.url + path) == (48, 32)
        assert image_size(server.url + path, folder=Path(), root=None) == (48, 32)
    assert server.asked[path.replace("é", "%C3%A9")] == asked


def test_urls_are_told_apart(server: _Server) -> None:
    for query in ("", "?v=1", "?v=2"):
        _size(f"{server.url}/a.png{query}")
    assert len(server.asked) == 3


def _fetch_it(url: str) -> int:
    return len(fetch(url))


def test_processes_share_what_was_fetched(server: _Server, tmp_path: Path) -> None:
    url = f"{server.url}/a.png"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert set(pool.map(_fetch_it, [url] * 8)) == {len(PNG)}
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [PNG]


def test_a_cache_that_cannot_be_written_costs_another_download(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    for _ in range(2):
        assert _size(f"{server.url}/a.png") == (48, 32)
    assert server.asked["/a.png"] == 2


def test_an_emptied_file_of_the_cache_is_fetched_again(server: _Server, tmp_path: Path) -> None:
    _size(f"{server.url}/a.png")
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert _size(f"{server.url}/a.png") == (48, 32)


def test_what_was_no_image_is_fetched_again_the_next_time(server: _Server) -> None:
    with pytest.raises(BadContent, match=r"mended\.png is not an image"):
        _size(f"{server.url}/mended.png")
    assert _size(f"{server.url}/mended.png") == (48, 32)
    for _ in range(2):  # a body cut off by its own length looks right until it is decoded
        with pytest.raises(BadContent, match=r"long\.png is (damaged|not an image)"):
            _size(f"{server.url}/long.png")
    assert server.asked["/long.png"] == 2


@pytest.mark.parametrize(("path", "words", "asked"), [
    ("/gone.png", "the server answered 404", 1),
    ("/down.png", "the server answered 500 .*, 3 times", 3),
    ("/short.png", "announced 1?[0-9]+ bytes and sent [0-9]+, 3 times", 3),
    ("/nothing.png", "not an image", 1),
    ("/loop", "redirect", None),
    ("/to?file:///etc/passwd", "not allowed", 1),
    ("/to?ftp://127.0.0.1/a.png", "unknown url type: ftp", 1),
])  # fmt: skip
def test_what_cannot_be_had_is_named(server: _Server, path: str, words: str, asked: int | None) -> None:
    for call in (_size, lambda url: image_size(url, folder=Path(), root=None)):
        server.asked.clear()
        with pytest.raises(BadContent, match=words) as caught:
            call(server.url + path)
        assert server.url + path in str(caught.value)
        assert asked is None or server.asked[path] == asked


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.png", "http://bad host/a b.png", "http://", "http://[/a.png"])
def test_addresses_that_lead_nowhere(server: _Server, url: str) -> None:
    with pytest.raises(BadContent, match="cannot be fetched"):
        _size(url)


def test_a_server_that_is_slow_once_is_asked_again(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.5)
    assert _size(f"{server.url}/slow.png") == (48, 32)
    assert server.asked["/slow.png"] == 2


def test_a_server_that_drips_is_not_waited_for(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "LONGEST_S", 0.15)
    with pytest.raises(BadContent, match="took longer than"):
        _size(f"{server.url}/drip.png")


def test_a_download_has_a_largest_size(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "LARGEST_DOWNLOAD", 10)
    with pytest.raises(BadContent, match="larger than"):
        _size(f"{server.url}/a.png")
    assert server.asked["/a.png"] == 1
