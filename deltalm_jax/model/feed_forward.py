"""The feed-forward network of a layer. Legend: B batch, S positions, D hidden size, F feed-forward size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.dropout import dropout
from deltalm_jax.model.linear import Linear


def gelu(values: jax.Array) -> jax.Array:
    """The exact GELU of XLM-R and DeltaLM, x·Φ(x) (jax's default is the tanh approximation). Same shape and dtype.

    In float32 and by `erf`, as in PyTorch: `jax.nn.gelu` has `erfc`, which is exact to the last bit far below 0, where the
    result is nothing beside what it is summed with, and which takes more than twice as long on a CPU.
    """
    x = values.astype(jnp.float32)
    return (0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))).astype(values.dtype)


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
