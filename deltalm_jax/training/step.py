"""The training step and the evaluation step: pure functions, compiled once for the whole run.

State is a dict {"params", "optimizer", "step"}. A batch is a dict of groups, one per objective, each with its own static
shape, so that span corruption (461 inputs, 101 targets) and translation span corruption (341, 341) never pad to each
other. Loss:

    L = Σ_groups Σ_targets nll / Σ_groups number of targets

over the *global* batch. A mean of per-device means would weigh a device's targets by how few it happens to have; under
`jit` the sums run over the whole sharded batch, so nothing depends on how it is split.

Shapes: B batch, S inputs, T targets, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import hidden_states, init_params, shift_right
from deltalm_jax.parallel.sharding import batch_sharding, map_over_batch, state_shardings
from deltalm_jax.training.loss import token_nll, weighted_nll
from deltalm_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer

State = dict[str, Any]
Metrics = dict[str, jax.Array]


def create_state(model: ModelConfig, optimizer: OptimizerConfig, seed: int) -> State:
    """A fresh state: parameters from `seed`, zero moments, step 0. Pure; run it under `jit` or `eval_shape`."""
    params = init_params(model, jax.random.key(seed))
    return {"params": params, "optimizer": make_optimizer(optimizer).init(params), "step": jnp.zeros((), jnp.int32)}


def abstract_state(model: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of a state; allocates nothing."""
    shapes = jax.eval_shape(lambda: create_state(model, optimizer, 0))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def initial_state(model: ModelConfig, optimizer: OptimizerConfig, seed: int, mesh: Mesh) -> State:
    """`create_state` straight into its shards: no device ever holds the whole of what is split."""
    shardings = jax.tree.map(lambda s: s.sharding, abstract_state(model, optimizer, mesh))
    with jax.set_mesh(mesh):
        return jax.jit(create_state, static_argnums=(0, 1), out_shardings=shardings)(model, optimizer, seed)


def dropout_key(seed: int, step: jax.Array, group: int) -> jax.Array:
    """The key of a step's dropout in one group: folded from numbers, so there is no random state to save."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), group)


def make_train_step(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    *,
    seed: int,
    compute_dtype: str,
    loss_block_tokens: int,
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Builds the jitted step `(state, batch) → (state, metrics)`; the state's memory is reused (donated).

    Metrics: `loss`, `loss/<group>` (nats per target), `target_tokens`, `target_tokens/<group>`, `input_tokens`,
    `grad_norm` (before clipping), `learning_rate`, `batch_digest` (uint32 [2]).
    """
    transformation = make_optimizer(optimizer)

    def sum_nll(hidden_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
        return weighted_nll(hidden_BTD, table_VD, targets_BT, weights_BT, model.vocab_size, loss_block_tokens)[None]

    # Each device scores its own rows, block by block. Left to the partitioner, every block would end in a sum over all
    # devices of the whole table's gradient; so it is made once, where the table enters.
    sum_nll_by_shard = map_over_batch(sum_nll, mesh, split=(True, False, True, True))

    def loss_fn(params: Any, batch: Any, step: jax.Array) -> tuple[jax.Array, Metrics]:
        table_VD = params["token_embedding"].astype(compute_dtype)
        sums: Metrics = {}
        counts: Metrics = {}
        for index, (group, arrays) in enumerate(batch.items()):
            hidden_BTD = hidden_states(
                model,
                params,
                arrays["inputs"],
                shift_right(arrays["targets"]),
                dropout_key=dropout_key(seed, step, index),
                compute_dtype=compute_dtype,
            )
            weights_BT = (arrays["targets"] != PAD_ID).astype(jnp.float32)
            counts[group] = jnp.sum(weights_BT)
            sums[group] = jnp.sum(sum_nll_by_shard(hidden_BTD, table_VD, arrays["targets"], weights_BT))
        total = jnp.sum(jnp.stack([*counts.values()]))
        loss = jnp.sum(jnp.stack([*sums.values()])) / jnp.maximum(total, 1.0)
        metrics = {f"loss/{g}": sums[g] / jnp.maximum(counts[g], 1.0) for g in sums}
        metrics |= {f"target_tokens/{g}": counts[g] for g in counts}
        return loss, metrics | {"target_tokens": total}

    def train_step(state: State, batch: Any) -> tuple[State, Metrics]:
        (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state["params"], batch, state["step"])
        updates, optimizer_state = transformation.update(gradients, state["optimizer"], state["params"])
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": learning_rate(optimizer, state["step"]),
            "input_tokens": sum(jnp.sum(a["inputs"] != PAD_ID) for a in batch.values()),
            "batch_digest": batch_digest(batch),
        }
        new_state = {
            "params": optax.apply_updates(state["params"], updates),
            "optimizer": optimizer_state,
            "step": state["step"] + 1,
        }
        return new_state, metrics

    shardings = jax.tree.map(lambda s: s.sharding, abstract_state(model, optimizer, mesh))
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )


