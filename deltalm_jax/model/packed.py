"""Rows that hold several examples, one behind the other: which position is whose.

    encoder input   a b </s> c </s> d e f </s>            segments  1 1 1  2 2  3 3 3 3
    decoder input   </s> A B </s> C </s> D                          1 1 1  2 2  3 3

A source ends with its `</s>`, and holds no other. A target too; so the decoder's input, which is all targets moved one place
to the right behind a first `</s>`, has one `</s>` before each, just where the decoder starts. Hence the ids alone tell, and
nothing has to be stored or sent beside them. Attention stays within an example, and positions start anew with each.

Legend: B batch, S source positions, T target positions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deltalm_jax.model.config import EOS_ID, PAD_ID


def source_segments(tokens_BS: jax.Array) -> jax.Array:
    """int32 [B, S], from 1 on: the example of each position, of texts that are closed by `</s>`.

    Padding behind the last text counts as its: to a kernel, a position that sees nothing at all would be a division by 0.
    """
    closes_BS = (tokens_BS == EOS_ID).astype(jnp.int32)
    closed_BS = jnp.cumsum(closes_BS, axis=1)
    behind_BS = (tokens_BS == PAD_ID) & (closed_BS > 0)
    return jnp.where(behind_BS, closed_BS, closed_BS - closes_BS + 1)


def target_segments(tokens_BT: jax.Array) -> jax.Array:
    """int32 [B, T], from 1 on: the example of each position, of a decoder's input, where `</s>` opens each."""
    return jnp.cumsum((tokens_BT == EOS_ID).astype(jnp.int32), axis=1)
