"""The wheel and the source distribution: what is in them, and that the wheel works from any folder without the checkout."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import deltalm_jax
from deltalm_jax.data.chunks import PreparedData
from tests.support import runs


def pip(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs pip without a network."""
    offline = [sys.executable, "-m", "pip", command, "--no-deps", "--no-index", "--quiet", *arguments]
    return subprocess.run(offline, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


# What a checkout has, but for the settings of tools (.gitignore and the like).
FOLDERS = ("benchmarks", "configs", "deltalm_jax", "docs", "launch", "tasks", "tests")
FILES = (
    "CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "constraints.txt", "pyproject.toml",
    "requirements.lock", "setup.cfg",
)  # fmt: skip


def copy_sources(source: Path) -> Path:
    """Building leaves folders beside the sources."""
    source.mkdir()
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(runs.ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(runs.ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = copy_sources(tmp_path_factory.mktemp("build") / "source")
    done = pip("wheel", "--no-build-isolation", "--wheel-dir=out", ".", cwd=source)
    assert done.returncode == 0, done.stderr
    (built,) = (source / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed") / "target"
    done = pip("install", f"--target={target}", str(wheel), cwd=target.parent)
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    tracked = {
        str(path.relative_to(runs.ROOT))
        for package in ("deltalm_jax", "tasks", "configs")
        for path in (runs.ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == tracked, "the three packages with all their files, and nothing else"
    for name in (
        "configs/pretrain_tiny.gin", "tasks/languages.csv", "tasks/sample/vocabulary.model", "tasks/sample/NOTICE",
        "tasks/sample/token_counts.json", "tasks/sample/cc100/sw.txt.xz",
        "tasks/sample/ccaligned/validation/en_XX-sw_KE.tsv.xz", "deltalm_jax/py.typed", "tasks/py.typed",
    ):  # fmt: skip
        assert name in names


def test_the_source_distribution_is_the_checkout(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    there = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    build = "from setuptools import build_meta; build_meta.build_sdist('out')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(source / "out" / f"deltalm_jax-{deltalm_jax.__version__}.tar.gz") as file:
        names = {name.partition("/")[2] for name in (member.name for member in file if member.isfile())}
    made = {name for name in names if name == "PKG-INFO" or name.startswith("deltalm_jax.egg-info/")}
    assert names - made == there


def test_what_it_says_of_itself(installed: Path) -> None:
    (file,) = installed.glob("deltalm_jax-*.dist-info/METADATA")
    # By itself, for the backport of importlib.metadata, once a library has loaded it, changes what `metadata` gives.
    found = email.message_from_string(file.read_text(encoding="utf-8"))
    assert found["Version"] == deltalm_jax.__version__
    assert found["Requires-Python"] == ">=3.11"
    assert found["License"] == "Apache-2.0"
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload() == (runs.ROOT / "README.md").read_text(encoding="utf-8")
    assert "DeltaLM" in found["Summary"]


def test_its_extras(installed: Path) -> None:
    (found,) = metadata.distributions(name="deltalm_jax", path=[str(installed)])
    assert set(found.metadata.get_all("Provides-Extra") or []) == {
        "dask",
        "docs",
        "evidence",
        "gcs",
        "gpu",
        "lint",
        "notebook",
        "report",
        "test",
        "torch",
        "tpu",
    }


def test_the_training_command_from_another_folder(installed: Path, tmp_path: Path) -> None:
    done = run(
        installed, tmp_path, sys.executable, "-m", "deltalm_jax.train", "--gin_file=pretrain_base.gin", "--dry_run"
    )
    assert done.returncode == 0, done.stderr
    assert "362,981,376 parameters" in done.stdout
    assert "the shipped sample's text and vocabulary" in done.stdout
    where = run(
        installed,
        tmp_path,
        sys.executable,
        "-c",
        "import configs, tasks.corpora as t; print(t.__file__, configs.__file__)",
    )
    assert all(path.startswith(str(installed)) for path in where.stdout.split()[-2:]), "not the checkout"


def test_the_console_scripts(installed: Path, tmp_path: Path) -> None:
    helped = run(installed, tmp_path, str(installed / "bin" / "deltalm-train"), "--help")
    assert helped.returncode == 0
    assert "--gin_file" in helped.stdout
    (tmp_path / "mine.py").write_text(
        "import seqio, tasks\nseqio.MixtureRegistry.add('mine', ['cc100_sw', 'ccaligned_sw'], default_rate=1)\n"
    )
    flags = ["--languages=sw", "--task_module=mine", "--mixture=mine", "--output=prepared"]
    done = run(installed, tmp_path, str(installed / "bin" / "deltalm-prepare"), *flags)
    assert done.returncode == 0, done.stderr
    data = PreparedData.open(tmp_path / "prepared")
    assert [task.name for task in data.tasks] == ["cc100_sw", "ccaligned_sw"]
    assert data.verify() == 5
