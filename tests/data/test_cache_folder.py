"""Where what can be made again is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from vltool.data.cache_folder import cache_folder


@pytest.mark.parametrize(("own", "xdg", "expected"), [
    ("/own", "/xdg", "/own/index"), ("", "/xdg", "/xdg/vltool/index"),
    ("", "", "/home/me/.cache/vltool/index"), ("", "relative", "/home/me/.cache/vltool/index"),
    ("~/own", "", "/home/me/own/index"),
])  # fmt: skip
def test_the_nearest_wish_is_granted(own: str, xdg: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("VLTOOL_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_folder("index") == Path(expected)
