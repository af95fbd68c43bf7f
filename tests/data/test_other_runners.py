"""Beam's Dask runner, really run; and the flags of the runners that are only documented."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from deltalm_jax.data.blocks import Input
from deltalm_jax.data.other_runners import pipeline_flags
from deltalm_jax.data.preparation import PreparationError, prepare
from deltalm_jax.data.vocabulary import Vocabulary
from tests.data.test_restart import ROOT, SAMPLE_VOCABULARY, files_of, make_input, read_lines


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two worker processes on this machine; its flag for Beam."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "distributed.cli.dask_"]
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    worker = [*program[:-1], program[-1] + "worker", *common, "--nthreads", "1", "--no-nanny"]
    commands = [
        [
            *program[:-1],
            program[-1] + "scheduler",
            *common,
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--dashboard-address",
            "127.0.0.1:0",
        ],
        [*worker, "--name", "first", "--local-directory", str(folder)],
        [*worker, "--name", "second", "--local-directory", str(folder)],
    ]
    with (folder / "log").open("wb") as log:
        processes = [
            subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log) for command in commands
        ]
    try:
        deadline = time.monotonic() + 60
        # A client waits for workers for ever, so they must be there before.
        while (folder / "log").read_text().count("Registered to") < 2:
            assert all(process.poll() is None for process in processes), (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"--dask_scheduler_file={file}"
    finally:
        for process in processes[::-1]:
            process.kill()
        for process in processes:
            process.wait()


def run(inputs: list[Input], output: Path, **changes: Any) -> None:
    settings: dict[str, Any] = dict(
        mixture="toy", chunk_length=32, validation_fraction=0.1, block_bytes=400, blocks_per_shard=2
    )
    prepare(inputs, Vocabulary.load(SAMPLE_VOCABULARY), output, **{**settings, **changes})


def test_dask_gives_the_bytes_of_the_local_runner(dask_cluster: str, tmp_path: Path) -> None:
    source = make_input(tmp_path, files=6)
    run([source], tmp_path / "local")
    (tmp_path / "log").unlink()
    run([source], tmp_path / "dask", runner="DaskRunner", beam_options=[dask_cluster])
    assert files_of(tmp_path / "dask") == files_of(tmp_path / "local")
    assert sorted((tmp_path / "log").read_text().split()) == [f"text{number}" for number in range(6)]
    # An error on a worker is one line here, and costs nothing of what the others have done.
    (tmp_path / "bad").write_text("?\n")
    bad = Input("toy_xx", "span_corruption", "xx", read_lines, (tmp_path / "bad",))
    with pytest.raises(PreparationError) as caught:
        run([bad], tmp_path / "broken", runner="DaskRunner", beam_options=[dask_cluster])
    assert str(caught.value) == f"task toy_xx: {tmp_path / 'bad'}: damaged"


def test_a_part_is_a_task_of_dasks() -> None:
    assert pipeline_flags("DaskRunner", ["--x"]) == ["--x", "--dask_partition_size=1"]
    assert pipeline_flags("DaskRunner", ["--dask_npartitions=9"]) == ["--dask_npartitions=9"]
    assert pipeline_flags("DataflowRunner", []) == []


def documented_options() -> list[tuple[str, list[str]]]:
    """(runner, flags) of every command in docs/scale.md that has both."""
    text = (ROOT / "docs" / "scale.md").read_text().replace("\\\n", " ")
    found = []
    for command in re.findall(r"^python -m deltalm_jax\.prepare .*$", text, re.MULTILINE):
        runner = re.search(r"--runner=(\S+)", command)
        options = re.search(r'--beam_options="([^"]*)"', command)
        if runner and options:
            found.append((runner[1], options[1].split()))
    return found


def known_flags() -> set[str]:
    """The flags of all of Beam's option classes."""
    import apache_beam.runners.dask.dask_runner  # noqa: F401  (brings its own)

    found: set[str] = set()
    classes = [PipelineOptions]
    while classes:
        options = classes.pop()
        classes += options.__subclasses__()
        parser = argparse.ArgumentParser(add_help=False)
        options._add_argparse_args(parser)
        found.update(name for action in parser._actions for name in action.option_strings)
    return found


def test_documented_options_are_options_of_beam() -> None:
    """Beam ignores flags that it does not know."""
    commands, known = documented_options(), known_flags()
    assert {"DaskRunner", "DataflowRunner", "FlinkRunner", "SparkRunner"} <= {runner for runner, _ in commands}
    for runner, flags in commands:
        assert [flag for flag in flags if flag.split("=")[0] not in known] == [], runner
        PipelineOptions(pipeline_flags(runner, flags)).get_all_options()  # their values can be read
