"""DeltaLM as functions of plain dictionaries of arrays. Nothing outside `model/` needs to know Flax.

Legend: B batch, S source positions, T target positions, D hidden size, V vocabulary, N layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.config import EOS_ID, PAD_ID, ModelConfig
from deltalm_jax.model.decoder import Decoder
from deltalm_jax.model.dropout import split_key
from deltalm_jax.model.embedding import embedding_table
from deltalm_jax.model.encoder import Encoder

Params = dict[str, Any]
"""Nested dictionary of arrays, float32; those under a `layers` key have a leading layer axis."""


class LayerStates(NamedTuple):
    """What `layer_states` returns: the two sides' outputs, and their residual streams from the embeddings (index 0) on.

    With norm_placement="post" the last state is the output; with "pre" the output has had the final LayerNorm as well.
    """

    encoder_states_NBSD: jax.Array
    encoded_BSD: jax.Array
    decoder_states_NBTD: jax.Array
    hidden_BTD: jax.Array


class DeltaLM(nnx.Module):
    """One token table, an encoder and an interleaved decoder. There is no output layer: logits are hidden · tableᵀ."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.token_embedding = embedding_table(config.vocab_size, config.hidden_size, PAD_ID, rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Randomly initialised parameters, float32. The same key gives the same values on any machine and mesh."""
    model = DeltaLM(config, rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.split(model)[1])


def hidden_states(
    config: ModelConfig,
    params: Params,
    encoder_tokens_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """The whole model short of its output layer.

    Args:
      config: as the parameters were made with.
      params: as `init_params` returns them.
      encoder_tokens_BS: int ids, padded with `PAD_ID` on either side.
      decoder_input_tokens_BT: int ids; for training `shift_right(targets)`.
      dropout_key: a jax key; None for no dropout.
      compute_dtype: of activations and matrix products.

    Returns:
      [B, T, D] in `compute_dtype`, to be multiplied with `params["token_embedding"]` [V, D].

    Raises:
      ValueError: a sequence is longer than `config.max_length`.
    """
    encoded_BSD = apply_encoder(config, params, encoder_tokens_BS, dropout_key=dropout_key, compute_dtype=compute_dtype)
    return apply_decoder(
        config,
        params,
        encoded_BSD,
        encoder_tokens_BS,
        decoder_input_tokens_BT,
        dropout_key=dropout_key,
        compute_dtype=compute_dtype,
    )


def apply_encoder(
    config: ModelConfig,
    params: Params,
    encoder_tokens_BS: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """The encoder alone; arguments as for `hidden_states`. Returns [B, S, D] in `compute_dtype`."""
    encoder_key, _ = split_key(dropout_key, 2)
    model = _merge(config, params)
    return model.encoder(
        model.token_embedding[...], encoder_tokens_BS, dropout_key=encoder_key, compute_dtype=compute_dtype
    )[0]


def apply_decoder(
    config: ModelConfig,
    params: Params,
    encoded_BSD: jax.Array,
    encoder_tokens_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """The decoder alone, given the encoder's output and input ids (for their padding). Returns as `hidden_states`."""
    _, decoder_key = split_key(dropout_key, 2)
    model = _merge(config, params)
    return model.decoder(
        model.token_embedding[...],
        encoded_BSD,
        encoder_tokens_BS,
        decoder_input_tokens_BT,
        dropout_key=decoder_key,
        compute_dtype=compute_dtype,
    )[0]


def layer_states(
    config: ModelConfig,
    params: Params,
    encoder_tokens_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    *,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> LayerStates:
    """`hidden_states` without dropout, with everything on the way; for tests and for looking inside."""
    model = _merge(config, params)
    table_VD = model.token_embedding[...]
    encoded_BSD, encoder_states_NBSD = model.encoder(
        table_VD, encoder_tokens_BS, compute_dtype=compute_dtype, return_states=True
    )
    hidden_BTD, decoder_states_NBTD = model.decoder(
        table_VD,
        encoded_BSD,
        encoder_tokens_BS,
        decoder_input_tokens_BT,
        compute_dtype=compute_dtype,
        return_states=True,
    )
    assert encoder_states_NBSD is not None
    assert decoder_states_NBTD is not None
    return LayerStates(encoder_states_NBSD, encoded_BSD, decoder_states_NBTD, hidden_BTD)


def logits(params: Params, hidden_BTD: jax.Array) -> jax.Array:
    """float32 [B, T, V]: hidden states times the token table, neither scaled nor biased.

    For decoding and tests. The training loss is computed in blocks and never holds an array of this size.
    """
    table_VD = params["token_embedding"].astype(hidden_BTD.dtype)
    return jnp.einsum("BTD,VD->BTV", hidden_BTD, table_VD, preferred_element_type=jnp.float32)


def shift_right(targets_BT: jax.Array) -> jax.Array:
    """Decoder input for these targets: `</s>`, then all targets but the last; padding stays padding."""
    start_B1 = jnp.full_like(targets_BT[:, :1], EOS_ID)
    return jnp.concatenate([start_B1, targets_BT[:, :-1]], axis=1)


def _merge(config: ModelConfig, params: Params) -> DeltaLM:
    """Parameters as a module. Made anew while tracing; nothing is computed for it."""
    blank = nnx.eval_shape(lambda: DeltaLM(config, rngs=nnx.Rngs(params=0)))
    return nnx.merge(nnx.graphdef(blank), params)
