"""The gradients of one group's loss, by the kind of its objective. Inside `by_shard`: of one device's rows of the group.

    sequence_to_sequence    inputs → encoder, targets → decoder: every target is predicted
    masked_language_model   inputs → encoder: what stood at the masked positions is predicted; targets are 0 elsewhere
    contrast                inputs → encoder, targets → momentum encoder: each sentence picks its translation

Each takes what a step adds up, and returns it with the group's own added. Gradients of layers come from `jax.vjp`; those of
the token table, which serves input and output, are added row by row to one array.

Shapes: B batch, S inputs, T targets, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deltalm_jax.model.attention import Attend
from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import Params, hidden_states, shift_right
from deltalm_jax.model.embedding import look_up
from deltalm_jax.model.encoder_model import masked_states, sentence_states
from deltalm_jax.model.layer import Gather
from deltalm_jax.training.contrast import MOMENTUM_PARTS, ContrastConfig, contrast_and_gradient
from deltalm_jax.training.loss import LossConfig, vocabulary_loss_and_gradients

# What the decoder starts from: `</s>`, and every target is predicted; or the first target itself (the first sentinel),
# which is then not predicted, so that the group is one position shorter (the DeltaLM group's later loader).
DECODER_STARTS = ("eos", "first_target")


@dataclasses.dataclass(frozen=True)
class Group:
    """What a step has to know of an objective.

    Attributes:
      kind: "sequence_to_sequence", "masked_language_model" or "contrast".
      packed: of the first, whether rows hold several examples each (see `model/packed.py`).
      most_targets: of the second, the most positions of a row that are masked; no more are predicted.
    """

    kind: str = "sequence_to_sequence"
    packed: bool = False
    most_targets: int = 0


class Setting(NamedTuple):
    """What all groups of a step share."""

    model: ModelConfig
    loss: LossConfig
    contrast: ContrastConfig | None
    mesh: Mesh
    compute_dtype: str
    decoder_start: str
    gather: Gather | None
    attend: Attend

    @property
    def forward(self) -> dict[str, Any]:
        """How a forward pass is carried out."""
        return {"compute_dtype": self.compute_dtype, "gather": self.gather, "attend": self.attend}


class Added(NamedTuple):
    """A group's part of a step.

    Attributes:
      gradients: what was there, with the group's added; float32.
      sums: float32 [2], of the loss, and of the likelihood ("contrast": of sentences whose translation was picked).
      keys_BD: "contrast": the momentum encoder's keys, to be put into the queue; else None.
    """

    gradients: Params
    sums: jax.Array
    keys_BD: jax.Array | None = None


def decoder_arrays(targets_BT: jax.Array, decoder_start: str) -> tuple[jax.Array, jax.Array]:
    """Decoder input and the targets to predict from it, by `DECODER_STARTS`: both [B, T], or both [B, T - 1]."""
    if decoder_start == "first_target":
        return targets_BT[:, :-1], targets_BT[:, 1:]
    return shift_right(targets_BT), targets_BT


def masked_places(targets_BS: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """The positions of a row's targets, first to last, and these targets, padded with 0; both [B, T], T = `most`."""
    places_BT = jnp.argsort(targets_BS == PAD_ID, axis=1, stable=True)[:, :most]
    return places_BT, jnp.take_along_axis(targets_BS, places_BT, axis=1)


def num_predicted(group: Group, arrays: Any, decoder_start: str) -> jax.Array:
    """float32 scalar: what a group's sum of losses is to be divided by. Targets; of contrast pairs."""
    if group.kind == "contrast":
        return jnp.sum(_is_real(arrays["inputs"][:, 0]) * _is_real(arrays["targets"][:, 0]))
    if group.kind == "masked_language_model":
        return jnp.sum(_is_real(arrays["targets"]))
    return jnp.sum(_is_real(decoder_arrays(arrays["targets"], decoder_start)[1]))


def sequence_to_sequence_gradients(
    setting: Setting,
    group: Group,
    params: Params,
    arrays: Any,
    dropout_key: jax.Array,
    scale: jax.Array,
    gradients: Params,
) -> Added:
    """Adds a group of pairs of inputs and targets.

    Args:
      setting, group: how.
      params: whole, or layers to be gathered one by one.
      arrays: int32 "inputs" [B, S] and "targets" [B, T].
      dropout_key: keys [B].
      scale: of the gradients.
      gradients: float32, a tree like `params`.
    """
    decoder_input_BT, targets_BT = decoder_arrays(arrays["targets"], setting.decoder_start)
    ids = arrays["inputs"], decoder_input_BT
    table_VD, layers = _table_and_layers(params)

    def forward(layers: Params, rows: Any) -> jax.Array:
        return hidden_states(
            setting.model, params | layers, *ids, token_rows=rows, dropout_key=dropout_key, packed=group.packed,
            **setting.forward,
        )  # fmt: skip

    hidden_BTD, backward = jax.vjp(forward, layers, tuple(look_up(table_VD, ids_BX) for ids_BX in ids))
    sums, d_hidden_BTD, d_table_VD, _ = vocabulary_loss_and_gradients(
        hidden_BTD, table_VD, targets_BT, _is_real(targets_BT), scale, gradients["token_embedding"], setting.loss,
        setting.model.vocab_size,
    )  # fmt: skip
    d_layers, d_rows = backward(d_hidden_BTD)
    return Added(_added(gradients, d_layers, d_table_VD, zip(ids, d_rows, strict=True)), jnp.stack(sums))


