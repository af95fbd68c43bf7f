"""The training step and the evaluation step: pure functions, compiled once for the whole run.

State is a dict {"params", "optimizer", "step"} and, where a moving average is kept, "ema". A batch is a dict of groups,
one per objective g, each with its own static shape, so that span corruption (461 inputs, 101 targets) and translation
span corruption (341, 341) never pad to each other. Loss:

    L = Σ_g weight_g Σ_targets loss / Σ_g weight_g (number of targets)

over the *global* batch. A mean of per-device means would weigh a device's targets by how few it happens to have; under
`jit` the sums run over the whole sharded batch, so nothing depends on how it is split. Nor on accumulation: the divisor
is known before the first microbatch, so the microbatches' gradients simply add up to that of the whole batch.

Shapes: A microbatches, B batch, S inputs, T targets, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from deltalm_jax.model.attention import Attend
from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import Params, hidden_states, init_params, shift_right
from deltalm_jax.model.kernels import KERNELS, resolve_attention
from deltalm_jax.parallel.sharding import (
    batch_sharding,
    map_over_batch,
    map_over_batch_and_heads,
    replicated,
    state_shardings,
)
from deltalm_jax.training.loss import LossConfig, token_nll, vocabulary_loss
from deltalm_jax.training.optimizer import OptimizerConfig, learning_rate, learning_rate_factors, make_optimizer

State = dict[str, Any]
Metrics = dict[str, jax.Array]

# What the decoder starts from: `</s>`, and every target is predicted; or the first target itself (the first sentinel),
# which is then not predicted, so that the group is one position shorter (the DeltaLM group's later loader).
DECODER_STARTS = ("eos", "first_target")


def create_state(model: ModelConfig, optimizer: OptimizerConfig, seed: int) -> State:
    """A fresh state: parameters from `seed`, zero moments, step 0. Pure; run it under `jit` or `eval_shape`."""
    return _state_of(init_params(model, jax.random.key(seed)), optimizer)


def _state_of(params: Params, optimizer: OptimizerConfig) -> State:
    state = {"params": params, "optimizer": make_optimizer(optimizer).init(params), "step": jnp.zeros((), jnp.int32)}
    # A copy: the train step donates both.
    return state | ({"ema": jax.tree.map(jnp.copy, params)} if optimizer.ema_decay else {})


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
        return jax.jit(lambda seed: create_state(model, optimizer, seed), out_shardings=shardings)(seed)


def state_from(params: Params, optimizer: OptimizerConfig, shardings: Any) -> State:
    """A fresh state with these parameters, which are used up (donated): zero moments, step 0."""
    return jax.jit(lambda params: _state_of(params, optimizer), out_shardings=shardings, donate_argnums=0)(params)


def decoder_arrays(targets_BT: jax.Array, decoder_start: str) -> tuple[jax.Array, jax.Array]:
    """Decoder input and the targets to predict from it, by `DECODER_STARTS`: both [B, T], or both [B, T - 1]."""
    if decoder_start == "first_target":
        return targets_BT[:, :-1], targets_BT[:, 1:]
    return shift_right(targets_BT), targets_BT


def dropout_key(seed: int, step: jax.Array, microbatch: jax.Array | int, group: int) -> jax.Array:
    """The key of a step's dropout in one group: folded from numbers, so there is no random state to save."""
    key = jax.random.key(seed)
    for number in (step, microbatch, group):
        key = jax.random.fold_in(key, number)
    return key


def attention_on(mesh: Mesh, model: ModelConfig, compute_dtype: str) -> Attend:
    """What computes attention on a mesh (see `resolve_attention`).

    Raises:
      AttentionError: `model.attention` cannot be had there.
    """
    name = resolve_attention(model, mesh.devices.flat[0], compute_dtype).name
    return KERNELS[name] if name == "xla" else map_over_batch_and_heads(KERNELS[name], mesh)


