"""The feed-forward network of a layer. Legend: B batch, S positions, D hidden size, F feed-forward size."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.dropout import dropout
from deltalm_jax.model.linear import Linear


@jax.custom_vjp
def gelu(values: jax.Array) -> jax.Array:
    """The exact GELU of XLM-R and DeltaLM, x·Φ(x) (jax's default is the tanh approximation). Same shape and dtype.

    In float32 and by `erf`, as in PyTorch: `jax.nn.gelu` has `erfc`, which is exact to the last bit far below 0, where the
    result is nothing beside what it is summed with, and which takes more than twice as long on a CPU. The gradient is
    written out so that nothing is kept for it but `values`, where jax would keep three float32 arrays of that shape.
    """
    x = values.astype(jnp.float32)
    return (x * _normal_cdf(x)).astype(values.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_backward(values: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    x = values.astype(jnp.float32)
    density = jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5
    return ((gradient.astype(jnp.float32) * (_normal_cdf(x) + x * density)).astype(values.dtype),)


gelu.defvjp(lambda values: (gelu(values), values), _gelu_backward)


class FeedForward(nnx.Module):
    """Two linear maps with a GELU between them, applied to each position alone."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.input = Linear(config.hidden_size, config.feed_forward_size, rngs=rngs)
        self.output = Linear(config.feed_forward_size, config.hidden_size, rngs=rngs)
        self.dropout_rate = config.activation_dropout_rate

    def __call__(self, hidden_BSD: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """[B, S, D] -> [B, S, D], same dtype. The key is for dropout of the activations; None for none."""
        activations_BSF = gelu(self.input(hidden_BSD))
        return self.output(dropout(activations_BSF, self.dropout_rate, dropout_key))
