"""docs/first_steps.ipynb: it runs to its end in an empty folder, and is stored with what it prints.

After a change, `python -m tests.documentation.test_notebook` runs it and stores what it prints.
"""

from __future__ import annotations

import copy
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from jupyter_client import AsyncKernelManager

from tests.support import runs

PATH = runs.ROOT / "docs" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(PATH, as_version=4)


@pytest.fixture
def short_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: Any, stream: str = "stdout") -> str:
    """What a cell printed."""
    return "".join(output.text for output in cell.outputs if output.get("name") == stream)


def test_it_is_stored_as_it_ran(stored: Any) -> None:
    nbformat.validate(stored)
    cells = code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it from top to bottom"
    assert all(cell.outputs for cell in cells)
    assert [said(cell, "stderr") for cell in cells if said(cell, "stderr")] == []
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_it_is_small_and_says_nothing_of_the_machine_that_ran_it(stored: Any) -> None:
    assert PATH.stat().st_size < 300_000
    printed = "".join(said(cell) for cell in code_cells(stored))
    assert re.findall(r"(?<![\w.<])/[\w.-]+/[\w./-]*", printed) == [], "paths of a machine"
    assert not any("execution" in cell.metadata for cell in stored.cells), "times of a machine"


def execute(notebook: Any, folder: Path, sockets: str) -> None:
    """Runs all cells in a folder. The kernel is spoken to by files in `sockets`, a short path: no port listens."""
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
    # A kernel that this user has installed by the same name may be of another environment.
    manager.kernel_spec.argv[0] = sys.executable
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        notebook, km=manager, timeout=600, coalesce_streams=True, record_timing=False, resources=resources
    )
    client.execute()


def test_it_runs(stored: Any, tmp_path: Path, short_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"JUPYTER_RUNTIME_DIR": short_folder}
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "TMPDIR", "empty"):
        (tmp_path / name).mkdir()
        folders[name] = str(tmp_path / name)
    for name, value in (runs.environment() | folders).items():
        monkeypatch.setenv(name, value)
    fresh = nbformat.from_dict(copy.deepcopy(stored))
    execute(fresh, tmp_path / "empty", short_folder)
    assert list((tmp_path / "empty").iterdir()) == [], "all it writes is in a folder of its own"
    pairs = list(zip(code_cells(stored), code_cells(fresh), strict=True))
    for before, after in pairs:
        assert [output.output_type for output in before.outputs] == [output.output_type for output in after.outputs]
        assert said(after, "stderr") == ""
    # From the training on, numbers differ a little from one kind of processor to another.
    untrained = list(itertools.takewhile(lambda pair: "run(" not in pair[0].source, pairs))
    assert 5 < len(untrained) < len(pairs)
    for before, after in untrained:
        assert said(before) == said(after)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/tmp") as work:
        written = nbformat.read(PATH, as_version=4)
        execute(written, Path(work), work)
        written.metadata["language_info"] = {"name": "python"}  # without the version that ran it
        nbformat.write(written, PATH)
