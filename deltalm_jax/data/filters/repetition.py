"""Documents that repeat themselves: MassiveText's rules (Rae et al. 2021, table A1), free of language.

Shapes: D documents, P paragraphs of all documents, G n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltalm_jax.data.filters.words import Words

# Below, single repeated phrases make large shares; MassiveText judged no shorter document either.
MIN_WORDS = 50

# An n-gram in one number that sorts: document in its group, hash, length in characters.
_DOCUMENT_BITS, _HASH_BITS, _LENGTH_BITS = 16, 34, 14


def duplicate_shares(documents: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """How much of each document repeats an earlier paragraph of it.

    Returns:
      float64 [D] of its paragraphs, and float64 [D] of its characters.
    """
    paragraphs_D, characters_D = np.zeros(len(documents)), np.zeros(len(documents))
    for number, document in enumerate(documents):
        distinct = set(document)
        if len(distinct) < len(document):
            paragraphs_D[number] = 1 - len(distinct) / len(document)
            characters_D[number] = 1 - sum(map(len, distinct)) / sum(map(len, document))
    return paragraphs_D, characters_D


def top_ngram_shares(words: Words, n: int) -> np.ndarray:
    """float64 [D]: the characters of each document's most frequent n-gram, as often as it occurs, among all its characters.

    Of n-grams that are equally frequent, the longest. Documents with fewer than `MIN_WORDS` words, and those in which no
    n-gram comes twice, have 0. Overlapping occurrences count each, so that the share may exceed 1.

    Args:
      words: of the documents, one text each.
      n: words in an n-gram.
    """
    ngrams = words.ngrams(n)
    shares_D = np.zeros(len(words.length_T))
    length_G = np.minimum(ngrams.end_G - ngrams.start_G, (1 << _LENGTH_BITS) - 1).astype(np.uint64)
    low_G = (ngrams.hash_G >> np.uint64(64 - _HASH_BITS) << np.uint64(_LENGTH_BITS)) | length_G
    for first in range(0, len(shares_D), 1 << _DOCUMENT_BITS):
        begin, end = np.searchsorted(ngrams.text_G, [first, first + (1 << _DOCUMENT_BITS)])
        document_G = (ngrams.text_G[begin:end] - first).astype(np.uint64)
        packed_G = np.sort(document_G << np.uint64(_HASH_BITS + _LENGTH_BITS) | low_G[begin:end])
        starts = np.flatnonzero(np.append(True, packed_G[1:] != packed_G[:-1])[: len(packed_G)])
        count = np.diff(np.append(starts, len(packed_G)))
        distinct, count = packed_G[starts][count > 1], count[count > 1]
        document = (distinct >> np.uint64(_HASH_BITS + _LENGTH_BITS)).astype(np.int64) + first
        length = (distinct & np.uint64((1 << _LENGTH_BITS) - 1)).astype(np.int64)
        # The most frequent comes last in its document, the longest of those at the very end.
        order = np.lexsort((length, count, document))
        last = np.flatnonzero(np.append(document[order][1:] != document[order][:-1], True)[: len(order)])
        top = order[last]
        shares_D[document[top]] = count[top] * length[top]
    long_enough_D = words.count_T >= words.size_T(MIN_WORDS)
    return np.where(long_enough_D, shares_D / np.maximum(words.length_T, 1), 0.0)
