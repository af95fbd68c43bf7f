"""The page in a browser, on a desk and on a phone, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalm_jax import report
from tests.support.browser import Browser, browser, find_chromium
from tests.support.colours import brightness, contrast
from tests.support.run_folders import add_checkpoint, line, make_run, validation


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine")
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them long enough to be thinned and with a loss that was not finite."""
    folder = tmp_path_factory.mktemp("runs")
    steps = {"short": 40, "long": 2100}
    for name, count in steps.items():
        lines = [line(step, **(validation(step) if step % 20 == 0 else {})) for step in range(1, count + 1)]
        lines[30]["loss"] = float("inf")
        add_checkpoint(make_run(folder / name, lines), 20)
    assert report.main([str(folder / name) for name in steps] + [f"--output={folder / 'page.html'}"]) == 0
    return folder / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_all_charts_are_drawn(tab: Browser, page: Path, width: int, scheme: str) -> None:
    tab.open(page, width, scheme)
    assert tab.complaints == []
    assert tab.requests == [page.absolute().as_uri()], "nothing else is loaded"
    widths, marks = tab.evaluate("""(() => {
        const plots = [...document.querySelectorAll('.plot')];
        return [
            plots.map((plot) => plot.querySelector('.main-svg')?.getBoundingClientRect().width ?? 0),
            plots.map((plot) => plot.querySelectorAll('.scatterlayer .js-line, .scatterlayer .point').length),
        ];
    })()""")
    assert len(widths) > 10
    assert min(widths) > 250
    assert min(marks) >= 1
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
        "the page itself does not scroll sideways"
    )
    paper, ink, first, text = tab.evaluate("""[
        getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.body).color,
        document.querySelector('.plot .js-line').style.stroke,
        document.querySelector('.plot .xtick text').style.fill,
    ]""")
    dark = scheme == "dark"
    assert (brightness(paper) < 0.1) == dark
    assert (brightness(ink) > 0.5) == dark
    assert contrast(brightness(first), brightness(paper)) >= 3
    assert contrast(brightness(text), brightness(paper)) >= 4.5


def test_a_run_is_hidden_and_colours_follow_the_mode(tab: Browser, page: Path) -> None:
    tab.open(page, 1280, "light")
    count = "document.querySelector('#chart-0').querySelectorAll('.scatterlayer .trace').length"
    before = tab.evaluate(count)
    tab.evaluate("document.querySelector('input[data-run=\"1\"]').click()")
    assert 0 < tab.evaluate(count) < before
    tab.evaluate("document.querySelector('input[data-run=\"1\"]').click()")
    assert tab.evaluate(count) == before
    assert tab.complaints == []
