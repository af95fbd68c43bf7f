"""A conversion or an export that is killed leaves its output absent or whole, wherever it was, and can be started again."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from deltalm_jax.weights.torch_file import write_torch_file
from tests.support import official_model, runs

# Forks a child for each moment: before the 1st, 2nd, … time that the conversion opens a file to write, makes a folder, or
# renames something below the folder of its output. The child kills itself there. Says what each left.
PROGRAM = """
import json, os, pathlib, shutil, signal, sys
import deltalm_jax.conversion
from deltalm_jax.convert import main

folder, *flags = sys.argv[1:]
output = pathlib.Path(folder, "out")

def content():
    if not output.exists():
        return None
    files = [output] if output.is_file() else sorted(p for p in output.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hash(p.read_bytes()) for p in files}

def child(moment):
    left = [moment]
    def look(event, arguments):
        if event not in ("open", "os.rename", "os.mkdir") or not str(arguments[0]).startswith(folder):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)
    sys.stdout = sys.stderr
    code = main([*flags, f"--output={output}"])
    sys.stderr.flush()
    os._exit(code)

for moment in range(100):
    process = os.fork()
    if process == 0:
        child(moment)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(json.dumps([code, content()]), flush=True)
    if code == 0:
        break
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> pathlib.Path:
    """An official file."""
    path = tmp_path_factory.mktemp("released") / "model.pt"
    state = official_model.random_state(2, 1, 16, 32, 61, 20, embedding_layer_norm=True)
    write_torch_file(path, {"weights": state})
    return path


@pytest.mark.parametrize("target", ["native", "deltalm", "huggingface_deltalm"])
def test_killed_at_every_moment(tmp_path, released, target):
    flags = ["--from=deltalm", f"--input={released}", "--num_heads=4", f"--to={target}"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), *flags], env=runs.environment() | {"PYTHONHASHSEED": "0"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *killed, (code, whole) = [json.loads(line) for line in done.stdout.splitlines()]
    assert code == 0, done.stderr
    assert whole, "started again beside what was left, it makes the whole output"
    assert [code for code, _ in killed] == [-9] * len(killed)
    assert len(killed) >= 3
    assert all(content in (None, whole) for _, content in killed)
    assert killed[0][1] is None
