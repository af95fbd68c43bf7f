"""Cross-lingual contrast: a sentence is told from many others by its translation (InfoXLM, arXiv 2007.07834, section 3.3).

A momentum encoder, an average of the encoder over past steps, makes keys of one side of each pair; the encoder itself makes
queries of the other. A query is to pick its own key out of a queue of the keys of past steps:

    loss = log(exp(q·k / τ) + Σ_j exp(q·k_j / τ)) - q·k / τ

summed over pairs, k_j being the keys in the queue. The gradient by the query alone is needed, for keys are constants:

    d loss / d q = (p k + Σ_j p_j k_j - k) / τ,   p being the softmax of all scores

which is attention to the queue. Each device holds a part of the queue: all queries visit all devices, and what comes back is
a maximum, a sum and a weighted mean, as where attention is computed in blocks. Keys enter the queue after the loss, oldest
out first, in the order of the rows of the global batch, whatever devices they are on.

Training state: {"params": the momentum encoder's, "queue": float32 [Q, D], "next": the row written next, "filled": rows that
hold a key}. Until the queue is full the objective does not count.

Shapes: B pairs of this device, D model, Q keys of the queue.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deltalm_jax.fields import check_types
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params
from deltalm_jax.parallel.mesh import MeshError
from deltalm_jax.parallel.sharding import split_axes

# Of the parameters: what makes a sentence of ids.
MOMENTUM_PARTS = ("token_embedding", "encoder", "sentence_projection")


@dataclasses.dataclass(frozen=True)
class ContrastConfig:
    """How sentences are told from one another. The defaults are InfoXLM-base's.

    Attributes:
      temperature: τ, by which scores are divided.
      queue_size: keys that a query is told from.
      momentum: m of the momentum encoder: after each update it becomes m · itself + (1 - m) · the encoder.
    """

    temperature: float = 0.25
    queue_size: int = 131_072
    momentum: float = 0.9999

    def __post_init__(self) -> None:
        check_types(self)
        if not self.temperature > 0:
            raise ValueError(f"ContrastConfig.temperature must be above 0, found {self.temperature}")
        if self.queue_size < 1:
            raise ValueError(f"ContrastConfig.queue_size must be at least 1, found {self.queue_size}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"ContrastConfig.momentum must lie in [0, 1], found {self.momentum}")


def momentum_part(params: Params) -> Params:
    """The parameters of which the momentum encoder keeps an average."""
    return {name: params[name] for name in MOMENTUM_PARTS}


def create_contrast_state(config: ContrastConfig, model: ModelConfig, params: Params) -> dict[str, Any]:
    """An empty queue, and a momentum encoder that is the encoder."""
    return {
        "params": jax.tree.map(jnp.copy, momentum_part(params)),
        "queue": jnp.zeros((config.queue_size, model.hidden_size), jnp.float32),
        "next": jnp.zeros((), jnp.int32),
        "filled": jnp.zeros((), jnp.int32),
    }


def is_full(state: dict[str, Any]) -> jax.Array:
    """Whether every row of the queue holds a key: bool scalar."""
    return state["filled"] == len(state["queue"])


def updated_contrast_state(
    config: ContrastConfig, state: dict[str, Any], params: Params, keys_BD: jax.Array
) -> dict[str, Any]:
    """The state after a step.

    Args:
      config: for the momentum.
      state: before it.
      params: the encoder's after the update.
      keys_BD: float32, those of the whole global batch, in its order; no more than the queue holds.
    """
    size, new = len(state["queue"]), len(keys_BD)
    age_Q = (jnp.arange(size) - state["next"]) % size  # 0 where the first new key goes
    queue_QD = jnp.where((age_Q < new)[:, None], keys_BD[jnp.minimum(age_Q, new - 1)], state["queue"])
    m = config.momentum
    return {
        "params": jax.tree.map(lambda slow, fast: m * slow + (1 - m) * fast, state["params"], momentum_part(params)),
        "queue": queue_QD,
        "next": (state["next"] + new) % size,
        "filled": jnp.minimum(state["filled"] + new, size),
    }


def check_queue(config: ContrastConfig, mesh: Mesh) -> None:
    """Raises MeshError if the devices that share the batch cannot share the queue."""
    devices = math.prod(mesh.shape[axis] for axis in split_axes(mesh))
    if config.queue_size % devices:
        raise MeshError(
            f"ContrastConfig.queue_size is {config.queue_size}, which does not divide over slices × data × fsdp = {devices} "
            f"devices: use a multiple of {devices}"
        )


def contrast_and_gradient(
    query_BD: jax.Array, key_BD: jax.Array, queue_QD: jax.Array, temperature: float, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inside `by_shard`: the loss of each of this device's pairs, and what its query should have been.

    Args:
      query_BD, key_BD: float32, of this device's pairs.
      queue_QD: float32, this device's part of the queue.
      temperature: τ.
      mesh: the mesh.

    Returns:
      float32 [B] losses; [B, D] their gradients by the queries; bool [B], whether the key's score is above all others.
    """
    axes = split_axes(mesh)
    queries_AD = jax.lax.all_gather(query_BD, axes, tiled=True) if axes else query_BD
    scores_AQ = jnp.einsum("AD,QD->AQ", queries_AD, queue_QD) / temperature
    most_A = jnp.max(scores_AQ, axis=1)
    most_A = jax.lax.pmax(most_A, axes) if axes else most_A
    weights_AQ = jnp.exp(scores_AQ - most_A[:, None])
    # Of each query the sum of its weights, and of the keys by these weights; for this device's pairs, over all devices.
    sums_AE = jnp.concatenate(
        [jnp.sum(weights_AQ, axis=1, keepdims=True), jnp.einsum("AQ,QD->AD", weights_AQ, queue_QD)], axis=1
    )
    if axes:
        sums_BE = jax.lax.psum_scatter(sums_AE, axes, scatter_dimension=0, tiled=True)
        most_B = jax.lax.dynamic_slice_in_dim(most_A, jax.lax.axis_index(axes) * len(query_BD), len(query_BD))
    else:
        sums_BE, most_B = sums_AE, most_A
    own_B = jnp.sum(query_BD * key_BD, axis=1) / temperature
    top_B = jnp.maximum(most_B, own_B)
    others_B1, own_B1 = jnp.exp(most_B - top_B)[:, None], jnp.exp(own_B - top_B)[:, None]
    total_B1 = own_B1 + others_B1 * sums_BE[:, :1]
    loss_B = top_B + jnp.log(total_B1[:, 0]) - own_B
    expected_BD = (own_B1 * key_BD + others_B1 * sums_BE[:, 1:]) / total_B1
    return loss_B, (expected_BD - key_BD) / temperature, own_B > most_B
