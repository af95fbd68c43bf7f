"""Faults at named points of a run, keyed by process, step and point.

    python -m tests.faults.injector kill@1:7:step kill@0:10:save/record -- deltalm_jax.train --gin_file=…

runs the command's `main` with a SIGKILL of process 1 at the boundary after step 7, and of process 0 before the record of
step 10. `*` stands for any process or step. Each fault happens once.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import os
import signal
import sys
import time

from deltalm_jax import fault_points

KINDS = ("kill", "term", "int", "stop", "raise", "full", "hang", "sleep")


@dataclasses.dataclass
class Fault:
    """`kind@process:step:point`; see `happen` for the kinds."""

    kind: str
    process: str
    step: str
    point: str

    @classmethod
    def parse(cls, text: str) -> Fault:
        kind, _, where = text.partition("@")
        process, step, point = where.split(":")
        if kind not in KINDS or point not in fault_points.POINTS:
            raise ValueError(f"{text!r}: expected KIND@PROCESS:STEP:POINT with {KINDS} and {fault_points.POINTS}")
        return cls(kind, process, step, point)

    def fits(self, process: int, step: int, point: str) -> bool:
        return self.point == point and self.process in ("*", str(process)) and self.step in ("*", str(step))

    def happen(self) -> None:
        match self.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
            case "int":
                os.kill(os.getpid(), signal.SIGINT)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raise":
                raise RuntimeError("a fault was injected here")
            case "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "hang":
                time.sleep(3600)
            case "sleep":
                time.sleep(3)


def install(faults: list[Fault]) -> None:
    """From now on these faults happen in this process, each where it is due, and once."""
    left = list(faults)
    processes = [a.partition("=")[2] for a in sys.argv if a.startswith("--process_id=")]
    process = int(processes[0]) if processes else 0

    def handler(point: str, step: int) -> None:
        for fault in list(left):
            if fault.fits(process, step, point):
                left.remove(fault)
                print(f"injected: {fault.kind} at {point}, step {step}, process {process}", flush=True)
                fault.happen()

    fault_points.install(handler)


def main() -> int:
    """Reads faults up to `--`, then a module, whose `main` gets the rest."""
    end = sys.argv.index("--")
    faults, module, arguments = sys.argv[1:end], sys.argv[end + 1], sys.argv[end + 2 :]
    install([Fault.parse(text) for text in faults])
    return importlib.import_module(module).main(arguments)


if __name__ == "__main__":
    sys.exit(main())
