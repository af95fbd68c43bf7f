"""Lost peers: where one process of several is killed, fails or stands still, the others end soon, and say which it was.

Left to themselves they would wait: in a collective sum, or in the barrier at the end of jax.distributed. Each process
keeps a record in jax.distributed's key-value store, which process 0 serves: a count that goes up, what the process is
doing, and in the end that it has ended, and why. Each reads those of all others, and judges by its own clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import jax

from deltalm_jax import redaction
from deltalm_jax.errors import UserError
from deltalm_jax.training.coordination import Coordination, on_abort
from deltalm_jax.training.faults import EXIT_INTERRUPTED, EXIT_LOST, GO_ON, end_now, within


@dataclasses.dataclass
class _Peer:
    """What is known of another process: its newest record, changes of it that were seen, seconds since the last one."""

    text: str = ""
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    changes: int = 0
    still: float = 0.0


class Peers:
    """Watches the other processes of the run; with one process, it does nothing. A context manager round the training.

    Left normally, it waits until all others have ended as well. Left by an exception, it prints it, tells the others and
    ends the process, without waiting for anything that takes part of the others. A process that is found lost ends this
    one at any time, with exit code 70.

    Args:
      coordination: what joins the processes; None for one process.
      doing: says what this process does; shown to the others.
      limit: seconds without a sign of life after which a process is lost.
      suspicion: the same, once jax has reported an error, which is most often another process's end.
      interval: seconds between signs of life.
      grace: seconds between another process's message that it failed and the end of this one, which may have found the
        same fault and be about to say so itself.
      unwinding: seconds that a failing process has to write what it has begun to write.
    """

    def __init__(
        self,
        coordination: Coordination | None,
        doing: Callable[[], str] = lambda: "",
        *,
        limit: float = 30.0,
        suspicion: float = 10.0,
        interval: float = 2.0,
        grace: float = 3.0,
        unwinding: float = 60.0,
    ) -> None:
        self._coordination, self._doing = coordination, doing
        self._limit, self._suspicion, self._interval = limit, suspicion, interval
        self._grace, self._unwinding = grace, unwinding
        self._host, self._beats = socket.gethostname(), 0
        self._cause: str | None = None  # of this process's own end; what others are shown of it has no secrets
        self._shown = ""
        self._code, self._trace = 1, ""
        self._store_silent = 0.0
        self._writing, self._ending, self._done = threading.Lock(), threading.Lock(), threading.Event()
        self._threads: list[threading.Thread] = []
        if coordination is not None:
            self._peers = {n: _Peer() for n in range(coordination.num_processes) if n != coordination.process_id}

    def __enter__(self) -> Peers:
        if self._coordination is not None:
            on_abort(self._aborting)
            for target in (self._beat, self._judge):
                self._threads.append(threading.Thread(target=target, name=f"peers{target.__name__}", daemon=True))
                self._threads[-1].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._coordination is None:
            return
        if error is not None:
            if self._cause is None:
                self._look_into(error)
            self._end(None)
        self._leave()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Inside, an exception is looked into, and told to the others, before anything else is done about it.

        What is open round this block may wait for the others in closing, e.g. for a checkpoint that all of them write.
        """
        try:
            yield
        except BaseException as error:
            if self._coordination is not None:
                self._look_into(error)
                threading.Thread(target=self._fail_late, daemon=True).start()
            raise

    def tell(self, cause: str) -> None:
        """Tells the others why this process is about to end; returns within seconds."""
        if self._coordination is None:
            return
        self._publish(cause)
        if self._coordination.process_id == 0:  # it serves the store: others must have read it
            self._wait_for_others(2 * self._interval + self._grace + 3.0)

    def elsewhere(self) -> str:
        """What the other processes are doing, by their last sign of life; for messages."""
        if self._coordination is None:
            return ""
        return "".join(f"\n{self._name(n)} is at {peer.record.get('doing')!r}" for n, peer in self._peers.items())

    def name(self) -> str:
        """This process, as messages name it."""
        number = "" if self._coordination is None else f" {self._coordination.process_id}"
        return f"process{number} ({self._host}, pid {os.getpid()})"

    def _name(self, n: int) -> str:
        record = self._peers[n].record
        known = f"{record['host']}, pid {record['pid']}" if record else "nothing was heard of it"
        return f"process {n} ({known})"

    # Signs of life.

    def _beat(self) -> None:
        """Writes this process's record and reads the others'. May be stuck for good, if process 0 is."""
        assert self._coordination is not None
        last = time.monotonic()
        while True:
            with contextlib.suppress(Exception):  # the other thread counts the silence
                self._write()
                records = self._coordination.read()
                now = time.monotonic()
                # A pause of this very process does not count against the others.
                elapsed, last = min(now - last, 2 * self._interval), now
                for n, peer in self._peers.items():
                    text = records.get(n, "")
                    if text == peer.text:
                        peer.still += elapsed
                    else:
                        peer.record, peer.text, peer.still = json.loads(text), text, 0.0
                        peer.changes += 1
                self._store_silent = 0.0
            if self._done.wait(self._interval):
                return

    def _publish(self, cause: str) -> None:
        # Redacted here and not at every sign of life: it looks at files, which may be on a network that stands still.
        within(2.0, lambda: setattr(self, "_shown", redaction.redact_record(cause)))
        self._cause = cause
        within(2.0, self._write)

    def _write(self) -> None:
        assert self._coordination is not None
        with self._writing:
            self._beats += 1
            self._coordination.write(
                json.dumps(
                    {
                        "host": self._host, "pid": os.getpid(), "beat": self._beats, "doing": self._doing(),
                        "ended": self._cause is not None, "cause": self._shown,
                    }
                )
            )  # fmt: skip

    # Judgement.

    def _judge(self) -> None:
        last = time.monotonic()
        failed_for = 0.0
        while not self._done.wait(0.5):
            now = time.monotonic()
            elapsed, last = min(now - last, 1.0), now
            self._store_silent += elapsed
            if (finding := self._lost()) is not None:
                self._end(finding, stacks=True)
            elif (finding := self._failed()) is not None and self._cause is None:
                failed_for += elapsed
                if failed_for > self._grace:
                    self._end(finding)

    def _lost(self, limit: float | None = None) -> str | None:
        """Says which process gives no sign of life, if there is one."""
        limit = self._limit if limit is None else limit
        silent = f"has given no sign of life for {limit:.0f} s: it was killed or stopped, or cannot be reached"
        if self._store_silent > limit:
            assert self._coordination is not None
            if self._coordination.process_id != 0:
                return f"{self._name(0)}, which coordinates the run at {self._coordination.address}, {silent}"
            return f"{self.name()} cannot reach its own coordinator at {self._coordination.address}"
        for n, peer in self._peers.items():
            if peer.still > limit and not peer.record.get("ended"):
                return f"{self._name(n)} {silent}"
        return None

    def _failed(self) -> str | None:
        """The message of a process that has ended before its time, if there is one."""
        return next((peer.record["cause"] for peer in self._peers.values() if peer.record.get("cause")), None)

    def _explain(self, since: dict[int, int]) -> str | None:
        """Waits for what may lie behind an error of jax; None if all others have been heard of again, and run on."""
        while any(peer.changes < since[n] + 2 for n, peer in self._peers.items() if not peer.record.get("ended")):
            if (finding := self._failed() or self._lost(self._suspicion)) is not None:
                return finding
            time.sleep(0.1)
        return self._failed()

    # The end.

    def _leave(self) -> None:
        """Waits until all have ended, with an eye on them."""
        assert self._coordination is not None
        self._cause = ""
        with contextlib.suppress(Exception):
            self._write()
        while not all(peer.record.get("ended") for peer in self._peers.values()):
            time.sleep(0.1)
        if (finding := self._failed()) is not None:
            self._end(finding)
        self._done.set()
        for thread in self._threads:
            thread.join(5.0)
        on_abort(None)
        jax.distributed.shutdown()

    def _note(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            self._code = error.code if isinstance(error.code, int) else 1
        else:
            self._code = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        user = isinstance(error, UserError)
        self._trace = f"error: {error}" if user else "".join(traceback.format_exception(error)).rstrip()
        about = str(error) if user else f"{type(error).__name__}: {error}".partition("\n")[0]
        self._publish(f"{self.name()} has failed: {about}")

    def _look_into(self, error: BaseException) -> None:
        """Notes an exception as this process's own failure, and tells it; ends the process if another one is behind it."""
        if _is_of_jax(error):
            since = {n: peer.changes for n, peer in self._peers.items()}
            print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
            if (finding := self._explain(since)) is not None:
                self._end(finding)
        self._note(error)

    def _fail_late(self) -> None:
        time.sleep(self._unwinding)
        self._end(None)

    def _end(self, finding: str | None, stacks: bool = False) -> None:
        """Ends the process: for a finding about another process, or else for its own failure, noted before."""
        if not self._ending.acquire(blocking=False) and self._done.wait(600):  # another thread is about to
            return
        if self._trace or finding is None:
            self.tell(self._cause or "")
            end_now(self._code, self._trace)
            return
        if stacks:
            within(5.0, lambda: faulthandler.dump_traceback(2, all_threads=True))
        self.tell(finding)
        end_now(EXIT_LOST, f"error: {self.name()} ends because of another: {finding}\n{GO_ON}")

    def _aborting(self) -> None:
        """jax ends the process by abort() once process 0 is gone. Says so, in whichever thread; returns if it is not that."""
        assert self._coordination is not None
        if self._trace:
            end_now(self._code, self._trace)
        finding = self._failed() or self._lost()
        if finding is None and not self._coordination.answers():
            address = self._coordination.address
            finding = f"{self._name(0)}, which coordinates the run, is gone: nothing answers at {address} any more"
        if finding is not None:
            end_now(EXIT_LOST, f"error: {self.name()} ends because of another: {finding}\n{GO_ON}")

    def _wait_for_others(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(
            peer.record.get("ended") or peer.still > self._suspicion for peer in self._peers.values()
        ):
            time.sleep(0.1)


def _is_of_jax(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is jax's: then another process may be behind it."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False
