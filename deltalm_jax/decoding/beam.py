"""Beam search as one compiled program, by the rules of fairseq or of Hugging Face's transformers.

Legend: B sources, S source positions, K beams, C = 2K candidates, R = B·K rows of the decoder, V vocabulary, T tokens of a
hypothesis, L = T + 1 places: the start token and T tokens.

A hypothesis is a sequence of tokens; it is *live* while it can grow, and *ended* after `</s>`. Each step

  1. ranks all one-token extensions of a source's live hypotheses by Σ log p and keeps 2K of them, the candidates;
  2. ends those candidates among the first K whose new token is `</s>`, and scores them Σ log p / length ** length_penalty;
  3. lets the first K candidates with any other new token live on. There are K: of 2K candidates at most K are `</s>`,
     one for each live hypothesis.

So far fairseq (`SequenceGenerator`, 0.12.2) and transformers (`GenerationMixin._beam_search`, 5.24) agree. `BeamOptions.rule`
says which of the two decides the rest:

                         "fairseq"                      "transformers_early_stopping"  "transformers"
  a source is done when  K hypotheses have ended        K hypotheses have ended        K have ended, and none scores below
                                                                                       the best live one as it stands
  kept of those ended    the first K; in one step,      the K of the best scores        as on the left
                         those of the largest Σ log p
  at the limit           all but `</s>` is forbidden,   live hypotheses end as they     as on the left
                         which is scored as ever        are, without `</s>`

What is done takes in nothing more; so the loop may leave off when all sources are done, and the result is what it would be
at the limit. "transformers" is its `early_stopping=False`: a live hypothesis is scored as if it ended where it stands. With
a length penalty above 0 it could still gain by growing, so this is a rule and no proof that nothing better follows.

For the same tokens from its `generate`: num_beams, length_penalty, max_new_tokens, min_new_tokens, no_repeat_ngram_size and
early_stopping as here, do_sample=False, and suppress_tokens=[its id of padding], which fairseq never generates either.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deltalm_jax.fields import check_types
from deltalm_jax.model.config import EOS_ID, PAD_ID, ModelConfig
from deltalm_jax.model.decoder import Cache
from deltalm_jax.model.deltalm import Params, apply_encoder, decode_step, init_cache, logits, take_rows

RULES = ("fairseq", "transformers", "transformers_early_stopping")


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """How to search. The defaults are fairseq's.

    Attributes:
      num_beams: hypotheses kept for each source (K), live and ended ones apart. 1 is greedy decoding.
      max_new_tokens: most tokens of a hypothesis, the final `</s>` not counted (fairseq's `max_len`; transformers counts
        a `</s>` where there is one, and so allows one token fewer before it).
      min_new_tokens: fewest tokens before `</s>` (fairseq's `min_len`; also transformers' `min_new_tokens`, where it is 0
        by default).
      length_penalty: a hypothesis scores Σ log p / length ** length_penalty, where the length counts the final `</s>`. 0
        ranks by probability, 1 by the mean log-probability; larger values favour longer hypotheses.
      no_repeat_ngram_size: no hypothesis has the same n-gram of this size twice; 0 allows all.
      rule: "fairseq", "transformers" or "transformers_early_stopping"; see the top of this file.

    Raises:
      TypeError: a field has another type than declared.
      ValueError: a field is out of range.
    """

    num_beams: int = 5
    max_new_tokens: int = 200
    min_new_tokens: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    rule: str = "fairseq"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"BeamOptions.{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"BeamOptions.min_new_tokens must be between 0 and max_new_tokens={self.max_new_tokens}, "
                f"found {self.min_new_tokens}"
            )
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"BeamOptions.length_penalty must be finite, found {self.length_penalty}")
        if self.no_repeat_ngram_size < 0 or self.no_repeat_ngram_size == 1:
            raise ValueError(
                f"BeamOptions.no_repeat_ngram_size must be 0, for no such rule, or at least 2: 1 would forbid "
                f"</s>, as the decoder starts from it; found {self.no_repeat_ngram_size}"
            )
        if self.rule not in RULES:
            raise ValueError(f"BeamOptions.rule must be one of {', '.join(map(repr, RULES))}, found {self.rule!r}")


class BeamResult(NamedTuple):
    """The K hypotheses of each source, best first. T is `max_new_tokens` + 1.

    A source with fewer than K hypotheses (one of padding alone has none) has score -inf, length 0 and no tokens in the
    places left over. Where the model gives NaN, the scores of that source are NaN and its tokens mean nothing.
    """

    tokens_BKT: jax.Array  # int32: without the start token, with `</s>`, then `PAD_ID`.
    scores_BK: jax.Array  # float32: Σ log p / length ** length_penalty, descending.
    lengths_BK: jax.Array  # int32: tokens of each, `</s>` included.


class _Hypotheses(NamedTuple):
    """Some hypotheses of each source, best first; there may be K or 2K. Score -inf: there is none in this place."""

    tokens_BKL: jax.Array  # The start token, then as `BeamResult.tokens_BKT`.
    scores_BK: jax.Array  # Σ log p of those that live, the final score of those that have ended.


class _State(NamedTuple):
    """What goes round the loop."""

    length: jax.Array  # Tokens of each live hypothesis.
    live: _Hypotheses
    ended: _Hypotheses
    done_B: jax.Array  # Whether the source takes in no more ended hypotheses.
    cache: Cache  # Of the live hypotheses, short of their last token.


@partial(jax.jit, static_argnames=("config", "options", "compute_dtype"))
def beam_search(
    config: ModelConfig,
    params: Params,
    encoder_tokens_BS: jax.Array,
    options: BeamOptions,
    *,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> BeamResult:
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
      compute_dtype: of activations, matrix products and the cache; log-probabilities are float32 in any case.

    Raises:
      ValueError: a hypothesis could need more positions than `config.max_length`, or a source has more.
    """
    max_length = _max_length(options)
    if max_length > config.max_length:
        raise ValueError(
            f"BeamOptions.max_new_tokens={options.max_new_tokens} needs {max_length} positions of the decoder with "
            f"rule={options.rule!r}, found ModelConfig.max_length={config.max_length}: ask for at most "
            f"{options.max_new_tokens - max_length + config.max_length} new tokens"
        )
    batch, num_beams = encoder_tokens_BS.shape[0], options.num_beams
    encoded_BSD = apply_encoder(config, params, encoder_tokens_BS, compute_dtype=compute_dtype)
    cache = init_cache(config, params, encoded_BSD, encoder_tokens_BS, max_length)

    # One hypothesis to begin with, the empty one. Its fellows are none at all, or all K would be the same ever after.
    no_tokens_BKL = jnp.full((batch, num_beams, options.max_new_tokens + 2), PAD_ID, jnp.int32)
    no_scores_BK = jnp.full((batch, num_beams), -jnp.inf)
    start = _State(
        length=jnp.int32(0),
        live=_Hypotheses(no_tokens_BKL.at[:, :, 0].set(EOS_ID), no_scores_BK.at[:, 0].set(0.0)),
        ended=_Hypotheses(no_tokens_BKL, no_scores_BK),
        done_B=(encoder_tokens_BS == PAD_ID).all(axis=1),
        cache=take_rows(cache, jnp.repeat(jnp.arange(batch), num_beams)),
    )

    def unfinished(state: _State) -> jax.Array:
        return (state.length < max_length) & ~state.done_B.all()

    def step(state: _State) -> _State:
        last_BK = jax.lax.dynamic_index_in_dim(state.live.tokens_BKL, state.length, axis=2, keepdims=False)
        hidden_RD, cache = decode_step(config, params, state.cache, last_BK.reshape(-1))
        log_probs_RV = jax.nn.log_softmax(logits(params, hidden_RD))
        log_probs_BKV = _forbid(options, state, log_probs_RV.reshape(batch, num_beams, -1))

        length = state.length + 1
        candidates, parents_BC, new_BC = _candidates(state.live, log_probs_BKV, length)
        ends_BC = (new_BC == EOS_ID) | (length == max_length)

        going_on = candidates._replace(scores_BK=jnp.where(ends_BC, -jnp.inf, candidates.scores_BK))
        live, order_BK = _best(going_on, num_beams)
        ended = _take_in(options, state.ended, candidates, ends_BC & ~state.done_B[:, None], length)
        # Beams of one source see the same source, so only their pasts are exchanged.
        rows_BK = jnp.arange(batch)[:, None] * num_beams + jnp.take_along_axis(parents_BC, order_BK, axis=1)
        cache = cache | {"target": take_rows(cache["target"], rows_BK.reshape(-1))}
        return _State(length, live, ended, state.done_B | _done(options, live, ended, length), cache)

    ended = jax.lax.while_loop(unfinished, step, start).ended
    tokens_BKT = ended.tokens_BKL[:, :, 1:]
    return BeamResult(tokens_BKT, ended.scores_BK, (tokens_BKT != PAD_ID).sum(axis=2, dtype=jnp.int32))


