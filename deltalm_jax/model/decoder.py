"""The decoder, over targets known in advance and one token at a time. The layers are in `decoder_layer.py`.

Legend: B batch, T target positions, S source positions, L positions of the cache, D hidden size, V vocabulary, N layers,
H heads, K head size; W beams of each source.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.attention import (
    Attend,
    Kept,
    KeysValues,
    Mask,
    attend_kept,
    attend_xla,
    causal_mask,
    keep,
    padding_mask,
)
from deltalm_jax.model.config import PAD_ID, PADDING_POSITION, RESERVED_POSITIONS, ModelConfig
from deltalm_jax.model.decoder_layer import InterleavedLayer, VanillaLayer
from deltalm_jax.model.dropout import layer_keys, split_key
from deltalm_jax.model.embedding import embed, embedding_table, look_up, position_rows
from deltalm_jax.model.layer import Gather, scan_layers, stack_layers
from deltalm_jax.model.linear import LayerNorm
from deltalm_jax.model.packed import source_segments, target_segments

Cache = dict[str, dict[str, jax.Array]]
"""What decoding one token at a time remembers (see `deltalm.init_cache`)."""


class BeamCache(NamedTuple):
    """What decoding several hypotheses of each source remembers, layer by layer (see `deltalm.init_beams`)."""

    source: list[Kept]
    real_BS: jax.Array
    target: list[Kept]


Layer = InterleavedLayer | VanillaLayer
_LAYER_CLASSES: dict[str, Callable[..., Layer]] = {"interleaved": InterleavedLayer, "vanilla": VanillaLayer}


class Decoder(nnx.Module):
    """Embeddings and a stack of layers, of the kind that `ModelConfig.decoder` says."""

    def __init__(self, config: ModelConfig, *, attend: Attend = attend_xla, rngs: nnx.Rngs) -> None:
        self.position_embedding = embedding_table(config.num_positions, config.hidden_size, PADDING_POSITION, rngs)
        self.embedding_layer_norm = LayerNorm(config.hidden_size) if config.embedding_layer_norm else None
        layer_class = partial(_LAYER_CLASSES[config.decoder], attend=attend)
        self.layers = stack_layers(layer_class, config, config.num_decoder_layers, rngs)
        self.final_layer_norm = LayerNorm(config.hidden_size) if config.norm_placement == "pre" else None
        self.config = config

    def __call__(
        self,
        token_BTD: jax.Array,
        encoded_BSD: jax.Array,
        encoder_tokens_BS: jax.Array,
        tokens_BT: jax.Array,
        *,
        dropout_key: jax.Array | None = None,
        compute_dtype: jax.typing.DTypeLike = jnp.float32,
        return_states: bool = False,
        gather: Gather | None = None,
        packed: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Decodes with the target known (teacher forcing).

        Args:
          token_BTD: the decoder input's rows of the shared token table.
          encoded_BSD: the encoder's output.
          encoder_tokens_BS: the encoder's input; only its padding matters, and its `</s>` if it is packed.
          tokens_BT: decoder input ids.
          dropout_key: a key or keys [B]; None for no dropout.
          compute_dtype: of the activations.
          return_states: whether to return the residual stream of every layer.
          gather: see `scan_layers`.
          packed: whether a row holds several examples (see `packed.py`).

        Returns:
          [B, T, D], to be multiplied with the token table, in `compute_dtype`; and the residual stream before the first
          layer and after each, [N + 1, B, T, D] (None unless asked for).
        """
        embedding_key, layers_key = split_key(dropout_key, 2)
        segments_BT = target_segments(tokens_BT) if packed else None
        hidden_BTD = embed(
            self.config,
            token_BTD,
            self.position_embedding[...],
            self.embedding_layer_norm,
            position_rows(tokens_BT, segments_BT),
            embedding_key,
            compute_dtype,
        )
        own = source = None
        if segments_BT is not None:
            own, source = (segments_BT, segments_BT), (segments_BT, source_segments(encoder_tokens_BS))
        self_mask, cross_mask = causal_mask(tokens_BT, own), padding_mask(encoder_tokens_BS, source)

        def apply_layer(
            layer: Layer, hidden_BTD: jax.Array, key: jax.Array | None
        ) -> tuple[jax.Array, jax.Array | None]:
            source = layer.cross_attention.keys_values(encoded_BSD)
            hidden_BTD, _ = layer(hidden_BTD, source, self_mask, cross_mask, key)
            return hidden_BTD, hidden_BTD if return_states else None

        keys_N = layer_keys(layers_key, self.config.num_decoder_layers)
        decoded_BTD, states_NBTD = scan_layers(self.config, self.layers, apply_layer, hidden_BTD, keys_N, gather)
        if states_NBTD is not None:
            states_NBTD = jnp.concatenate([hidden_BTD[None], states_NBTD])
        if self.final_layer_norm is not None:
            decoded_BTD = self.final_layer_norm(decoded_BTD)
        return decoded_BTD, states_NBTD

    def init_cache(self, encoded_BSD: jax.Array, encoder_tokens_BS: jax.Array, max_length: int) -> Cache:
        """A cache for `step`; described at `deltalm.init_cache`."""
        graph, stacked_state = nnx.split(self.layers.cross_attention)
        key_NBSHK, value_NBSHK = jax.vmap(lambda state: nnx.merge(graph, state).keys_values(encoded_BSD))(stacked_state)
        num_layers, batch, _, *head_shape = key_NBSHK.shape

        def empty_NBLHK() -> jax.Array:  # An array each for keys and values: one could not be donated twice.
            return jnp.zeros((num_layers, batch, max_length, *head_shape), encoded_BSD.dtype)

        return {
            "source": {"key": key_NBSHK, "value": value_NBSHK, "real": (encoder_tokens_BS != PAD_ID)[None]},
            "target": {"key": empty_NBLHK(), "value": empty_NBLHK(), "length": jnp.zeros((1, batch), jnp.int32)},
        }

    def step(self, token_embedding_VD: jax.Array, cache: Cache, tokens_B: jax.Array) -> tuple[jax.Array, Cache]:
        """[B, D] at these tokens, and the cache with them in it; described at `deltalm.decode_step`."""
        source, target = cache["source"], cache["target"]
        max_length, length_B = target["key"].shape[2], target["length"][0]
        real_B = tokens_B != PAD_ID
        rows_B = jnp.where(real_B, length_B + RESERVED_POSITIONS, PADDING_POSITION)
        # What has no place in the cache gets a position outside the table, and so NaN, rather than a wrong answer.
        rows_B = jnp.where(real_B & (length_B >= max_length), self.config.num_positions, rows_B)
        hidden_B1D = embed(
            self.config,
            look_up(token_embedding_VD, tokens_B[:, None]),
            self.position_embedding[...],
            self.embedding_layer_norm,
            rows_B[:, None],
            None,
            source["key"].dtype,
        )
        past_BL = jnp.arange(max_length) < length_B[:, None]
        self_mask = Mask(jnp.concatenate([past_BL, real_B[:, None]], axis=1))
        cross_mask = Mask(source["real"][0])

        def apply_layer(
            layer: Layer, hidden_B1D: jax.Array, seen: tuple[KeysValues, KeysValues]
        ) -> tuple[jax.Array, KeysValues]:
            source, past = seen
            return layer(hidden_B1D, source, self_mask, cross_mask, past=past)

        seen = KeysValues(source["key"], source["value"]), KeysValues(target["key"], target["value"])
        hidden_B1D, own = scan_layers(self.config, self.layers, apply_layer, hidden_B1D, seen)
        if self.final_layer_norm is not None:
            hidden_B1D = self.final_layer_norm(hidden_B1D)

        # Each row writes behind its own last token; padding, and what has no place, is written nowhere.
        place_B = jnp.where(real_B, length_B, max_length)
        rows = jnp.arange(len(tokens_B))
        target = {
            "key": target["key"].at[:, rows, place_B].set(own.key_BSHK[:, :, 0], mode="drop"),
            "value": target["value"].at[:, rows, place_B].set(own.value_BSHK[:, :, 0], mode="drop"),
            "length": target["length"] + (place_B < max_length),
        }
        return hidden_B1D[:, 0], {"source": source, "target": target}

    def init_beams(
        self, encoded_BSD: jax.Array, encoder_tokens_BS: jax.Array, num_beams: int, max_length: int
    ) -> BeamCache:
        """A cache for `step_beams`; described at `deltalm.init_beams`."""
        layers = range(self.config.num_decoder_layers)
        cache = self.init_cache(encoded_BSD, encoder_tokens_BS, num_beams * max_length)

        def of_layers(part: dict[str, jax.Array]) -> list[Kept]:
            return [keep(KeysValues(part["key"][layer], part["value"][layer])) for layer in layers]

        return BeamCache(of_layers(cache["source"]), cache["source"]["real"][0], of_layers(cache["target"]))

    def step_beams(
        self,
        layer_params: list[dict[str, Any]],
        token_BWD: jax.Array,
        cache: BeamCache,
        place: jax.Array,
        path_BWL: jax.Array,
    ) -> tuple[jax.Array, BeamCache]:
        """[B, W, D] at these rows of the token table, and the cache with them; described at `deltalm.decode_beams`."""
        batch, beams, size = token_BWD.shape
        hidden_R1D = embed(  # each beam at the same position
            self.config,
            token_BWD.reshape(-1, 1, size),
            self.position_embedding[...],
            self.embedding_layer_norm,
            jnp.broadcast_to(place + RESERVED_POSITIONS, (batch * beams, 1)),
            None,
            cache.source[0].key_BHKS.dtype,
        )
        hidden_BWD = hidden_R1D.reshape(token_BWD.shape)
        # Beams attend as so many positions of one row would: to one source, and each to its own path, which ends in itself.
        places_L, beams_W = jnp.arange(path_BWL.shape[2]), jnp.arange(beams)
        path_BWL = jnp.where(places_L == place, beams_W[:, None], path_BWL)
        allowed_BWLW = (path_BWL[..., None] == beams_W) & (places_L <= place)[:, None]
        allowed_BWP, cross_mask = allowed_BWLW.reshape(batch, beams, -1), Mask(cache.real_BS)
        target: list[Kept] = []

        def attend_past(past: Kept, query_BWHK: jax.Array, own: KeysValues, mask: Mask) -> jax.Array:
            # Written before it is read: the other way round, XLA copies the whole cache before it writes.
            new = keep(own)
            key_BHKP = jax.lax.dynamic_update_slice_in_dim(past.key_BHKS, new.key_BHKS, place * beams, axis=3)
            value_BHPK = jax.lax.dynamic_update_slice_in_dim(past.value_BHSK, new.value_BHSK, place * beams, axis=2)
            target.append(Kept(key_BHKP, value_BHPK))
            return attend_kept(query_BWHK, target[-1], allowed_BWP)

        graph = nnx.graphdef(self.layers)
        sources: list[Any] = cache.source  # handed through the layer to `_attend_source`
        for params, source, past in zip(layer_params, sources, cache.target, strict=True):
            layer: Layer = nnx.merge(graph, params)
            layer.self_attention.attend = partial(attend_past, past)
            layer.cross_attention.attend = _attend_source
            hidden_BWD, _ = layer(hidden_BWD, source, cross_mask, cross_mask)  # the first is not looked at
        if self.final_layer_norm is not None:
            hidden_BWD = self.final_layer_norm(hidden_BWD)
        return hidden_BWD, cache._replace(target=target)


def _attend_source(query_BTHK: jax.Array, source: Any, mask: Mask) -> jax.Array:
    return attend_kept(query_BTHK, source, mask.real_BS[:, None])
