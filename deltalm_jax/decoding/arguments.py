"""What `generate` is given, checked before anything is computed. Legend: B sources, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from deltalm_jax.decoding.options import SearchOptions
from deltalm_jax.errors import UserError
from deltalm_jax.model.config import EOS_ID, PAD_ID, ModelConfig

_DEFAULT_MAX_LENGTH = 200


class GenerationError(UserError, ValueError):
    """What was asked for cannot be generated: a source, a limit or a set of tokens is out of range."""


class LengthLimit(NamedTuple):
    """A limit that grows with the source: ⌊`per_source_token` · n⌋ + `more`, of a source of n tokens without padding.

    It is lowered to what the model has positions for, and is at least 1. fairseq's `max_len_a` and `max_len_b`; but there n
    is the length of the longest source in the batch, so that a result depends on what it is batched with.
    """

    per_source_token: float
    more: int


class Limits(NamedTuple):
    """Most tokens of a hypothesis: of each source, and of any source of a bucket, which its program is compiled for."""

    of_each: list[int]
    rule: LengthLimit | None
    most: int

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        options: SearchOptions,
        max_length: int | Sequence[int] | LengthLimit | None,
        lengths: Sequence[int],
    ) -> Limits:
        """The limits of sources, from what `generate` is told.

        Args:
          config: the model's shape, which has positions for so many.
          options: whether a hypothesis ends with `</s>`, which takes a position.
          max_length: one for all, one for each, a rule by the source's length, or None for the usual one.
          lengths: of the sources, in tokens.

        Raises:
          GenerationError: a limit is below 1 or has no position, or their number is another.
        """
        positions = config.max_length - options.ends_with_eos
        if max_length is None:
            max_length = min(_DEFAULT_MAX_LENGTH, positions)
        if isinstance(max_length, LengthLimit):
            limits = cls([], max_length, positions)
            return limits._replace(of_each=[limits.of_bucket(length) for length in lengths])
        of_each = each("max_length", max_length, len(lengths))
        for source, limit in enumerate(of_each):
            if not 1 <= limit <= positions:
                raise GenerationError(
                    f"max_length of source {source} must be between 1 and {positions}, found {limit}: the decoder has "
                    f"{config.max_length} positions (ModelConfig.max_length)"
                )
        return cls(of_each, None, max(of_each, default=1))

    def of_bucket(self, length: int) -> int:
        """The limit of a source of this length, or any shorter one."""
        if self.rule is None:
            return self.most
        return max(1, min(int(self.rule.per_source_token * length) + self.rule.more, self.most))


def check_sources(config: ModelConfig, sources: Any) -> list[np.ndarray]:
    """Each source without its padding."""
    checked = []
    for number, source in enumerate(sources):
        tokens = np.asarray(source) if len(source) else np.zeros(0, np.int32)
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise GenerationError(
                f"source {number} must be a sequence of int ids, found {tokens.dtype} of shape {tokens.shape}"
            )
        _check_ids(f"source {number}", tokens, config.vocab_size)
        tokens = tokens[tokens != PAD_ID]
        if not 1 <= len(tokens) <= config.max_length:
            raise GenerationError(
                f"source {number} has {len(tokens)} tokens, padding not counted; expected 1 to {config.max_length} "
                f"(ModelConfig.max_length): {'cut it, or split it' if len(tokens) else 'leave it out'}"
            )
        checked.append(tokens)
    return checked


def each(name: str, value: int | Sequence[int], count: int) -> list[int]:
    """An int argument for each of `count` sources: said once for all of them, or for each.

    Raises:
      GenerationError: it is no int, or their number is another; `name` says of which argument.
    """
    values_B = np.asarray(value)
    if not np.issubdtype(values_B.dtype, np.integer) and values_B.size:
        raise GenerationError(f"{name} must be an int, or one for each source; found {value!r}")
    if values_B.shape not in ((), (count,)):
        raise GenerationError(f"{name} must be one int, or one for each of the {count} sources; found {values_B.shape}")
    return np.broadcast_to(values_B, count).tolist()


def check_prefixes(
    config: ModelConfig, prefixes: Sequence[Sequence[int]] | None, limits: Limits, count: int
) -> list[Sequence[int]]:
    """What each hypothesis begins with, as ids: empty for each of `count` sources where nothing is given.

    Raises:
      GenerationError: their number is another; or one holds an id that the vocabulary lacks, padding or `</s>`, or is longer
        than its hypothesis may be.
    """
    if prefixes is None:
        return [()] * count
    if len(prefixes) != count:
        raise GenerationError(f"prefixes must be one for each of the {count} sources, found {len(prefixes)}")
    for number, (prefix, limit) in enumerate(zip(prefixes, limits.of_each, strict=True)):
        tokens = np.asarray(prefix, np.int64)
        _check_ids(f"prefix {number}", tokens, config.vocab_size)
        if np.isin(tokens, (PAD_ID, EOS_ID)).any():
            raise GenerationError(f"prefix {number} must hold neither padding ({PAD_ID}) nor </s> ({EOS_ID}): {prefix}")
        if len(tokens) > limit:
            raise GenerationError(
                f"prefix {number} has {len(tokens)} tokens, more than the max_length of {limit} of its hypotheses"
            )
    return list(prefixes)


def allowed_mask(config: ModelConfig, allowed_tokens: Any, banned_tokens: Sequence[int]) -> np.ndarray | None:
    """bool [V]: what may be generated beside `</s>`; None: everything."""
    banned = np.asarray(banned_tokens, np.int64)
    _check_ids("banned_tokens", banned, config.vocab_size)
    if (banned == EOS_ID).any():
        raise GenerationError(f"banned_tokens must not hold </s> ({EOS_ID}): hypotheses could not end. Set min_length")
    if allowed_tokens is None and not len(banned):
        return None
    allowed_V = np.ones(config.vocab_size, bool) if allowed_tokens is None else np.array(allowed_tokens)
    if allowed_V.shape != (config.vocab_size,) or allowed_V.dtype != bool:
        raise GenerationError(
            f"allowed_tokens must be bool, one for each of the {config.vocab_size} tokens, found {allowed_V.dtype} of shape "
            f"{allowed_V.shape}"
        )
    allowed_V[banned] = False
    allowed_V[[PAD_ID, EOS_ID]] = False
    if not allowed_V.any():
        raise GenerationError("all tokens but </s> are forbidden: nothing is left to generate; allow some")
    return allowed_V


def _check_ids(name: str, tokens: np.ndarray, vocab_size: int) -> None:
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(wrong):
        raise GenerationError(
            f"{name} has the id {tokens[wrong[0]]} at position {wrong[0]}; expected 0 to {vocab_size - 1} "
            "(ModelConfig.vocab_size): another vocabulary?"
        )
