"""Flags of all scripts: help, mistakes, what is missing; and compiler flags."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from deltalm_jax.parallel.flags import PLATFORMS, settings
from tests.launch.stubs import LAUNCH, Stubs

SCRIPTS = ["tpu_vm.sh", "gke.sh", "slurm.sh", "local_pod.sh"]


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path / "stubs")


@pytest.mark.parametrize("script", SCRIPTS)
class TestEachScript:
    def test_help_names_every_flag_and_command(self, stubs, script):
        done = stubs.run(script, "--help")
        assert done.returncode == 0
        text = (LAUNCH / script).read_text()
        declared = " ".join(part.split(")")[0] for part in text.split("S=(")[1:4]).split()
        assert "dry_run" in declared
        missing = [f for f in declared if f"--{f}" not in done.stdout and f != "poll_seconds"]
        assert missing == []
        for command in ("run", "status", "logs", "stop"):
            assert re.search(rf"^  {command}  ", done.stdout, re.MULTILINE)

    def test_mistakes_are_named(self, stubs, script):
        for arguments, part in [
            ([], "no command is given"),
            (["--name=x"], "the command comes first"),
            (["dance", "--name=x"], "unknown command dance"),
            (["run", "--nme=x"], "unknown flag --nme=x"),
            (["run", "--name"], "its value is missing"),
            (["run", "--name=x", "gin"], "stands after --"),
        ]:
            if script == "local_pod.sh":
                arguments = [a.replace("--name", "--dir") for a in arguments]
            for name in ("gcloud", "kubectl", "squeue"):
                stubs.add(name, "")
            done = stubs.run(script, *arguments)
            assert done.returncode == 2, (arguments, done.stderr)
            assert done.stderr.startswith("error: ")
            assert part in done.stderr
            assert stubs.calls() == []


@pytest.mark.parametrize(
    ("script", "program"), [("tpu_vm.sh", "gcloud"), ("gke.sh", "kubectl"), ("slurm.sh", "squeue")]
)
def test_a_program_that_is_not_there_is_named(stubs, tmp_path, script, program):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("bash", "dirname", "id", "env"):
        (bare / name).symlink_to(shutil.which(name))
    done = stubs.run(script, "status", "--name=x", PATH=str(bare))
    assert done.returncode == 2
    assert f"{program} is not installed, or not on PATH" in done.stderr


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("tpu_vm.sh", ["--name=x", "--type=t", "--version=v"]),
        ("gke.sh", ["--name=x", "--image=i", "--accelerator=a", "--topology=2x4"]),
    ],
)
def test_a_run_directory_that_would_be_lost_is_refused(stubs, script, flags):
    stubs.add("gcloud", "")
    stubs.add("kubectl", "")
    done = stubs.run(script, "run", *flags, "--", "--gin_file=f", "--run_dir=runs/x")
    assert done.returncode == 2
    assert "--run_dir=/" in done.stderr
    assert stubs.calls() == []


@pytest.mark.parametrize("run_dir", ["/shared/run", "gs://bucket/run"])
def test_a_run_directory_that_outlives_the_workers_is_taken(stubs, run_dir):
    flags = ["--name=x", "--image=i", "--accelerator=a", "--topology=2x4"]
    done = stubs.run("gke.sh", "manifest", *flags, "--", "--gin_file=f", f"--run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    assert f"--run_dir={run_dir}" in done.stdout


class TestCompilerFlags:
    @pytest.mark.parametrize("platform", PLATFORMS)
    def test_what_is_set_already_wins(self, platform):
        variable, flags = PLATFORMS[platform]
        assert settings(platform, {}) == ({variable: " ".join(flags)} if flags else {})
        for flag in flags:
            theirs = f"--other=1 {flag.partition('=')[0]}=mine"
            words = settings(platform, {variable: theirs}).get(variable, theirs).split()
            assert [w for w in words if w.startswith(flag.partition("=")[0])] == [theirs.split()[1]]
            assert "--other=1" in words

    def test_printed_for_a_shell(self):
        run = lambda *a: subprocess.run(  # noqa: E731
            [sys.executable, "-m", "deltalm_jax.parallel.flags", *a], capture_output=True, text=True, check=False,
            env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        )  # fmt: skip
        assert run("gpu").stdout.startswith("XLA_FLAGS=--xla_gpu_")
        assert run("tpv").returncode == 2
        assert "expected one of tpu, gpu" in run("tpv").stderr

    def test_xla_knows_every_gpu_flag(self):
        """An unknown flag ends the process when XLA reads them."""
        code = "import jax; print(jax.devices())"
        for flag, fails in [(PLATFORMS["gpu"][1], False), (("--xla_gpu_no_such_flag=true",), True)]:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False,
                env=os.environ | {"XLA_FLAGS": " ".join(flag), "JAX_PLATFORMS": "cpu"},
            )  # fmt: skip
            assert (done.returncode != 0) == fails, done.stderr