def masked_language_model_gradients(
    setting: Setting,
    group: Group,
    params: Params,
    arrays: Any,
    dropout_key: jax.Array,
    scale: jax.Array,
    gradients: Params,
) -> Added:
    """Adds a group of masked texts: "inputs" [B, S], "targets" [B, S]. The rest as above."""
    ids_BS = arrays["inputs"]
    places_BT, targets_BT = masked_places(arrays["targets"], group.most_targets)
    table_VD, layers = _table_and_layers(params)

    def forward(layers: Params, rows_BSD: jax.Array) -> jax.Array:
        return masked_states(
            setting.model, params | layers, ids_BS, places_BT, token_BSD=rows_BSD, dropout_key=dropout_key,
            **setting.forward,
        )  # fmt: skip

    hidden_BTD, backward = jax.vjp(forward, layers, look_up(table_VD, ids_BS))
    sums, d_hidden_BTD, d_table_VD, d_bias_V = vocabulary_loss_and_gradients(
        hidden_BTD, table_VD, targets_BT, _is_real(targets_BT), scale, gradients["token_embedding"], setting.loss,
        setting.model.vocab_size, params["lm_head"]["bias"],
    )  # fmt: skip
    d_layers, d_rows_BSD = backward(d_hidden_BTD)
    d_layers["lm_head"]["bias"] = d_bias_V
    return Added(_added(gradients, d_layers, d_table_VD, [(ids_BS, d_rows_BSD)]), jnp.stack(sums))


def contrast_gradients(
    setting: Setting,
    group: Group,
    params: Params,
    arrays: Any,
    dropout_key: jax.Array,
    scale: jax.Array,
    gradients: Params,
    momentum: Params,
    queue_QD: jax.Array,
) -> Added:
    """Adds a group of pairs of sentences: "inputs" [B, S], "targets" [B, T], both as the encoder reads them.

    Args:
      momentum: the momentum encoder's parameters, as `params`.
      queue_QD: this device's part of the queue.
      The rest as above.
    """
    assert setting.contrast is not None
    ids_BS = arrays["inputs"]
    table_VD, _ = _table_and_layers(params)
    layers = {name: params[name] for name in MOMENTUM_PARTS if name != "token_embedding"}

    def forward(layers: Params, rows_BSD: jax.Array) -> jax.Array:
        return sentence_states(
            setting.model, params | layers, ids_BS, token_BSD=rows_BSD, dropout_key=dropout_key, **setting.forward
        )

    query_BD, backward = jax.vjp(forward, layers, look_up(table_VD, ids_BS))
    key_BD = sentence_states(setting.model, momentum, arrays["targets"], **setting.forward)
    real_B = _is_real(ids_BS[:, 0]) * _is_real(arrays["targets"][:, 0])
    loss_B, d_query_BD, picked_B = contrast_and_gradient(
        query_BD, key_BD, queue_QD, setting.contrast.temperature, setting.mesh
    )
    d_layers, d_rows_BSD = backward(d_query_BD * (scale * real_B)[:, None])
    sums = jnp.stack([jnp.sum(loss_B * real_B), jnp.sum(picked_B * real_B)])
    return Added(_added(gradients, d_layers, gradients["token_embedding"], [(ids_BS, d_rows_BSD)]), sums, key_BD)


GRADIENTS: dict[str, Callable[..., Added]] = {
    "sequence_to_sequence": sequence_to_sequence_gradients,
    "masked_language_model": masked_language_model_gradients,
    "contrast": contrast_gradients,
}


def _table_and_layers(params: Params) -> tuple[jax.Array, Params]:
    return params["token_embedding"], {name: part for name, part in params.items() if name != "token_embedding"}


def _added(gradients: Params, d_layers: Params, d_table_VD: jax.Array, d_rows: Any) -> Params:
    for ids_BX, d_rows_BXD in d_rows:
        d_table_VD = d_table_VD.at[ids_BX].add(d_rows_BXD.astype(jnp.float32), mode="drop")
    layers = {
        name: jax.tree.map(lambda total, part: total + part.astype(jnp.float32), gradients[name], part)
        for name, part in d_layers.items()
    }
    return gradients | layers | {"token_embedding": d_table_VD}


def _is_real(ids: jax.Array) -> jax.Array:
    return (ids != PAD_ID).astype(jnp.float32)
