"""The lock of a run directory in a bucket: an object that is made only if it is not there, and renewed while the run goes on.

A bucket has no lock that ends with its holder, so the holder gives a sign of life every few seconds, in a thread of its
own: it writes the object again, on condition that it is still as it wrote it last. Whoever finds a lock

    watches it: a sign of life                    the run goes on: refused, within seconds
    knows its holder, on this host, to be gone    takes it over at once
    sees none for `STALE_SECONDS`                 takes it over, on condition that nobody else just did

The time that counts is how long the watcher has watched. Only where the object's own time says that it is older than that
do a few seconds of watching do, and clocks matter. A holder that finds another's lock in place of its own (it was cut off
for minutes, and taken for dead) ends at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import tensorstore

from deltalm_jax.training.storage import RunDirectoryError, RunDirectoryInUseError

STALE_SECONDS = 180.0
# Between two signs of life, and so long that a live one is not missed. Other processes than the first: there are many.
_BEAT_SECONDS, _OTHERS_BEAT_SECONDS = 2.0, 20.0
_WATCH_SECONDS, _OTHERS_WATCH_SECONDS = 5.0, 45.0
_LOOK_SECONDS = 0.5
# Of one request, with its repetitions: a few seconds.
_RETRIES = {"gcs_request_retries": {"max_retries": 3, "initial_delay": "500ms", "max_delay": "2s"}}
_REQUEST_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class _Found:
    """The object: its content (None: there is none) and the mark that the store gave this very content."""

    content: bytes | None
    mark: bytes

    @property
    def holder(self) -> dict[str, Any]:
        try:
            holder = json.loads(self.content or b"")
        except ValueError:
            holder = None
        return holder if isinstance(holder, dict) else {}

    @property
    def name(self) -> str:
        return str(self.holder.get("holder", "nobody knows whose: it is no lock of this program's"))

    def age(self) -> float:
        """Seconds since the last sign of life, by the clocks of both hosts; 0 if it does not say."""
        beat = self.holder.get("time")
        return time.time() - beat if isinstance(beat, int | float) else 0.0


class StoreLock:
    """See above.

    Args:
      run_dir: the run's folder, a path of `run_path`.
      process_id: this process's number; None for a run of one process.
      say: takes one line of text.
      lost: called with what happened, in whichever thread, when another has the lock; must end the process.
    """

    def __init__(
        self, run_dir: pathlib.Path, process_id: int | None, say: Callable[[str], None], lost: Callable[[str], None]
    ):
        self._run_dir, self._say, self._lost = run_dir, say, lost
        self._key = f".lock-{process_id}" if process_id else ".lock"
        self._beat_seconds, self._watch_seconds = _BEAT_SECONDS, _WATCH_SECONDS
        if process_id:
            self._beat_seconds, self._watch_seconds = _OTHERS_BEAT_SECONDS, _OTHERS_WATCH_SECONDS
        self._about = {
            "holder": f"{socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}",
            "id": uuid.uuid4().hex,
            "process": _process(os.getpid()),
        }
        self._mutex, self._ended = threading.Lock(), threading.Event()
        self._mark = b""
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        bucket, _, folder = str(run_dir).removeprefix("gs://").partition("/")
        spec = {"driver": "gcs", "bucket": bucket, "path": f"{folder.rstrip('/')}/"}
        try:
            self._store = tensorstore.KvStore.open(spec, context=tensorstore.Context(_RETRIES)).result()
        except ValueError as error:
            raise RunDirectoryError(f"--run_dir={run_dir}: {_first_words(error)}") from error

    def take(self) -> None:
        """Takes the lock, and keeps it until `release`.

        Raises:
          RunDirectoryInUseError: another run holds it; names it.
          RunDirectoryError: the bucket is not there, does not answer, or may not be written to.
        """
        try:
            self._take()
        except _UnreachableError as error:
            raise RunDirectoryError(f"--run_dir={self._run_dir} cannot be used: {error}") from error
        self._thread.start()

    def confirm(self) -> None:
        """Renews the lock now: what is written next is written by its holder.

        Raises:
          OSError: the store does not answer.
        """
        with self._mutex:
            mark = self._write(self._mark, self._content())
            if not mark:
                found = self._read()
                if found.holder.get("id") != self._about["id"]:
                    self._ended.set()
                    return self._lost(
                        f"{self._run_dir} was taken over by another run ({found.name}) while this one could not reach it"
                        if found.content
                        else f"{self._run_dir}/{self._key}, by which this run holds its directory, was removed"
                    )
                mark = found.mark  # our own, of which the answer was lost on the way
            self._mark = mark

    def release(self) -> None:
        """Gives the lock back."""
        self._ended.set()
        self._thread.join()
        with self._mutex:
            try:
                self._write(self._mark, None)
            except OSError as error:
                self._say(
                    f"WARNING: the lock of {self._run_dir} stays ({error}): the next run waits {STALE_SECONDS:.0f} s for it"
                )

    def _take(self) -> None:
        first, since, told = self._read(), time.monotonic(), False
        while True:
            if first.content is None:
                why = "nobody holds it"
            elif _is_gone(first.holder.get("process")):
                why = f"{first.name} is no more"
            else:
                watched = time.monotonic() - since
                silent = max(watched, min(first.age(), STALE_SECONDS)) if watched >= self._watch_seconds else watched
                why = (
                    f"{first.name} has given no sign of life for {STALE_SECONDS:.0f} s"
                    if silent >= STALE_SECONDS
                    else ""
                )
                if not why and watched >= self._watch_seconds and not told:
                    told = True
                    self._say(
                        f"{self._run_dir} is locked by a run that gives no sign of life ({first.name}); it is taken over in "
                        f"{STALE_SECONDS - silent:.0f} s if that does not change"
                    )
            if why and (mark := self._write(first.mark, self._content())):
                self._mark = mark
                if first.content is not None:
                    self._say(f"the lock of {self._run_dir} is taken over: {why}")
                return
            time.sleep(_LOOK_SECONDS)
            now = self._read()
            if now.holder.get("id") == self._about["id"]:  # our own, of which the answer was lost on the way
                self._mark = now.mark
                return
            if now.content is not None and now.mark != first.mark:
                raise RunDirectoryInUseError(
                    f"{self._run_dir} is in use by another run ({now.name}): wait for it, stop it, or choose another "
                    "--run_dir"
                )
            first = now

    def _beat(self) -> None:
        failing = False
        while not self._ended.wait(self._beat_seconds):
            try:
                self.confirm()
            except OSError as error:
                if not failing:
                    self._say(f"WARNING: the lock of {self._run_dir} cannot be renewed: {error}. The run goes on")
                failing = True
            else:
                failing = False

    def _content(self) -> bytes:
        return json.dumps(self._about | {"time": time.time()}).encode()

    def _read(self) -> _Found:
        result = self._answer(self._store.read(self._key))
        return _Found(result.value if result.state == "value" else None, result.stamp.generation)

    def _write(self, mark: bytes, content: bytes | None) -> bytes:
        """Writes, or removes, the object if it is as `mark` says; returns its new mark, or b"" if it is not."""
        return self._answer(self._store.write(self._key, content, if_equal=mark)).generation

    def _answer(self, future: Any) -> Any:
        try:
            return future.result(timeout=_REQUEST_SECONDS)
        except TimeoutError as error:
            raise _UnreachableError(f"there is no answer in {_REQUEST_SECONDS:.0f} s") from error
        except ValueError as error:
            raise _UnreachableError(_first_words(error)) from error


class _UnreachableError(OSError):
    """The store refuses, or does not answer."""


def _first_words(error: ValueError) -> str:
    """TensorStore's words without the answer's text; for what is the user's to mend, how."""
    words = str(error).partition(" [")[0]
    hints = {
        "PERMISSION_DENIED": "the account of this machine must be allowed to read, write, list and delete objects there "
        "(roles/storage.objectUser)",
        "UNAUTHENTICATED": "this machine has no account: gcloud auth application-default login",
        "NOT_FOUND": "make it first (gcloud storage buckets create)",
    }
    hint = next((hint for code, hint in hints.items() if words.startswith(code)), "")
    return f"{words}: {hint}" if hint else words


def _process(pid: int) -> list[str] | None:
    """What tells a process from all others of all hosts and containers, and times; None where that cannot be told."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return [boot, os.readlink("/proc/self/ns/pid"), str(pid), started]
    except OSError:
        return None


def _is_gone(process: Any) -> bool:
    """Whether a process was one of this host (and container, if this is one), and is no more."""
    ours = _process(os.getpid())
    if ours is None or not isinstance(process, list) or process[:2] != ours[:2] or len(process) != len(ours):
        return False
    pid = int(process[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # another user's, which may not even be looked at
    return _process(pid) != process  # another one of the same number
