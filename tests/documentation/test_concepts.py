"""docs/concepts.md: the worked example prints what the page says it does."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from tests.support.runs import ROOT


def test_the_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "concepts.md").read_text()
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert found
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(found[1], "docs/concepts.md", "exec"), {})
    assert printed.getvalue() == found[2]
