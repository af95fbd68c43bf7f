"""Keys of texts that are equal or nearly so, and which of several is kept.

A key is a 64-bit hash; texts with a key in common are duplicates, and the first of them is kept. Equal paragraphs and pairs
have one key each. Documents have one for each band of their MinHash signature (Broder 1997), so two that agree in any band
meet. A document goes if any earlier one shares a band with it, even if that one goes too. Shapes: N texts, D documents, R
rows of a band.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltalm_jax.data.filters.words import Words, folded
from deltalm_jax.objectives.hashing import hash_keys, string_key

# Of datasketch's permutations; another one is as good, but this one is what prepared data were made with.
_SEED = 1
# n-grams that are hashed at once: 112 hashes of each are held meanwhile, in four bytes.
_NGRAMS_AT_A_TIME = 1 << 14


def paragraph_keys(paragraphs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A key of each paragraph, folded: uint64 [N], and 0 … N - 1."""
    return np.array([string_key(folded(text)) for text in paragraphs], np.uint64), np.arange(len(paragraphs))


def pair_keys(pairs: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """A key of each pair, of both sides folded: uint64 [N], and 0 … N - 1."""
    english_N = np.array([string_key(folded(pair[0])) for pair in pairs], np.uint64)
    other_N = np.array([string_key(folded(pair[1])) for pair in pairs], np.uint64)
    return hash_keys(english_N, other_N), np.arange(len(pairs))


def document_keys(documents: Sequence[Sequence[str]], bands: int, rows: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`bands` keys of each document, from `bands * rows` MinHashes of its n-grams of words.

    A document with fewer than n words has one n-gram, of all of them; one without words has no key.

    Args:
      documents: lists of paragraphs.
      bands, rows, n: see `FilterConfig`.

    Returns:
      The keys, uint64, and of each the number of its document.
    """
    import datasketch  # it imports scipy: a second of every worker's start, for those who compare documents alone

    words = Words([" ".join(map(folded, document)) for document in documents])
    ngrams = words.ngrams(n, whole=True)
    # The scheme "affine32" takes 32 bits and mixes them itself.
    hash_G = (ngrams.hash_G >> np.uint64(32)).astype(np.uint32)
    begin_D = np.searchsorted(ngrams.text_G, np.arange(len(documents) + 1))
    empty = datasketch.MinHash(num_perm=bands * rows, seed=_SEED, scheme="affine32", hashfunc=int)
    keys, places = [np.zeros(0, np.uint64)], []
    for number in range(len(documents)):
        hashes = hash_G[begin_D[number] : begin_D[number + 1]]
        if not len(hashes):
            continue
        signature = empty.copy()
        for first in range(0, len(hashes), _NGRAMS_AT_A_TIME):
            signature.update_batch(hashes[first : first + _NGRAMS_AT_A_TIME].tolist())
        band_R = signature.hashvalues.reshape(bands, rows).T.astype(np.uint64)
        # The band's own number goes in: band 3 of one document is never compared with band 4 of another.
        keys.append(hash_keys(np.arange(bands, dtype=np.uint64), *band_R))
        places.append(number)
    return np.concatenate(keys), np.repeat(np.array(places, np.int64), bands)


def repeated(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which keys are there already.

    Args:
      groups: uint64 arrays of keys; of equal keys, the first one in this order is no repetition.

    Returns:
      bool arrays of the same lengths, true where the key has come before.
    """
    key_N = np.concatenate([np.zeros(0, np.uint64), *groups])
    order_N = np.argsort(key_N, kind="stable")
    sorted_N = key_N[order_N]
    again_N = np.zeros(len(key_N), bool)
    again_N[order_N[1:]] = sorted_N[1:] == sorted_N[:-1]
    ends = np.cumsum([len(group) for group in groups], dtype=np.int64)
    return np.split(again_N, ends[:-1])[: len(groups)]
