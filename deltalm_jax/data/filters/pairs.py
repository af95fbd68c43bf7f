"""The filters of pairs (English, other). Shapes: N pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from deltalm_jax.data.filters.characters import Characters
from deltalm_jax.data.filters.config import FilterConfig
from deltalm_jax.data.filters.counting import Sieve
from deltalm_jax.data.filters.languages import identify
from deltalm_jax.data.filters.test_sets import touches
from deltalm_jax.data.filters.words import Words, folded

ENGLISH, ENGLISH_SCRIPT = "en", "Latn"
# Sides of up to so many ids are never too different in length: "OK" may take five ids elsewhere.
SHORT_SIDE = 8
MIN_WORDS = 4

Pair = tuple[str, str]


def filter_pairs(
    pairs: Sequence[Sequence[str]],
    language: str,
    script: str | None,
    config: FilterConfig,
    test_ngrams: np.ndarray | None,
    counts: Counter[str],
) -> list[Pair]:
    """The pairs that stay; arguments as of `apply_filters`."""
    sides = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    english, other = Characters(sides[0]), Characters(sides[1])
    sieve = Sieve(english.length_T + other.length_T, counts)
    if config.side_min_letters:
        sieve.drop("side_min_letters", np.minimum(english.letters(), other.letters()) < config.side_min_letters)
    if config.side_max_characters is not None:
        longer_N = np.maximum(english.length_T, other.length_T)
        sieve.drop("side_max_characters", longer_N > config.side_max_characters)
    if config.side_min_letter_share:
        share_N = np.minimum(english.letter_share(), other.letter_share())
        sieve.drop("side_min_letter_share", share_N < config.side_min_letter_share)
    if config.pair_drop_swapped:
        assert script, "checked before anything is read"
        sieve.drop("pair_drop_swapped", swapped(english, other, script))
    if config.side_min_script_share:
        assert script, "checked before anything is read"
        share_N = np.minimum(english.script_share(ENGLISH_SCRIPT), other.script_share(script))
        sieve.drop("side_min_script_share", share_N < config.side_min_script_share)
    if config.pair_drop_copies or config.pair_max_overlap < 1 or test_ngrams is not None:
        _judge_words(
            sieve, [folded(text) for text in sides[0]], [folded(text) for text in sides[1]], config, test_ngrams
        )
    if config.language_identifier:
        left = sieve.keep_from(range(len(pairs)))
        _judge_languages(sieve, [[side[n] for n in left] for side in sides], np.array(left, np.int64), language, config)
    return [(english, other) for english, other in sieve.keep_from(pairs)]


def _judge_words(
    sieve: Sieve, english: list[str], other: list[str], config: FilterConfig, test_ngrams: np.ndarray | None
) -> None:
    """By copies, words in common and test sets, from folded sides."""
    if config.pair_drop_copies:
        sieve.drop("pair_drop_copies", np.array([a == b for a, b in zip(english, other, strict=True)], bool))
    if config.pair_max_overlap < 1:
        sieve.drop("pair_max_overlap", overlaps(english, other) > config.pair_max_overlap)
    if test_ngrams is not None:
        n = config.test_set_ngram
        sieve.drop("test_sets", touches(Words(english), n, test_ngrams) | touches(Words(other), n, test_ngrams))


def _judge_languages(
    sieve: Sieve, sides: Sequence[list[str]], left: np.ndarray, language: str, config: FilterConfig
) -> None:
    """By the user's identifier, which is asked only about pairs that are left (their numbers)."""

    def all_pairs(bad: np.ndarray) -> np.ndarray:
        bad_N = np.zeros(len(sieve.kept_N), bool)
        bad_N[left[bad]] = True
        return bad_N

    english, other = (identify(config, side) for side in sides)
    if config.pair_drop_swapped:
        sieve.drop("pair_drop_swapped", all_pairs(english.are(language) & other.are(ENGLISH)))
    sieve.drop("language_identifier", all_pairs(~english.are(ENGLISH) | ~other.are(language)))


def overlaps(english: Sequence[str], other: Sequence[str]) -> np.ndarray:
    """float64 [N]: the distinct words that the two sides share, among those of the side that has fewer.

    0 where that side has fewer than `MIN_WORDS`: a name and a number are the same in all languages.

    Args:
      english, other: the sides, folded.
    """
    count = len(english)
    # A word of a pair in one number: the pair above, as much of the hash as fits below.
    hash_bits = np.uint64(64 - count.bit_length())
    keys = []
    for side in (english, other):
        words = Words(side)
        pair_W = np.repeat(np.arange(count, dtype=np.uint64), words.count_T)
        keys.append(np.unique(pair_W << hash_bits | words.hash_W >> (np.uint64(64) - hash_bits)))
    sizes = [np.bincount((key >> hash_bits).astype(np.int64), minlength=count) for key in keys]
    shared = np.intersect1d(keys[0], keys[1], assume_unique=True)
    shared_N = np.bincount((shared >> hash_bits).astype(np.int64), minlength=count)
    fewer_N = np.minimum(*sizes)
    return np.where(fewer_N >= MIN_WORDS, shared_N / np.maximum(fewer_N, 1), 0.0)


def swapped(english: Characters, other: Characters, script: str) -> np.ndarray:
    """bool [N]: where most of the English side is in the other language's script, and most of the other side is Latin.

    Where that script is Latin too, nothing can be seen.
    """
    if ENGLISH_SCRIPT in script.split(","):
        return np.zeros(len(english.start_T), bool)
    no_letters_N = (english.letters() == 0) | (other.letters() == 0)
    return (english.script_share(script) > 0.5) & (other.script_share(ENGLISH_SCRIPT) > 0.5) & ~no_letters_N


def too_different(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], ratio: float) -> list[bool]:
    """Whether the longer side of each pair has more than `ratio` times the ids of the shorter, and more than `SHORT_SIDE`.

    A side without ids is left to packing, which counts it.
    """
    lengths = [sorted((len(a), len(b))) for a, b in pairs]
    return [short > 0 and long > max(SHORT_SIDE, ratio * short) for short, long in lengths]
