"""The loop around the step, with a step that does nothing: what the host waits for, and when."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from deltalm_jax.training import loop
from deltalm_jax.training.gin_files import load
from tests.support import runs
from tests.support.toy_data import write_toy_data

STEPS = 6


class Watched:
    """A number of a step's metrics that says when the host reads it, however it does: all ways lead to `__array__`."""

    def __init__(self, value: np.ndarray, step: int, events: list[tuple[str, int]]):
        self._value, self._step, self._events = value, step, events

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self._events.append(("read", self._step))
        return np.asarray(self._value, dtype)

    def __float__(self) -> float:
        return float(np.asarray(self))

    def __int__(self) -> int:
        return int(np.asarray(self))

    def block_until_ready(self) -> Watched:
        self._events.append(("waited for", self._step))
        return self


@pytest.fixture
def events(tmp_path, monkeypatch) -> list[tuple[str, int]]:
    """What happens in a run of `STEPS` steps, in order."""
    events: list[tuple[str, int]] = []

    def make_train_step(*_, **__):
        def step(state, batch):
            number = 1 + sum(what == "begun" for what, _ in events)
            events.append(("begun", number))
            names = [f"{kind}/{group}" for kind in ("input_tokens", "target_tokens", "loss") for group in batch]
            names += ["loss", "input_tokens", "target_tokens", "padding_share", "grad_norm", "learning_rate"]
            metrics = {name: Watched(np.float32(1.0), number, events) for name in names}
            metrics |= {name: Watched(np.int32(0), number, events) for name in ("skipped", "skipped_in_a_row")}
            return state, metrics | {"batch_digest": Watched(np.zeros(2, np.uint32), number, events)}

        return step

    def initial_state(model, optimizer, seed, mesh, contrast=None):  # zeros: nothing to compile
        shapes = loop.abstract_state(model, optimizer, mesh)
        return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), shapes)

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    monkeypatch.setattr(loop, "initial_state", initial_state)
    # The last of these steps is not the run's, which would be validated.
    bindings = [f"TrainConfig.stop_at_step={STEPS}", "TrainConfig.eval_every=0", "TrainConfig.checkpoint_every=1000"]
    bindings += ["TrainConfig.compilation_cache=False", "TrainConfig.tensorboard=False"]
    prepared = write_toy_data(tmp_path / "data", runs.TOY_TASKS)
    assert loop.train(load(["pretrain_tiny.gin"], [*runs.SMALL, *bindings]), prepared, tmp_path / "run") == 0
    return events


def test_no_step_is_read_before_the_next_has_begun(events):
    """But for the first, whose end is reported, and the last, which has no next."""
    assert [step for what, step in events if what == "begun"] == list(range(1, STEPS + 1))
    for step in range(1, STEPS):
        first_read = events.index(("read", step))
        assert events.index(("begun", step + 1)) < first_read
        if step + 2 <= STEPS:
            assert first_read < events.index(("begun", step + 2)), "one step late, no more"
    assert ("read", STEPS) in events
    assert {step for what, step in events if what == "waited for"} == {1}


def test_a_step_is_given_nothing_that_is_still_on_the_host():
    """What the loop's guard around the step refuses: an argument that would have to be copied there first."""
    double = jax.jit(lambda x: 2 * x)
    with jax.transfer_guard("disallow"):
        double(jax.device_put(np.ones(3)))
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            double(np.ones(3))
