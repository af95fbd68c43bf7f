"""DeltaLM's interleaved decoder layer, the one idea of the paper (arXiv 2106.13736, section 3.1), beside the usual one.

A decoder that is to start from a pretrained encoder must have layers that an encoder can fill. A vanilla decoder layer
has two attentions but one feed-forward network, so an encoder fits only in part. The interleaved layer has two of each,
and so *is* two encoder layers, one on top of the other:

    interleaved                               vanilla
    self-attention   } an encoder layer,      self-attention
    feed-forward     } made causal
    cross-attention  } an encoder layer that  cross-attention
    feed-forward     } looks at the source    feed-forward

Both are called alike, and are all that tells one decoder from the other.

Legend: B batch, T target positions, S source positions, D hidden size.
"""

from __future__ import annotations

import jax
from flax import nnx

from deltalm_jax.model.attention import Attend, Attention, KeysValues, Mask, attend_xla
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.dropout import split_key
from deltalm_jax.model.feed_forward import FeedForward
from deltalm_jax.model.layer import cross_attention_sublayer, feed_forward_sublayer, self_attention_sublayer
from deltalm_jax.model.linear import LayerNorm


class InterleavedLayer(nnx.Module):
    """Two encoder layers as one decoder layer; the second attends to the source.

    In fairseq's names the bottom feed-forward is `fc3`, `fc4` with `ffn_layer_norm`, and the top `fc1`, `fc2` with
    `final_layer_norm` (microsoft/unilm deltalm/models/deltalm.py, `DeltaLMDecoderLayer`).
    """

    def __init__(self, config: ModelConfig, *, attend: Attend = attend_xla, rngs: nnx.Rngs) -> None:
        self.self_attention = Attention(config, attend=attend, rngs=rngs)
        self.self_attention_layer_norm = LayerNorm(config.hidden_size)
        self.bottom_feed_forward = FeedForward(config, rngs=rngs)
        self.bottom_feed_forward_layer_norm = LayerNorm(config.hidden_size)

        self.cross_attention = Attention(config, attend=attend, rngs=rngs)
        self.cross_attention_layer_norm = LayerNorm(config.hidden_size)
        self.top_feed_forward = FeedForward(config, rngs=rngs)
        self.top_feed_forward_layer_norm = LayerNorm(config.hidden_size)
        self.config = config

    def __call__(
        self,
        hidden_BTD: jax.Array,
        source: KeysValues,
        self_mask: Mask,
        cross_mask: Mask,
        dropout_key: jax.Array | None = None,
        past: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """One layer of the decoder, over whole targets or over their next positions.

        Args:
          hidden_BTD: the residual stream.
          source: what `cross_attention.keys_values` makes of the encoder's output.
          self_mask: where self-attention may look, over the past and then the T positions.
          cross_mask: where cross-attention may look.
          dropout_key: None for no dropout.
          past: keys and values of self-attention at earlier positions; None if `hidden_BTD` starts at the first.

        Returns:
          The residual stream after the layer, [B, T, D]; and the keys and values of self-attention at its positions.
        """
        bottom_key, top_key = split_key(dropout_key, 2)
        bottom_keys, top_keys = split_key(bottom_key, 4), split_key(top_key, 4)

        hidden_BTD, own = self_attention_sublayer(
            self.config,
            self.self_attention,
            self.self_attention_layer_norm,
            hidden_BTD,
            self_mask,
            bottom_keys[:2],
            past,
        )
        hidden_BTD = feed_forward_sublayer(
            self.config,
            self.bottom_feed_forward,
            self.bottom_feed_forward_layer_norm,
            hidden_BTD,
            bottom_keys[2:],
        )
        hidden_BTD = cross_attention_sublayer(
            self.config,
            self.cross_attention,
            self.cross_attention_layer_norm,
            hidden_BTD,
            source,
            cross_mask,
            top_keys[:2],
        )
        hidden_BTD = feed_forward_sublayer(
            self.config,
            self.top_feed_forward,
            self.top_feed_forward_layer_norm,
            hidden_BTD,
            top_keys[2:],
        )
        return hidden_BTD, own


class VanillaLayer(nnx.Module):
    """The usual decoder layer (arXiv 1706.03762), the paper's baseline: no feed-forward between the two attentions."""

    def __init__(self, config: ModelConfig, *, attend: Attend = attend_xla, rngs: nnx.Rngs) -> None:
        self.self_attention = Attention(config, attend=attend, rngs=rngs)
        self.self_attention_layer_norm = LayerNorm(config.hidden_size)

        self.cross_attention = Attention(config, attend=attend, rngs=rngs)
        self.cross_attention_layer_norm = LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_layer_norm = LayerNorm(config.hidden_size)
        self.config = config

    def __call__(
        self,
        hidden_BTD: jax.Array,
        source: KeysValues,
        self_mask: Mask,
        cross_mask: Mask,
        dropout_key: jax.Array | None = None,
        past: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """As `InterleavedLayer`."""
        keys = split_key(dropout_key, 6)

        hidden_BTD, own = self_attention_sublayer(
            self.config,
            self.self_attention,
            self.self_attention_layer_norm,
            hidden_BTD,
            self_mask,
            keys[:2],
            past,
        )
        hidden_BTD = cross_attention_sublayer(
            self.config,
            self.cross_attention,
            self.cross_attention_layer_norm,
            hidden_BTD,
            source,
            cross_mask,
            keys[2:4],
        )
        hidden_BTD = feed_forward_sublayer(
            self.config,
            self.feed_forward,
            self.feed_forward_layer_norm,
            hidden_BTD,
            keys[4:],
        )
        return hidden_BTD, own
