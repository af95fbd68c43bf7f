"""An HTTP server of files on this machine, which can be told to misbehave."""

from __future__ import annotations

import dataclasses
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@dataclasses.dataclass
class FileServer:
    """Files by path, and how they are served.

    Attributes:
      files: path (`/cc-100/sw.txt.xz`) → content.
      tags: path → ETag; default: made of the content.
      cut_after: bytes of a body after which each connection breaks, as often as there are entries.
      refuse: statuses that the next requests get instead of an answer.
      ranges: whether it knows of ranges.
      announce: path → the size that it claims.
      redirects: path → URL.
      on_request: called with each request's method, path and range, before it is answered.
      requests: all there were, as method, path and range.
    """

    files: dict[str, bytes]
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    cut_after: list[int] = dataclasses.field(default_factory=list)
    refuse: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    announce: dict[str, int | None] = dataclasses.field(default_factory=dict)
    redirects: dict[str, str] = dataclasses.field(default_factory=dict)
    on_request: Callable[[str, str, str], None] = lambda *request: None
    requests: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    url: str = ""


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Serves for as long as the context lasts."""
    state = FileServer(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            asked = self.headers.get("Range", "")
            state.requests.append((self.command, self.path, asked))
            state.on_request(self.command, self.path, asked)
            content = state.files.get(self.path)
            status = state.refuse.pop(0) if state.refuse else 200
            if self.path in state.redirects:
                self.respond(302, b"", {"Location": state.redirects[self.path]}, body)
                return
            if status != 200 or content is None:
                self.respond(404 if status == 200 else status, b"<html>sorry</html>", {}, body)
                return
            tag = state.tags.get(self.path, f'"{len(content)}-{hash(content) & 0xFFFF}"')
            headers = {"ETag": tag} if tag else {}
            start = 0
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            if match and state.ranges and self.headers.get("If-Range") in (None, tag):
                start = int(match[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.respond(206 if start else 200, content[start:], headers, body, state.announce.get(self.path, -1))

        def respond(
            self, status: int, content: bytes, headers: dict[str, str], body: bool, announced: int | None = -1
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if announced is not None:
                self.send_header("Content-Length", str(len(content) if announced < 0 else announced))
            if announced != -1:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if not body:
                return
            if state.cut_after and status in (200, 206):
                content = content[: state.cut_after.pop(0)]
                self.close_connection = True
            with suppress(ConnectionError):  # the client has had enough
                self.wfile.write(content)

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as state.url:
        yield state


@contextmanager
def serving(server: http.server.ThreadingHTTPServer) -> Iterator[str]:
    """Runs a server in a thread for as long as the context lasts; gives its URL."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
