"""GELU and LayerNorm have gradients of their own: equal to those that jax derives, and with little kept for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.model.feed_forward import gelu
from deltalm_jax.model.linear import LAYER_NORM_EPSILON, LayerNorm


def normal(*shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(3 * np.random.default_rng(sum(shape)).standard_normal(shape), dtype)


def layer_norm(inputs, scale, bias):
    layer = LayerNorm(inputs.shape[-1])
    layer.scale[...], layer.bias[...] = scale, bias
    return layer(inputs)


def derived_layer_norm(inputs, scale, bias):
    values = inputs.astype(jnp.float32)
    variance = values.var(axis=-1, keepdims=True)
    outputs = (values - values.mean(axis=-1, keepdims=True)) / jnp.sqrt(variance + LAYER_NORM_EPSILON)
    return (outputs * scale + bias).astype(inputs.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("ours", "derived", "more"),
    [
        (gelu, lambda x: jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype), ()),
        (layer_norm, derived_layer_norm, (normal(16) + 1, normal(16) / 3)),
    ],
    ids=["gelu", "layer_norm"],
)
def test_gradients_are_those_that_jax_derives(ours, derived, more, dtype):
    inputs, gradient = normal(4, 5, 16, dtype=dtype), normal(4, 5, 16)
    values, pull_back = jax.vjp(ours, inputs, *more)
    expected, derived_pull_back = jax.vjp(derived, inputs, *more)
    tolerance = {"float32": 2e-5, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(values.astype("float32"), expected.astype("float32"), rtol=tolerance, atol=tolerance)
    for found, wanted in zip(pull_back(gradient.astype(dtype)), derived_pull_back(gradient.astype(dtype)), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found.astype("float32"), wanted.astype("float32"), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("function", [gelu, lambda x: layer_norm(x, jnp.ones(16), jnp.zeros(16))], ids=["gelu", "norm"])
def test_no_float32_array_of_the_whole_shape_is_kept(function):
    inputs = normal(4, 5, 16, dtype="bfloat16")
    kept = jax.tree.leaves(jax.vjp(function, inputs)[1])
    assert [leaf.dtype for leaf in kept if leaf.size == inputs.size] == [jnp.bfloat16]
