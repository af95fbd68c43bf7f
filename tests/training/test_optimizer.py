"""The optimizer against Adam written out in NumPy, and the schedule at its corners."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltalm_jax.model.config import PRESETS
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.parallel.sharding import path_name
from deltalm_jax.training.optimizer import (
    OptimizerConfig,
    OptimizerError,
    decay_mask,
    learning_rate,
    learning_rate_factors,
    make_optimizer,
)

CONFIG = OptimizerConfig(
    learning_rate=1e-2, warmup_steps=4, decay_steps=12, weight_decay=0.1, gradient_clip_norm=1.0, beta1=0.8, beta2=0.95,
    epsilon=1e-3,
)  # fmt: skip


def test_schedule_corners():
    rates = [float(learning_rate(CONFIG, step)) for step in range(14)]
    np.testing.assert_allclose(rates[:4], [0.0025, 0.005, 0.0075, 0.01], rtol=1e-6)
    np.testing.assert_allclose(rates[7], 0.005, rtol=1e-6)  # half way down: (12 - 8) / 8
    np.testing.assert_allclose(rates[11:], [0, 0, 0], atol=1e-12)


def test_schedule_has_a_floor():
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, decay_steps=10, final_learning_rate=1e-3)
    np.testing.assert_allclose(float(learning_rate(config, 99)), 1e-3, rtol=1e-5)
    np.testing.assert_allclose(float(learning_rate(config, 4)), 1e-3 + 0.5 * 9e-3, rtol=1e-5)


def test_fairseqs_inverse_square_root():
    """lr · √warmup · step^-0.5 after the warm-up (fairseq's `InverseSquareRootSchedule`, updates counted from 1)."""
    config = OptimizerConfig(
        schedule="inverse_sqrt", learning_rate=1e-4, warmup_steps=4000, decay_steps=9000, final_learning_rate=1e-9
    )
    assert float(learning_rate(config, 3_999)) == pytest.approx(1e-4)
    assert float(learning_rate(config, 1_999)) == pytest.approx(0.5e-4)
    for update in (4_001, 16_000, 400_000):
        assert float(learning_rate(config, update - 1)) == pytest.approx(1e-4 * 4000**0.5 * update**-0.5, rel=1e-5)
    assert float(learning_rate(config, 10**15)) == pytest.approx(1e-9)


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
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            step = first[name] / (1 - 0.8**t) / (np.sqrt(second[name] / (1 - 0.95**t)) + 1e-3)
            decay = 0.1 * value if name == "kernel" else 0.0
            wanted[name] = value - [0.0025, 0.005, 0.0075][t - 1] * (step + decay)
    for name, value in wanted.items():
        np.testing.assert_allclose(current["layer"][name], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def tiny_shapes():
    """The parameters of the tiny model (4 encoder and 2 decoder layers), as shapes."""
    return jax.eval_shape(lambda: init_params(PRESETS["tiny"], jax.random.key(0)))


def test_decay_mask_on_the_real_tree(tiny_shapes):
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(tiny_shapes))
    decayed = {path_name(p).rpartition("/")[2] for p, on in mask if on}
    assert decayed == {"kernel", "token_embedding", "position_embedding"}


def model_like(seed=0):
    """A tree with the paths and axes that matter: stacked matrices, a bias, a table."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "token_embedding": normal(9, 6),
        "encoder": {"layers": {"query": {"kernel": normal(3, 6, 5), "bias": normal(3, 5)}}},
        "decoder": {"layers": {"query": {"kernel": normal(2, 6, 5), "bias": normal(2, 5)}}},
    }


def one_update(**options):
    """(updates, gradients, parameters) of the first step, the learning rate being 0.5 and nothing clipped."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, decay_steps=9, gradient_clip_norm=0.0, **options)
    params, gradients = model_like(0), model_like(1)
    optimizer = make_optimizer(config)
    return optimizer.update(gradients, optimizer.init(params), params)[0], gradients, params


def test_adafactor_is_optax_own():
    """`optax.adafactor` as a whole, by its own schedule and decay, over two steps; large enough to be factored."""
    rng = np.random.default_rng(0)
    params = {"layers": {"kernel": jnp.asarray(rng.normal(size=(2, 130, 140)), jnp.float32)}}
    gradients = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params) for _ in range(2)]
    config = OptimizerConfig(
        "adafactor", 0.5, warmup_steps=0, decay_steps=10**9, weight_decay=0.0, gradient_clip_norm=0.0
    )
    ours, theirs = make_optimizer(config), optax.adafactor(0.5, momentum=None)
    states = [ours.init(params), theirs.init(params)]
    moments = sum(x.size for x in jax.tree.leaves(states[0]) if x.ndim)
    assert moments < params["layers"]["kernel"].size / 10, "the second moment is factored"
    for gradient in gradients:
        mine, states[0] = ours.update(gradient, states[0], params)
        wanted, states[1] = theirs.update(gradient, states[1], params)
        np.testing.assert_allclose(mine["layers"]["kernel"], wanted["layers"]["kernel"], rtol=1e-5)


