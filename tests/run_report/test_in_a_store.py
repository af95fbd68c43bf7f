"""A run in a bucket has the page that it has on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltalm_jax import report
from tests.support.bucket_server import bucket_for_all
from tests.support.run_folders import Page, add_checkpoint, add_rewind, add_start, line, make_run, validation


def page_of(run_dir: str, output: Path) -> Page:
    assert report.main([run_dir, f"--output={output}"]) == 0
    return Page(output.read_text("utf-8"))


def test_it_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", [line(s, **(validation(s) if s % 5 == 0 else {})) for s in range(1, 21)])
    for number, step in enumerate((0, 10)):
        add_start(folder, step, 1_800_000_000 + number)
    add_rewind(folder, 17, 99.5, 15, 1_800_000_002)
    add_checkpoint(folder, 10)
    with bucket_for_all("bucket-of-tests") as store:
        for path in folder.rglob("*"):
            if path.is_file():
                store[f"runs/{path.relative_to(tmp_path).as_posix()}"] = path.read_bytes()
        far = page_of("gs://bucket-of-tests/runs/run", tmp_path / "far.html")
        assert report.main(["gs://bucket-of-tests/runs/other"]) == 2
        assert "there is no such folder" in capsys.readouterr().err
        assert store.requests == [], "nothing is written to it"
    near = page_of(str(folder), tmp_path / "near.html")
    assert far.charts == near.charts
    marks = far.charts["Loss", "All objectives together"]["data"]
    assert {trace["marker"]["symbol"] for trace in marks if trace["meta"]["part"] == "mark"} == {
        "triangle-up",
        "diamond",
        "star",
    }
    assert "gs://bucket-of-tests/runs/run" in far.words
