"""Drawing hypotheses at random, K of each source, each on its own.

A source's draws depend on its key, the sample's number and the place alone: the same whatever else is in the batch.

Legend: B sources, K samples, V vocabulary, C tokens to draw from, L places of a hypothesis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deltalm_jax.decoding.beam import Hypotheses, divisor
from deltalm_jax.decoding.options import Sampling, SearchOptions
from deltalm_jax.model.config import EOS_ID


def advance(
    options: SearchOptions,
    key_B: jax.Array,
    live: Hypotheses,
    ended: Hypotheses,
    logits_BKV: jax.Array,
    normalizer_BK: jax.Array,
    length: jax.Array,
    last_B: jax.Array,
) -> tuple[Hypotheses, Hypotheses, jax.Array]:
    """One token for each live sample; arguments and results as for `beam.advance`. Samples stay in their places.

    The score of a sample is made of the model's own probabilities, not of those that it was drawn with.
    """
    assert options.sampling is not None
    new_BK = draw(options.sampling, _keys(key_B, options.beam_size, length), logits_BKV)
    gain_BK = jnp.take_along_axis(logits_BKV, new_BK[:, :, None], axis=2)[:, :, 0] - normalizer_BK
    sums_BK = live.scores_BK + gain_BK
    tokens_BKL = live.tokens_BKL.at[:, :, length].set(new_BK)
    ends_BK = ((new_BK == EOS_ID) | (length == last_B)[:, None]) & (sums_BK != -jnp.inf)
    ended = Hypotheses(
        jnp.where(ends_BK[:, :, None], tokens_BKL, ended.tokens_BKL),
        jnp.where(ends_BK, sums_BK / divisor(options, length), ended.scores_BK),
    )
    live = Hypotheses(tokens_BKL, jnp.where(ends_BK, -jnp.inf, sums_BK))
    return live, ended, (live.scores_BK == -jnp.inf).all(axis=1)


def draw(sampling: Sampling, key_BK: jax.Array, logits_BKV: jax.Array) -> jax.Array:
    """int32 [B, K]: a token drawn for each key, never one of logit -inf unless all are."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BKV, axis=2)
    logits_BKC, tokens_BKC = logits_BKV / sampling.temperature, None
    if sampling.top_k or sampling.top_p < 1:
        vocab_size = logits_BKV.shape[2]
        logits_BKC, tokens_BKC = jax.lax.top_k(logits_BKC, min(sampling.top_k or vocab_size, vocab_size))
    if sampling.top_p < 1:
        probs_BKC = jax.nn.softmax(logits_BKC)
        mass_before_BKC = jnp.cumsum(probs_BKC, axis=2) - probs_BKC
        # The likeliest is always among them, whatever rounding does.
        kept_BKC = (mass_before_BKC < sampling.top_p) | (jnp.arange(logits_BKC.shape[2]) == 0)
        logits_BKC = jnp.where(kept_BKC, logits_BKC, -jnp.inf)
    # The largest of logit + Gumbel noise is a draw from the softmax.
    noise_BKC = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits_BKC.shape[2:])))(key_BK)
    place_BK = jnp.argmax(logits_BKC + noise_BKC, axis=2)
    if tokens_BKC is None:
        return place_BK
    return jnp.take_along_axis(tokens_BKC, place_BK[:, :, None], axis=2)[:, :, 0]


def _keys(key_B: jax.Array, samples: int, length: jax.Array) -> jax.Array:
    """[B, K] keys of this place."""

    def key(key: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, sample), length)

    return jax.vmap(jax.vmap(key, (None, 0)), (0, None))(key_B, jnp.arange(samples))
