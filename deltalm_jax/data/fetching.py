"""Fetches one file over https: resumed where it stopped, checked, and there under its name only when it is whole.

While a file is fetched it is `NAME.part`, beside which `NAME.part.json` says which file of the server it is a part of (its
ETag or date, and its size). A part is continued only if the server says that it still has that very file; else it is
begun again. Nothing that a server sends decides where anything is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from deltalm_jax import __version__
from deltalm_jax.errors import UserError

_BLOCK_BYTES = 1 << 20
_SECONDS = 60.0
_ATTEMPTS = 6
_LONGEST_PAUSE = 60.0
# What else the disk may need while a file is written.
_SPARE_BYTES = 64 << 20
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# How files begin that are what their name says.
_BEGINNINGS = {".xz": b"\xfd7zXZ\x00", ".gz": b"\x1f\x8b", ".zip": b"PK"}


class DownloadError(UserError, OSError):
    """A file that cannot be fetched; the message says which, why, and whether to try again."""


class _Interruption(Exception):
    """What may pass by itself: a connection that broke, a server that is busy."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file that is there.

    Attributes:
      url: where it came from.
      bytes: its size.
      sha256: of all its bytes, hexadecimal.
      version: what the server calls this version of the file: its ETag, or else its date; "" if it does not say.
    """

    url: str
    bytes: int
    sha256: str
    version: str


def find_size(url: str) -> int | None:
    """The size of a file on a server, bytes; None where there is no such file (404).

    Raises:
      DownloadError: the server cannot be reached, or does not say.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with _open(url, "HEAD", {}) as response:
                return _content_length(url, response)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise DownloadError(f"{url}: the server answers {_answer(error)}") from error
        except _Interruption as error:
            if attempt == _ATTEMPTS - 1:
                raise DownloadError(f"{url}: cannot be reached: {error}") from error
            _pause(attempt)
    raise AssertionError


