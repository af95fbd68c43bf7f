"""Stand-ins for other people's commands, put first on PATH: each call is noted, and a test says what is answered.

A stand-in is a few lines of shell or Python of the test's own; before them runs what notes the call. What
they share lies in a folder (`$STUBS`): calls in `calls`, one JSON list a line, and files by which they play a state.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.support import runs

LAUNCH = runs.ROOT / "launch"

# Values that quoting gets wrong if it gets anything wrong.
DIFFICULT = [
    "--gin.DataConfig.objective_batch_sizes={'span_corruption': 64, 'translation_span_corruption': 64}",
    '--gin.A.b="double"  two spaces',
    "--gin.A.c=$HOME `date` $(date) $$ \\ \\n * ? [a-z] ~ ! # & ; | < > () {}",
    "--gin.A.d=it's",
    "--gin.A.e=line\nbreak",
    "--gin.A.f=ΔLM 日本",
    "",
]

_NOTE = """#!{python} -SE
import fcntl, json, os, sys
STUBS = os.environ["STUBS"]
with open(os.path.join(STUBS, "calls"), "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
"""

# A python that trains nothing: it notes what it was told, and ends with 75 at SIGTERM, or with what the test wishes.
_PYTHON = """
import pathlib, signal, subprocess, time
stubs = pathlib.Path(STUBS)
if sys.argv[1] == "-c" or sys.argv[2] == "deltalm_jax.parallel.flags":
    sys.exit(subprocess.run([{python!r}, *sys.argv[1:]]).returncode)
def end(*_):
    (stubs / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
names = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_LOCAL_DEVICE_IDS", "VARIABLE")
note = {{"arguments": sys.argv[1:], "environment": {{n: os.environ[n] for n in names if n in os.environ}}}}
with open(stubs / "trainings", "a") as file:
    file.write(json.dumps(note) + "\\n")
print("training", flush=True)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    if (stubs / "exit_code").exists():
        sys.exit(int((stubs / "exit_code").read_text()))
    time.sleep(0.02)
"""


@dataclasses.dataclass
class Stubs:
    """A folder with stand-ins.

    Attributes:
      folder: holds `bin`, `calls`, `trainings`, and the files by which the stand-ins play a state.
    """

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir(parents=True)
        self.add("training_python", _PYTHON.format(python=sys.executable))
        shutil.copytree(LAUNCH, self.checkout / "launch")
        subprocess.run(["git", "init", "--quiet", self.checkout], check=True)

    @property
    def checkout(self) -> Path:
        """A repository of these scripts alone: what is installed on workers in a test is small."""
        return self.folder / "checkout"

    @property
    def python(self) -> Path:
        """The python that trains nothing."""
        return self.folder / "bin" / "training_python"

    def add(self, name: str, code: str) -> None:
        """Makes a command of that name of Python code, which may use STUBS, json, os and sys."""
        path = self.folder / "bin" / name
        path.write_text(_NOTE.format(python=sys.executable, name=name) + code)
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess:
        """Runs a script of `launch/`, of a small checkout, with the stand-ins first on PATH."""
        return subprocess.run(
            [self.checkout / "launch" / script, *arguments], env=self.environment(**environment), cwd=self.folder, text=True,
            capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
        ours = {"PATH": path, "STUBS": str(self.folder), "PYTHON": str(self.python), "PYTHONPATH": str(runs.ROOT)}
        return kept | ours | more

    def calls(self, *beginning: str) -> list[list[str]]:
        """The calls so far, of the stand-ins alone, that begin with these words."""
        path = self.folder / "calls"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line[: len(beginning)] == list(beginning) and line[0] != "training_python"]

    def trainings(self) -> list[dict]:
        """What each training was told: its arguments and environment."""
        path = self.folder / "trainings"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_trainings(self, number: int) -> list[dict]:
        """Trainings are started detached: what each was told, once there are so many."""
        deadline = time.monotonic() + 30
        while len(self.trainings()) < number:
            assert time.monotonic() < deadline, f"{len(self.trainings())} trainings of {number}"
            time.sleep(0.02)
        return self.trainings()

    def forget(self) -> None:
        """Empties the notes."""
        for name in ("calls", "trainings"):
            (self.folder / name).unlink(missing_ok=True)


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The finished script, which must have succeeded."""
    assert done.returncode == 0, done.stderr
    return done
