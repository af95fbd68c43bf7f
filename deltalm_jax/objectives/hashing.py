"""Counter-based random numbers: a 64-bit hash of whatever names the draw, vectorised over arrays.

`numpy.random` generators carry state, and state is what makes a resumed or re-sharded run differ from an
undisturbed one. Here a draw is named (seed, task, chunk, epoch, position …) and hashed, so it is the same
whenever and wherever it is asked for.
"""

from __future__ import annotations

import numpy as np
import xxhash

# SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): increment and finaliser.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of 64-bit words whose every output bit depends on every input bit.

    Args:
      x: uint64, any shape.

    Returns:
      uint64 of the same shape.
    """
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64 on purpose
        z = np.asarray(x, np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))


def random_words(keys_B: np.ndarray, count: int) -> np.ndarray:
    """The first `count` outputs of SplitMix64 seeded with each key.

    Word c of a row is `mix(key + c * increment)`: it depends on its key and place alone, however many are asked for.

    Args:
      keys_B: uint64 [B]; hashed ones, so that no two rows are near each other in the generator's sequence.
      count: words a row.

    Returns:
      uint64 [B, count].
    """
    z = keys_B[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    # The same as `mix`, in place: two buffers instead of eight. Whole arrays of uint64 wrap without a warning.
    scratch = z >> np.uint64(30)
    z ^= scratch
    z *= _MIX_1
    np.right_shift(z, np.uint64(27), out=scratch)
    z ^= scratch
    z *= _MIX_2
    np.right_shift(z, np.uint64(31), out=scratch)
    z ^= scratch
    return z


def hash_keys(*parts: np.ndarray | np.uint64 | int) -> np.ndarray:
    """Hash of a tuple of integers, elementwise over broadcast arrays.

    Args:
      *parts: non-negative integers or integer arrays of broadcastable shapes; their order matters.

    Returns:
      uint64 array of the broadcast shape.

    Raises:
      ValueError: a part is negative (it would wrap and could collide silently).
    """
    state: np.ndarray = np.asarray(len(parts), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            array = np.asarray(part)
            if array.dtype != np.uint64:
                if array.size and array.min() < 0:
                    raise ValueError(f"hash_keys takes non-negative integers, found {array.min()}")
                array = array.astype(np.uint64)
            state = mix(state * _MIX_1 ^ array)
    return state


def string_key(text: str | bytes) -> np.uint64:
    """64-bit xxh3 hash of a name or a text (UTF-8), for use as a part of `hash_keys`."""
    return np.uint64(xxhash.xxh3_64_intdigest(text if isinstance(text, bytes) else text.encode("utf-8")))


def permute(index_N: np.ndarray, size: np.ndarray | int, key: np.ndarray | np.uint64 | int) -> np.ndarray:
    """A keyed permutation of 0 … size - 1, evaluated only at `index_N`; no table, so `size` may be billions.

    A balanced Feistel network over the next power of four, walked until the value falls below `size`
    (cycle walking; Black & Rogaway 2002). Below 4 * `size` values lie in the domain, so few walks are needed.

    Args:
      index_N: integers in [0, size), any shape.
      size: number of elements, at least 1, a scalar or one per index.
      key: 64-bit key, a scalar or one per index (each key its own permutation).

    Returns:
      int64 of `index_N`'s shape; for one key and size a bijection of [0, size).

    Raises:
      ValueError: an index lies outside [0, size).
    """
    value = np.asarray(index_N, np.int64)
    sizes = np.broadcast_to(np.asarray(size, np.int64), value.shape)
    if value.size and (value.min() < 0 or (value >= sizes).any()):
        wrong = np.flatnonzero((value < 0) | (value >= sizes))[0]
        raise ValueError(f"permute: indices must lie in [0, {sizes.flat[wrong]}), found {value.flat[wrong]}")
    # Half the bits of the largest value, rounded up. A frexp of a whole number below 2**53 is exact.
    bits = np.frexp((sizes - 1).astype(np.float64))[1].astype(np.uint64)
    halves = np.maximum((bits + np.uint64(1)) >> np.uint64(1), np.uint64(1))
    keys = np.broadcast_to(np.asarray(key, np.uint64), value.shape)
    round_keys = [hash_keys(keys, r) for r in range(4)]

    def network(x: np.ndarray, half: np.ndarray, round_keys: list[np.ndarray]) -> np.ndarray:
        low = (np.uint64(1) << half) - np.uint64(1)
        left, right = x >> half, x & low
        for k in round_keys:
            left, right = right, left ^ (mix(right ^ k) & low)
        return (left << half) | right

    out = network(value.astype(np.uint64), halves, round_keys)
    while np.any(outside := out >= sizes.astype(np.uint64)):
        out[outside] = network(out[outside], halves[outside], [k[outside] for k in round_keys])
    return out.astype(np.int64)
