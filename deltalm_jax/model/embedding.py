"""Token and position embeddings of one side.

Legend: B batch, S positions, D hidden size, V vocabulary, P rows of the position table.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.config import PAD_ID, PADDING_POSITION, ModelConfig
from deltalm_jax.model.dropout import dropout
from deltalm_jax.model.linear import LayerNorm


def embedding_table(rows: int, size: int, padding_row: int, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    """A float32 table drawn from N(0, 1/size) with zeros in its padding row (fairseq's `Embedding`)."""
    table = jax.random.normal(rngs.params(), (rows, size), jnp.float32) * size**-0.5
    return nnx.Param(table.at[padding_row].set(0.0))


def position_rows(tokens_BS: jax.Array, segments_BS: jax.Array | None = None) -> jax.Array:
    """int32 [B, S]: each token's row in the position table. Only real tokens count, so padding may stand anywhere.

    The first token of a sequence takes row 2; padding takes row 1 (fairseq's `utils.make_positions`).

    Args:
      tokens_BS: int ids.
      segments_BS: where a row holds several sequences, the number of each position's (see `packed.py`); each starts anew.
    """
    real_BS = (tokens_BS != PAD_ID).astype(jnp.int32)
    count_BS = jnp.cumsum(real_BS, axis=1)
    if segments_BS is not None:
        begins_BS = segments_BS != jnp.pad(segments_BS[:, :-1], ((0, 0), (1, 0)))
        count_BS -= jax.lax.cummax(jnp.where(begins_BS, count_BS - real_BS, 0), axis=1)
    return count_BS * real_BS + PADDING_POSITION


def look_up(token_embedding_VD: jax.Array, tokens_BS: jax.Array) -> jax.Array:
    """[B, S, D]: the tokens' rows of the table, in its dtype. An id outside the table gives NaN."""
    return jnp.take(token_embedding_VD, tokens_BS, axis=0)


def embed(
    config: ModelConfig,
    token_BSD: jax.Array,
    position_embedding_PD: jax.Array,
    layer_norm: LayerNorm | None,
    rows_BS: jax.Array,
    dropout_key: jax.Array | None,
    compute_dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Token plus position, then LayerNorm if there is one, then dropout. No scaling by the width's root.

    Args:
      config: for the longest length and the dropout rate.
      token_BSD: the tokens' rows of the token table (`look_up`).
      position_embedding_PD, layer_norm: the weights.
      rows_BS: each token's row in the position table: `position_rows(tokens_BS)` for whole sequences.
      dropout_key: a key or keys [B]; None for no dropout.
      compute_dtype: of the result.

    Returns:
      [B, S, D] in `compute_dtype`; the sum and the LayerNorm are float32. A row outside the position table gives NaN.

    Raises:
      ValueError: the sequences are longer than `config.max_length`.
    """
    length = token_BSD.shape[1]
    if length > config.max_length:
        raise ValueError(
            f"Sequences of {length} tokens do not fit a model with ModelConfig.max_length={config.max_length}. "
            f"Shorten them, or raise max_length (a new position table)."
        )
    position_BSD = jnp.take(position_embedding_PD, rows_BS, axis=0)
    embedded_BSD = token_BSD + position_BSD
    if layer_norm is not None:
        embedded_BSD = layer_norm(embedded_BSD)
    return dropout(embedded_BSD.astype(compute_dtype), config.dropout_rate, dropout_key)
