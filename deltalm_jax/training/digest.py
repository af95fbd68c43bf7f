"""Digests computed on the devices: of a batch, so that order and replay can be proved, and of arrays, so that copies can.

Each word is hashed with its place (MurmurHash3's 32-bit mix), and the hashes are added modulo 2**32.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from deltalm_jax.parallel.sharding import BATCH_AXES, by_shard, global_rows, sum_over_batch


def batch_digest(batch: Any, mesh: Mesh) -> jax.Array:
    """Digest of the global batch as the devices hold it: equal digests mean equal batches in equal order.

    Each id is hashed with its position and its array's number (a 32-bit multiply-xorshift mix, two different ones), and
    the hashes are added modulo 2**32. Addition has no order, so the digest does not depend on how rows are spread over
    devices and processes.

    Returns:
      uint32 [2].
    """

    def local(batch: Any) -> jax.Array:
        total = jnp.zeros(2, jnp.uint32)
        for number, array in enumerate(jax.tree.leaves(batch)):
            rows, row_size = array.shape[0], math.prod(array.shape[1:])
            row_R1 = global_rows(rows, mesh).astype(jnp.uint32)[:, None]
            place = (row_R1 * row_size + jnp.arange(row_size, dtype=jnp.uint32)).reshape(array.shape)
            for lane, constant in enumerate((0x9E3779B1, 0x85EBCA77)):
                hashed = mix32(
                    array.astype(jnp.uint32) * jnp.uint32(constant) ^ mix32(place + jnp.uint32(number << 28))
                )
                total = total.at[lane].add(jnp.sum(mix32(hashed + jnp.uint32(lane)), dtype=jnp.uint32))
        return sum_over_batch(total, mesh)

    return by_shard(local, mesh, (P(BATCH_AXES),), P())(batch)


def array_digest(array: jax.Array) -> jax.Array:
    """uint32 [] of an array's bits and their order. One changed bit always changes it: the mix is a bijection at each place.

    Args:
      array: of 32-bit words, or of a float that float32 holds exactly.
    """
    flat = array.reshape(-1)
    bits = jax.lax.bitcast_convert_type(flat if flat.dtype.itemsize == 4 else flat.astype(jnp.float32), jnp.uint32)
    return jnp.sum(mix32(bits ^ mix32(jnp.arange(bits.size, dtype=jnp.uint32))), dtype=jnp.uint32)


def mix32(x: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finaliser (a bijection)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
