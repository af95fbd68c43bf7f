"""What docs/security.md refers to is there."""

from __future__ import annotations

import re

import pytest

from deltalm_jax.redaction import REDACTED
from tests.support.runs import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_promise_has_a_test_that_is_there():
    table = PAGE.split("## Promises")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 12
    for promise, _, tests in rows:
        paths = re.findall(r"`([\w/]+\.py)`", tests)
        assert paths, promise
        for path in paths:
            assert (ROOT / "tests" / path).is_file(), (promise, path)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", PAGE))))
def test_targets_are_in_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_words_are_those_of_the_code():
    source = "".join(path.read_text() for path in (ROOT / "deltalm_jax").rglob("*.py"))
    for word in ("--allow_import", "JAX_COORDINATOR_BIND_ADDRESS", "task_module", "language_identifier", REDACTED):
        assert word in PAGE
        assert word in source
