"""Scaled dot-product attention in plain operations, with its gradient written out.

Softmax is left unnormalised until the weighted sum has been taken, as in flash attention (arXiv 2205.14135): with scores s,
e = exp(s - max s) and l = Σ_S e, the output is o = Σ_S e v / l. With g = d o / l, its gradients are

    dv = Σ_T e g        ds = e (g·v - g·o)        dq = Σ_S ds k        dk = Σ_T ds q

so what the backward pass sums along S, the longest axis, is a sum along K. The division and both row sums of softmax's own
gradient are passes over [B, H, T, S]; without them attention takes a quarter less time on a CPU. Dropout of the weights
multiplies e in o and dv, and g·v in ds, by one and the same mask.

Legend: B batch, T positions that attend, S positions attended to, H heads, K head size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from deltalm_jax.model.dropout import dropout

# Finite, where fairseq has -inf: a row of padding alone then attends evenly instead of giving 0/0, and its gradient is
# finite. exp(-1e9) is 0 in float32, so rows with at least one real key are not affected.
MASKED_SCORE = -1e9


def plain_attention(
    query_BTHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    mask: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Every query gathers from those values that `mask` allows.

    Args:
      query_BTHK: scaled already.
      key_BSHK, value_BSHK: in the same dtype.
      mask: bool, broadcast to [B, H, T, S]; True where attention may look. Not differentiated.
      dropout_rate, dropout_key: of the attention weights; no key for none.

    Returns:
      [B, T, H, K] in the dtype of the query. Scores and softmax are float32.
    """
    # Heads before positions: products over two leading batch axes are what a CPU multiplies fastest.
    query_BHTK, key_BHSK, value_BHSK = (jnp.swapaxes(a, 1, 2) for a in (query_BTHK, key_BSHK, value_BSHK))
    return jnp.swapaxes(_attend(query_BHTK, key_BHSK, value_BHSK, mask, dropout_key, dropout_rate), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query_BHTK, key_BHSK, value_BHSK, mask, dropout_key, dropout_rate):
    return _attend_forward(query_BHTK, key_BHSK, value_BHSK, mask, dropout_key, dropout_rate)[0]


def _attend_forward(query_BHTK, key_BHSK, value_BHSK, mask, dropout_key, dropout_rate):
    dtype = query_BHTK.dtype
    scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", query_BHTK, key_BHSK, preferred_element_type=jnp.float32)
    scores_BHTS = jnp.where(mask, scores_BHTS, MASKED_SCORE)
    exp_BHTS = jnp.exp(scores_BHTS - jnp.max(scores_BHTS, axis=-1, keepdims=True))
    sum_BHT1 = jnp.sum(exp_BHTS, axis=-1, keepdims=True)
    weights_BHTS = dropout(exp_BHTS, dropout_rate, dropout_key).astype(dtype)
    mixed_BHTK = jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, value_BHSK, preferred_element_type=jnp.float32)
    mixed_BHTK = (mixed_BHTK / sum_BHT1).astype(dtype)
    return mixed_BHTK, (query_BHTK, key_BHSK, value_BHSK, mask, dropout_key, exp_BHTS, sum_BHT1, mixed_BHTK)


def _attend_backward(dropout_rate, kept, d_mixed_BHTK):
    query_BHTK, key_BHSK, value_BHSK, mask, dropout_key, exp_BHTS, sum_BHT1, mixed_BHTK = kept
    dtype = query_BHTK.dtype
    d_mixed_BHTK = d_mixed_BHTK / sum_BHT1
    row_BHT1 = jnp.sum(d_mixed_BHTK * mixed_BHTK, axis=-1, keepdims=True)  # float32, as sum_BHT1 is
    d_mixed_BHTK = d_mixed_BHTK.astype(dtype)

    d_weights_BHTS = jnp.einsum("BHTK,BHSK->BHTS", d_mixed_BHTK, value_BHSK, preferred_element_type=jnp.float32)
    d_weights_BHTS = dropout(d_weights_BHTS, dropout_rate, dropout_key)
    d_scores_BHTS = jnp.where(mask, exp_BHTS * (d_weights_BHTS - row_BHT1), 0).astype(dtype)
    d_query_BHTK = jnp.einsum("BHTS,BHSK->BHTK", d_scores_BHTS, key_BHSK)

    # With S, the longer axis, in the minor place: on a CPU these are then as fast as the others.
    weights_BHTS = dropout(exp_BHTS, dropout_rate, dropout_key).astype(dtype)
    d_key_BHKS = jnp.einsum("BHTK,BHTS->BHKS", query_BHTK, d_scores_BHTS)
    d_value_BHKS = jnp.einsum("BHTK,BHTS->BHKS", d_mixed_BHTK, weights_BHTS)
    return d_query_BHTK, jnp.swapaxes(d_key_BHKS, 2, 3), jnp.swapaxes(d_value_BHKS, 2, 3), None, None


_attend.defvjp(_attend_forward, _attend_backward)
