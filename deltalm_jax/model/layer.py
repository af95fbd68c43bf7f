"""One Transformer layer as a function, and the loop over a stack of layers.

Legend: B batch, T positions, S source positions, D hidden size, N layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.attention import Attention
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.dropout import dropout, split_key
from deltalm_jax.model.feed_forward import FeedForward
from deltalm_jax.model.linear import LayerNorm


def transformer_layer(
    config: ModelConfig,
    attention: Attention,
    attention_layer_norm: LayerNorm,
    feed_forward: FeedForward,
    feed_forward_layer_norm: LayerNorm,
    hidden_BTD: jax.Array,
    source_BSD: jax.Array | None,
    mask: jax.Array,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Attention, then feed-forward, each with residual sum and LayerNorm: an encoder layer, or half a decoder layer.

    Args:
      config: for the place of the LayerNorms and the dropout rate.
      attention, attention_layer_norm, feed_forward, feed_forward_layer_norm: the weights.
      hidden_BTD: the residual stream.
      source_BSD: what attention looks at; None for the residual stream itself.
      mask: bool, broadcast to [B, H, T, S]; True where attention may look.
      dropout_key: None for no dropout.

    Returns:
      The residual stream after the layer, [B, T, D].
    """
    attention_key, attention_output_key, activation_key, feed_forward_output_key = split_key(dropout_key, 4)

    def attend(hidden_BTD: jax.Array) -> jax.Array:
        source = hidden_BTD if source_BSD is None else source_BSD
        return attention(hidden_BTD, source, mask, dropout_key=attention_key)

    def transform(hidden_BTD: jax.Array) -> jax.Array:
        return feed_forward(hidden_BTD, dropout_key=activation_key)

    hidden_BTD = _residual(config, attend, attention_layer_norm, hidden_BTD, attention_output_key)
    return _residual(config, transform, feed_forward_layer_norm, hidden_BTD, feed_forward_output_key)


def _residual(
    config: ModelConfig,
    sublayer: Callable[[jax.Array], jax.Array],
    layer_norm: LayerNorm,
    hidden_BTD: jax.Array,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Adds a sub-layer to the residual stream: LN(h + f(h)) if normalisation comes after, h + f(LN(h)) if before."""
    if config.norm_placement == "pre":
        return hidden_BTD + dropout(sublayer(layer_norm(hidden_BTD)), config.dropout_rate, dropout_key)
    return layer_norm(hidden_BTD + dropout(sublayer(hidden_BTD), config.dropout_rate, dropout_key))


LayerT = TypeVar("LayerT", bound=nnx.Module)


def stack_layers(layer_class: Callable[..., LayerT], config: ModelConfig, num_layers: int, rngs: nnx.Rngs) -> LayerT:
    """`num_layers` freshly initialised layers as one module, each of whose parameters has a leading layer axis."""

    @nnx.split_rngs(splits=num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs: nnx.Rngs) -> LayerT:
        return layer_class(config, rngs=rngs)

    return create(rngs)


def scan_layers(
    config: ModelConfig,
    layers: LayerT,
    apply_layer: Callable[[LayerT, jax.Array, jax.Array | None], jax.Array],
    hidden_BSD: jax.Array,
    dropout_key: jax.Array | None,
    *,
    return_states: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs the residual stream through stacked layers, one after the other, compiling only one of them.

    Args:
      config: for `remat` and `scan_unroll`.
      layers: as `stack_layers` makes them.
      apply_layer: (one layer, residual stream, dropout key or None) -> residual stream.
      hidden_BSD: the residual stream before the first layer.
      dropout_key: layer n is given `fold_in(dropout_key, n)`, so its masks depend on nothing but the key and n.
      return_states: whether to return the residual stream after every layer too.

    Returns:
      The residual stream after the last layer, and [N, B, S, D] after each (None if not asked for).
    """
    graph, stacked_state = nnx.split(layers)
    num_layers = jax.tree.leaves(stacked_state)[0].shape[0]

    def body(hidden_BSD: jax.Array, layer: tuple[nnx.State, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        state, index = layer
        layer_key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        hidden_BSD = apply_layer(nnx.merge(graph, state), hidden_BSD, layer_key)
        return hidden_BSD, hidden_BSD if return_states else None

    if config.remat:
        # In a loop the forward pass cannot be merged with its recomputation, so the guard against that is only cost.
        body = jax.checkpoint(body, prevent_cse=config.scan_unroll > 1)
    unroll = min(config.scan_unroll, num_layers)
    return jax.lax.scan(body, hidden_BSD, (stacked_state, jnp.arange(num_layers)), unroll=unroll)
