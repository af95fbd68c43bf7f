"""Which checkpoint is the best, that it is kept, and when a run has seen enough; a step that does nothing stands in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from deltalm_jax.training import judge, loop
from deltalm_jax.training.gin_files import ConfigError, load
from deltalm_jax.training.judge import SelectionError, make_judge
from deltalm_jax.training.selection import Best, first_best
from tests.support import runs
from tests.support.toy_data import write_toy_data


def test_the_best_is_the_greatest_score_or_the_least_loss():
    best = first_best("bleu")
    for step, value in enumerate([3.0, 5.0, 5.0, math.nan, 4.0], 1):
        best = best.after(step, value)
    assert best == Best("bleu", 2, 5.0, since=3), "an equal one is not better, nor is what is no number"
    assert best.is_enough(3)
    assert not best.is_enough(4)
    assert not best.is_enough(None)
    best = first_best("loss").after(1, math.nan).after(2, 3.0).after(3, 4.0)
    assert best == Best("loss", 2, 3.0, since=1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the loop with values of validations given; gives the last words, and the values that were asked for."""

    def make_train_step(*_, **__):
        def step(state, batch):
            names = [f"{kind}/{group}" for kind in ("input_tokens", "target_tokens", "loss") for group in batch]
            names += ["loss", "input_tokens", "target_tokens", "padding_share", "grad_norm", "learning_rate"]
            metrics = {name: np.float32(1.0) for name in names} | {"batch_digest": np.zeros(2, np.uint32)}
            metrics |= {"skipped": np.int32(0), "skipped_in_a_row": np.int32(0)}
            return state | {"step": jax.device_put(np.asarray(state["step"]) + 1)}, metrics

        return step

    def initial_state(model, optimizer, seed, mesh, contrast=None):
        shapes = loop.abstract_state(model, optimizer, mesh)
        return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), shapes)

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    monkeypatch.setattr(loop, "initial_state", initial_state)
    monkeypatch.setattr(loop, "Evaluator", lambda *_: lambda params: {})
    monkeypatch.setattr(loop, "check_counters", lambda *_: None)  # the optimizer's stands still
    prepared = write_toy_data(tmp_path / "data", runs.TOY_TASKS)

    def train(values: list[float], *bindings: str) -> None:
        told = iter(values)
        monkeypatch.setattr(judge, "make_judge", lambda *_: lambda params, evaluation: next(told))
        monkeypatch.setattr(jax, "transfer_guard", lambda _: jax.named_scope("x"))
        common = ["TrainConfig.compilation_cache=False", "TrainConfig.tensorboard=False", "TrainConfig.eval_every=1"]
        common += ["TrainConfig.checkpoint_every=100", "TrainConfig.keep_checkpoints=1", "TrainConfig.select_by='bleu'"]
        config = load(["pretrain_tiny.gin"], [*runs.SMALL, *common, *bindings])
        assert loop.train(config, prepared, tmp_path / "run") == 0
        assert not list(told), "every validation that was foreseen was made"

    return train


def saved(folder: Path) -> dict[int, dict]:
    records = {
        int(path.parent.name): json.loads(path.read_bytes()) for path in folder.glob("checkpoints/*/record.json")
    }
    return {step: record["about"]["best"] for step, record in sorted(records.items())}


def test_the_best_is_kept_and_patience_ends_the_run(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run([1.0, 4.0, 2.0, 3.0, 3.5], "TrainConfig.patience=3")
    assert saved(tmp_path / "run") == {
        2: {"step": 2, "value": 4.0, "since": 0, "by": "bleu"},
        5: {"step": 2, "value": 4.0, "since": 3, "by": "bleu"},
    }, "the best, and the last"
    words = capsys.readouterr().out
    assert "best validation: step 2, bleu 4: " in words
    assert "stopped early, none better in 3 validations" in words
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["select/bleu"] for line in lines] == [1.0, 4.0, 2.0, 3.0, 3.5]
    run([], "TrainConfig.patience=3")
    assert "nothing to do: best validation: step 2, bleu 4; none better in 3" in capsys.readouterr().out

    run([3.9, 5.0], "TrainConfig.patience=5", "TrainConfig.stop_at_step=7")
    assert list(saved(tmp_path / "run")) == [7], "a better one takes the place of the best and of the last"


def test_the_best_outlives_the_rules_of_keeping(run, tmp_path: Path):
    run([9.0, *[1.0] * 5], "TrainConfig.checkpoint_every=1", "TrainConfig.stop_at_step=6")
    assert list(saved(tmp_path / "run")) == [1, 6]


def test_what_cannot_select_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"TrainConfig.patience waits for a better validation"):
        load(["pretrain_tiny.gin"], ["TrainConfig.patience=2"])
    from deltalm_jax.data.stream import Stream

    config = load(["pretrain_tiny.gin"], runs.SMALL)
    stream = Stream(write_toy_data(tmp_path / "data", runs.TOY_TASKS), config.objectives(), 0)
    with pytest.raises(
        SelectionError, match=r"select_by is 'bleu', which is of texts that are decoded; pretraining has"
    ):
        make_judge("bleu", 5, config.model, stream, None)
    by_loss = make_judge("loss", 5, config.model, stream, None)
    losses = {"eval/span_corruption/loss": 2.0, "eval/translation_span_corruption/loss": 4.0}
    assert by_loss(None, losses) == 3.0
