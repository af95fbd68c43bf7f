"""docs/contributing.md: the worked example of an objective goes all the way from chunks to the shapes of a step."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import numpy as np
import pytest

from deltalm_jax import objectives
from deltalm_jax.training import data_config, gin_files
from tests.support.runs import ROOT


@pytest.fixture
def blocks() -> dict[str, str]:
    """The page's blocks of code, by language."""
    page = (ROOT / "docs" / "contributing.md").read_text()
    return {language: text for language, text in re.findall(r"```(python|gin)\n(.*?)```", page, re.DOTALL)}


@pytest.fixture
def continuation(blocks: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> type:
    """The page's class, named where it says that it is to be named."""
    module = types.ModuleType("continuation")
    monkeypatch.setitem(sys.modules, "continuation", module)  # dataclasses look their module up
    exec(compile(blocks["python"], "docs/contributing.md", "exec"), module.__dict__)
    make = objectives.make_objective

    def make_objective(name: str, **settings: Any) -> objectives.Corruption:
        return module.Continuation() if name == "continuation" else make(name, **settings)

    monkeypatch.setitem(objectives.OBJECTIVES, "continuation", module.Continuation)
    monkeypatch.setattr(data_config, "make_objective", make_objective)
    return module.Continuation


def test_what_comes_out_holds_what_went_in(continuation: type) -> None:
    lengths = np.array([12, 11, 2, 1, 0])
    tokens = np.where(np.arange(12) < lengths[:, None], np.arange(4, 16), 777)
    made = continuation().corrupt(tokens, lengths, np.zeros(5, np.uint64), 0, 0)
    assert (made.inputs_BS.shape[1], made.targets_BT.shape[1]) == continuation().lengths(12)
    for row, length in enumerate([12, 11, 2, 0, 0]):
        joined = [*made.inputs_BS[row], *made.targets_BT[row]]
        assert [i for i in joined if i] == list(tokens[row, :length])


def test_it_has_all_that_other_objectives_have(continuation: type) -> None:
    wanted = {name for name in vars(objectives.SequenceToSequence) if not name.startswith("_")}
    fields = {"source_length", "target_length"}
    assert wanted - fields <= set(dir(continuation))


def test_the_experiment_has_a_third_group(
    blocks: dict[str, str], continuation: type, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.gin").write_text(blocks["gin"])
    config = gin_files.load([str(tmp_path / "mine.gin")])
    assert config.step_shapes()["continuation"] == (8, 64, 64)
    assert isinstance(config.objectives()["continuation"].corruption, continuation)
