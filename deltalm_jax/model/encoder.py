"""DeltaLM's encoder: that of XLM-R. Legend: B batch, S source positions, D hidden size, N layers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.attention import Attend, Attention, Mask, attend_xla, padding_mask
from deltalm_jax.model.config import PAD_ID, PADDING_POSITION, ModelConfig
from deltalm_jax.model.dropout import layer_keys, split_key
from deltalm_jax.model.embedding import embed, embedding_table, position_rows
from deltalm_jax.model.feed_forward import FeedForward
from deltalm_jax.model.layer import Gather, feed_forward_sublayer, scan_layers, self_attention_sublayer, stack_layers
from deltalm_jax.model.linear import LayerNorm
from deltalm_jax.model.packed import source_segments


class EncoderLayer(nnx.Module):
    """Self-attention and a feed-forward network."""

    def __init__(self, config: ModelConfig, *, attend: Attend = attend_xla, rngs: nnx.Rngs) -> None:
        self.self_attention = Attention(config, attend=attend, rngs=rngs)
        self.self_attention_layer_norm = LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_layer_norm = LayerNorm(config.hidden_size)
        self.config = config

    def __call__(self, hidden_BSD: jax.Array, mask: Mask, dropout_key: jax.Array | None = None) -> jax.Array:
        """[B, S, D] -> [B, S, D]; `mask` says where attention may look."""
        keys = split_key(dropout_key, 4)
        hidden_BSD, _ = self_attention_sublayer(
            self.config, self.self_attention, self.self_attention_layer_norm, hidden_BSD, mask, keys[:2]
        )
        return feed_forward_sublayer(self.config, self.feed_forward, self.feed_forward_layer_norm, hidden_BSD, keys[2:])


class Encoder(nnx.Module):
    """Embeddings and a stack of `EncoderLayer`s."""

    def __init__(self, config: ModelConfig, *, attend: Attend = attend_xla, rngs: nnx.Rngs) -> None:
        self.position_embedding = embedding_table(config.num_positions, config.hidden_size, PADDING_POSITION, rngs)
        self.embedding_layer_norm = LayerNorm(config.hidden_size) if config.embedding_layer_norm else None
        self.layers = stack_layers(partial(EncoderLayer, attend=attend), config, config.num_encoder_layers, rngs)
        self.final_layer_norm = LayerNorm(config.hidden_size) if config.norm_placement == "pre" else None
        self.config = config

    def __call__(
        self,
        token_BSD: jax.Array,
        tokens_BS: jax.Array,
        *,
        dropout_key: jax.Array | None = None,
        compute_dtype: jax.typing.DTypeLike = jnp.float32,
        return_states: bool = False,
        gather: Gather | None = None,
        packed: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Encodes token ids.

        Args:
          token_BSD: their rows of the shared token table.
          tokens_BS: the ids.
          dropout_key: a key or keys [B]; None for no dropout.
          compute_dtype: of the activations.
          return_states: whether to return the residual stream of every layer.
          gather: see `scan_layers`.
          packed: whether a row holds several texts (see `packed.py`).

        Returns:
          [B, S, D] for the decoder to look at, in `compute_dtype`; and the residual stream before the first layer and
          after each, [N + 1, B, S, D] (None unless asked for).
        """
        embedding_key, layers_key = split_key(dropout_key, 2)
        segments_BS = source_segments(tokens_BS) if packed else None
        hidden_BSD = embed(
            self.config,
            token_BSD,
            self.position_embedding[...],
            self.embedding_layer_norm,
            position_rows(tokens_BS, segments_BS),
            embedding_key,
            compute_dtype,
        )
        # Padding is zero here, as in fairseq. No real position sees the difference, for attention never looks there.
        hidden_BSD *= (tokens_BS != PAD_ID)[:, :, None]
        mask = padding_mask(tokens_BS, None if segments_BS is None else (segments_BS, segments_BS))

        def apply_layer(
            layer: EncoderLayer, hidden_BSD: jax.Array, key: jax.Array | None
        ) -> tuple[jax.Array, jax.Array | None]:
            hidden_BSD = layer(hidden_BSD, mask, key)
            return hidden_BSD, hidden_BSD if return_states else None

        keys_N = layer_keys(layers_key, self.config.num_encoder_layers)
        encoded_BSD, states_NBSD = scan_layers(self.config, self.layers, apply_layer, hidden_BSD, keys_N, gather)
        if states_NBSD is not None:
            states_NBSD = jnp.concatenate([hidden_BSD[None], states_NBSD])
        if self.final_layer_norm is not None:
            encoded_BSD = self.final_layer_norm(encoded_BSD)
        return encoded_BSD, states_NBSD