def _max_length(options: BeamOptions) -> int:
    """Most tokens of a hypothesis, `</s>` included; also the most that the decoder is fed, as it is fed `</s>` first."""
    return options.max_new_tokens + (options.rule == "fairseq")


def _forbid(options: BeamOptions, state: _State, log_probs_BKV: jax.Array) -> jax.Array:
    """Log-probabilities of the next token, -inf for those that may not follow."""
    ids_V = jnp.arange(log_probs_BKV.shape[-1])
    too_early_V = (ids_V == EOS_ID) & (state.length < options.min_new_tokens)
    too_late_V = (ids_V != EOS_ID) & (state.length >= options.max_new_tokens)
    log_probs_BKV = jnp.where((ids_V == PAD_ID) | too_early_V | too_late_V, -jnp.inf, log_probs_BKV)
    if options.no_repeat_ngram_size:
        repeats_BKL = _repeats(state.live.tokens_BKL, state.length, options.no_repeat_ngram_size)
        log_probs_BKV = jnp.put_along_axis(log_probs_BKV, repeats_BKL, -jnp.inf, axis=2, inplace=False)
    return log_probs_BKV


def _repeats(tokens_BKL: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """The tokens that would now complete an n-gram for the second time, each where it did for the first; else `PAD_ID`."""
    places_L = jnp.arange(tokens_BKL.shape[2])  # Places below size - 1 end no n-gram, and so nothing wraps around.
    repeats_BKL = jnp.broadcast_to((places_L >= size - 1) & (places_L <= length), tokens_BKL.shape)
    for distance in range(1, size):
        earlier_BKL = jnp.roll(tokens_BKL, distance, axis=2)
        latest_BK1 = jax.lax.dynamic_slice_in_dim(tokens_BKL, length + 1 - distance, 1, axis=2)
        repeats_BKL &= earlier_BKL == latest_BK1
    return jnp.where(repeats_BKL, tokens_BKL, PAD_ID)


def _candidates(
    live: _Hypotheses, log_probs_BKV: jax.Array, length: jax.Array
) -> tuple[_Hypotheses, jax.Array, jax.Array]:
    """The best 2K extensions to this length; which live hypothesis each extends, and by which token: [B, C] both."""
    batch, num_beams, vocab_size = log_probs_BKV.shape
    sums_BKV = live.scores_BK[:, :, None] + log_probs_BKV
    scores_BC, flat_BC = jax.lax.top_k(sums_BKV.reshape(batch, -1), 2 * num_beams)
    parents_BC, new_BC = flat_BC // vocab_size, flat_BC % vocab_size
    tokens_BCL = jnp.take_along_axis(live.tokens_BKL, parents_BC[:, :, None], axis=1)
    return _Hypotheses(tokens_BCL.at[:, :, length].set(new_BC), scores_BC), parents_BC, new_BC


def _best(hypotheses: _Hypotheses, count: int) -> tuple[_Hypotheses, jax.Array]:
    """Those of the highest scores, the earlier of equals first; and their places: [B, count]."""
    scores_BK, order_BK = jax.lax.top_k(hypotheses.scores_BK, count)
    return _Hypotheses(jnp.take_along_axis(hypotheses.tokens_BKL, order_BK[:, :, None], axis=1), scores_BK), order_BK


def _take_in(
    options: BeamOptions, ended: _Hypotheses, candidates: _Hypotheses, ends_BC: jax.Array, length: jax.Array
) -> _Hypotheses:
    """The ended hypotheses that are kept, of the earlier ones and of the candidates that end now."""
    num_beams, sums_BC = options.num_beams, candidates.scores_BK
    ends_BC &= (jnp.arange(2 * num_beams) < num_beams) & (sums_BC != -jnp.inf)
    if options.rule == "fairseq":
        places_left_B1 = (ended.scores_BK == -jnp.inf).sum(axis=1, keepdims=True)
        ends_BC &= jnp.cumsum(ends_BC, axis=1) <= places_left_B1
    new = candidates._replace(scores_BK=jnp.where(ends_BC, sums_BC / _divisor(options, length), -jnp.inf))
    together = _Hypotheses(*(jnp.concatenate(pair, axis=1) for pair in zip(ended, new, strict=True)))
    return _best(together, num_beams)[0]


def _done(options: BeamOptions, live: _Hypotheses, ended: _Hypotheses, length: jax.Array) -> jax.Array:
    """bool [B]: whether the rule has a source take in nothing more."""
    done_B = (ended.scores_BK != -jnp.inf).all(axis=1)
    if options.rule == "transformers":
        done_B &= live.scores_BK[:, 0] / _divisor(options, length) <= ended.scores_BK[:, -1]
    return done_B


def _divisor(options: BeamOptions, length: jax.Array) -> jax.Array:
    return length.astype(jnp.float32) ** options.length_penalty
