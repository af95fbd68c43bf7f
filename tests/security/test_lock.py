"""`requirements.lock` is of the versions that are tested, has a hash for each file, and names no place to get them from."""

from __future__ import annotations

import configparser
import re

import pytest

from tests.support.runs import ROOT

PIN = re.compile(
    r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)((?: ; [^\\\n]+)?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def lock() -> str:
    return (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def requirements() -> dict[str, list[str]]:
    """Requirements of setup.cfg, by extra; "" is the project itself."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    found = {"": parser["options"]["install_requires"]} | dict(parser["options.extras_require"])
    return {extra: [line for line in lines.strip().splitlines() if line] for extra, lines in found.items()}


def pins(text: str) -> dict[str, str]:
    return {normal(m[1]): m[2] for m in re.finditer(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", text, re.MULTILINE)}


def test_every_pin_is_that_of_the_constraints(lock):
    constraints = pins((ROOT / "constraints.txt").read_text())
    locked = pins(lock)
    assert len(locked) > 100
    assert {
        name: (version, constraints.get(name)) for name, version in locked.items() if constraints.get(name) != version
    } == {}


def test_all_that_is_asked_for_is_locked(lock, requirements):
    names = {normal(re.split(r"[ <>=\[]", line)[0]) for extra in ("", "test", "lint") for line in requirements[extra]}
    assert len(names) > 25
    assert names - pins(lock).keys() == set()


def test_every_line_is_a_pin_with_hashes(lock):
    comments = "".join(line for line in lock.splitlines(keepends=True) if line.startswith("#"))
    rest = PIN.sub("", lock.replace(comments, "", 1))
    assert rest == "", "no index, no URL, no option, nothing without a hash"
    assert len(PIN.findall(lock)) == len(pins(lock))
    assert "://" not in lock


def test_no_requirement_is_a_url(requirements):
    lines = [line for group in requirements.values() for line in group]
    assert len(lines) > 30
    assert [line for line in lines if "@" in line or "://" in line] == []
