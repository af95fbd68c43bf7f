"""DeltaLM as functions of plain dictionaries of arrays. Nothing outside `model/` needs to know Flax.

Legend: B batch, S source positions, T target positions, L positions of the cache, D hidden size, H heads, K head size,
V vocabulary, N layers.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from deltalm_jax.model.attention import Attend, attend_xla
from deltalm_jax.model.config import EOS_ID, PAD_ID, ModelConfig
from deltalm_jax.model.decoder import BeamCache, Cache, Decoder
from deltalm_jax.model.dropout import split_key
from deltalm_jax.model.embedding import embedding_table, look_up
from deltalm_jax.model.encoder import Encoder
from deltalm_jax.model.encoder_model import EncoderModel, merge_encoder
from deltalm_jax.model.layer import Gather

Params = dict[str, Any]
"""Nested dictionary of arrays, float32; those under a `layers` key have a leading layer axis."""

TokenRows = tuple[jax.Array, jax.Array]
"""Rows of the token table at the encoder's and at the decoder's ids, [B, S, D] and [B, T, D]."""


class LayerStates(NamedTuple):
    """What `layer_states` returns: the two sides' outputs, and their residual streams from the embeddings (index 0) on.

    With norm_placement="post" the last state is the output; with "pre" the output has had the final LayerNorm as well.
    """

    encoder_states_NBSD: jax.Array
    encoded_BSD: jax.Array
    decoder_states_NBTD: jax.Array
    hidden_BTD: jax.Array


class DeltaLM(nnx.Module):
    """One token table, an encoder and a decoder. There is no output layer: logits are hidden · tableᵀ."""

    def __init__(self, config: ModelConfig, *, attend: Attend = attend_xla, rngs: nnx.Rngs) -> None:
        self.token_embedding = embedding_table(config.vocab_size, config.hidden_size, PAD_ID, rngs)
        self.encoder = Encoder(config, attend=attend, rngs=rngs)
        self.decoder = Decoder(config, attend=attend, rngs=rngs)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Randomly initialised parameters, float32. The same key gives the same values on any machine and mesh."""
    module = EncoderModel if config.is_encoder else DeltaLM
    return nnx.to_pure_dict(nnx.split(module(config, rngs=nnx.Rngs(params=key)))[1])


def hidden_states(
    config: ModelConfig,
    params: Params,
    encoder_tokens_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    *,
    token_rows: TokenRows | None = None,
    dropout_key: jax.Array | None = None,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    gather: Gather | None = None,
    attend: Attend = attend_xla,
    packed: bool = False,
) -> jax.Array:
    """The whole model short of its output layer.

    Args:
      config: as the parameters were made with.
      params: as `init_params` returns them.
      encoder_tokens_BS: int ids, padded with `PAD_ID` on either side.
      decoder_input_tokens_BT: int ids; for training `shift_right(targets)`.
      token_rows: the rows of `params["token_embedding"]` at the encoder's and the decoder's ids, if they have been looked
        up already, to have their gradients apart from the table's; the table itself is then not looked at.
      dropout_key: a jax key, or keys [B], one for each row; None for no dropout.
      compute_dtype: of activations and matrix products.
      gather: makes a layer's weights whole where each device keeps a part of them (see `layer.scan_layers`).
      attend: what computes attention (see `kernels.py`).
      packed: whether a row holds several examples, each closed by `</s>` on both sides (see `packed.py`).

    Returns:
      [B, T, D] in `compute_dtype`, to be multiplied with `params["token_embedding"]` [V, D].

    Raises:
      ValueError: a sequence is longer than `config.max_length`.
    """
    rows_BSD, rows_BTD = token_rows or (None, None)
    shared: Any = {
        "dropout_key": dropout_key,
        "compute_dtype": compute_dtype,
        "gather": gather,
        "attend": attend,
        "packed": packed,
    }
    encoded_BSD = apply_encoder(config, params, encoder_tokens_BS, token_BSD=rows_BSD, **shared)
    return apply_decoder(
        config, params, encoded_BSD, encoder_tokens_BS, decoder_input_tokens_BT, token_BTD=rows_BTD, **shared
    )


def apply_encoder(
    config: ModelConfig,
    params: Params,
    encoder_tokens_BS: jax.Array,
    *,
    token_BSD: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    gather: Gather | None = None,
    attend: Attend = attend_xla,
    packed: bool = False,
) -> jax.Array:
    """The encoder alone; arguments as for `hidden_states`. Returns [B, S, D] in `compute_dtype`."""
    encoder_key, _ = split_key(dropout_key, 2)
    if token_BSD is None:
        token_BSD = look_up(params["token_embedding"], encoder_tokens_BS)
    model = merge_encoder(config, params, attend) if config.is_encoder else _merge(config, params, attend)
    return model.encoder(
        token_BSD,
        encoder_tokens_BS,
        dropout_key=encoder_key,
        compute_dtype=compute_dtype,
        gather=gather,
        packed=packed,
    )[0]


