"""`python -m deltalm_jax.report`: the page's numbers are those of the files; mistakes give one message."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from deltalm_jax import report
from tests.support.run_folders import (
    LEVELS,
    OBJECTIVES,
    SCRIPTS,
    Page,
    add_checkpoint,
    add_rewind,
    add_start,
    line,
    make_run,
    table_rows,
    traces,
    validation,
)

LOSSES = ("Loss", "Span corruption")


def page_of(tmp_path: Path, *folders: Path) -> tuple[str, Page]:
    output = tmp_path / "page.html"
    assert report.main([*map(str, folders), f"--output={output}"]) == 0
    text = output.read_text("utf-8")
    return text, Page(text)


def lines(steps: int, every: int = 10, lower: float = 0.0) -> list[dict]:
    return [line(step, **(validation(step, lower) if step % every == 0 else {})) for step in range(1, steps + 1)]


def points(trace: dict) -> list[tuple[int, float]]:
    return list(zip(trace["x"], trace["y"], strict=True))


def test_curves_are_the_numbers_of_the_file(tmp_path: Path) -> None:
    written = lines(40)
    _, page = page_of(tmp_path, make_run(tmp_path / "run", written))
    for place, key in (
        (("Loss", "All objectives together"), "loss"),
        (("Loss", "Span corruption"), "loss/span_corruption"),
        (("Loss", "Translation span corruption"), "loss/translation_span_corruption"),
        (("Learning rate and gradient", "Learning rate"), "learning_rate"),
        (("Learning rate and gradient", "Norm of the gradient"), "grad_norm"),
        (("Speed", "Tokens a second"), "tokens_per_second"),
        (("Speed", "Target tokens a second"), "target_tokens_per_second"),
        (("Speed", "Seconds a step"), "step_seconds"),
        (("Speed", "Waiting for data"), "data_wait_fraction"),
        (("Data", "Padding"), "padding_share"),
    ):
        (trace,) = traces(page.charts[place], "curve")
        wanted = [(one["step"], pytest.approx(one[key], rel=1e-6)) for one in written]
        assert points(trace) == wanted, key
    for objective, heading in zip(OBJECTIVES, ("Span corruption", "Translation span corruption"), strict=True):
        for section, part, name in (
            ("Loss", "points", "loss"),
            ("Beside a unigram predictor", "points", "text_loss"),
            ("Beside a unigram predictor", "level", "unigram_loss"),
        ):
            (trace,) = traces(page.charts[section, heading], part)
            key = f"eval/{objective}/{name}"
            assert points(trace) == [(o["step"], pytest.approx(o[key], rel=1e-6)) for o in written if key in o]
        found = traces(page.charts["By groups of languages", f"{heading}, by resource level"], "points")
        assert [trace["y"][-1] for trace in found] == [
            pytest.approx(written[-1][f"eval/{objective}/resource_level/{level}/text_loss"], rel=1e-6)
            for level in LEVELS
        ]
        (dots,) = traces(page.charts["By groups of languages", f"{heading}, by script"], "dots")
        assert dict(zip(dots["y"], dots["x"], strict=True)) == {
            script: pytest.approx(written[-1][f"eval/{objective}/script/{script}/text_loss"], rel=1e-6)
            for script in SCRIPTS
        }


def test_tables_are_what_the_files_say(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", lines(40), "TrainConfig.steps=40")
    add_checkpoint(folder, 20)
    add_checkpoint(folder, 40)
    text, page = page_of(tmp_path, folder)
    rows = table_rows(text)
    assert ["steps", "40 of 40"] in rows
    assert ["last loss", "4.1250"] in rows
    assert ["parameters", "22"] in rows
    assert ["best validation, span corruption", "5.5250 on text at step 40, 26.3 % below unigram"] in rows
    assert ["tokens a second, median", "1,020"] in rows
    assert ["time in steps", "0 min 20 s"] in rows
    assert ["checkpoints", "2: 20, 40"] in rows
    assert ["versions", "jax 0.10.2, python 3.11.7"] in rows
    assert ["cc100_sw", "100 %", "0.4", "12.5", "span corruption"] in rows
    config = json.loads((folder / "config.json").read_text())
    shown = {row[0]: row[1:] for row in rows if row and "Config." in row[0]}
    assert shown == {
        name: [json.dumps(value, ensure_ascii=False), config["origins"][name]]
        for name, value in config["values"].items()
    }
    assert shown["TrainConfig.steps"] == ["40", "command line"]
    assert "MFU is not known: no peak known for float32 products." in page.words


def test_a_number_that_has_no_place_of_its_own_is_shown_all_the_same(tmp_path: Path) -> None:
    written = [
        line(step, **{"memory/peak_bytes": 100 + step, "new/thing": 7.0 * step, "mfu": 0.3}) for step in (1, 2, 3)
    ]
    _, page = page_of(tmp_path, make_run(tmp_path / "run", written))
    assert traces(page.charts["Memory", "memory/peak_bytes"], "curve")[0]["y"] == [101, 102, 103]
    assert traces(page.charts["More", "new/thing"], "curve")[0]["y"] == [7, 14, 21]
    assert traces(page.charts["Speed", "MFU"], "curve")[0]["y"] == [0.3] * 3
    assert "MFU is not known" not in page.words


def test_a_long_run_is_thinned_and_its_spike_is_there(tmp_path: Path) -> None:
    written = [line(step) for step in range(1, 5001)]
    written[3210]["loss"] = 77.0
    text, page = page_of(tmp_path, make_run(tmp_path / "run", written))
    figure = page.charts["Loss", "All objectives together"]
    _, high = traces(figure, "band")
    assert max(high["y"]) == 77.0
    assert abs(high["x"][high["y"].index(77.0)] - 3211) < 10
    (curve,) = traces(figure, "curve")
    assert len(curve["x"]) == 500
    assert curve["y"][0] == pytest.approx(sum(one["loss"] for one in written[:10]) / 10, rel=1e-6)
    assert "a point stands for up to 10 lines" in page.words
    assert ["last loss", "4.0010"] in table_rows(text)


def test_many_validations_are_thinned_as_well(tmp_path: Path) -> None:
    written = lines(1200, every=1)
    written[777]["eval/span_corruption/loss"] = 88.0
    _, page = page_of(tmp_path, make_run(tmp_path / "run", written))
    highs = [max(trace["y"]) for trace in traces(page.charts[LOSSES], "band")]
    assert 88.0 in highs


def test_marks_lie_on_the_curve(tmp_path: Path) -> None:
    written = lines(40)
    for one in written[24:]:
        one["skipped"] = 1
    written[24]["loss"] = float("nan")
    folder = make_run(tmp_path / "run", written)
    for step in (0, 20):
        add_start(folder, step, 1_800_000_000 + step)
    add_rewind(folder, 33, 99.5, 30, 1_800_000_040)
    add_checkpoint(folder, 30)
    _, page = page_of(tmp_path, folder)
    marks = traces(page.charts["Loss", "All objectives together"], "mark")
    found = {trace["marker"]["symbol"]: (trace["x"], trace["y"], trace["text"]) for trace in marks}
    loss = {one["step"]: one["loss"] for one in written}
    for symbol, step, at, words in (
        ("triangle-up", 30, 30, "checkpoint 30"),
        ("diamond", 20, 20, "started again from step 20"),
        ("x", 25, 26, "step 25 skipped"),
        ("cross", 25, 26, "loss nan at step 25"),
        ("star", 33, 33, "loss 99.5 at step 33 (median 4.5); back to step 30"),
    ):
        steps, heights, texts = found.pop(symbol)
        assert steps == [step]
        assert heights == [pytest.approx(loss[at], rel=1e-6)]
        assert words in texts[0]
    assert not found
    assert "Not drawn: 1 value not finite." in page.words


def test_several_runs(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a" / "run", lines(40))
    other = make_run(tmp_path / "b" / "run", lines(30, lower=0.5), "OptimizerConfig.learning_rate=0.5")
    text, page = page_of(tmp_path, one, other)
    for figure in page.charts.values():
        assert {trace["meta"]["run"] for trace in figure["data"]} == {0, 1}
    for number, (folder, count) in enumerate(((one, 40), (other, 30))):
        (trace,) = traces(page.charts["Loss", "All objectives together"], "curve", number)
        assert len(trace["x"]) == count, folder
    rows = table_rows(text)
    differing = rows[rows.index(["what differs", "a/run", "b/run"]) + 1]
    assert differing == ["OptimizerConfig.learning_rate", "0.002", "0.5"]
    assert rows[rows.index(differing) + 1][0] != "OptimizerConfig.learning_rate"
    assert ["steps", "40 of 1,000", "30 of 1,000"] in rows
    same = make_run(tmp_path / "c" / "run", lines(40))
    _, page = page_of(tmp_path, one, same)
    assert "All values of the configurations are the same." in page.words
    assert "c/run is the same as a/run." in page.words


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, make_run(tmp_path / "run", lines(20)))
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "srcset", "data", "action", "poster"} & attributes.keys(), tag
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import", page.styles)
    assert text.count("plotly.js v") == 1, "the library stands in it once"


def test_what_comes_from_files_is_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "<u>run<", [line(1, **{"<script>alert(1)</script>": 1.0, "mfu_reason": "<i>&"})])
    (folder / "data.json").write_text(json.dumps({"<s>task": {"objective": "<s>", "rate": 1.0, "epochs": 2.0}}))
    _, page = page_of(tmp_path, folder)
    assert not {"u", "s"} & {tag for tag, _ in page.elements}
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert ("More", "<script>alert(1)</script>") in page.charts
    assert "MFU is not known: <i>&." in page.words


def test_notes_stand_in_the_page_and_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", lines(20))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    _, page = page_of(tmp_path, folder)
    assert "metrics.jsonl: the last line is half written" in page.words
    assert "half written" in capsys.readouterr().err
    empty = make_run(tmp_path / "empty", [])
    _, page = page_of(tmp_path, empty)
    assert not page.charts
    assert "metrics.jsonl holds no numbers" in page.words
    assert "TrainConfig.steps" in page.words


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", [line(1)])
    for arguments, words in (
        ([tmp_path / "absent"], "absent: there is no such folder"),
        ([tmp_path], "is no run"),
        ([run, run], "is given twice"),
        ([run, f"--output={tmp_path / 'no' / 'folder.html'}"], "folder.html cannot be written: No such file"),
        (["nowhere://bucket/run"], "nowhere://bucket/run: cannot be reached from here"),
    ):
        assert report.main(list(map(str, arguments))) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith("error: ")
        assert words in message
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert report.main([str(run)]) == 2
    assert capsys.readouterr().err == "error: the charts need plotly: pip install 'deltalm_jax[report]'\n"
