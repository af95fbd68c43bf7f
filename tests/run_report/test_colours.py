"""The colours of runs: seen on the page by day and by night, and told apart by all."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import deltalm_jax.data.description.page
from deltalm_jax.run_report.charts import COLOURS
from tests.support.colours import VISIONS, brightness, contrast, difference

STYLE = Path(deltalm_jax.data.description.page.__file__).with_name("page.css").read_text("utf-8")


def colour(name: str, mode: int) -> str:
    by_day, by_night = re.findall(rf"--{name}: (#[0-9a-f]{{6}})", STYLE)
    return (by_day, by_night)[mode]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_they_stand_out(mode: int) -> None:
    card = brightness(colour("card", mode))
    for number in range(COLOURS):
        assert contrast(brightness(colour(f"run-{number}", mode)), card) >= 3, number


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_they_are_told_apart(mode: int, vision: str) -> None:
    for one, other in itertools.combinations(range(COLOURS), 2):
        assert difference(colour(f"run-{one}", mode), colour(f"run-{other}", mode), vision) > 15, (one, other)


def test_the_oracle_knows_red_from_green_and_the_colour_blind_do_not() -> None:
    assert difference("#c04000", "#6a7000", "normal") > 50
    assert difference("#c04000", "#6a7000", "protanopia") < 25
    assert contrast(brightness("#ffffff"), brightness("rgb(0, 0, 0)")) == pytest.approx(21)