def test_muon_orthogonalises_each_layers_matrix_and_leaves_the_rest_to_adam():
    updates, gradients, _ = one_update(name="muon", weight_decay=0.0)
    adam, _, _ = one_update(name="adam", weight_decay=0.0)
    for side, layers in (("encoder", 3), ("decoder", 2)):
        for layer in range(layers):
            update = -np.asarray(updates[side]["layers"]["query"]["kernel"][layer]) / 0.5
            gradient = np.asarray(gradients[side]["layers"]["query"]["kernel"][layer])
            left, _, right = np.linalg.svd(gradient, full_matrices=False)
            # The first momentum is along the gradient. Newton–Schulz brings singular values near 1; then the RMS is set.
            values = np.diag(left.T @ update @ right.T) / (0.2 * np.sqrt(6))
            assert (values > 0.6).all(), values
            assert (values < 1.3).all(), values
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        if "kernel" not in path_name(path):
            wanted = adam
            for key in path:
                wanted = wanted[key.key]
            np.testing.assert_array_equal(update, wanted)


def test_muon_has_a_momentum_of_its_own():
    """After a first gradient and none, without bias correction the momentum is what is left of the first: the same
    direction, whatever is left. After a second gradient, how much is left decides the direction."""
    config = OptimizerConfig("muon", 1.0, warmup_steps=0, decay_steps=99, weight_decay=0.0, gradient_clip_norm=0.0)
    params, first, second = model_like(0), model_like(1), model_like(2)

    def direction(momentum):
        optimizer = make_optimizer(dataclasses.replace(config, muon_momentum=momentum))
        state = optimizer.update(first, optimizer.init(params), params)[1]
        kernel = optimizer.update(second, state, params)[0]["encoder"]["layers"]["query"]["kernel"]
        return np.asarray(kernel[0])

    def orthogonal(matrix):
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        return left @ right

    kernels = [np.asarray(g["encoder"]["layers"]["query"]["kernel"][0]) for g in (first, second)]
    for momentum in (0.0, 0.9):
        # Nesterov: the momentum once more, and the gradient.
        wanted = orthogonal(momentum * (momentum * kernels[0] + kernels[1]) + kernels[1])
        found = -direction(momentum)
        cosine = (wanted * found).sum() / np.linalg.norm(wanted) / np.linalg.norm(found)
        assert cosine > 0.95, (momentum, cosine)
    assert not np.allclose(direction(0.0), direction(0.9), atol=0.02)


def test_factors_scale_the_whole_update_and_freeze():
    plain, _, _ = one_update(weight_decay=0.1)
    scaled, _, _ = one_update(weight_decay=0.1, learning_rate_factors={"^encoder": 0.0, "bias": 3.0})
    assert not any(x.any() for x in jax.tree.leaves(scaled["encoder"])), (
        "frozen, weight decay too; the first fit counts"
    )
    np.testing.assert_allclose(
        scaled["decoder"]["layers"]["query"]["bias"], 3 * plain["decoder"]["layers"]["query"]["bias"]
    )
    np.testing.assert_array_equal(scaled["token_embedding"], plain["token_embedding"])


def test_layer_decay_by_hand(tiny_shapes):
    factors = learning_rate_factors(OptimizerConfig(layer_decay=0.5), tiny_shapes)
    by_name = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(factors)}
    kernel = by_name["encoder/layers/self_attention/query/kernel"]
    assert kernel.shape == (4, 1, 1)
    assert kernel.ravel().tolist() == [0.125, 0.25, 0.5, 1.0]
    assert by_name["decoder/layers/cross_attention/output/bias"].ravel().tolist() == [0.5, 1.0]
    assert by_name["token_embedding"] == by_name["encoder/position_embedding"] == 0.5**4
    assert by_name["decoder/embedding_layer_norm/scale"] == 0.5**2
    updates, _, _ = one_update(layer_decay=0.5)
    plain, _, _ = one_update()
    ratio = updates["encoder"]["layers"]["query"]["kernel"] / plain["encoder"]["layers"]["query"]["kernel"]
    np.testing.assert_allclose(ratio, np.array([0.25, 0.5, 1.0])[:, None, None] * np.ones((3, 6, 5)), rtol=1e-6)


def test_a_pattern_that_fits_nothing_is_named(tiny_shapes):
    with pytest.raises(OptimizerError, match=r"'encodr' is found in no parameter's path. Paths are such as decoder/"):
        learning_rate_factors(OptimizerConfig(learning_rate_factors={"encodr": 0.1, "encoder": 0.2}), tiny_shapes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "must be positive"),
        ({"decay_steps": 10_000}, "must lie after warmup_steps"),
        ({"beta1": 1.0}, r"must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, "must not be negative"),
        ({"name": "adm"}, "must be one of adam, adafactor, muon, found 'adm'"),
        ({"layer_decay": 0.0}, r"layer_decay must lie in \(0, 1\], found 0.0"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"learning_rate_factors": {"(": 1.0}}, r"learning_rate_factors\['\('\] is no regular expression"),
        ({"learning_rate_factors": {"bias": -1.0}}, "must not be negative"),
    ],
)
def test_senseless_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**arguments)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"OptimizerConfig.warmup_steps must be int, found 10.5"):
        OptimizerConfig(warmup_steps=10.5)
