"""Which token may come next.

Legend: B sources, K beams, V vocabulary, T tokens of a hypothesis, L = T + 1 places: the start token and T tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deltalm_jax.decoding.options import Requests, SearchOptions
from deltalm_jax.model.config import EOS_ID, PAD_ID


def forbid(
    options: SearchOptions, requests: Requests, logits_BKV: jax.Array, tokens_BKL: jax.Array, length: jax.Array
) -> jax.Array:
    """Logits of the next token, -inf for those that may not follow. Nothing is renormalised.

    Args:
      options: of the search.
      requests: of each source.
      logits_BKV: as the model has them.
      tokens_BKL: the hypotheses, the start token first.
      length: tokens of each, the start token not counted.
    """
    ids_V = jnp.arange(logits_BKV.shape[-1])
    forbidden_BV = (ids_V == PAD_ID)[None]
    if requests.allowed_V is not None:
        forbidden_BV |= ~requests.allowed_V & (ids_V != EOS_ID)
    forbidden_BV = forbidden_BV | (
        (ids_V == EOS_ID) & (length < _per_source(requests.min_length_B, options.min_length))
    )
    if options.ends_with_eos:
        too_late_B1 = length >= _per_source(requests.max_length_B, options.max_length)
        forbidden_BV = forbidden_BV | ((ids_V != EOS_ID) & too_late_B1)
    allowed_BKV = jnp.where(forbidden_BV[:, None], -jnp.inf, logits_BKV)
    if options.no_repeat_ngram_size:
        repeats_BKL = _repeats(tokens_BKL, length, options.no_repeat_ngram_size)
        allowed_BKV = jnp.put_along_axis(allowed_BKV, repeats_BKL, -jnp.inf, axis=2, inplace=False)
    if requests.prefix_BP is not None:
        more = tokens_BKL.shape[2] - requests.prefix_BP.shape[1]
        prefix_BL = jnp.pad(requests.prefix_BP, ((0, 0), (0, more)), constant_values=PAD_ID)
        next_B11 = jax.lax.dynamic_index_in_dim(prefix_BL, length, axis=1)[:, :, None]
        forced_BKV = jnp.where(ids_V == next_B11, logits_BKV, -jnp.inf)
        allowed_BKV = jnp.where(next_B11 != PAD_ID, forced_BKV, allowed_BKV)
    return allowed_BKV


def _per_source(requested_B: jax.Array | None, otherwise: int) -> jax.Array | int:
    return otherwise if requested_B is None else requested_B[:, None]


def _repeats(tokens_BKL: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """The tokens that would now complete an n-gram for the second time, each where it did for the first; else `PAD_ID`."""
    places_L = jnp.arange(tokens_BKL.shape[2])  # Places below size - 1 end no n-gram, and so nothing wraps around.
    repeats_BKL = jnp.broadcast_to((places_L >= size - 1) & (places_L <= length), tokens_BKL.shape)
    for distance in range(1, size):
        earlier_BKL = jnp.roll(tokens_BKL, distance, axis=2)
        latest_BK1 = jax.lax.dynamic_slice_in_dim(tokens_BKL, length + 1 - distance, 1, axis=2)
        repeats_BKL &= earlier_BKL == latest_BK1
    return jnp.where(repeats_BKL, tokens_BKL, PAD_ID)
