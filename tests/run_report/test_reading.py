"""A run's folder read: what is there, what is damaged, what is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from deltalm_jax.run_report.names import names_of
from deltalm_jax.run_report.reading import ReportError, read_run
from tests.support.run_folders import add_checkpoint, add_rewind, add_start, line, make_run, validation


def test_all_numbers_of_all_lines(tmp_path: Path) -> None:
    lines = [line(step, **(validation(step) if step == 4 else {})) for step in range(1, 6)]
    lines[2] |= {"loss": math.nan, "grad_norm": math.inf, "skipped": 1}
    run = read_run(make_run(tmp_path / "run", lines), "run")
    assert run.notes == []
    keys = {key for one in lines for key, value in one.items() if isinstance(value, int | float)} - {"step"}
    assert set(run.series) == keys
    for key, series in run.series.items():
        wanted = [(one["step"], one[key]) for one in lines if key in one]
        assert series.steps_N.tolist() == [step for step, _ in wanted]
        assert series.values_N.tolist() == pytest.approx([value for _, value in wanted], abs=0, rel=0, nan_ok=True)
    assert run.texts["mfu_reason"] == "no peak known for float32 products"


def test_a_half_written_last_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [line(step) for step in range(1, 4)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 4.2')
    run = read_run(folder, "run")
    assert run.series["loss"].steps_N.tolist() == [1, 2, 3]
    (note,) = run.notes
    assert "last line is half written" in note


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [line(step) for step in range(1, 9)])
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1], lines[3], lines[5] = b"\xff\x00 nothing", b'{"step": "four", "loss": 1.0}', b"[" * 100_000
    path.write_bytes(b"\n".join(lines) + b"\n")
    run = read_run(folder, "run")
    assert run.series["loss"].steps_N.tolist() == [1, 3, 5, 7, 8]
    (note,) = run.notes
    assert note == "metrics.jsonl: 3 damaged lines left out: 2, 4, 6"


def test_what_is_strange_is_noted_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [line(1), line(3), line(2, odd=[1, 2])])
    (folder / "config.json").write_text("{")
    (folder / "data.json").write_text("[]")
    add_checkpoint(folder, 2)
    (folder / "checkpoints" / "2" / "record.json").write_text("{}")
    run = read_run(folder, "run")
    assert run.series["loss"].steps_N.tolist() == [1, 3, 2]
    told = "\n".join(run.notes)
    for words in (
        "the step does not grow at 1 line;",
        "odd",
        "config.json is damaged",
        "data.json is no JSON object",
        "Checkpoint 2",
    ):
        assert words in told
    assert [point.step for point in run.checkpoints] == [2]


def test_without_numbers(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [])
    assert read_run(folder, "run").notes == ["metrics.jsonl holds no numbers"]
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder, "run")
    assert run.notes == ["There is no metrics.jsonl yet"]
    assert run.values["TrainConfig.steps"] == 1000


def test_starts_and_rewinds(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [line(step) for step in range(1, 31)])
    for step, second in ((0, 1_800_000_000), (10, 1_800_000_600), (20, 1_800_001_200)):
        add_start(folder, step, second)
    add_rewind(folder, 27, 99.5, 20, 1_800_001_800)
    add_checkpoint(folder, 20)
    run = read_run(folder, "run")
    assert [(start.step, start.when) for start in run.starts] == [
        (0, "2027-01-15 08:00 UTC"),
        (10, "2027-01-15 08:10 UTC"),
        (20, "2027-01-15 08:20 UTC"),
    ], "a rewind is no start"
    assert [(r["step"], r["loss"], r["back_to"]) for r in run.rewinds] == [(27, 99.5, 20)]
    assert [(point.step, point.written) for point in run.checkpoints] == [(20, "2026-01-02T03:04:05Z")]
    assert run.notes == []


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="absent: there is no such folder"):
        read_run(tmp_path / "absent", "absent")
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="file: is a file: name a run's directory"):
        read_run(tmp_path / "file", "file")
    (tmp_path / "other").mkdir()
    with pytest.raises(ReportError, match="is no run: it has neither metrics.jsonl nor config.json"):
        read_run(tmp_path / "other", "other")


def test_an_integer_beyond_all_floats(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [line(1)])
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 10**400}) + "\n")
    assert read_run(folder, "run").series["loss"].last == math.inf


def test_names() -> None:
    assert names_of([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert names_of([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    assert names_of([Path("/run"), Path("/a/run")]) == ["run", "a/run"]
    with pytest.raises(ReportError, match="given twice"):
        names_of([Path("/a/one"), Path("/a/one/")])
