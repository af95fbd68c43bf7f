"""The training path under newer releases of jax, in environments of their own (made here: this needs a package index).

Preparation stays with the versions of constraints.txt: TensorFlow, seqio and Beam are not installed in these at all.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import runs
from tests.support.toy_data import write_toy_data

PREPARATION_ONLY = {
    "apache-beam", "importlib_resources", "seqio", "tensorflow", "tensorflow-datasets", "tensorflow-text",
}  # fmt: skip
STEPS, MORE_STEPS = 20, 25


def newer_python() -> str:
    """A Python of at least 3.12, which jax 0.11 needs; skips the test where there is none."""
    if sys.version_info >= (3, 12):
        return sys.executable
    for version in ("3.12", "3.13"):
        # pyenv's shims are on the path for every version, and run only the chosen one.
        env = os.environ | {"PYENV_VERSION": version}
        program = [f"python{version}", "-c", "import sys, ensurepip; print(sys.executable)"]
        try:
            return subprocess.run(program, env=env, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            continue
    pytest.skip("jax 0.11 and later need Python 3.12 or 3.13, and there is neither python3.12 nor python3.13 here")


def requirements(jax: str) -> list[str]:
    """What the training path needs: the installation's requirements without those of preparation."""
    setup = configparser.ConfigParser()
    setup.read(runs.ROOT / "setup.cfg")
    every = setup["options"]["install_requires"].split("\n")
    names = {line.strip(): re.split(r"[ <>=!~]", line.strip())[0] for line in every if line.strip()}
    assert set(names.values()) >= PREPARATION_ONLY
    needed = [line.replace(" ", "") for line, name in names.items() if name not in PREPARATION_ONLY | {"jax"}]
    return [f"jax=={jax}.*", *needed]


def train(python: str, run_dir: Path, prepared: Path, steps: int) -> None:
    command = runs.command(run_dir, prepared, f"TrainConfig.steps={steps}")
    done = subprocess.run(
        [python, *command[1:]], env=runs.environment(), cwd=prepared.parent, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"done: step {steps} of {steps}" in done.stdout


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """Toy data, and the metrics of a run that this environment resumed."""
    folder = tmp_path_factory.mktemp("reference")
    write_toy_data(folder / "data", runs.TOY_TASKS)
    for steps in (STEPS, MORE_STEPS):
        train(sys.executable, folder / "run", folder / "data", steps)
    return folder / "data", runs.metrics(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("jax", ["0.11", "0.12"])
def test_training_under_a_newer_jax(jax: str, reference: tuple[Path, list[dict[str, float]]], tmp_path: Path) -> None:
    data, expected = reference
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([newer_python(), "-m", "venv", str(tmp_path / "venv")], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements(jax)]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    program = "import importlib.util as u, jax; print(jax.__version__, u.find_spec('tensorflow'), u.find_spec('seqio'))"
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert found[0].startswith(f"{jax}.")
    assert found[1:] == ["None", "None"]

    for steps in (STEPS, MORE_STEPS):
        train(python, tmp_path / "run", data, steps)
    lines = runs.metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, MORE_STEPS + 1))
    assert [line["batch_digest"] for line in lines] == [line["batch_digest"] for line in expected]
    # Compilers may order sums differently; 25 steps let that grow a little.
    np.testing.assert_allclose([m["loss"] for m in lines], [m["loss"] for m in expected], rtol=1e-4)
    assert lines[-1]["loss"] < lines[0]["loss"]
    evaluated = "eval/span_corruption/loss"
    assert lines[-1][evaluated] == pytest.approx(expected[-1][evaluated], rel=1e-4)
