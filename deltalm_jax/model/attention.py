"""Multi-head attention, of a sequence to itself or of the decoder to the encoder.

Legend: B batch, T positions that attend, S positions attended to, D hidden size, H heads, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.linear import Linear
from deltalm_jax.model.plain_attention import MASKED_SCORE, plain_attention


class Mask(NamedTuple):
    """Where attention may look. Never a matrix: a kernel need not be told more than this.

    Attributes:
      real_BS: bool; False at padding, where nobody looks.
      causal: whether position t may look at positions 0 to t only; then S = T.
      segments: where rows hold several examples, whose each position is, of those that attend and of those attended to,
        int32 [B, T] and [B, S], from 1 on (see `packed.py`): nobody looks beyond their own. None: a row is one example.
    """

    real_BS: jax.Array
    causal: bool = False
    segments: tuple[jax.Array, jax.Array] | None = None


def padding_mask(tokens_BS: jax.Array, segments: tuple[jax.Array, jax.Array] | None = None) -> Mask:
    """Attention may look at real tokens only."""
    return Mask(tokens_BS != PAD_ID, segments=segments)


def causal_mask(tokens_BT: jax.Array, segments: tuple[jax.Array, jax.Array] | None = None) -> Mask:
    """A position may look at itself and at earlier real tokens."""
    return Mask(tokens_BT != PAD_ID, causal=True, segments=segments)


def mask_matrix(mask: Mask, num_queries: int) -> jax.Array:
    """What a mask means, as bool [B, 1, 1 or T, S]: True where attention may look."""
    mask_BHTS = mask.real_BS[:, None, None, :]
    if mask.causal:
        mask_BHTS = mask_BHTS & jnp.tril(jnp.ones((num_queries, num_queries), bool))
    if mask.segments is not None:
        query_BT, key_BS = mask.segments
        mask_BHTS = mask_BHTS & (query_BT[:, None, :, None] == key_BS[:, None, None, :])
    return mask_BHTS


class KeysValues(NamedTuple):
    """What attention looks at: a key and a value for each of S positions, split into heads."""

    key_BSHK: jax.Array
    value_BSHK: jax.Array


Attend = Callable[[jax.Array, KeysValues, Mask], jax.Array]
"""(scaled queries [B, T, H, K], what is looked at, where one may look) -> what is gathered, [B, T, H, K]. All in one
dtype; scores and softmax are float32. A position that may look nowhere gets finite values, of no meaning."""


def attend_xla(
    query_BTHK: jax.Array,
    seen: KeysValues,
    mask: Mask,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """`Attend` from the formula, for any device; all scores are in memory. It alone can drop attention weights."""
    mask_BHTS = mask_matrix(mask, query_BTHK.shape[1])
    return plain_attention(query_BTHK, seen.key_BSHK, seen.value_BSHK, mask_BHTS, dropout_rate, dropout_key)


class Kept(NamedTuple):
    """Keys and values that are looked at many times, laid out as they are multiplied.

    On a CPU a product is several times faster where what is summed over is not the last axis of both.
    """

    key_BHKS: jax.Array
    value_BHSK: jax.Array


def keep(keys_values: KeysValues) -> Kept:
    """Keys and values laid out for `attend_kept`."""
    return Kept(jnp.transpose(keys_values.key_BSHK, (0, 2, 3, 1)), jnp.swapaxes(keys_values.value_BSHK, 1, 2))


def attend_kept(query_BTHK: jax.Array, kept: Kept, allowed: jax.Array) -> jax.Array:
    """As `attend_xla`, with what is looked at laid out for it.

    Args:
      query_BTHK: scaled already.
      kept: keys and values of S places.
      allowed: bool, broadcast to [B, T, S]; True where a position may look.
    """
    dtype, query_BHTK = query_BTHK.dtype, jnp.swapaxes(query_BTHK, 1, 2)
    scores_BHTS = jnp.einsum("BHTK,BHKS->BHTS", query_BHTK, kept.key_BHKS, preferred_element_type=jnp.float32)
    scores_BHTS = jnp.where(allowed[:, None], scores_BHTS, MASKED_SCORE)
    exp_BHTS = jnp.exp(scores_BHTS - jnp.max(scores_BHTS, axis=-1, keepdims=True))
    mixed_BHTK = jnp.einsum(
        "BHTS,BHSK->BHTK", exp_BHTS.astype(dtype), kept.value_BHSK, preferred_element_type=jnp.float32
    )
    mixed_BHTK = (mixed_BHTK / jnp.sum(exp_BHTS, axis=-1, keepdims=True)).astype(dtype)
    return jnp.swapaxes(mixed_BHTK, 1, 2)


class Attention(nnx.Module):
    """Scaled dot-product attention with biased query, key, value and output projections (fairseq's).

    Initialised as fairseq's `MultiheadAttention`: query, key and value Xavier-uniform with gain 1/√2, as if the three
    were one matrix; output with gain 1. All biases start at zero; fairseq zeroes the output's only, and leaves the
    other three at torch's default, uniform in ±1/√D.
    """

    def __init__(self, config: ModelConfig, *, attend: Attend = attend_xla, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        self.query = Linear(size, size, gain=math.sqrt(0.5), rngs=rngs)
        self.key = Linear(size, size, gain=math.sqrt(0.5), rngs=rngs)
        self.value = Linear(size, size, gain=math.sqrt(0.5), rngs=rngs)
        self.output = Linear(size, size, rngs=rngs)
        self.num_heads = config.num_heads
        self.dropout_rate = config.attention_dropout_rate
        self.attend = attend

    def keys_values(self, source_BSD: jax.Array) -> KeysValues:
        """What positions with these hidden states show to whoever attends to them, in the same dtype."""
        return KeysValues(self._split_heads(self.key(source_BSD)), self._split_heads(self.value(source_BSD)))

    def __call__(
        self, hidden_BTD: jax.Array, seen: KeysValues, mask: Mask, *, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Every position of `hidden` gathers from those positions of `seen` that `mask` allows.

        Args:
          hidden_BTD: what attends.
          seen: what is attended to; `self.keys_values(hidden_BTD)` for self-attention.
          mask: where attention may look.
          dropout_key: for dropout of the attention weights; None for none.

        Returns:
          [B, T, D] in the dtype of `hidden_BTD`. Scores and softmax are float32.
        """
        query_BTHK = self._split_heads(self.query(hidden_BTD))
        query_BTHK *= query_BTHK.shape[-1] ** -0.5  # After the bias, which is scaled with it.

        if dropout_key is not None and self.dropout_rate:  # Kernels drop no weights.
            mixed_BTHK = attend_xla(query_BTHK, seen, mask, self.dropout_rate, dropout_key)
        else:
            mixed_BTHK = self.attend(query_BTHK, seen, mask)
        return self.output(mixed_BTHK.reshape(hidden_BTD.shape))

    def _split_heads(self, projected_BTD: jax.Array) -> jax.Array:
        batch, length, size = projected_BTD.shape
        return projected_BTD.reshape(batch, length, self.num_heads, size // self.num_heads)
