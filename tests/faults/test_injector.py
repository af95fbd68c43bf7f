"""The injector does what the other tests here rely on, and the product has no way to set it off."""

from __future__ import annotations

import re

import pytest

from deltalm_jax import fault_points
from tests.faults import injector
from tests.support.runs import ROOT


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    fault_points.install(None)


def test_a_fault_happens_once_where_it_is_due():
    injector.install([injector.Fault.parse("raise@0:7:step"), injector.Fault.parse("full@*:*:save/record")])
    fault_points.reached("step", 6)
    fault_points.reached("batch", 7)
    with pytest.raises(RuntimeError, match="injected"):
        fault_points.reached("step", 7)
    fault_points.reached("step", 7)
    with pytest.raises(OSError, match="No space left"):
        fault_points.reached("save/record", 1)


@pytest.mark.parametrize("text", ["burn@0:1:step", "kill@0:1:nowhere", "kill@0:1"])
def test_a_misspelt_fault_is_refused(text):
    with pytest.raises(ValueError, match=r"expected KIND@PROCESS:STEP:POINT|not enough values"):
        injector.Fault.parse(text)


def test_every_point_is_in_the_code_and_every_one_of_the_code_is_listed():
    text = "".join(path.read_text() for path in (ROOT / "deltalm_jax").rglob("*.py") if path.name != "fault_points.py")
    assert set(re.findall(r'\breached\("([a-z/]+)"', text)) == set(fault_points.POINTS)


def test_only_tests_install_faults():
    for path in (ROOT / "deltalm_jax").rglob("*.py"):
        assert "fault_points.install" not in path.read_text(), path
