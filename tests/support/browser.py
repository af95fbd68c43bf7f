"""A headless Chromium, spoken to over two pipes: what a page says to the console, what it loads, what becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


def find_chromium() -> str | None:
    """The program, if this machine has it."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One tab of a browser.

    Attributes:
      complaints: errors and warnings of the console, exceptions that nobody caught.
      requests: all URLs that were asked for.
    """

    def __init__(self, source: int, target: int, seconds: float = 60.0):
        self._source, self._target, self._seconds = os.fdopen(source, "rb"), os.fdopen(target, "wb"), seconds
        self._next, self._session, self._buffer = 0, "", b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        tab = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Opens a file, in a window so wide, on a machine that prefers "light" or "dark", and waits for its charts."""
        self.complaints.clear()
        self.requests.clear()
        phone = width < 600
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Page.navigate", url=page.absolute().as_uri())
        end = time.monotonic() + self._seconds
        while not self.evaluate("document.documentElement?.hasAttribute('data-drawn') ?? false"):
            if self.complaints or time.monotonic() > end:
                raise AssertionError(f"the charts were not drawn: {self.complaints}")
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def close(self) -> None:
        """Closes the pipes."""
        self._source.close()
        self._target.close()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        message: dict[str, Any] = {"id": self._next, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._target.write(json.dumps(message).encode() + b"\0")
        self._target.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._next:
                assert "error" not in answer, answer
                return answer["result"]
            self._hear(answer.get("method", ""), answer.get("params", {}))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._source], [], [], self._seconds)[0], "the browser does not answer"
            data = os.read(self._source.fileno(), 1 << 16)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _hear(self, method: str, said: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(said["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(said["args"]))
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                self.complaints.append(said["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"])


@contextlib.contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; it reads commands from descriptor 3 and answers on 4."""
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    flags = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
        "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    # A shell gives the pipes the two numbers that the browser looks at.
    script = f'exec "$@" 3<&{command_read} 4>&{answer_write} 2>/dev/null'
    process = subprocess.Popen(
        ["/bin/bash", "-c", script, "bash", program, *flags],
        pass_fds=(command_read, answer_write),
        stdout=subprocess.DEVNULL,
    )
    os.close(command_read)
    os.close(answer_write)
    try:
        with contextlib.closing(Browser(answer_read, command_write)) as tab:
            yield tab
    finally:
        process.terminate()
        process.wait(timeout=30)
