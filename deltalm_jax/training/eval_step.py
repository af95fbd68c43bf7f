"""The evaluation step: what a model says of held-out rows, without dropout; compiled once for each group of the run.

Shapes: B batch, S inputs, T targets, D model, V vocabulary.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import Params, hidden_states, init_params
from deltalm_jax.model.encoder_model import masked_states
from deltalm_jax.parallel.sharding import (
    BATCH_AXES,
    batch_sharding,
    by_shard,
    gather_layer,
    gather_parameters,
    parameter_specs,
    replicated,
)
from deltalm_jax.training.group_gradients import Group, decoder_arrays, masked_places
from deltalm_jax.training.loss import LossConfig, token_nll
from deltalm_jax.training.step import Metrics, attention_on, for_products


def make_eval_step(
    model: ModelConfig,
    loss: LossConfig,
    mesh: Mesh,
    *,
    sentinels: tuple[int, int],
    compute_dtype: str,
    decoder_start: str = "eos",
    groups: Mapping[str, Group] = MappingProxyType({}),
) -> Callable[[str, Any, Any], Metrics]:
    """Builds `(group, params, its arrays) → sums`, jitted, without dropout, smoothing and z-loss.

    Args:
      sentinels: first sentinel id, and one past the last.
      groups: as for `make_train_step`. Contrast, which is told from what a queue holds, is not evaluated so.

    Returns:
      A function giving, whole on every device and for each row, float32 [B] `nll`, `tokens` over all targets, and
      `text_nll`, `text_tokens` over those that are not sentinels.
    """
    specs = parameter_specs(jax.eval_shape(lambda: init_params(model, jax.random.key(0))), mesh)
    forward: dict[str, Any] = {
        "compute_dtype": compute_dtype,
        "gather": gather_layer if mesh.shape["fsdp"] > 1 else None,
        "attend": attention_on(mesh, model, compute_dtype),
    }

    def eval_step(group: Group, params: Params, arrays: Any) -> Metrics:
        params, bias_V = gather_parameters(for_products(params, compute_dtype), specs), None
        if group.kind == "masked_language_model":
            places_BT, targets_BT = masked_places(arrays["targets"], group.most_targets)
            hidden_BTD = masked_states(model, params, arrays["inputs"], places_BT, **forward)
            bias_V = params["lm_head"]["bias"]
        else:
            decoder_input_BT, targets_BT = decoder_arrays(arrays["targets"], decoder_start)
            ids = arrays["inputs"], decoder_input_BT
            hidden_BTD = hidden_states(model, params, *ids, packed=group.packed, **forward)
        nll_BT = token_nll(hidden_BTD, params["token_embedding"], targets_BT, loss, model.vocab_size, bias_V)
        real_BT = targets_BT != PAD_ID
        text_BT = real_BT & ((targets_BT < sentinels[0]) | (targets_BT >= sentinels[1]))
        return {
            "nll": jnp.sum(nll_BT * real_BT, axis=1),
            "tokens": jnp.sum(real_BT, axis=1, dtype=jnp.float32),
            "text_nll": jnp.sum(nll_BT * text_BT, axis=1),
            "text_tokens": jnp.sum(text_BT, axis=1, dtype=jnp.float32),
        }

    @functools.cache
    def step_of(group: Group) -> Callable[..., Metrics]:
        return jax.jit(
            by_shard(functools.partial(eval_step, group), mesh, (specs, P(BATCH_AXES)), P(BATCH_AXES)),
            in_shardings=(None, batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    kinds = collections.defaultdict(Group, groups)
    return lambda group, params, arrays: step_of(kinds[group])(params, arrays)
