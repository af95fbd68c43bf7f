"""What is done with the study's results, and the study itself, at the smallest size."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from benchmarks.evidence.plots import curves
from benchmarks.evidence.study import differences
from benchmarks.evidence.tables import last, mean_and_spread, print_tables
from benchmarks.evidence.variants import COMPARISONS, VARIANTS


def row(level, seconds=1.0):
    """A run's numbers around `level`."""
    pretraining = {
        "span_corruption": {"25": level + 1, "100": level},
        "translation_span_corruption": {"25": 9.0, "100": 8.0},
    }
    scores = {"de-en": {"bleu": 1.0, "chrf++": 10.0}, "en-de": {"bleu": 3.0, "chrf++": 20.0}}
    return {"pretraining": pretraining, "step_seconds": seconds, "finetuning": {"loss": {"7": level}}, "scores": scores}


@pytest.fixture
def results():
    runs = {name: {"0": row(5.0), "1": row(6.0, 3.0)} for name in VARIANTS}
    for of_seed in runs["no_pretraining"].values():
        of_seed |= {"pretraining": {}, "step_seconds": None}
    return {"settings": {"steps": 100}, "runs": runs}


def test_every_variant_is_part_of_a_comparison_that_begins_with_deltalm():
    assert {name for names in COMPARISONS.values() for name in names} == set(VARIANTS)
    assert {names[0] for names in COMPARISONS.values()} == {"interleaved"}


def test_the_tables_are_means_and_spreads_of_the_last_step(results, capsys):
    print_tables(results)
    printed = capsys.readouterr().out
    cells = "| 5.50 ± 0.71 | 8.00 ± 0.00 | 5.50 ± 0.71 | 15.00 ± 0.00 | 2.00 ± 0.00 | 1.00 |"
    assert f"| {VARIANTS['interleaved'].title} {cells}\n" in printed
    assert f"| {VARIANTS['no_pretraining'].title} | – | – | 5.50 ± 0.71 |" in printed
    for of_seed in (of_seed for runs in results["runs"].values() for of_seed in runs.values()):
        of_seed["scores"] = {}
    print_tables(results)
    assert "chrF++" not in capsys.readouterr().out
    assert last({"9": 1.0, "100": 2.0}) == 2.0  # steps are numbers
    assert (mean_and_spread([None]), mean_and_spread([30.04])) == ("–", "30.0")


def test_a_number_that_changed_is_named_and_a_time_is_not(results):
    again = copy.deepcopy(results)
    again["runs"]["random"]["0"]["step_seconds"] = 7.0
    del again["runs"]["random"]["1"]  # what only one of them has is no difference
    assert differences(again, results) == []
    again["runs"]["random"]["0"]["finetuning"]["loss"]["7"] = 5.25
    assert differences(again, results) == ["/runs/random/0/finetuning/loss/7: 5.0 before, 5.25 now"]


def test_the_pictures_show_every_variant(results, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results))
    command = ["benchmarks.evidence.plots", str(tmp_path / "results.json"), f"--output={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, lines in (("initialisation.svg", 4 * 4), ("finetuning.svg", 4 + 5)):
        drawn = (tmp_path / name).read_text()
        xml.etree.ElementTree.fromstring(drawn)
        # Of every curve its band.
        assert drawn.count('id="FillBetweenPolyCollection_') == lines
    assert curves(results["runs"]["random"], "pretraining", "span_corruption") == {25: [6.0, 7.0], 100: [5.0, 6.0]}


def test_an_unknown_variant_is_refused_before_anything_is_done(tmp_path):
    command = ["benchmarks.evidence.study", "--only=interleavd", f"--output={tmp_path / 'study'}"]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown variants interleavd; there are interleaved, vanilla_random" in done.stderr
    assert not (tmp_path / "study").exists()
