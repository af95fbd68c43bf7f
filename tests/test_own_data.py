"""docs/own_data.md, as it stands: its files are written, its commands run, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.prepared import prepare_command
from tests.support import runs

GUIDE = runs.ROOT / "docs" / "own_data.md"


@pytest.fixture(scope="module")
def blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def start(text: str, folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # The second run finds what the first one compiled.
    env = runs.environment() | {"PATH": path}
    return subprocess.Popen(
        ["bash", "-e", "-c", text], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process: subprocess.Popen[str]) -> str:
    try:
        printed, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, f"{process.args}\n{printed}"
    return printed


def test_the_guide_works_as_it_stands(
    blocks: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for language, text in blocks:
        if language != "sh":
            name = re.match(r"# (\S+\.\w+)\n", text)
            assert name, text
            (tmp_path / name[1]).write_text(text)
    make_folder, train, describe, make_data, prepare, train_tasks = (
        text for language, text in blocks if language == "sh"
    )
    end(start(make_folder, tmp_path))
    end(start(make_data, tmp_path))
    # The preparation of the second half needs the first half's folder alone.
    preparing, training = start(prepare, tmp_path), start(train, tmp_path)
    end(preparing)
    assert "done: step 10 of 10" in end(training)
    assert len(runs.metrics(tmp_path / "runs" / "my_experiment")) == 10

    data = PreparedData.open(tmp_path / "prepared" / "my_experiment")
    units = {task.name: sum(split.units for split in task.splits.values()) for task in data.tasks}
    assert units == {"text_sw": 400, "parallel_sw": 200}
    assert [task.language for task in data.tasks] == ["sw", "sw"]

    data = PreparedData.open(tmp_path / "prepared" / "my_tasks")
    units = {task.name: sum(split.units for split in task.splits.values()) for task in data.tasks}
    assert units == {"my_pairs": 300, "my_stories": 300, "text_sw": 400}
    for task in data.tasks:
        assert task.groups == {"script": "Latn", "resource_level": "medium"}
    # Training would prepare by the same command.
    monkeypatch.chdir(tmp_path)
    own = prepare_command(
        load(["my_experiment.gin", "my_tasks.gin"], allow_imports=["my_tasks"]), Path("prepared/my_tasks")
    )
    assert {*shlex.split(prepare.replace("\\\n", ""))[3:]} - {"--num_workers=2"} == {*own[3:]}
    # It goes by the prepared data alone.
    (tmp_path / "my_tasks.py").write_text("raise SystemExit('it was imported')")
    describing, training = start(describe, tmp_path), start(train_tasks, tmp_path)
    assert "text_sw, chunk" in end(describing)
    assert "<svg" in (tmp_path / "my_experiment.html").read_text()
    assert "done: step 10 of 10" in end(training)


def test_the_configuration_in_earnest_is_one(tmp_path: Path) -> None:
    told = GUIDE.read_text(encoding="utf-8").split("In earnest")[1].split("Validation text")[0]
    lines = re.findall(r"^    (.*)$", told, re.MULTILINE)
    (tmp_path / "mine.gin").write_text("\n".join(lines))
    config = load([str(tmp_path / "mine.gin")])
    assert config.data.max_epochs == {"span_corruption": 8.0, "translation_span_corruption": 8.0}
    assert (config.train.init_from, config.optimizer.decay_steps) == ("models/start", 20000)


def test_a_configuration_may_not_name_just_any_module(blocks: list[tuple[str, str]], tmp_path: Path) -> None:
    for language, text in blocks:
        if language == "gin":
            (tmp_path / text.split()[1]).write_text(text)
    (tmp_path / "my_tasks.py").write_text("raise SystemExit('it ran')")
    process = start("python -m deltalm_jax.train --gin_file=my_experiment.gin --gin_file=my_tasks.gin", tmp_path)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "my_tasks.gin:2: DataConfig.task_module: a configuration may import only" in printed
    assert "add --allow_import=my_tasks" in printed
    assert "it ran" not in printed
