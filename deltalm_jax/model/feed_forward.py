"""The feed-forward network of a layer. Legend: B batch, S positions, D hidden size, F feed-forward size."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.dropout import dropout
from deltalm_jax.model.linear import Linear


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


def gelu(values: jax.Array) -> jax.Array:
    """The exact GELU of XLM-R and DeltaLM, x Φ(x), of any shape; computed in float32, same dtype.

    By erf, which is a third of the operations of erfc, by which `jax.nn.gelu` has it.
    """
    x = values.astype(jnp.float32)
    return (0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))).astype(values.dtype)
