"""A bucket on this machine: as much of Google Cloud Storage's JSON API as tensorstore and gcsfs use, preconditions included.

https://cloud.google.com/storage/docs/json_api/v1. It can be told to misbehave.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.support.file_server import serving


@dataclasses.dataclass
class Bucket:
    """Objects by name, and how they are served.

    Attributes:
      name: the bucket's; any other is answered with 404.
      objects: name → content, generation.
      refuse: method and name → the status that the request gets instead of an answer, or None.
      requests: all that changed something, as method and object, in order.
      url: of the server.
    """

    name: str
    objects: dict[str, tuple[bytes, int]] = dataclasses.field(default_factory=dict)
    refuse: Callable[[str, str], int | None] = lambda method, name: None
    requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    url: str = ""
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
    generations: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to use it in place of Google's."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "STORAGE_EMULATOR_HOST": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks Google by another way (gRPC) what the bucket is
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # of tensorstore
            "NO_GCE_CHECK": "true",  # of google.auth: an account of this machine is not looked for
        }

    def __getitem__(self, name: str) -> bytes:
        return self.objects[name][0]

    def __setitem__(self, name: str, content: bytes) -> None:
        with self.lock:
            self.objects[name] = content, next(self.generations)

    def names(self, prefix: str = "") -> list[str]:
        """Names that begin so, in order."""
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))


@contextmanager
def bucket(name: str) -> Iterator[Bucket]:
    """Serves an empty bucket for as long as the context lasts."""
    state = Bucket(name)

    class Handler(_Handler):
        bucket = state

    with serving(_Server(("127.0.0.1", 0), Handler)) as state.url:
        yield state


@contextmanager
def bucket_for_all(name: str) -> Iterator[Bucket]:
    """A bucket that this process and those it starts take for Google's."""
    with bucket(name) as served, pytest.MonkeyPatch.context() as patch:
        for variable, value in served.environment.items():
            patch.setenv(variable, value)
        yield served


def place_of(request: pytest.FixtureRequest) -> str:
    """A test's own place in the bucket."""
    return re.sub(r"\W", "_", request.node.name)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *request: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients that end, or are killed
            super().handle_error(*request)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    bucket: Bucket
    uploads: dict[str, tuple[str, dict[str, str], bytearray]] = {}  # noqa: RUF012 (of all connections)

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def answer(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = re.fullmatch(r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", address.path)
        if match is None:
            return self.respond(501, {"error": {"code": 501, "message": f"not known here: {self.path}"}})
        how, name, found = match[1], match[2], urllib.parse.unquote(match[3] or "")
        key = found.partition("/rewriteTo/")[0] or query.get("name", "")
        with self.bucket.lock:
            if status := self.bucket.refuse(self.command, key):
                return self.respond(status, {"error": {"code": status, "message": "refused"}})
            if name != self.bucket.name:
                return self.respond(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
            if self.command not in ("GET",):
                self.bucket.requests.append((self.command, key))
            if how == "upload":
                return self.upload(query, body)
            if "/rewriteTo/" in found:
                to = found.partition("/rewriteTo/")[2].partition("/o/")[2]
                return self.put(to, self.bucket[key], query, {"done": True})
            if self.command == "DELETE":
                return self.delete(key, query)
            return self.get(key, query) if key else self.list(query)

    def upload(self, query: dict[str, str], body: bytes) -> None:
        key = query.get("name", "")
        match query["uploadType"], query.get("upload_id"):
            case "resumable", None:
                ticket = str(next(self.bucket.generations))
                key = key or json.loads(body)["name"]
                self.uploads[ticket] = key, query, bytearray()
                where = f"{self.bucket.url}/upload/storage/v1/b/{self.bucket.name}/o?uploadType=resumable&upload_id={ticket}"
                return self.respond(200, {}, {"Location": where})
            case "resumable", ticket:
                key, query, content = self.uploads[str(ticket)]
                content += body
                if self.headers["Content-Range"].endswith("/*"):
                    return self.respond(308, {}, {"Range": f"bytes=0-{len(content) - 1}"})
                body = bytes(content)
            case "multipart", _:
                boundary = re.search(r'boundary="?([^"]+)"?', self.headers["Content-Type"])
                assert boundary
                _, about, rest, _ = re.split(rb"\n?--" + re.escape(boundary[1].encode()), body)
                key = json.loads(about.partition(b"\n\n")[2])["name"]
                body = rest.partition(b"\n\n")[2]
        self.put(key, body, query)

    def differs(self, key: str, query: dict[str, str]) -> bool:
        wanted = query.get("ifGenerationMatch")
        return wanted is not None and int(wanted) != self.bucket.objects.get(key, (b"", 0))[1]

    def put(self, key: str, content: bytes, query: dict[str, str], more: dict[str, Any] | None = None) -> None:
        if self.differs(key, query):
            return self.respond(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        self.bucket[key] = content
        self.respond(200, self.about(key) | (more or {}))

    def delete(self, key: str, query: dict[str, str]) -> None:
        if key not in self.bucket.objects:
            return self.respond(404, {"error": {"code": 404, "message": f"No such object: {key}"}})
        if self.differs(key, query):
            return self.respond(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        del self.bucket.objects[key]
        self.respond(204, b"")

    def get(self, key: str, query: dict[str, str]) -> None:
        if key not in self.bucket.objects:
            return self.respond(404, {"error": {"code": 404, "message": f"No such object: {key}"}})
        content, generation = self.bucket.objects[key]
        if query.get("alt") != "media":
            return self.respond(200, self.about(key))
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.respond(304, b"", headers)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return self.respond(200, content, headers)
        first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
        if first > last:
            return self.respond(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        self.respond(
            206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        )

    def list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, end = query.get("startOffset", ""), query.get("endOffset", "")
        items, prefixes = [], set()
        for name in self.bucket.names(prefix):
            if name < first or (end and name >= end):
                continue
            inside, _, more = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if more:
                prefixes.add(f"{prefix}{inside}{delimiter}")
            else:
                items.append(self.about(name))
        self.respond(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def about(self, key: str) -> dict[str, Any]:
        content, generation = self.bucket.objects[key]
        return {
            "kind": "storage#object",
            "name": key,
            "bucket": self.bucket.name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "etag": str(generation),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def respond(self, status: int, content: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(ConnectionError):  # the client has had enough
            self.wfile.write(data)
