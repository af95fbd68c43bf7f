"""Removal of texts that a model is tested on, by n-grams in common.

The n-grams of all test sets are one sorted array of hashes: 8 bytes each (a test set of a thousand sentences in 200
languages has about 4 M). Shapes: T texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from deltalm_jax.data.filters.words import Words, folded
from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.files import clean, read_lines
from deltalm_jax.paths import as_path

_TEXTS_AT_A_TIME = 10_000


def read_test_sets(paths: Sequence[str], n: int) -> np.ndarray:
    """The n-grams of all texts in files: uint64, sorted, each once.

    Args:
      paths: text files, plain, .xz or .gz. Every tab-separated column of every line is a text.
      n: words in an n-gram; a text with fewer is one n-gram.

    Raises:
      CorpusError: a file is missing, damaged, without any text, or holds lines that are not UTF-8 or too long.
    """
    found = [np.zeros(0, np.uint64)]
    for path in paths:
        counts = Counter[str]()
        texts = [
            text for line in read_lines(as_path(path), counts) for column in line.split("\t") if (text := clean(column))
        ]
        if counts:
            reasons = ", ".join(f"{reason}: {number}" for reason, number in sorted(counts.items()))
            raise CorpusError(f"{path}: expected a test set as UTF-8 text, found lines that cannot be read ({reasons})")
        if not texts:
            raise CorpusError(f"{path}: expected a test set, found no text in it")
        before = len(found)
        for begin in range(0, len(texts), _TEXTS_AT_A_TIME):
            words = Words([folded(text) for text in texts[begin : begin + _TEXTS_AT_A_TIME]])
            found.append(np.unique(words.ngrams(n, whole=True).hash_G))
        if not any(map(len, found[before:])):
            raise CorpusError(f"{path}: expected a test set, found no word in it")
    return np.unique(np.concatenate(found))


def touches(words: Words, n: int, test_ngrams: np.ndarray) -> np.ndarray:
    """bool [T]: whether a text has an n-gram in common with the test sets; one with fewer words, whether it is one of theirs.

    Args:
      words: of the texts, folded.
      n: as in `read_test_sets`.
      test_ngrams: from there.
    """
    ngrams = words.ngrams(n, whole=True)
    place_G = np.searchsorted(test_ngrams, ngrams.hash_G)
    found_G = test_ngrams[np.minimum(place_G, len(test_ngrams) - 1)] == ngrams.hash_G
    touched_T = np.zeros(len(words.length_T), bool)
    touched_T[ngrams.text_G[found_G]] = True
    return touched_T
