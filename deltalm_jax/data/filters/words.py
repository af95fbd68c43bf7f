"""Words and n-grams of a block's texts, as arrays of 64-bit hashes.

A word is a run of letters, marks and digits. In scripts written without spaces each letter (with its marks) is one, and
an n-gram there has twice as many, `LETTERS_PER_WORD`: about as much text as n words have. So nothing needs to know the
language, and a text in two scripts has both kinds.

A run of code points c_i is hashed as the sum of mix(c_i) * B**i modulo 2**64, by prefix sums: B is odd and has an
inverse, so any run's hash is (sum up to its end - sum up to its start) * B**-start. n-grams are hashed in the same way
over their words. Shapes: C characters, W words, T texts, G n-grams.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from deltalm_jax.data.filters.characters import MARKS, UNSPACED, WORD_CHARACTERS, Characters
from deltalm_jax.objectives.hashing import mix

LETTERS_PER_WORD = 2

_BASE = 0x9E3779B97F4A7C15  # odd
_INVERSE = pow(_BASE, -1, 2**64)


def folded(text: str) -> str:
    """A text without what does not tell texts apart: compatibility characters (NFKC), case, kinds and runs of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class Words:
    """The words of texts.

    Attributes:
      start_W, end_W: int64, the characters of each word, in all texts one after the other.
      hash_W: uint64.
      first_T, last_T: int64; text t has words first_T[t] to last_T[t] - 1.
      unspaced_T: bool, texts of which most words are single letters of a script without spaces.
    """

    def __init__(self, texts: Sequence[str]):
        """The words of texts as they stand; give `folded` ones where case should not matter."""
        characters = Characters(texts)
        count = len(characters.code_C)
        word_C, mark_C = characters.are(WORD_CHARACTERS), characters.are(MARKS)
        begins_C = np.zeros(count + 1, bool)  # a text begins here
        begins_C[characters.start_T] = True
        # A mark goes with what it stands on, whichever script the mark itself has.
        base_C = np.maximum.accumulate(np.where(mark_C & ~begins_C[:-1], 0, np.arange(count)))
        letter_C = characters.are(f"[{UNSPACED}]") & word_C & ~mark_C  # a word by itself
        unspaced_C = letter_C[base_C]
        before_C = np.concatenate([[False], word_C[:-1]])
        after_unspaced_C = np.concatenate([[False], unspaced_C[:-1]])
        first_C = word_C & (~before_C | begins_C[:-1] | letter_C | (after_unspaced_C & ~mark_C))
        next_word_C = np.concatenate([word_C[1:], [False]])
        next_first_C = np.concatenate([first_C[1:], [True]])
        last_C = word_C & (~next_word_C | next_first_C | begins_C[1:])
        self.start_W, self.end_W = np.flatnonzero(first_C), np.flatnonzero(last_C) + 1
        self.hash_W = _hash_runs(mix(characters.code_C.astype(np.uint64)), self.start_W, self.end_W)
        self.first_T = np.searchsorted(self.start_W, characters.start_T)
        self.last_T = np.searchsorted(self.start_W, characters.end_T)
        self.length_T = characters.length_T
        single = np.concatenate([[0], np.cumsum(unspaced_C[self.start_W])])
        self.unspaced_T = 2 * (single[self.last_T] - single[self.first_T]) > self.last_T - self.first_T

    @property
    def count_T(self) -> np.ndarray:
        """int64: words of each text, where in scripts without spaces every letter is one."""
        return self.last_T - self.first_T

    def size_T(self, words: int) -> np.ndarray:
        """int64: how many of its own words an n-gram of so many words has in each text."""
        return np.where(self.unspaced_T, words * LETTERS_PER_WORD, words)

    def ngrams(self, words: int, whole: bool = False) -> Ngrams:
        """All n-grams of `words` words inside of texts.

        Args:
          words: n; twice that in texts without spaces.
          whole: whether a text with fewer words is an n-gram itself; else it has none.
        """
        size_T = self.size_T(words)
        if whole:
            size_T = np.clip(self.count_T, 1, size_T)
        number_T = np.maximum(self.count_T - size_T + 1, 0)
        text_G = np.repeat(np.arange(len(number_T)), number_T)
        end_T = np.cumsum(number_T)
        first_G = np.arange(len(text_G)) - np.repeat(end_T - number_T, number_T) + self.first_T[text_G]
        last_G = first_G + size_T[text_G]
        return Ngrams(text_G, self.start_W[first_G], self.end_W[last_G - 1], _hash_runs(self.hash_W, first_G, last_G))


class Ngrams:
    """n-grams of texts.

    Attributes:
      text_G: int64, the text each is in, ascending.
      start_G, end_G: int64, its characters, in all texts one after the other.
      hash_G: uint64.
    """

    def __init__(self, text_G: np.ndarray, start_G: np.ndarray, end_G: np.ndarray, hash_G: np.ndarray):
        self.text_G, self.start_G, self.end_G, self.hash_G = text_G, start_G, end_G, hash_G


def _hash_runs(value_N: np.ndarray, start_R: np.ndarray, end_R: np.ndarray) -> np.ndarray:
    """uint64 [R]: a hash of each run of values (uint64) that depends on the values and their order alone."""
    sums = np.zeros(len(value_N) + 1, np.uint64)
    np.cumsum(value_N * _powers(_BASE, len(value_N)), out=sums[1:])
    run_R = (sums[end_R] - sums[start_R]) * _powers(_INVERSE, len(value_N) + 1)[start_R]
    return mix(run_R)


def _powers(base: int, count: int) -> np.ndarray:
    """uint64: base**0 … base**(count - 1), modulo 2**64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, out=factors)
