"""The blocked vocabulary loss against the plain one, in value and gradient, whatever the block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltalm_jax.training.loss import token_nll, weighted_nll

B, T, D, V = 3, 11, 8, 40


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    weights = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) > 0.3), jnp.float32)
    return hidden, table, targets, weights


def plain(hidden, table, targets, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, targets)
    return (losses * weights).sum()


@pytest.mark.parametrize("block", [1, 4, 7, 12, 1000])
def test_equals_the_plain_loss_and_its_gradients(arrays, block):
    def scaled(function):  # a cotangent other than one
        return jax.value_and_grad(lambda h, t: 0.37 * function(h, t), argnums=(0, 1))

    hidden, table, targets, weights = arrays
    value, gradients = scaled(lambda h, t: weighted_nll(h, t, targets, weights, V, block))(hidden, table)
    wanted, wanted_gradients = scaled(lambda h, t: plain(h, t, targets, weights))(hidden, table)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_value_without_gradient_takes_the_other_path_and_agrees(arrays):
    hidden, table, targets, weights = arrays
    value = weighted_nll(hidden, table, targets, weights, V, 6)
    np.testing.assert_allclose(value, plain(hidden, table, targets, weights), rtol=2e-6)


@pytest.mark.parametrize("block", [1, 5, 1000])
def test_token_nll(arrays, block):
    hidden, table, targets, _ = arrays
    wanted = optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, targets)
    np.testing.assert_allclose(token_nll(hidden, table, targets, V, block), wanted, atol=3e-6)


def test_rows_added_for_sharding_are_not_scored(arrays):
    hidden, table, targets, weights = arrays
    larger = jnp.concatenate([table, 100 * jnp.ones((8, D))])

    def grow(function):
        return jax.value_and_grad(function, argnums=(0, 1))

    value, (d_hidden, d_table) = grow(lambda h, t: weighted_nll(h, t, targets, weights, V, 6))(hidden, larger)
    wanted, (wanted_hidden, wanted_table) = grow(lambda h, t: plain(h, t, targets, weights))(hidden, table)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    np.testing.assert_allclose(d_hidden, wanted_hidden, atol=2e-6)
    np.testing.assert_allclose(d_table[:V], wanted_table, atol=2e-6)
    assert not d_table[V:].any()


def test_no_array_of_all_logits_is_made(arrays):
    """The compiled gradient's temporary memory grows with the block, not with B · T."""
    hidden = jnp.zeros((8, 128, D))
    table, targets, weights = jnp.zeros((20_000, D)), jnp.zeros((8, 128), jnp.int32), jnp.ones((8, 128))

    def temporary_bytes(block):
        gradient = jax.jit(jax.grad(lambda h, t: weighted_nll(h, t, targets, weights, 20_000, block), argnums=(0, 1)))
        return gradient.lower(hidden, table).compile().memory_analysis().temp_size_in_bytes

    all_logits = 8 * 128 * 20_000 * 4
    assert temporary_bytes(64) < all_logits / 3
    assert temporary_bytes(1 << 20) > all_logits * 0.9, "the bound above must be able to fail"


def test_zero_weights_give_zero_and_finite_gradients(arrays):
    hidden, table, targets, _ = arrays
    value, gradients = jax.value_and_grad(
        lambda h, t: weighted_nll(h, t, targets, jnp.zeros((B, T)), V, 6), argnums=(0, 1)
    )(hidden, table)
    assert value == 0
    assert all(not g.any() for g in gradients)


def test_bfloat16_stays_near_float32(arrays):
    hidden, table, targets, weights = arrays
    low = weighted_nll(hidden.astype(jnp.bfloat16), table.astype(jnp.bfloat16), targets, weights, V, 6)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, plain(hidden, table, targets, weights), rtol=0.02)
