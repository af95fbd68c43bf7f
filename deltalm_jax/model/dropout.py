"""Dropout with explicit keys.

A key is one jax key for all rows of the batch, or an array [B] of them, one for each row. With the latter a row's masks
depend on its own key alone, and so neither on which other rows are there nor on which device holds it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_WORDS = 2**32


def split_key(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` independent keys folded from `key`; without a key (no dropout), that many Nones."""
    if key is None:
        return [None] * num
    return [_fold_in(key, index) for index in range(num)]


def layer_keys(key: jax.Array | None, num_layers: int) -> jax.Array | None:
    """[N] or [N, B] keys, layer n's folded from `key` and n: its masks depend on nothing else. None without a key."""
    if key is None:
        return None
    return jax.vmap(lambda layer: _fold_in(key, layer))(jnp.arange(num_layers))


def row_keys(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    """[B] keys, folded from `key` and each row's number."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows_B)


def _fold_in(key: jax.Array, number: jax.Array | int) -> jax.Array:
    fold_in = jax.random.fold_in
    return fold_in(key, number) if key.ndim == 0 else jax.vmap(lambda row_key: fold_in(row_key, number))(key)


def dropout(values: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets each value to zero with probability `rate` and scales the rest so that the expectation stays.

    Args:
      values: any shape with at least one axis.
      rate: in [0, 1); kept to a multiple of 2⁻³², and the scale is that of the rate kept.
      key: one key, or one for each index of the first axis; None for no dropout.

    Returns:
      The same shape and dtype.
    """
    if key is None or rate == 0.0:
        return values
    dropped_words = min(round(rate * _WORDS), _WORDS - 1)
    keep = random_words(key, values.shape) >= jnp.uint32(dropped_words)
    return jnp.where(keep, values * (_WORDS / (_WORDS - dropped_words)), 0)


def random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 [..., D], uniform: one word from `key` seeds each line, and a SplitMix32 stream runs along it.

    `jax.random.bits` for every element (20 rounds of Threefry that cannot be fused) costs a small model's training step
    about a tenth of its time on a CPU. Here it makes one word in D; the rest is a dozen integer operations an element,
    which fuse with the product they mask, and which give the same bits on every backend and mesh. A stream is a Weyl
    sequence through MurmurHash3's 32-bit finaliser: not for cryptography, and more than enough for masks.
    """
    if key.ndim == 0:
        seeds = jax.random.bits(key, (*shape[:-1], 1), jnp.uint32)
    else:
        seeds = jax.vmap(lambda row_key: jax.random.bits(row_key, (*shape[1:-1], 1), jnp.uint32))(key)
    words = seeds + jnp.arange(shape[-1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