def apply_decoder(
    config: ModelConfig,
    params: Params,
    encoded_BSD: jax.Array,
    encoder_tokens_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    *,
    token_BTD: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    gather: Gather | None = None,
    attend: Attend = attend_xla,
    packed: bool = False,
) -> jax.Array:
    """The decoder alone, given the encoder's output and input ids (for their padding). Returns as `hidden_states`."""
    _, decoder_key = split_key(dropout_key, 2)
    if token_BTD is None:
        token_BTD = look_up(params["token_embedding"], decoder_input_tokens_BT)
    return _merge(config, params, attend).decoder(
        token_BTD,
        encoded_BSD,
        encoder_tokens_BS,
        decoder_input_tokens_BT,
        dropout_key=decoder_key,
        compute_dtype=compute_dtype,
        gather=gather,
        packed=packed,
    )[0]


def encoder_states(
    config: ModelConfig,
    params: Params,
    encoder_tokens_BS: jax.Array,
    *,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Every hidden state of the encoder, without dropout, of a DeltaLM or of an encoder alone; to look inside.

    Returns:
      [N + 1, B, S, D] in `compute_dtype`: the embeddings, then what each layer gives. The last is the encoder's output,
      which with norm_placement="pre" has had the final LayerNorm.
    """
    model = merge_encoder(config, params) if config.is_encoder else _merge(config, params)
    token_BSD = look_up(params["token_embedding"], encoder_tokens_BS)
    encoded_BSD, states_NBSD = model.encoder(
        token_BSD, encoder_tokens_BS, compute_dtype=compute_dtype, return_states=True
    )
    assert states_NBSD is not None
    return states_NBSD.at[-1].set(encoded_BSD)


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
        look_up(table_VD, encoder_tokens_BS), encoder_tokens_BS, compute_dtype=compute_dtype, return_states=True
    )
    hidden_BTD, decoder_states_NBTD = model.decoder(
        look_up(table_VD, decoder_input_tokens_BT),
        encoded_BSD,
        encoder_tokens_BS,
        decoder_input_tokens_BT,
        compute_dtype=compute_dtype,
        return_states=True,
    )
    assert encoder_states_NBSD is not None
    assert decoder_states_NBTD is not None
    return LayerStates(encoder_states_NBSD, encoded_BSD, decoder_states_NBTD, hidden_BTD)


def init_cache(
    config: ModelConfig,
    params: Params,
    encoded_BSD: jax.Array,
    encoder_tokens_BS: jax.Array,
    max_length: int | None = None,
) -> Cache:
    """An empty cache, for decoding one token at a time with `decode_step`.

    It is a dictionary of arrays, whose axis 1 is the batch in every one; `take_rows` repeats or reorders rows.

        source   key, value  [N, B, S, H, K]   cross-attention's, computed here once and for all
                 real        [1, B, S]         bool, False at padding
        target   key, value  [N, B, L, H, K]   self-attention's, zero where nothing is written yet
                 length      [1, B]            int32, the tokens of each row so far, which stand in its first places

    Args:
      config, params: the model.
      encoded_BSD: the encoder's output; its dtype is that of the cache and of all computation on it.
      encoder_tokens_BS: the encoder's input; only its padding matters.
      max_length: most tokens that a row can be fed (L), the leading `</s>` included; `config.max_length` by default.

    Raises:
      ValueError: `max_length` is not between 1 and `config.max_length`.
    """
    max_length = config.max_length if max_length is None else max_length
    _check_cache_length(config, max_length)
    return _merge(config, params).decoder.init_cache(encoded_BSD, encoder_tokens_BS, max_length)


def _check_cache_length(config: ModelConfig, max_length: int) -> None:
    if not 1 <= max_length <= config.max_length:
        raise ValueError(
            f"max_length={max_length} must be between 1 and ModelConfig.max_length={config.max_length}, for the decoder "
            f"has no positions beyond: ask for shorter outputs, or raise ModelConfig.max_length (a new position table)"
        )


def decode_step(config: ModelConfig, params: Params, cache: Cache, tokens_B: jax.Array) -> tuple[jax.Array, Cache]:
    """Feeds the decoder one more token for each row. The first one is `</s>`.

    A row fed tokens one by one gets the hidden states that `hidden_states` gives for all of them at once. As there,
    `PAD_ID` may stand anywhere and counts nowhere: it leaves its row as it was, and the hidden state at it is of no use.
    A row that has had as many tokens as its cache holds gets NaN for any more, and keeps what it has.

    Args:
      config, params: the model.
      cache: from `init_cache` or the step before; donate it to `jax.jit` to have it updated in place.
      tokens_B: int ids.

    Returns:
      [B, D] in the dtype of the cache, to be multiplied with `params["token_embedding"]` for the logits of the next
      token; and the cache with these tokens in it.

    Raises:
      ValueError: `tokens_B` is not one id for each row of the cache.
    """
    batch = cache["target"]["length"].shape[1]
    if jnp.shape(tokens_B) != (batch,):
        raise ValueError(
            f"decode_step takes one token id for each of the {batch} rows of the cache, of shape ({batch},); "
            f"found shape {jnp.shape(tokens_B)}"
        )
    model = _merge(config, params)
    return model.decoder.step(model.token_embedding[...], cache, jnp.asarray(tokens_B))


class BeamWeights(NamedTuple):
    """What `decode_beams` needs of the parameters, taken apart once and not in every step."""

    params: Params
    layers: list[Params]  # of the decoder, each alone; matrices in the dtype of computation
    table_VD: jax.Array  # the token table in that dtype


def init_beams(
    config: ModelConfig,
    params: Params,
    encoded_BSD: jax.Array,
    encoder_tokens_BS: jax.Array,
    num_beams: int,
    max_length: int,
) -> tuple[BeamWeights, BeamCache]:
    """An empty cache for several hypotheses (W beams) of each source, and the weights, for decoding with `decode_beams`.

    Of each decoder layer there are

        source   key [B, H, K, S], value [B, H, S, K]       once for each source, however many beams look at them
        target   key [B, H, K, L·W], value [B, H, L·W, K]   of what was fed at place l as beam w, at l·W + w; zero where
                                                            nothing is yet

    Arguments and errors as for `init_cache`.
    """
    _check_cache_length(config, max_length)
    cache = _merge(config, params).decoder.init_beams(encoded_BSD, encoder_tokens_BS, num_beams, max_length)

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf if any(str(key.key).endswith("layer_norm") for key in path) else leaf.astype(encoded_BSD.dtype)

    stacked = jax.tree.map_with_path(cast, params["decoder"]["layers"])
    layers = [jax.tree.map(lambda leaf, n=n: leaf[n], stacked) for n in range(config.num_decoder_layers)]
    return BeamWeights(params, layers, params["token_embedding"].astype(encoded_BSD.dtype)), cache


def decode_beams(
    config: ModelConfig,
    weights: BeamWeights,
    cache: BeamCache,
    tokens_BW: jax.Array,
    place: jax.Array,
    path_BWL: jax.Array,
) -> tuple[jax.Array, BeamCache]:
    """Feeds the decoder one more token for each beam. The first one is `</s>`.

    What a beam was is never moved: where beam search goes on from another beam, only the small `path` is reordered. A beam
    attends to all its source's beams at once, W times as many places as it has a past, of which all but its own path are
    masked; that is cheaper than to copy every key and value in every step. NaN in one beam so reaches the other beams of its
    source, but no other source.

    Args:
      config: of the model.
      weights, cache: from `init_beams`, the cache later from the step before.
      tokens_BW: int ids; padding is fed like any other token.
      place: int32 scalar, the tokens that each beam was fed before; below L.
      path_BWL: int, which beam of the source the hypothesis was at each place; what stands at `place` and after it is not
        looked at.

    Returns:
      float32 logits of the next token, [B, W, V]; and the cache with these tokens in it, each as the beam that it was fed as.
    """
    token_BWD = look_up(weights.params["token_embedding"], tokens_BW)
    decoder = _merge(config, weights.params).decoder
    hidden_BWD, cache = decoder.step_beams(weights.layers, token_BWD, cache, place, path_BWL)
    rows_RD = hidden_BWD.reshape(-1, hidden_BWD.shape[-1])  # a product of two matrices is what a CPU does fastest
    logits_RV = jnp.einsum("RD,VD->RV", rows_RD, weights.table_VD, preferred_element_type=jnp.float32)
    return logits_RV.reshape(*tokens_BW.shape, -1), cache


CacheT = TypeVar("CacheT", Cache, dict[str, jax.Array])


def take_rows(cache: CacheT, rows_B: jax.Array) -> CacheT:
    """A cache whose row b is row `rows_B[b]` of this one; there may be more, or fewer, rows than before.

    Rows that stay with their source need only the latter part reordered:
    `cache | {"target": take_rows(cache["target"], rows_B)}`. Beam search does without: see `decode_beams`.
    """
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows_B, axis=1), cache)


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """float32 [..., V]: hidden states [..., D] times the token table, neither scaled nor biased.

    For decoding and tests. The training loss is computed in blocks and never holds an array of this size.
    """
    table_VD = params["token_embedding"].astype(hidden.dtype)
    return jnp.einsum("...D,VD->...V", hidden, table_VD, preferred_element_type=jnp.float32)


def shift_right(targets_BT: jax.Array) -> jax.Array:
    """Decoder input for these targets: `</s>`, then all targets but the last; padding stays padding."""
    start_B1 = jnp.full_like(targets_BT[:, :1], EOS_ID)
    return jnp.concatenate([start_B1, targets_BT[:, :-1]], axis=1)


def _merge(config: ModelConfig, params: Params, attend: Attend = attend_xla) -> DeltaLM:
    """Parameters as a module. Made anew while tracing; nothing is computed for it."""
    return nnx.merge(_graph(config, attend), params)


@functools.lru_cache(maxsize=16)
def _graph(config: ModelConfig, attend: Attend) -> nnx.GraphDef[DeltaLM]:
    """A model without its parameters: one for all traces of a step."""
    return nnx.graphdef(nnx.eval_shape(lambda: DeltaLM(config, attend=attend, rngs=nnx.Rngs(params=0))))
