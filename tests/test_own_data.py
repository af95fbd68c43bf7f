"""docs/own_data.md, as it stands: its files are written, its commands run, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deltalm_jax.data.chunks import PreparedData
from tests.support import runs

GUIDE = runs.ROOT / "docs" / "own_data.md"


@pytest.fixture(scope="module")
def blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # Twenty steps: compiled quickly rather than well.
    env = runs.environment() | {"PATH": path, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        ["bash", "-e", "-c", text], cwd=folder, env=env, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_the_guide_works_as_it_stands(blocks: list[tuple[str, str]], tmp_path: Path) -> None:
    for language, text in blocks:
        if language != "sh":
            name = re.match(r"# (\S+\.\w+)\n", text)
            assert name, text
            (tmp_path / name[1]).write_text(text)
    commands = [text for language, text in blocks if language == "sh"]
    assert len(commands) == 3
    outputs = []
    for text in commands:
        done = shell(text, tmp_path)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout + done.stderr)
    assert len(runs.metrics(tmp_path / "runs" / "my_experiment")) == 20
    assert "done: step 20 of 20" in outputs[1]

    data = PreparedData.open(tmp_path / "prepared" / "my_experiment")
    assert [task.name for task in data.tasks] == ["cc100_sw", "my_pairs", "my_stories"]
    for task in data.tasks[1:]:
        assert sum(split.units for split in task.splits.values()) == 300
        assert task.groups == {"script": "Latn", "resource_level": "medium"}
    (tmp_path / "my_tasks.py").write_text("raise SystemExit('it was imported')")
    done = shell(commands[1].rstrip() + " --gin.TrainConfig.steps=21", tmp_path)
    assert "done: step 21 of 21" in done.stdout, "training goes by the prepared data alone"

    by_itself = PreparedData.open(tmp_path / "prepared" / "by_itself")
    assert by_itself.manifest["digest"] == data.manifest["digest"], "the same, with two workers"


def test_a_configuration_may_not_name_just_any_module(blocks: list[tuple[str, str]], tmp_path: Path) -> None:
    (gin,) = (text for language, text in blocks if language == "gin")
    (tmp_path / "my_experiment.gin").write_text(gin)
    (tmp_path / "my_tasks.py").write_text("raise SystemExit('it ran')")
    done = shell("python -m deltalm_jax.train --gin_file=my_experiment.gin", tmp_path)
    assert done.returncode == 2
    assert "my_experiment.gin:4: DataConfig.task_module: a configuration may import only" in done.stderr
    assert "add --allow_import=my_tasks" in done.stderr
    assert "it ran" not in done.stderr