def make_train_step(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    loss: LossConfig,
    mesh: Mesh,
    *,
    seed: int,
    compute_dtype: str,
    accumulation_steps: int = 1,
    decoder_start: str = "eos",
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Builds the jitted step `(state, batch) → (state, metrics)`; the state's memory is reused (donated).

    Args:
      accumulation_steps: the batch is worked off in so many equal microbatches, one after the other.
      decoder_start: one of `DECODER_STARTS`.

    Metrics: `loss` (what is minimised), `loss/<group>` (its mean in that group), `nll/<group>` (mean negative
    log-likelihood, where the loss has other terms too); `target_tokens`, `target_tokens/<group>`, `input_tokens`,
    `padding_share` (of all positions of inputs and targets), `grad_norm` (before clipping), `learning_rate`,
    `batch_digest` (uint32 [2]).

    Raises:
      AttentionError: `model.attention` cannot be had on these devices.
      OptimizerError: a pattern of the optimizer's fits no parameter.
    """
    attend = attention_on(mesh, model, compute_dtype)
    transformation = make_optimizer(optimizer)
    abstract = abstract_state(model, optimizer, mesh)
    learning_rate_factors(optimizer, abstract["params"])

    def sums(hidden_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
        return jnp.stack(vocabulary_loss(hidden_BTD, table_VD, targets_BT, weights_BT, loss, model.vocab_size))[None]

    # Each device scores its own rows, block by block. Left to the partitioner, every block would end in a sum over all
    # devices of the whole table's gradient; so it is made once, where the table enters.
    sums_by_shard = map_over_batch(sums, mesh, split=(True, False, True, True))

    def microbatch_loss(
        params: Any, batch: Any, step: jax.Array, microbatch: jax.Array | int, divisor: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """This microbatch's part of the loss; sums over its targets of loss and negative log-likelihood, by group."""
        # In float32: its gradient is summed over devices and microbatches, and must not be rounded before.
        table_VD = params["token_embedding"]
        total, totals = jnp.zeros((), jnp.float32), {}
        for index, (group, arrays) in enumerate(batch.items()):
            decoder_input_BT, targets_BT = decoder_arrays(arrays["targets"], decoder_start)
            hidden_BTD = hidden_states(
                model,
                params,
                arrays["inputs"],
                decoder_input_BT,
                dropout_key=dropout_key(seed, step, microbatch, index),
                compute_dtype=compute_dtype,
                attend=attend,
            )
            totals[group] = jnp.sum(sums_by_shard(hidden_BTD, table_VD, targets_BT, _is_real(targets_BT)), axis=0)
            total += loss.weight(group) * totals[group][0]
        return total / divisor, totals

    gradient = jax.value_and_grad(microbatch_loss, has_aux=True)

    def accumulate(params: Any, batch: Any, step: jax.Array, divisor: jax.Array) -> tuple[Any, Any]:
        """((loss, totals), gradients) of the whole batch."""
        if accumulation_steps == 1:
            return gradient(params, batch, step, 0, divisor)

        def one(carry: Any, microbatch: tuple[Any, jax.Array]) -> tuple[Any, None]:
            batch, index = microbatch
            return jax.tree.map(jnp.add, carry, gradient(params, batch, step, index, divisor)), None

        microbatches = jax.tree.map(lambda rows: _split_rows(rows, accumulation_steps), batch)
        first = jax.tree.map(lambda rows: rows[0], microbatches)
        shapes = jax.eval_shape(gradient, params, first, step, 0, divisor)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        zeros = zeros[0], jax.lax.with_sharding_constraint(zeros[1], parameter_shardings)
        return jax.lax.scan(one, zeros, (microbatches, jnp.arange(accumulation_steps)))[0]

    def train_step(state: State, batch: Any) -> tuple[State, Metrics]:
        counts = {
            group: jnp.sum(_is_real(decoder_arrays(arrays["targets"], decoder_start)[1]))
            for group, arrays in batch.items()
        }
        divisor = sum(loss.weight(group) * count for group, count in counts.items())
        divisor = jnp.where(divisor > 0, divisor, 1.0)  # a batch without a target has no loss
        (total, totals), gradients = accumulate(state["params"], batch, state["step"], divisor)
        updates, optimizer_state = transformation.update(gradients, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new_state = {"params": params, "optimizer": optimizer_state, "step": state["step"] + 1}
        if optimizer.ema_decay:
            new_state["ema"] = optax.incremental_update(params, state["ema"], 1 - optimizer.ema_decay)
        metrics = {
            "loss": total,
            "target_tokens": sum(counts.values()),
            "input_tokens": sum(jnp.sum(a["inputs"] != PAD_ID) for a in batch.values()),
            "padding_share": _padding_share(batch),
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": learning_rate(optimizer, state["step"]),
            "batch_digest": batch_digest(batch),
        }
        for group, count in counts.items():
            metrics[f"target_tokens/{group}"] = count
            for name, value in zip(("loss", "nll"), totals[group], strict=True):
                if name == "loss" or not loss.is_plain:
                    metrics[f"{name}/{group}"] = value / jnp.maximum(count, 1.0)
        return new_state, metrics

    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    parameter_shardings = shardings["params"]
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )


def _is_real(targets_BT: jax.Array) -> jax.Array:
    return (targets_BT != PAD_ID).astype(jnp.float32)


def _padding_share(batch: Any) -> jax.Array:
    arrays = jax.tree.leaves(batch)
    return sum(jnp.sum(ids == PAD_ID) for ids in arrays) / sum(ids.size for ids in arrays)


def _split_rows(array_BX: jax.Array, num_microbatches: int) -> jax.Array:
    """[B, …] → [A, B / A, …]. Microbatch i has rows i, i + A, …, so that every device keeps its own rows."""
    batch = array_BX.shape[0]
    return jnp.swapaxes(array_BX.reshape(batch // num_microbatches, num_microbatches, *array_BX.shape[1:]), 0, 1)


def make_eval_step(
    model: ModelConfig,
    loss: LossConfig,
    mesh: Mesh,
    *,
    sentinels: tuple[int, int],
    compute_dtype: str,
    decoder_start: str = "eos",
) -> Callable[[Any, Any], Metrics]:
    """Builds the jitted `(params, arrays of one group) → sums`, without dropout, smoothing and z-loss.

    Args:
      sentinels: first sentinel id, and one past the last.

    Returns:
      A function giving, whole on every device and for each row, float32 [B] `nll`, `tokens` over all targets, and
      `text_nll`, `text_tokens` over those that are not sentinels.
    """

    def score(hidden_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array) -> jax.Array:
        return token_nll(hidden_BTD, table_VD, targets_BT, loss, model.vocab_size)

    attend = attention_on(mesh, model, compute_dtype)
    score_by_shard = map_over_batch(score, mesh, split=(True, False, True))

    def eval_step(params: Any, arrays: Any) -> Metrics:
        decoder_input_BT, targets_BT = decoder_arrays(arrays["targets"], decoder_start)
        hidden_BTD = hidden_states(
            model, params, arrays["inputs"], decoder_input_BT, compute_dtype=compute_dtype, attend=attend
        )
        table_VD = params["token_embedding"].astype(compute_dtype)
        nll_BT = score_by_shard(hidden_BTD, table_VD, targets_BT)
        real_BT = targets_BT != PAD_ID
        text_BT = real_BT & ((targets_BT < sentinels[0]) | (targets_BT >= sentinels[1]))
        return {
            "nll": jnp.sum(nll_BT * real_BT, axis=1),
            "tokens": jnp.sum(real_BT, axis=1, dtype=jnp.float32),
            "text_nll": jnp.sum(nll_BT * text_BT, axis=1),
            "text_tokens": jnp.sum(text_BT, axis=1, dtype=jnp.float32),
        }

    return jax.jit(eval_step, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))


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