def make_eval_step(
    model: ModelConfig, mesh: Mesh, *, sentinels: tuple[int, int], compute_dtype: str, loss_block_tokens: int
) -> Callable[[Any, Any], Metrics]:
    """Builds the jitted `(params, arrays of one group) → sums`, without dropout.

    Args:
      sentinels: first sentinel id, and one past the last.

    Returns:
      A function giving float32 scalars `nll`, `tokens` over all targets, and `text_nll`, `text_tokens` over those that
      are not sentinels.
    """

    def score(hidden_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array) -> jax.Array:
        return token_nll(hidden_BTD, table_VD, targets_BT, model.vocab_size, loss_block_tokens)

    score_by_shard = map_over_batch(score, mesh, split=(True, False, True))

    def eval_step(params: Any, arrays: Any) -> Metrics:
        targets_BT = arrays["targets"]
        hidden_BTD = hidden_states(
            model, params, arrays["inputs"], shift_right(targets_BT), dropout_key=None, compute_dtype=compute_dtype
        )
        table_VD = params["token_embedding"].astype(compute_dtype)
        nll_BT = score_by_shard(hidden_BTD, table_VD, targets_BT)
        real_BT = targets_BT != PAD_ID
        text_BT = real_BT & ((targets_BT < sentinels[0]) | (targets_BT >= sentinels[1]))
        return {
            "nll": jnp.sum(nll_BT * real_BT),
            "tokens": jnp.sum(real_BT, dtype=jnp.float32),
            "text_nll": jnp.sum(nll_BT * text_BT),
            "text_tokens": jnp.sum(text_BT, dtype=jnp.float32),
        }

    return jax.jit(eval_step, in_shardings=(None, batch_sharding(mesh)))


def batch_digest(batch: Any) -> jax.Array:
    """Digest of the global batch as the devices hold it: equal digests mean equal batches in equal order.

    Each id is hashed with its position and its array's number (a 32-bit multiply-xorshift mix, two different ones), and
    the hashes are added modulo 2**32. Addition has no order, so the digest does not depend on how rows are spread over
    devices and processes.

    Returns:
      uint32 [2].
    """
    total = jnp.zeros(2, jnp.uint32)
    for number, array in enumerate(jax.tree.leaves(batch)):
        place = jnp.arange(array.size, dtype=jnp.uint32).reshape(array.shape)
        for lane, constant in enumerate((0x9E3779B1, 0x85EBCA77)):
            hashed = _mix32(array.astype(jnp.uint32) * jnp.uint32(constant) ^ _mix32(place + jnp.uint32(number << 28)))
            total = total.at[lane].add(jnp.sum(_mix32(hashed + jnp.uint32(lane)), dtype=jnp.uint32))
    return total


def _mix32(x: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finaliser (a bijection)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
