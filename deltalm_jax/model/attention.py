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
from deltalm_jax.model.plain_attention import MASKED_SCORE, attend_swapped, plain_attention


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


def attend_heads_first(query_BTHK: jax.Array, seen: KeysValues, mask: Mask) -> jax.Array:
    """As `attend_xla`, but keys and values are [B, H, S, K], as they are multiplied: for what is looked at many times."""
    return swapped(attend_swapped(swapped(query_BTHK), *seen, mask_matrix(mask, query_BTHK.shape[1]), None, 0.0))


def attend_past_and_itself(
    past: KeysValues, allowed_BTP: jax.Array, query_BTHK: jax.Array, own: KeysValues, mask: Mask
) -> jax.Array:
    """Every position looks at those places of a past that it may, and at itself: never at its neighbours.

    Nothing of the past is copied to have both in one array, which would take longer than to attend to it.

    Args:
      past: keys and values [B, H, P, K].
      allowed_BTP: bool; True where a position may look.
      query_BTHK: scaled queries.
      own: keys and values of the T positions, [B, T, H, K].
      mask: not looked at.
    """
    dtype, query_BHTK = query_BTHK.dtype, swapped(query_BTHK)
    key_BHTK, value_BHTK = (swapped(array).astype(jnp.float32) for array in own)
    scores_BHTP = jnp.einsum("BHTK,BHPK->BHTP", query_BHTK, past.key_BSHK, preferred_element_type=jnp.float32)
    scores_BHTP = jnp.where(allowed_BTP[:, None], scores_BHTP, MASKED_SCORE)
    own_BHT1 = jnp.sum(query_BHTK.astype(jnp.float32) * key_BHTK, axis=-1, keepdims=True)
    largest_BHT1 = jnp.maximum(jnp.max(scores_BHTP, axis=-1, keepdims=True), own_BHT1)
    exp_BHTP, own_BHT1 = jnp.exp(scores_BHTP - largest_BHT1), jnp.exp(own_BHT1 - largest_BHT1)
    mixed_BHTK = jnp.einsum(
        "BHTP,BHPK->BHTK", exp_BHTP.astype(dtype), past.value_BSHK, preferred_element_type=jnp.float32
    )
    mixed_BHTK = (mixed_BHTK + own_BHT1 * value_BHTK) / (jnp.sum(exp_BHTP, axis=-1, keepdims=True) + own_BHT1)
    return swapped(mixed_BHTK.astype(dtype))


def swapped(array: jax.Array) -> jax.Array:
    """Positions and heads in each other's place."""
    return jnp.swapaxes(array, 1, 2)


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
