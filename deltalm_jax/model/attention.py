"""Multi-head attention, of a sequence to itself or of the decoder to the encoder.

Legend: B batch, T positions that attend, S positions attended to, D hidden size, H heads, K head size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.linear import Linear
from deltalm_jax.model.plain_attention import plain_attention


def padding_mask(tokens_BS: jax.Array) -> jax.Array:
    """bool [B, 1, 1, S]: attention may look at real tokens only."""
    return (tokens_BS != PAD_ID)[:, None, None, :]


def causal_mask(tokens_BT: jax.Array) -> jax.Array:
    """bool [B, 1, T, T]: a position may look at itself and at earlier real tokens."""
    length = tokens_BT.shape[1]
    return jnp.tril(jnp.ones((length, length), bool)) & padding_mask(tokens_BT)


class KeysValues(NamedTuple):
    """What attention looks at: a key and a value for each of S positions, split into heads."""

    key_BSHK: jax.Array
    value_BSHK: jax.Array


class Attention(nnx.Module):
    """Scaled dot-product attention with biased query, key, value and output projections (fairseq's).

    Initialised as fairseq's `MultiheadAttention`: query, key and value Xavier-uniform with gain 1/√2, as if the three
    were one matrix; output with gain 1. All biases start at zero; fairseq zeroes the output's only, and leaves the
    other three at torch's default, uniform in ±1/√D.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        self.query = Linear(size, size, gain=math.sqrt(0.5), rngs=rngs)
        self.key = Linear(size, size, gain=math.sqrt(0.5), rngs=rngs)
        self.value = Linear(size, size, gain=math.sqrt(0.5), rngs=rngs)
        self.output = Linear(size, size, rngs=rngs)
        self.num_heads = config.num_heads
        self.dropout_rate = config.attention_dropout_rate

    def keys_values(self, source_BSD: jax.Array) -> KeysValues:
        """What positions with these hidden states show to whoever attends to them, in the same dtype."""
        return KeysValues(self._split_heads(self.key(source_BSD)), self._split_heads(self.value(source_BSD)))

    def __call__(
        self, hidden_BTD: jax.Array, seen: KeysValues, mask: jax.Array, *, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Every position of `hidden` gathers from those positions of `seen` that `mask` allows.

        Args:
          hidden_BTD: what attends.
          seen: what is attended to; `self.keys_values(hidden_BTD)` for self-attention.
          mask: bool, broadcast to [B, H, T, S]; True where attention may look.
          dropout_key: for dropout of the attention weights; None for none.

        Returns:
          [B, T, D] in the dtype of `hidden_BTD`. Scores and softmax are float32.
        """
        query_BTHK = self._split_heads(self.query(hidden_BTD))
        query_BTHK *= query_BTHK.shape[-1] ** -0.5  # After the bias, which is scaled with it.

        mixed_BTHK = plain_attention(query_BTHK, seen.key_BSHK, seen.value_BSHK, mask, self.dropout_rate, dropout_key)
        return self.output(mixed_BTHK.reshape(hidden_BTD.shape))

    def _split_heads(self, projected_BTD: jax.Array) -> jax.Array:
        batch, length, size = projected_BTD.shape
        return projected_BTD.reshape(batch, length, self.num_heads, size // self.num_heads)
