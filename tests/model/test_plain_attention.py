"""Attention's and the linear map's written-out gradients beside those that jax derives from the formulas."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.model.dropout import dropout
from deltalm_jax.model.feed_forward import gelu
from deltalm_jax.model.linear import sum_of_outer_products
from deltalm_jax.model.plain_attention import MASKED_SCORE, plain_attention

BATCH, TARGETS, SOURCES, HEADS, SIZE = 2, 5, 7, 3, 4


def by_the_formula(query, key, value, mask, rate, dropout_key):
    scores = jnp.einsum("bthk,bshk->bhts", query, key)
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED_SCORE), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", dropout(weights, rate, dropout_key), value)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_and_its_gradients(rate: float):
    """With a padded row, a row of padding alone, and large scores; with dropout of the weights and without."""
    keys = jax.random.split(jax.random.key(0), 5)
    query = 20 * jax.random.normal(keys[0], (BATCH, TARGETS, HEADS, SIZE))
    key, value = (jax.random.normal(k, (BATCH, SOURCES, HEADS, SIZE)) for k in keys[1:3])
    cotangent = jax.random.normal(keys[3], query.shape)
    mask = jnp.ones((BATCH, 1, TARGETS, SOURCES), bool).at[0, :, :, 4:].set(False).at[1, :, 2].set(False)

    def both(attend):
        result, backward = jax.vjp(lambda *arrays: attend(*arrays, mask, rate, keys[4]), query, key, value)
        return result, *backward(cotangent)

    for found, expected in zip(jax.jit(lambda: both(plain_attention))(), both(by_the_formula), strict=True):
        # Gradients of scores are differences, whose rounding is that of what is subtracted.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("rows", "columns"), [(6, 3), (3, 6), (4, 4)])
def test_the_sum_of_outer_products_whichever_is_longer(rows: int, columns: int):
    random = np.random.default_rng(0)
    left, right = random.normal(size=(9, rows)).astype("f"), random.normal(size=(9, columns)).astype("f")
    expected = sum(np.outer(a, b) for a, b in zip(left, right, strict=True))
    np.testing.assert_allclose(jax.jit(sum_of_outer_products)(left, right), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.01)])
def test_gelu_is_exact(dtype: str, tolerance: float):
    """The tanh approximation is up to 5e-4 off."""
    values = jnp.linspace(-6, 6, 301).astype(dtype)
    expected = [x * 0.5 * math.erfc(-x / math.sqrt(2)) for x in np.asarray(values, np.float64)]
    assert gelu(values).dtype == dtype
    np.testing.assert_allclose(np.asarray(gelu(values), np.float64), expected, rtol=tolerance, atol=tolerance)
