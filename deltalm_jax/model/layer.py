"""What layers are made of, three kinds of sub-layer around a residual stream, and the loop over a stack of layers.

Legend: B batch, T positions, S positions attended to, D hidden size, N layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from deltalm_jax.model.attention import Attention, KeysValues, Mask
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.dropout import dropout
from deltalm_jax.model.feed_forward import FeedForward
from deltalm_jax.model.kernels import SPLASH_OUTPUT
from deltalm_jax.model.linear import LayerNorm

_SUBLAYER_OUTPUT = "sublayer_output"
_GATHERED = "gathered_weight"

Gather = Callable[[Any], Any]
"""Makes a layer's weights whole, where each device keeps a part of them: nested dictionaries of arrays in and out."""

# By ModelConfig.remat: what of a layer is kept for the backward pass, beside the layer's input.
_REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "sublayer_outputs": jax.checkpoint_policies.save_only_these_names(_SUBLAYER_OUTPUT),
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots_saveable": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(SPLASH_OUTPUT)
    ),
}


def self_attention_sublayer(
    config: ModelConfig,
    attention: Attention,
    layer_norm: LayerNorm,
    hidden_BTD: jax.Array,
    mask: Mask,
    dropout_keys: Sequence[jax.Array | None],
    past: KeysValues | None = None,
) -> tuple[jax.Array, KeysValues]:
    """Positions attend to one another, and to a past of which only keys and values are left.

    Args:
      config: for the place of the LayerNorm and the dropout rate.
      attention, layer_norm: the weights.
      hidden_BTD: the residual stream.
      mask: where attention may look; its S positions are those of the past and then the T of `hidden_BTD`. Not causal if
        there is a past.
      dropout_keys: two, for the attention weights and for the output; Nones for no dropout.
      past: None if there is none.

    Returns:
      The residual stream after the sub-layer, [B, T, D]; and the keys and values of its T positions.
    """
    weights_key, output_key = dropout_keys
    inputs_BTD = _enter(config, layer_norm, hidden_BTD)
    own = attention.keys_values(inputs_BTD)
    seen = own if past is None else jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), past, own)
    outputs_BTD = attention(inputs_BTD, seen, mask, dropout_key=weights_key)
    return _leave(config, layer_norm, hidden_BTD, outputs_BTD, output_key), own


def cross_attention_sublayer(
    config: ModelConfig,
    attention: Attention,
    layer_norm: LayerNorm,
    hidden_BTD: jax.Array,
    source: KeysValues,
    mask: Mask,
    dropout_keys: Sequence[jax.Array | None],
) -> jax.Array:
    """Positions attend to the source, whose keys and values are those of `attention`. The rest as for self-attention."""
    weights_key, output_key = dropout_keys
    inputs_BTD = _enter(config, layer_norm, hidden_BTD)
    outputs_BTD = attention(inputs_BTD, source, mask, dropout_key=weights_key)
    return _leave(config, layer_norm, hidden_BTD, outputs_BTD, output_key)


def feed_forward_sublayer(
    config: ModelConfig,
    feed_forward: FeedForward,
    layer_norm: LayerNorm,
    hidden_BTD: jax.Array,
    dropout_keys: Sequence[jax.Array | None],
) -> jax.Array:
    """Each position is transformed alone; the two keys are for the activations and for the output."""
    activation_key, output_key = dropout_keys
    outputs_BTD = feed_forward(_enter(config, layer_norm, hidden_BTD), dropout_key=activation_key)
    return _leave(config, layer_norm, hidden_BTD, outputs_BTD, output_key)


# A sub-layer f makes of the residual stream h: LN(h + f(h)) if normalisation comes after, h + f(LN(h)) if before.


def _enter(config: ModelConfig, layer_norm: LayerNorm, hidden_BTD: jax.Array) -> jax.Array:
    return layer_norm(hidden_BTD) if config.norm_placement == "pre" else hidden_BTD


def _leave(
    config: ModelConfig,
    layer_norm: LayerNorm,
    hidden_BTD: jax.Array,
    outputs_BTD: jax.Array,
    dropout_key: jax.Array | None,
) -> jax.Array:
    outputs_BTD = checkpoint_name(outputs_BTD, _SUBLAYER_OUTPUT)
    hidden_BTD = hidden_BTD + dropout(outputs_BTD, config.dropout_rate, dropout_key)
    return hidden_BTD if config.norm_placement == "pre" else layer_norm(hidden_BTD)


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
    apply_layer: Callable[[LayerT, jax.Array, Any], tuple[jax.Array, Any]],
    hidden_BTD: jax.Array,
    inputs: Any = None,
    gather: Gather | None = None,
) -> tuple[jax.Array, Any]:
    """Runs the residual stream through stacked layers, one after the other.

    Args:
      config: for `scan_layers` and `remat`.
      layers: as `stack_layers` makes them.
      apply_layer: (one layer, residual stream, its inputs) -> (residual stream, its outputs).
      hidden_BTD: the residual stream before the first layer.
      inputs: what each layer is given beside the residual stream: a tree of arrays with a leading layer axis, or None.
      gather: called on each layer's weights where they are used, in the backward pass once more: no more than one
        layer's are ever whole. None if they are whole already.

    Returns:
      The residual stream after the last layer, and what the layers put out, stacked along a leading layer axis.
    """
    graph, state = nnx.split(layers)
    stacked = nnx.to_pure_dict(state)

    def body(hidden_BTD: jax.Array, layer: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        weights, inputs = layer
        if gather is not None:
            weights = jax.tree.map(lambda weight: checkpoint_name(weight, _GATHERED), gather(weights))
        return apply_layer(nnx.merge(graph, weights), hidden_BTD, inputs)

    policy = _REMAT_POLICIES.get(config.remat)
    if policy is None and gather is not None:
        policy = jax.checkpoint_policies.save_anything_except_these_names(_GATHERED)
    if policy is not None:
        # In a loop the forward pass cannot be merged with its recomputation, so the guard against that is only cost.
        body = jax.checkpoint(body, prevent_cse=not config.scan_layers, policy=policy)
    unroll = 1 if config.scan_layers else jax.tree.leaves(stacked)[0].shape[0]
    return jax.lax.scan(body, hidden_BTD, (stacked, inputs), unroll=unroll)
