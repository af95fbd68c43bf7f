"""DeltaLM's interleaved decoder, the one idea of the paper (arXiv 2106.13736, section 3.1).

A decoder that is to start from a pretrained encoder must have layers that an encoder can fill. A vanilla decoder layer
(self-attention, cross-attention, feed-forward) has two attentions but one feed-forward network, so an encoder fits only
in part. The interleaved layer has two of each, and so *is* two encoder layers, one on top of the other:

    self-attention,  bottom feed-forward     an encoder layer, made causal
    cross-attention, top feed-forward        an encoder layer that looks at the source in place of itself

Legend: B batch, T target positions, S source positions, D hidden size, V vocabulary, N layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.attention import Attention, causal_mask, padding_mask
from deltalm_jax.model.config import PADDING_POSITION, ModelConfig
from deltalm_jax.model.dropout import split_key
from deltalm_jax.model.embedding import embed, embedding_table
from deltalm_jax.model.feed_forward import FeedForward
from deltalm_jax.model.layer import scan_layers, stack_layers, transformer_layer
from deltalm_jax.model.linear import LayerNorm


class InterleavedLayer(nnx.Module):
    """Two encoder layers as one decoder layer; the second attends to the source.

    In fairseq's names the bottom feed-forward is `fc3`, `fc4` with `ffn_layer_norm`, and the top `fc1`, `fc2` with
    `final_layer_norm` (microsoft/unilm deltalm/models/deltalm.py, `DeltaLMDecoderLayer`).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.self_attention = Attention(config, rngs=rngs)
        self.self_attention_layer_norm = LayerNorm(config.hidden_size)
        self.bottom_feed_forward = FeedForward(config, rngs=rngs)
        self.bottom_feed_forward_layer_norm = LayerNorm(config.hidden_size)

        self.cross_attention = Attention(config, rngs=rngs)
        self.cross_attention_layer_norm = LayerNorm(config.hidden_size)
        self.top_feed_forward = FeedForward(config, rngs=rngs)
        self.top_feed_forward_layer_norm = LayerNorm(config.hidden_size)
        self.config = config

    def __call__(
        self,
        hidden_BTD: jax.Array,
        encoded_BSD: jax.Array,
        self_mask: jax.Array,
        cross_mask: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]. The masks are bool, broadcast to [B, H, T, T] and [B, H, T, S]."""
        bottom_key, top_key = split_key(dropout_key, 2)
        hidden_BTD = transformer_layer(
            self.config,
            self.self_attention,
            self.self_attention_layer_norm,
            self.bottom_feed_forward,
            self.bottom_feed_forward_layer_norm,
            hidden_BTD,
            None,
            self_mask,
            bottom_key,
        )
        return transformer_layer(
            self.config,
            self.cross_attention,
            self.cross_attention_layer_norm,
            self.top_feed_forward,
            self.top_feed_forward_layer_norm,
            hidden_BTD,
            encoded_BSD,
            cross_mask,
            top_key,
        )


class Decoder(nnx.Module):
    """Embeddings and a stack of `InterleavedLayer`s."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.position_embedding = embedding_table(config.num_positions, config.hidden_size, PADDING_POSITION, rngs)
        self.embedding_layer_norm = LayerNorm(config.hidden_size) if config.embedding_layer_norm else None
        self.layers = stack_layers(InterleavedLayer, config, config.num_decoder_layers, rngs)
        self.final_layer_norm = LayerNorm(config.hidden_size) if config.norm_placement == "pre" else None
        self.config = config

    def __call__(
        self,
        token_embedding_VD: jax.Array,
        encoded_BSD: jax.Array,
        encoder_tokens_BS: jax.Array,
        tokens_BT: jax.Array,
        *,
        dropout_key: jax.Array | None = None,
        compute_dtype: jax.typing.DTypeLike = jnp.float32,
        return_states: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Decodes with the target known (teacher forcing).

        Args:
          token_embedding_VD: the shared token table.
          encoded_BSD: the encoder's output.
          encoder_tokens_BS: the encoder's input; only its padding matters.
          tokens_BT: decoder input ids.
          dropout_key: None for no dropout.
          compute_dtype: of the activations.
          return_states: whether to return the residual stream of every layer.

        Returns:
          [B, T, D], to be multiplied with the token table, in `compute_dtype`; and the residual stream before the first
          layer and after each, [N + 1, B, T, D] (None unless asked for).
        """
        embedding_key, layers_key = split_key(dropout_key, 2)
        hidden_BTD = embed(
            self.config,
            token_embedding_VD,
            self.position_embedding[...],
            self.embedding_layer_norm,
            tokens_BT,
            embedding_key,
            compute_dtype,
        )
        self_mask, cross_mask = causal_mask(tokens_BT), padding_mask(encoder_tokens_BS)
        decoded_BTD, states_NBTD = scan_layers(
            self.config,
            self.layers,
            lambda layer, hidden_BTD, key: layer(hidden_BTD, encoded_BSD, self_mask, cross_mask, key),
            hidden_BTD,
            layers_key,
            return_states=return_states,
        )
        if states_NBTD is not None:
            states_NBTD = jnp.concatenate([hidden_BTD[None], states_NBTD])
        if self.final_layer_norm is not None:
            decoded_BTD = self.final_layer_norm(decoded_BTD)
        return decoded_BTD, states_NBTD
