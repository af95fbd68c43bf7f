"""How often each task is drawn, and in which order its chunks: the arithmetic of the stream, as functions of numbers.

Shapes: K tasks of one objective, B examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltalm_jax.objectives.hashing import hash_keys, permute

# Examples in a block, in which each task comes up exactly as often as its rate says: the resolution of the rates (a
# language at 0.2 % gets 16 places of 8,192).
BLOCK_EXAMPLES = 8192
# The finest resolution; a block's order is drawn at once, in memory.
MAX_BLOCK_EXAMPLES = 1 << 20
# Chunks that are shuffled among each other: about 200 MB, two shards of a large task. A draw from all of a large corpus
# would come from another file for nearly every example, and opening one takes longer than reading a hundred chunks.
WINDOW_CHUNKS = 1 << 17


def sampling_rates(
    tokens_K: Sequence[float] | np.ndarray, exponent: float, languages_K: Sequence[str] | None = None
) -> np.ndarray:
    """Temperature sampling: a language's rate is proportional to n ** exponent (XLM-R, mT5: 0.3), n its tokens.

    Tasks of one language share its rate by their tokens: another corpus of a language makes its text more varied and not,
    as a rate for each task would, the language several times more frequent.

    Args:
      tokens_K: of each task.
      exponent: 1 is by size, 0 is the same for all languages.
      languages_K: of each task; None: each task is a language of its own.

    Returns:
      float64 [K], sums to 1.
    """
    shares_K = np.asarray(tokens_K, np.float64) / np.sum(tokens_K)
    names_K = np.arange(len(shares_K)) if languages_K is None else np.asarray(languages_K)
    _, language_K = np.unique(names_K, return_inverse=True)
    share_of_language = np.bincount(language_K, weights=shares_K)
    weights_K = share_of_language[language_K] ** (exponent - 1) * shares_K
    return weights_K / weights_K.sum()


def cap_rates(rates_K: np.ndarray, limits_K: np.ndarray) -> np.ndarray:
    """Rates of which none exceeds its limit; what the capped ones give up goes to the others in proportion.

    Args:
      rates_K: sum to 1.
      limits_K: sum to 1 at least.

    Returns:
      float64 [K], sums to 1: the limit where a task is capped, elsewhere the old rate times one common factor.

    Raises:
      ValueError: the limits sum to less than 1.
    """
    if limits_K.sum() < 1:
        raise ValueError(f"limits of rates must sum to 1 at least, found {limits_K.sum():.3g}")
    capped_K = np.zeros(len(rates_K), bool)
    scaled_K = rates_K
    while np.any(over_K := ~capped_K & (scaled_K > limits_K)):
        capped_K |= over_K
        rest = rates_K[~capped_K].sum()
        factor = (1 - limits_K[capped_K].sum()) / rest if rest else 0.0
        scaled_K = np.where(capped_K, limits_K, rates_K * factor)
    return scaled_K / scaled_K.sum()


def block_size(rates_K: np.ndarray, exact: bool) -> int:
    """Examples in a block: enough for 4 places a task; if `exact`, also for the rarest one to have 4 of its own."""
    block = max(BLOCK_EXAMPLES, 4 * len(rates_K))
    if exact:
        block = max(block, min(MAX_BLOCK_EXAMPLES, int(np.ceil(4 / rates_K.min()))))
    return block


def block_quotas(rates_K: np.ndarray, block: int) -> np.ndarray:
    """Places of each task in a block: largest remainders, at least one each. int64 [K], sums to `block`.

    Raises:
      ValueError: a block of less than two places a task.
    """
    if block < 2 * len(rates_K):
        raise ValueError(f"a block of {block} examples is too small for {len(rates_K)} tasks")
    rare_K = rates_K * block < 1
    exact_K = np.where(rare_K, 1, rates_K / rates_K[~rare_K].sum() * (block - rare_K.sum()))
    quotas_K = np.maximum(np.floor(exact_K).astype(np.int64), 1)
    missing = block - int(quotas_K.sum())
    if missing > 0:
        quotas_K[np.argsort(-(exact_K - quotas_K), kind="stable")[:missing]] += 1
    elif missing < 0:  # places of tasks just above one came out as just below one
        quotas_K[np.argsort(-quotas_K, kind="stable")[:-missing]] -= 1
    return quotas_K


def chunk_order(index_B: np.ndarray, chunks_B: np.ndarray, keys_B: np.ndarray) -> np.ndarray:
    """Which chunk of its task comes at which place of an epoch: windows in random order, their chunks in random order.

    A permutation of a task's chunks for each key, evaluated where asked for. A task of less than two windows
    (`WINDOW_CHUNKS`) is shuffled as a whole. Windows are of equal size; the few chunks that this leaves over, fewer than
    there are windows, come last.

    Args:
      index_B: places, int64 in [0, chunks).
      chunks_B: chunks of the task, int64.
      keys_B: uint64 keys, one for each task and epoch.

    Returns:
      int64 [B] in [0, chunks).
    """
    windows_B = np.maximum(chunks_B // WINDOW_CHUNKS, 1)
    size_B = chunks_B // windows_B
    window_B, place_B = np.divmod(index_B, size_B)
    rest_B = window_B >= windows_B
    # The rest is treated as one more window, which keeps its place.
    shuffled_B = permute(np.where(rest_B, 0, window_B), windows_B, keys_B)
    window_B = np.where(rest_B, windows_B, shuffled_B)
    place_B = np.where(rest_B, index_B - windows_B * size_B, place_B)
    size_of_window_B = np.where(rest_B, chunks_B - windows_B * size_B, size_B)
    return window_B * size_B + permute(place_B, size_of_window_B, hash_keys(keys_B, window_B))