def fetch(
    url: str,
    path: Path,
    max_bytes: int,
    sha256: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fetched:
    """Fetches a file, or the rest of it. Its folder must exist; the file itself must not.

    Args:
      url: https, or http on this machine.
      path: where it is to be.
      max_bytes: a larger file is refused.
      sha256: what it has to be, where that is known.
      on_progress: called with the bytes that are there and the bytes of all.

    Raises:
      DownloadError: the server has no such file or cannot be reached (after some attempts, each of which goes on where the
        one before stopped); the file is larger than `max_bytes`, not of the kind its name says, or another one than
        `sha256` says; the disk is too small; another process is fetching it; or its part is a symbolic link.
      KeyboardInterrupt: the part stays, for the next time.
    """
    part = path.with_name(path.name + ".part")
    for name in (part, _state_path(path)):
        if name.is_symlink():
            raise DownloadError(f"{name}: is a symbolic link, through which nothing is written; remove it")
    with part.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DownloadError(f"{part}: another process is fetching this file; wait for it, or end it") from error
        transfer = _Transfer(url, path, file, max_bytes, on_progress)
        fetched = transfer.run()
        if sha256 is not None and fetched.sha256 != sha256:
            raise DownloadError(
                f"{url}: expected the file that was fetched before (sha256 {sha256[:12]}…), found another (sha256 "
                f"{fetched.sha256[:12]}…, {fetched.bytes:,} bytes). The published file has changed, or was changed on the "
                f"way. It is left as {part}; to take it, remove the file's entry from downloads.json"
            )
        file.flush()
        os.fsync(file.fileno())
    return fetched


def finish(path: Path) -> None:
    """Gives a fetched file its name; until then it is a part."""
    path.with_name(path.name + ".part").rename(path)
    _state_path(path).unlink(missing_ok=True)


def _state_path(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


class _Transfer:
    """One file's way onto the disk, over as many connections as it takes."""

    def __init__(self, url: str, path: Path, file: IO[bytes], max_bytes: int, on_progress: Callable[[int, int], None]):
        self.url, self.path, self.file = url, path, file
        self.max_bytes, self.on_progress = max_bytes, on_progress
        self.done = file.seek(0, os.SEEK_END)
        self.state = self._load_state()
        self.hash = hashlib.sha256()
        if not (self.state and self.state["version"] and self.done <= self.state["bytes"]):
            self._begin_again()
        else:
            self._hash_part()

    def run(self) -> Fetched:
        """Fetches until all is there."""
        attempt, farthest = 0, self.done
        while True:
            try:
                self._receive()
                break
            except urllib.error.HTTPError as error:
                if error.code == 416:  # there is nothing after what we have: the file has become shorter
                    self._begin_again()
                elif error.code not in _TRY_AGAIN:
                    raise DownloadError(f"{self.url}: the server answers {_answer(error)}") from error
                problem = f"the server answers {_answer(error)}"
            except _Interruption as error:
                problem = str(error)
            # Only what is farther than ever counts as progress: a server may make us begin again and again.
            attempt = 0 if self.done > farthest else attempt + 1
            farthest = max(farthest, self.done)
            if attempt == _ATTEMPTS:
                raise DownloadError(
                    f"{self.url}: {problem}, {_ATTEMPTS} times in a row. {self.done:,} bytes are there; the same "
                    "command goes on with them"
                )
            _pause(attempt)
        return Fetched(self.url, self.done, self.hash.hexdigest(), str(self.state["version"]))

    def _receive(self) -> None:
        """One connection: from where we are to the end of the file, or until it breaks."""
        if self.state and self.done == self.state["bytes"]:
            return
        headers = {}
        if self.done and not self.state["version"]:
            self._begin_again()  # nobody can say whether the server still has the same file
        if self.done:
            headers = {"Range": f"bytes={self.done}-", "If-Range": self.state["version"]}
        with _open(self.url, "GET", headers) as response:
            if response.status == 206:
                self._check_range(response)
            else:
                self._begin_again()
                self._start(response)
            while block := self._read(response):
                if not self.done:
                    self._check_beginning(block)
                self.file.write(block)
                self.hash.update(block)
                self.done += len(block)
                self.on_progress(self.done, self.state["bytes"])
                if self.done > self.state["bytes"]:
                    raise DownloadError(f"{self.url}: expected {self.state['bytes']:,} bytes, the server sends more")
        if self.done < self.state["bytes"]:
            raise _Interruption("the connection broke")

    def _start(self, response: Any) -> None:
        """What the server is about to send from the beginning."""
        size = _content_length(self.url, response)
        if size > self.max_bytes:
            raise DownloadError(
                f"{self.url}: expected a file of at most {self.max_bytes:,} bytes, the server offers {size:,}"
            )
        free = shutil.disk_usage(self.path.parent).free
        if size + _SPARE_BYTES > free:
            raise DownloadError(
                f"{self.path.parent}: {size:,} bytes are needed for {self.path.name}, {free:,} are free"
            )
        # A weak ETag says "about the same", which is not enough to put two parts together.
        tag = response.headers.get("ETag", "")
        version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        self.state = {"url": self.url, "version": version, "bytes": size}
        _state_path(self.path).write_text(json.dumps(self.state))

    def _check_range(self, response: Any) -> None:
        """Whether a continuation is of the same file, from the right byte."""
        found = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", found)
        if not match or int(match[1]) != self.done or int(match[2]) != self.state["bytes"]:
            expected = f"bytes {self.done}-…/{self.state['bytes']}"
            self._begin_again()
            raise _Interruption(f"asked for {expected}, the server sends {found!r}")

    def _check_beginning(self, block: bytes) -> None:
        expected = _BEGINNINGS.get(self.path.suffix, b"")
        if not block.startswith(expected[: len(block)]):
            raise DownloadError(
                f"{self.url}: expected a {self.path.suffix} file, found one that begins with {block[:40]!r}: an error page?"
            )

    def _read(self, response: Any) -> bytes:
        try:
            return bytes(response.read(_BLOCK_BYTES))
        except http.client.IncompleteRead as error:
            # What has come is good; the next connection goes on after it.
            return error.partial
        except (OSError, http.client.HTTPException) as error:
            raise _Interruption(f"the connection broke ({error})") from error

    def _begin_again(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.done, self.hash, self.state = 0, hashlib.sha256(), {}

    def _hash_part(self) -> None:
        self.file.seek(0)
        while block := self.file.read(_BLOCK_BYTES):
            self.hash.update(block)

    def _load_state(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(_state_path(self.path).read_text())
            if isinstance(state, dict) and state.get("url") == self.url and isinstance(state.get("bytes"), int):
                return {"url": self.url, "version": str(state.get("version", "")), "bytes": state["bytes"]}
        return {}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to where a download may come from, and nowhere else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _open(url: str, method: str, headers: dict[str, str]) -> Iterator[Any]:
    """A response; HTTPError where the server refuses, _Interruption where it cannot be reached just now."""
    host = _check_url(url)
    # A server on this machine is not behind the proxy.
    proxies = [urllib.request.ProxyHandler({})] if host in _LOOPBACK else []
    opener = urllib.request.build_opener(_Redirects, *proxies)
    agent = {"User-Agent": f"deltalm_jax/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=agent | headers, method=method)
    try:
        response = opener.open(request, timeout=_SECONDS)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error.reason):
            raise DownloadError(f"{url}: the server's certificate is not trusted: {error.reason}") from error
        raise _Interruption(f"cannot be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, DownloadError):
            raise
        raise _Interruption(f"the connection broke ({error})") from error
    with response:
        if encoding := response.headers.get("Content-Encoding"):
            raise DownloadError(f"{url}: expected the file as it is, the server encodes it ({encoding})")
        yield response


def _check_url(url: str) -> str:
    """The host of a URL that may be fetched: https, or http on this machine, where nobody can listen in.

    Not one with a password: it would stand in the record of downloads.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None:
        raise DownloadError(f"{parts.scheme}://…@{host}: a URL with a user's name or password is not fetched")
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)):
        raise DownloadError(f"{url}: only https is fetched")
    return host


def _content_length(url: str, response: Any) -> int:
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise DownloadError(f"{url}: the server does not say how large the file is")
    return int(length)


def _answer(error: urllib.error.HTTPError) -> str:
    """The status in standard words: what a server writes there may be anything."""
    return f"{error.code} {http.client.responses.get(error.code, '')}".strip()


def _pause(attempt: int) -> None:
    time.sleep(min(2.0**attempt, _LONGEST_PAUSE))
