"""The optimizer against Adam written out in NumPy, and the schedule at its corners."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltalm_jax.training.optimizer import OptimizerConfig, decay_mask, learning_rate, make_optimizer

CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=4, decay_steps=12, weight_decay=0.1, gradient_clip_norm=1.0)


def test_schedule_corners():
    rates = [float(learning_rate(CONFIG, step)) for step in range(14)]
    np.testing.assert_allclose(rates[:4], [0.0025, 0.005, 0.0075, 0.01], rtol=1e-6)
    np.testing.assert_allclose(rates[7], 0.005, rtol=1e-6)  # half way down: (12 - 8) / 8
    np.testing.assert_allclose(rates[11:], [0, 0, 0], atol=1e-12)


def test_schedule_has_a_floor():
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, decay_steps=10, final_learning_rate=1e-3)
    np.testing.assert_allclose(float(learning_rate(config, 99)), 1e-3, rtol=1e-5)
    np.testing.assert_allclose(float(learning_rate(config, 4)), 1e-3 + 0.5 * 9e-3, rtol=1e-5)


def test_the_papers_schedule():
    config = OptimizerConfig()
    assert float(learning_rate(config, 9_999)) == pytest.approx(2e-4)
    assert float(learning_rate(config, 304_999)) == pytest.approx(1e-4)
    assert float(learning_rate(config, 599_999)) == 0.0


def test_updates_equal_adam_written_out():
    """Three steps of clipped Adam with decoupled decay, in float64 NumPy by the formulas of Kingma & Ba and of AdamW."""
    rng = np.random.default_rng(0)
    params = {"layer": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
    gradients = [{"layer": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}} for _ in range(3)]
    optimizer = make_optimizer(CONFIG)
    current = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(current)
    wanted = {k: v.copy() for k, v in params["layer"].items()}
    first = {k: np.zeros_like(v) for k, v in wanted.items()}
    second = {k: np.zeros_like(v) for k, v in wanted.items()}
    for t, gradient in enumerate(gradients, 1):
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, current)
        current = optax.apply_updates(current, updates)
        norm = np.sqrt(sum((g**2).sum() for g in gradient["layer"].values()))
        assert norm > 1, "clipping must be at work"
        for name, value in wanted.items():
            g = gradient["layer"][name] / norm
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            step = first[name] / (1 - 0.9**t) / (np.sqrt(second[name] / (1 - 0.999**t)) + 1e-6)
            decay = 0.1 * value if name == "kernel" else 0.0
            wanted[name] = value - [0.0025, 0.005, 0.0075][t - 1] * (step + decay)
    for name, value in wanted.items():
        np.testing.assert_allclose(current["layer"][name], value, rtol=1e-5, atol=1e-6)


def test_decay_mask_on_the_real_tree():
    from deltalm_jax.model.config import PRESETS
    from deltalm_jax.model.deltalm import init_params

    params = jax.eval_shape(lambda: init_params(PRESETS["tiny"], jax.random.key(0)))
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    decayed = {jax.tree_util.keystr(p, simple=True, separator="/").rpartition("/")[2] for p, on in mask if on}
    assert decayed == {"kernel", "token_embedding", "position_embedding"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "must be positive"),
        ({"decay_steps": 10_000}, "must lie after warmup_steps"),
        ({"beta1": 1.0}, r"must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, "must not be negative"),
    ],
)
def test_senseless_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**arguments)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"OptimizerConfig.warmup_steps must be int, found 10.5"):
        OptimizerConfig(warmup_steps=10.5)
