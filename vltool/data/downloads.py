"""The bytes behind an http(s) URL, fetched once for all processes and runs, and kept in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from pathlib import Path

from vltool.data.cache_folder import cache_folder
from vltool.errors import BadContent

TIMEOUT_S = 30
"""Of one wait: for a connection, or for its next bytes."""
LONGEST_S = 300
"""Of one download, however steadily a server drips."""
LARGEST_DOWNLOAD = 256 * 2**20
"""Bytes of an image from a URL."""
ATTEMPTS = 3
BACKOFF_S = 1.0
"""Before the second attempt; twice that before the third."""

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""HTTP status that another attempt may change. Source: RFC 9110, section 15; RFC 6585; RFC 8470."""
_READ_BYTES = 1 << 18


def fetch(url: str) -> bytes:
    """What stands at an http(s) URL, from the cache where it was fetched before.

    A redirect is followed to http and https alone, never to a file of this machine. What fails in passing (no answer
    in time, a connection that breaks, a server that is busy) is tried again. Nothing in the cache grows old: a URL
    whose content changes has to be taken out with `forget`. Raises BadContent, without a place, for anything else.
    """
    kept = _kept_at(url)
    with contextlib.suppress(OSError):
        if data := kept.read_bytes():  # an empty file is what a crash may leave
            return data
    data = _downloaded(url)
    _keep(kept, data)
    return data


def forget(url: str) -> None:
    """Fetch a URL anew the next time, because what came was no good."""
    with contextlib.suppress(OSError):
        _kept_at(url).unlink()


class _Passing(Exception):
    """An attempt failed in a way that the next one may not."""


def _downloaded(url: str) -> bytes:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        try:
            return _attempt(url)
        except _Passing as error:
            reason = str(error)
    raise _unfetched(url, f"{reason}, {ATTEMPTS} times")


def _attempt(url: str) -> bytes:
    """Raises _Passing, or BadContent for what will be no better next time."""
    started, data = time.monotonic(), bytearray()
    try:
        request = urllib.request.Request(_ascii(url), headers={"User-Agent": "vltool", "Accept-Encoding": "identity"})
        with _opener().open(request, timeout=TIMEOUT_S) as response:
            while part := response.read1(_READ_BYTES):
                data += part
                if len(data) > LARGEST_DOWNLOAD:
                    raise BadContent(
                        f"{named(url)} is larger than {LARGEST_DOWNLOAD >> 20} MiB", "download and shrink it"
                    )
                if time.monotonic() - started > LONGEST_S:
                    raise _Passing(f"it took longer than {LONGEST_S} s")
            declared = response.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _AGAIN:
            raise _Passing(f"the server answered {error.code} {error.reason}") from None
        raise _unfetched(url, f"the server answered {error.code} {error.reason}") from error
    except (TimeoutError, ConnectionResetError, BrokenPipeError, http.client.IncompleteRead) as error:
        raise _Passing(str(error) or type(error).__name__) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionResetError):
            raise _Passing(str(error.reason)) from error
        raise _unfetched(url, str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unfetched(url, str(error)) from error
    if declared.isdecimal() and int(declared) != len(data):
        raise _Passing(f"the server announced {declared} bytes and sent {len(data)}")
    return bytes(data)


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers of file:, ftp: and data:, which a redirect could lead to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def named(ref: str) -> str:
    """An image reference in a message: on one line, and not of any length."""
    short = ref if len(ref) <= 200 else ref[:60] + "…"
    return f"image {short if short.isprintable() else ascii(short)}"


def _unfetched(url: str, why: str) -> BadContent:
    return BadContent(f"{named(url)} cannot be fetched: {why}", "check the address, or download it beside the data")


def _ascii(url: str) -> str:
    """Percent-encode what is not ASCII, as browsers do, and nothing else."""
    return "".join(letter if letter.isascii() else urllib.parse.quote(letter) for letter in url)


def _kept_at(url: str) -> Path:
    key = hashlib.sha256(url.encode()).hexdigest()
    return cache_folder("images") / key[:2] / key[2:]


def _keep(place: Path, data: bytes) -> None:
    """Write beside and rename, if the cache folder takes it; a full or closed disk only costs the next download."""
    beside: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            beside = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
    except OSError:
        if beside is not None:
            with contextlib.suppress(OSError):
                beside.unlink()
