"""The encoder alone, as it is pretrained before a DeltaLM starts from it: XLM-R's and InfoXLM's parameters.

Legend: B batch, S positions, T positions to predict, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.attention import Attend, attend_xla
from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.embedding import embedding_table, look_up
from deltalm_jax.model.encoder import Encoder
from deltalm_jax.model.feed_forward import gelu
from deltalm_jax.model.layer import Gather
from deltalm_jax.model.linear import LayerNorm, Linear

# Of the projection that sentences are compared by (InfoXLM's code).
_PROJECTION_STDDEV = 0.02


class MaskedLanguageModelHead(nnx.Module):
    """What stands between the encoder and the token table, whose transpose is the output layer (RoBERTa's `lm_head`)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size, rngs=rngs)
        self.layer_norm = LayerNorm(config.hidden_size)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32))

    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D], to be multiplied with the token table; `bias` is then added."""
        return self.layer_norm(gelu(self.dense(hidden_BTD)))


class Projection(nnx.Module):
    """A square matrix without a bias."""

    def __init__(self, size: int, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(_PROJECTION_STDDEV * jax.random.normal(rngs.params(), (size, size), jnp.float32))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., D] -> [..., D], same dtype."""
        return inputs @ self.kernel.astype(inputs.dtype)


class EncoderModel(nnx.Module):
    """One token table, an encoder, a head for masked language modelling, and a projection of sentences if they have one."""

    def __init__(self, config: ModelConfig, *, attend: Attend = attend_xla, rngs: nnx.Rngs) -> None:
        self.token_embedding = embedding_table(config.vocab_size, config.hidden_size, PAD_ID, rngs)
        self.encoder = Encoder(config, attend=attend, rngs=rngs)
        self.lm_head = MaskedLanguageModelHead(config, rngs=rngs)
        self.sentence_projection = Projection(config.hidden_size, rngs=rngs) if config.sentence_layer else None


def merge_encoder(config: ModelConfig, params: dict[str, Any], attend: Attend = attend_xla) -> EncoderModel:
    """Parameters as a module. Made anew while tracing; nothing is computed for it."""
    return nnx.merge(_graph(config, attend), params)


@functools.lru_cache(maxsize=16)
def _graph(config: ModelConfig, attend: Attend) -> nnx.GraphDef[EncoderModel]:
    """A model without its parameters: one for all traces of a step."""
    return nnx.graphdef(nnx.eval_shape(lambda: EncoderModel(config, attend=attend, rngs=nnx.Rngs(params=0))))


def masked_states(
    config: ModelConfig,
    params: dict[str, Any],
    tokens_BS: jax.Array,
    places_BT: jax.Array,
    *,
    token_BSD: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    gather: Gather | None = None,
    attend: Attend = attend_xla,
) -> jax.Array:
    """What the output layer makes its predictions of, at some positions of each row.

    Args:
      config: of an encoder alone.
      params: as `init_params` returns them.
      tokens_BS: int ids, some of them masked; padded with `PAD_ID`.
      places_BT: int, which positions of the row.
      token_BSD: the ids' rows of the token table, if they have been looked up already; the table is then not looked at.
      dropout_key, compute_dtype, gather, attend: as for `deltalm.hidden_states`.

    Returns:
      [B, T, D] in `compute_dtype`; logits are these times the token table, plus `params["lm_head"]["bias"]`.
    """
    model = merge_encoder(config, params, attend)
    token_BSD = look_up(params["token_embedding"], tokens_BS) if token_BSD is None else token_BSD
    hidden_BSD, _ = model.encoder(
        token_BSD, tokens_BS, dropout_key=dropout_key, compute_dtype=compute_dtype, gather=gather
    )
    return model.lm_head(jnp.take_along_axis(hidden_BSD, places_BT[:, :, None], axis=1))


def sentence_states(
    config: ModelConfig,
    params: dict[str, Any],
    tokens_BS: jax.Array,
    *,
    token_BSD: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    gather: Gather | None = None,
    attend: Attend = attend_xla,
) -> jax.Array:
    """What stands for each sentence in contrast with others: the first position of a hidden state, projected.

    Only the layers up to `config.sentence_layer` are computed. Arguments as for `masked_states`; `params` needs no head.

    Returns:
      float32 [B, D], of any length: InfoXLM does not normalise them.
    """
    lower, part = _lower_part(config, params)
    # A blank head: it has no part in this.
    blank = nnx.eval_shape(lambda: MaskedLanguageModelHead(lower, rngs=nnx.Rngs(params=0)))
    part["lm_head"] = nnx.to_pure_dict(nnx.state(blank))
    model = merge_encoder(lower, part, attend)
    token_BSD = look_up(params["token_embedding"], tokens_BS) if token_BSD is None else token_BSD
    hidden_BSD, _ = model.encoder(
        token_BSD, tokens_BS, dropout_key=dropout_key, compute_dtype=compute_dtype, gather=gather
    )
    assert model.sentence_projection is not None
    return model.sentence_projection(hidden_BSD[:, 0]).astype(jnp.float32)


def _lower_part(config: ModelConfig, params: dict[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
    """The encoder up to the layer that sentences are compared at, without the layers above it."""
    layers = jax.tree.map(lambda leaf: leaf[: config.sentence_layer], params["encoder"]["layers"])
    lower = dataclasses.replace(config, num_encoder_layers=config.sentence_layer)
    return lower, dict(params) | {"encoder": params["encoder"] | {"layers": layers}}
