"""Which hypotheses of a beam live on, which have ended and are kept, and when a source is done: by the rules of others.

Legend: B sources, K beams, C = 2K candidates, V vocabulary, T tokens of a hypothesis, L = T + 1 places: the start token and T
tokens.

A hypothesis is a sequence of tokens; it is *live* while it can grow, and *ended* after `</s>`. Each step

  1. ranks all one-token extensions of a source's live hypotheses by Σ log p and keeps 2K of them, the candidates;
  2. ends candidates whose new token is `</s>`, and scores them;
  3. lets the first K candidates with any other new token live on. There are K: of 2K candidates at most K are `</s>`,
     one for each live hypothesis.

So far fairseq (`SequenceGenerator`, 0.12.2), T5X (`decoding.beam_search`) and transformers (`GenerationMixin._beam_search`,
5.24) agree. `SearchOptions.rule` says which of them decides the rest; a length L counts the final `</s>`:

                         "fairseq"                       "t5"                            "huggingface"
  score                  Σ log p / L^α                   Σ log p / ((5 + L) / 6)^α       Σ log p / L^α
  which `</s>` ends      among the first K candidates    among all 2K                    among the first K candidates
  kept of those ended    the first K; in one step,       the K of the best scores        the K of the best scores
                         those of the largest Σ log p
  a source is done when  K have ended                    K have ended, and no live one   K have ended, and none scores
                                                         can ever come to score more     below the best live one as it
                                                         than the last of them           stands
  at the limit           all but `</s>` is forbidden,    as in fairseq                   live hypotheses end as they are,
                         which is scored as ever                                         without `</s>`

What is done takes in nothing more; so the loop may leave off when all sources are done, and the result is what it would be
at the limit.

"t5": Σ log p falls with every token. A live hypothesis so scores at most Σ log p, as it is now, over the largest divisor it
can have: that of the limit if α is positive, that of the next length if it is negative (T5X always takes the limit's, which
is right for a positive α only). At the limit T5X drops hypotheses that have not ended, unless none has.

"huggingface": with `early_stopping`, its `early_stopping=True`, a source is done when K hypotheses have ended. Without, its
`early_stopping=False`, a live hypothesis is scored as if it ended where it stands. With a positive α it could still gain by
growing, so this is a rule and no proof that nothing better follows. For the same tokens from its `generate`: num_beams,
length_penalty, max_new_tokens, min_new_tokens, no_repeat_ngram_size and early_stopping as here, do_sample=False, and
suppress_tokens=[its id of padding], which fairseq never generates either.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deltalm_jax.decoding.options import SearchOptions
from deltalm_jax.model.config import EOS_ID


class Hypotheses(NamedTuple):
    """Some hypotheses of each source; there may be K or 2K. Score -inf: there is none in this place."""

    tokens_BKL: jax.Array  # int32: the start token, the tokens, `</s>` if it has ended, then `PAD_ID`.
    scores_BK: jax.Array  # float32: Σ log p of those that live, the final score of those that have ended.


def advance(
    options: SearchOptions,
    live: Hypotheses,
    ended: Hypotheses,
    done_B: jax.Array,
    logits_BKV: jax.Array,
    normalizer_BK: jax.Array,
    length: jax.Array,
    last_B: jax.Array,
) -> tuple[Hypotheses, Hypotheses, jax.Array, jax.Array]:
    """One step of beam search.

    Args:
      options: the rule.
      live, ended: the hypotheses before the step, best first.
      done_B: sources that take in nothing more.
      logits_BKV: of the next token after each live hypothesis; -inf where it may not follow.
      normalizer_BK: what makes log-probabilities of logits, to be subtracted.
      length: tokens of a hypothesis after the step.
      last_B: the length at which a source's hypotheses end in any case.

    Returns:
      live, ended and done after the step; and which live hypothesis each live one goes on from, int32 [B, K].
    """
    candidates, parents_BC, new_BC = _candidates(live, logits_BKV, normalizer_BK, length)
    ends_BC = (new_BC == EOS_ID) | (length == last_B)[:, None]
    going_on = candidates._replace(scores_BK=jnp.where(ends_BC, -jnp.inf, candidates.scores_BK))
    live, order_BK = best(going_on, options.beam_size)
    ended = _take_in(options, ended, candidates, ends_BC & ~done_B[:, None], length)
    done_B |= _done(options, live, ended, length, last_B)
    return live, ended, done_B, jnp.take_along_axis(parents_BC, order_BK, axis=1)


def divisor(options: SearchOptions, length: jax.Array) -> jax.Array:
    """What Σ log p of a hypothesis of this length is divided by; the length counts the final `</s>`."""
    length = length.astype(jnp.float32)
    return ((5 + length) / 6 if options.rule == "t5" else length) ** options.length_penalty


def best(hypotheses: Hypotheses, count: int) -> tuple[Hypotheses, jax.Array]:
    """Those of the highest scores, the earlier of equals first; and their places: [B, count]."""
    scores_BK, order_BK = jax.lax.top_k(hypotheses.scores_BK, count)
    return Hypotheses(jnp.take_along_axis(hypotheses.tokens_BKL, order_BK[:, :, None], axis=1), scores_BK), order_BK


def _candidates(
    live: Hypotheses, logits_BKV: jax.Array, normalizer_BK: jax.Array, length: jax.Array
) -> tuple[Hypotheses, jax.Array, jax.Array]:
    """The best 2K extensions to this length; which live hypothesis each extends, and by which token: [B, C] both."""
    batch, beam_size, vocab_size = logits_BKV.shape
    # None but the best 2K extensions of each hypothesis can be among the best 2K of all.
    each = min(2 * beam_size, vocab_size)
    logits_BKC, tokens_BKC = jax.lax.top_k(logits_BKV, each)
    sums_BKC = live.scores_BK[:, :, None] + (logits_BKC - normalizer_BK[:, :, None])
    scores_BC, places_BC = jax.lax.top_k(sums_BKC.reshape(batch, -1), 2 * beam_size)
    parents_BC = places_BC // each
    new_BC = jnp.take_along_axis(tokens_BKC.reshape(batch, -1), places_BC, axis=1)
    tokens_BCL = jnp.take_along_axis(live.tokens_BKL, parents_BC[:, :, None], axis=1)
    return Hypotheses(tokens_BCL.at[:, :, length].set(new_BC), scores_BC), parents_BC, new_BC


def _take_in(
    options: SearchOptions, ended: Hypotheses, candidates: Hypotheses, ends_BC: jax.Array, length: jax.Array
) -> Hypotheses:
    """The ended hypotheses that are kept, of the earlier ones and of the candidates that end now."""
    beam_size, sums_BC = options.beam_size, candidates.scores_BK
    ends_BC &= sums_BC != -jnp.inf
    if options.rule != "t5":
        ends_BC &= jnp.arange(2 * beam_size) < beam_size
    if options.rule == "fairseq":
        places_left_B1 = (ended.scores_BK == -jnp.inf).sum(axis=1, keepdims=True)
        ends_BC &= jnp.cumsum(ends_BC, axis=1) <= places_left_B1
    new = candidates._replace(scores_BK=jnp.where(ends_BC, sums_BC / divisor(options, length), -jnp.inf))
    together = Hypotheses(*(jnp.concatenate(pair, axis=1) for pair in zip(ended, new, strict=True)))
    return best(together, beam_size)[0]


def _done(
    options: SearchOptions, live: Hypotheses, ended: Hypotheses, length: jax.Array, last_B: jax.Array
) -> jax.Array:
    """bool [B]: whether the rule has a source take in nothing more, or nothing more can come."""
    done_B = (ended.scores_BK != -jnp.inf).all(axis=1)
    best_live_B, worst_ended_B = live.scores_BK[:, 0], ended.scores_BK[:, -1]
    if options.rule == "t5":
        largest_B = jnp.maximum(divisor(options, length + 1), divisor(options, last_B))
        done_B &= best_live_B / largest_B <= worst_ended_B
    elif options.rule == "huggingface" and not options.early_stopping:
        done_B &= best_live_B / divisor(options, length) <= worst_ended_B
    return done_B | (best_live_B == -jnp.inf)
