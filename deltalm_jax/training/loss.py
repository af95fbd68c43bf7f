"""Cross-entropy over a 250,000-piece vocabulary without ever holding `[B, T, V]` logits.

The output projection is 40 to 50 % of DeltaLM's arithmetic and its logits take 0.5 GB for one 512-token sequence.
So targets are taken a block of positions at a time. The loss is a scalar, linear in its cotangent, so the gradient
of a block is computed in the same pass as its value, while its logits are still there: three matrix products a
block (logits, d hidden, d table), where recomputing the logits in the backward pass would take four.

Shapes: B batch, T target length, D model, V rows of the token table, C positions of a block, N = B * C tokens of a
block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def _blocks(array: jax.Array, num_blocks: int, block: int) -> jax.Array:
    """[B, T, …] → [num_blocks, B, block, …], zero-padded along T. The batch axis stays whole: it is sharded."""
    batch, length = array.shape[:2]
    padded = jnp.pad(array, [(0, 0), (0, num_blocks * block - length)] + [(0, 0)] * (array.ndim - 2))
    return jnp.moveaxis(padded.reshape(batch, num_blocks, block, *array.shape[2:]), 1, 0)


def _block_length(batch: int, length: int, block_tokens: int) -> tuple[int, int]:
    """Number of blocks and positions in each, so that a block holds about `block_tokens` tokens of even size."""
    num_blocks = max(1, min(length, round(batch * length / block_tokens)))
    block = -(-length // num_blocks)
    return -(-length // block), block


def _logits(hidden_ND: jax.Array, table_VD: jax.Array, vocab_size: int) -> jax.Array:
    logits_NV = jnp.einsum("ND,VD->NV", hidden_ND, table_VD, preferred_element_type=jnp.float32)
    if table_VD.shape[0] > vocab_size:  # rows that exist only so that the table splits evenly
        logits_NV = jnp.where(jnp.arange(table_VD.shape[0]) < vocab_size, logits_NV, -jnp.inf)
    return logits_NV


def _nll(logits_NV: jax.Array, targets_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood and log-sum-exp, float32 [N] each."""
    lse_N = jax.nn.logsumexp(logits_NV, axis=-1)
    return lse_N - jnp.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0], lse_N


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def weighted_nll(
    hidden_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    vocab_size: int,
    block_tokens: int,
) -> jax.Array:
    """Sum over positions of weight * negative log-likelihood of the target, float32 scalar.

    Args:
      hidden_BTD: decoder states, in the compute dtype.
      table_VD: token table, tied to the output projection, in the compute dtype.
      targets_BT: int32 ids below `vocab_size`.
      weights_BT: float32; 0 leaves a position out. Not differentiated.
      vocab_size: rows of the table that are scored.
      block_tokens: about how many tokens' logits are held at a time.

    Returns:
      The sum. Products accumulate in float32, log-sum-exp and softmax are float32.
    """
    return jnp.sum(token_nll(hidden_BTD, table_VD, targets_BT, vocab_size, block_tokens) * weights_BT)


def _weighted_nll_forward(hidden_BTD, table_VD, targets_BT, weights_BT, vocab_size, block_tokens):
    batch, length, width = hidden_BTD.shape
    num_blocks, block = _block_length(batch, length, block_tokens)

    def one_block(carry, inputs):
        loss, d_table_VD = carry
        hidden_BCD, targets_BC, weights_BC = inputs
        hidden_ND, targets_N, weights_N = hidden_BCD.reshape(-1, width), targets_BC.reshape(-1), weights_BC.reshape(-1)
        logits_NV = _logits(hidden_ND, table_VD, vocab_size)
        nll_N, lse_N = _nll(logits_NV, targets_N)
        # d nll / d logits = softmax - one-hot
        is_target_NV = jnp.arange(table_VD.shape[0])[None, :] == targets_N[:, None]
        d_logits_NV = (jnp.exp(logits_NV - lse_N[:, None]) - is_target_NV) * weights_N[:, None]
        d_logits_NV = d_logits_NV.astype(hidden_BTD.dtype)
        d_hidden_ND = jnp.einsum("NV,VD->ND", d_logits_NV, table_VD, preferred_element_type=jnp.float32)
        d_table_VD += jnp.einsum("NV,ND->VD", d_logits_NV, hidden_ND, preferred_element_type=jnp.float32)
        loss += jnp.sum(nll_N * weights_N)
        return (loss, d_table_VD), d_hidden_ND.astype(hidden_BTD.dtype).reshape(hidden_BCD.shape)

    start = (jnp.zeros((), jnp.float32), jnp.zeros(table_VD.shape, jnp.float32))
    (loss, d_table_VD), d_hidden = jax.lax.scan(
        one_block, start, tuple(_blocks(a, num_blocks, block) for a in (hidden_BTD, targets_BT, weights_BT))
    )
    d_hidden_BTD = jnp.moveaxis(d_hidden, 0, 1).reshape(batch, num_blocks * block, width)[:, :length]
    return loss, (d_hidden_BTD, d_table_VD.astype(table_VD.dtype))


def _weighted_nll_backward(vocab_size, block_tokens, gradients, cotangent):
    d_hidden_BTD, d_table_VD = gradients
    return (
        d_hidden_BTD * cotangent.astype(d_hidden_BTD.dtype),
        d_table_VD * cotangent.astype(d_table_VD.dtype),
        None,
        None,
    )


weighted_nll.defvjp(_weighted_nll_forward, _weighted_nll_backward)


def token_nll(
    hidden_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, vocab_size: int, block_tokens: int
) -> jax.Array:
    """Negative log-likelihood of each target, float32 [B, T], block by block; arguments as in `weighted_nll`."""
    batch, length, width = hidden_BTD.shape
    num_blocks, block = _block_length(batch, length, block_tokens)

    def one_block(inputs):
        hidden_BCD, targets_BC = inputs
        nll_N, _ = _nll(_logits(hidden_BCD.reshape(-1, width), table_VD, vocab_size), targets_BC.reshape(-1))
        return nll_N.reshape(targets_BC.shape)

    nll = jax.lax.map(one_block, tuple(_blocks(a, num_blocks, block) for a in (hidden_BTD, targets_BT)))
    return jnp.moveaxis(nll, 0, 1).reshape(batch, num_blocks * block)[:, :length]
