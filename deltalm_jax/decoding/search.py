"""From sources to the best hypotheses, as one compiled program: the encoder, then the decoder token by token with a cache.

Beam search, greedy decoding (one beam) and sampling share this loop. `beam.py` and `sampling.py` say what a step makes of the
hypotheses, `constraints.py` which tokens may follow, `deltalm.decode_beams` what is cached.

Legend: B sources, S source positions, K beams, V vocabulary, T tokens of a hypothesis, L = T + 1 places: the start token and
T tokens.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deltalm_jax.decoding import beam, sampling
from deltalm_jax.decoding.beam import Hypotheses, best
from deltalm_jax.decoding.constraints import forbid
from deltalm_jax.decoding.options import Requests, SearchOptions
from deltalm_jax.model.attention import Kept
from deltalm_jax.model.config import EOS_ID, PAD_ID, ModelConfig
from deltalm_jax.model.decoder import BeamCache
from deltalm_jax.model.deltalm import Params, apply_encoder, decode_beams, init_beams

# The cache grows as hypotheses do, for attention runs over all of it: the loop is compiled for so many places first, and
# for twice as many each time that they are full.
_FIRST_CACHE_LENGTH = 32


class SearchResult(NamedTuple):
    """The K hypotheses of each source, best first. T is `SearchOptions.max_length` + 1.

    A source with fewer than K hypotheses (one of padding alone has none) has score -inf, length 0 and no tokens in the
    places left over. Where the model gives NaN, the scores of that source are NaN and its tokens mean nothing.
    """

    tokens_BKT: jax.Array  # int32: without the start token, with `</s>`, then `PAD_ID`.
    scores_BK: jax.Array  # float32, descending; see `beam.py`.
    lengths_BK: jax.Array  # int32: tokens of each, `</s>` included.


class _State(NamedTuple):
    """What goes round the loop."""

    length: jax.Array  # Tokens of each live hypothesis.
    live: Hypotheses
    ended: Hypotheses
    done_B: jax.Array  # Whether the source takes in no more ended hypotheses.
    path_BKL: (
        jax.Array
    )  # Which beam each live hypothesis was at each place: where in the cache its keys and values are.
    cache: BeamCache


@partial(jax.jit, static_argnames=("config", "options", "compute_dtype"))
def search(
    config: ModelConfig,
    params: Params,
    encoder_tokens_BS: jax.Array,
    options: SearchOptions,
    requests: Requests | None = None,
    *,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> SearchResult:
    """The best hypotheses for each source. Compiled once for each configuration, options and shape of the sources.

    A source's result does not depend on its batch or padding, short of rounding. All rows of the token table are scored,
    filler included, and all but `PAD_ID` can be generated; nothing is renormalised for what is forbidden.

    On a mesh, let each device search for its own sources: `jax.shard_map` over B with `check_vma=False` and the parameters
    whole on every device. It then takes no communication, where the partitioner would gather the cache in every step.

    Args:
      config: as the parameters were made with.
      params: as `init_params` returns them.
      encoder_tokens_BS: int ids, padded with `PAD_ID` on either side. A row of padding alone has no hypotheses, so that
        a batch can be filled up to its shape.
      options: how to search.
      requests: what each source has of its own; sampling needs keys.
      compute_dtype: of activations, matrix products and the cache; log-probabilities are float32 in any case.

    Raises:
      ValueError: a hypothesis could need more positions than `config.max_length`, or a source has more; or samples are
        to be drawn without keys.
    """
    requests = Requests() if requests is None else requests
    _check(config, options, requests)
    batch, beam_size = encoder_tokens_BS.shape[0], options.beam_size
    limit_B = jnp.full(batch, options.max_length) if requests.max_length_B is None else requests.max_length_B
    last_B = limit_B + options.ends_with_eos

    def step(state: _State) -> _State:
        last_BK = jax.lax.dynamic_index_in_dim(state.live.tokens_BKL, state.length, axis=2, keepdims=False)
        cache_length = state.cache.target[0].key_BHKS.shape[3] // beam_size
        logits_BKV, cache = decode_beams(
            config, weights, state.cache, last_BK, state.length, state.path_BKL[:, :, :cache_length]
        )
        normalizer_BK = jax.nn.logsumexp(logits_BKV, axis=2)
        logits_BKV = forbid(options, requests, logits_BKV, state.live.tokens_BKL, state.length)
        path_BKL = state.path_BKL.at[:, :, state.length].set(jnp.arange(beam_size))
        length = state.length + 1
        if options.sampling is None:
            live, ended, done_B, parents_BK = beam.advance(
                options, state.live, state.ended, state.done_B, logits_BKV, normalizer_BK, length, last_B
            )
            path_BKL = jnp.take_along_axis(path_BKL, parents_BK[:, :, None], axis=1)
        else:
            assert requests.key_B is not None  # checked above
            live, ended, done_B = sampling.advance(
                options, requests.key_B, state.live, state.ended, logits_BKV, normalizer_BK, length, last_B
            )
        return _State(length, live, ended, state.done_B | done_B, path_BKL, cache)

    cache_lengths = _cache_lengths(options.max_tokens)
    encoded_BSD = apply_encoder(config, params, encoder_tokens_BS, compute_dtype=compute_dtype)
    weights, cache = init_beams(config, params, encoded_BSD, encoder_tokens_BS, beam_size, cache_lengths[0])
    state = _start(options, (encoder_tokens_BS == PAD_ID).all(axis=1), cache)
    for cache_length in cache_lengths:
        state = state._replace(cache=_grown(state.cache, cache_length * beam_size))
        state = jax.lax.while_loop(partial(_goes_on, cache_length), step, state)
    tokens_BKL, scores_BK = best(state.ended, beam_size)[0]
    tokens_BKT = tokens_BKL[:, :, 1:]
    return SearchResult(tokens_BKT, scores_BK, (tokens_BKT != PAD_ID).sum(axis=2, dtype=jnp.int32))


def _check(config: ModelConfig, options: SearchOptions, requests: Requests) -> None:
    if options.max_tokens > config.max_length:
        raise ValueError(
            f"SearchOptions.max_length={options.max_length} needs {options.max_tokens} positions of the decoder with "
            f"rule={options.rule!r}, found ModelConfig.max_length={config.max_length}: ask for at most "
            f"{config.max_length - options.ends_with_eos}"
        )
    if options.sampling is not None and requests.key_B is None:
        raise ValueError("SearchOptions.sampling needs a key for each source in Requests.key_B, found None")


def _cache_lengths(max_tokens: int) -> list[int]:
    """Places of the cache, one after another; the last are all that are ever needed."""
    lengths = [_FIRST_CACHE_LENGTH]
    while lengths[-1] < max_tokens:
        lengths.append(2 * lengths[-1])
    return [*lengths[:-1], max_tokens]


def _start(options: SearchOptions, done_B: jax.Array, cache: BeamCache) -> _State:
    """The empty hypothesis of each source; of a beam its fellows are none, or all K would be the same ever after."""
    batch, beam_size = len(done_B), options.beam_size
    no_tokens_BKL = jnp.full((batch, beam_size, options.max_length + 2), PAD_ID, jnp.int32)
    no_scores_BK = jnp.full((batch, beam_size), -jnp.inf)
    scores_BK = no_scores_BK.at[:, 0].set(0.0) if options.sampling is None else jnp.zeros_like(no_scores_BK)
    return _State(
        length=jnp.int32(0),
        live=Hypotheses(no_tokens_BKL.at[:, :, 0].set(EOS_ID), scores_BK),
        ended=Hypotheses(no_tokens_BKL, no_scores_BK),
        done_B=done_B,
        path_BKL=jnp.zeros_like(no_tokens_BKL),
        cache=cache,
    )


def _goes_on(cache_length: int, state: _State) -> jax.Array:
    return (state.length < cache_length) & ~state.done_B.all()


def _grown(cache: BeamCache, places: int) -> BeamCache:
    """The cache with room for more."""

    def grown(past: Kept) -> Kept:
        more = places - past.key_BHKS.shape[3]
        return Kept(
            jnp.pad(past.key_BHKS, ((0, 0), (0, 0), (0, 0), (0, more))),
            jnp.pad(past.value_BHSK, ((0, 0), (0, 0), (0, more), (0, 0))),
        )

    return cache._replace(target=[grown(past) for past in cache.target])
