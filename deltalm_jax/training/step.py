"""The training step and the evaluation step: pure functions, compiled once for the whole run.

State is a dict {"params", "optimizer", "step", "skipped"} and, where a moving average is kept, "ema". A batch is a dict of
groups, one per objective g, each with its own static shape, so that span corruption (461 inputs, 101 targets) and translation
span corruption (341, 341) never pad to each other. Loss:

    L = Σ_g weight_g Σ_targets loss / Σ_g weight_g (number of targets)

over the *global* batch. A mean of per-device means would weigh a device's targets by how few it happens to have; under
`jit` the sums run over the whole sharded batch, so nothing depends on how it is split. Nor on accumulation: the divisor
is known before the first microbatch, so the microbatches' gradients simply add up to that of the whole batch. Nor do
dropout's masks, which are drawn for each row by its number in the global batch.

What runs on each device (`parallel/sharding.py` has the traffic):

    gather the parameters, in the compute dtype
    for each microbatch, for each group:
        forward → loss and its gradients, block by block → backward, gradients added up in float32
    sum the gradients over devices, each keeping its own part; then clip and update that part

If the loss or the gradient's norm, which are the same on all devices, is not finite, the update is left out: parameters,
moments and average stay as they were, bit for bit, and "skipped" counts it. "step" goes on, and with it the data.

Shapes: A microbatches, B batch, S inputs, T targets, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from deltalm_jax.model.attention import Attend
from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import Params, TokenRows, hidden_states, init_params, shift_right
from deltalm_jax.model.dropout import row_keys
from deltalm_jax.model.embedding import look_up
from deltalm_jax.model.kernels import KERNELS, resolve_attention
from deltalm_jax.parallel.sharding import (
    BATCH_AXES,
    batch_sharding,
    by_shard,
    gather_layer,
    gather_parameters,
    global_rows,
    map_over_heads,
    parameter_specs,
    path_name,
    reduce_gradients,
    replicated,
    state_shardings,
    sum_over_batch,
)
from deltalm_jax.training.digest import batch_digest
from deltalm_jax.training.loss import LossConfig, token_nll, vocabulary_loss_and_gradients
from deltalm_jax.training.optimizer import OptimizerConfig, learning_rate, learning_rate_factors, make_optimizer

State = dict[str, Any]
Metrics = dict[str, jax.Array]
Sums = tuple[Params, Metrics]

# What the decoder starts from: `</s>`, and every target is predicted; or the first target itself (the first sentinel),
# which is then not predicted, so that the group is one position shorter (the DeltaLM group's later loader).
DECODER_STARTS = ("eos", "first_target")


def create_state(model: ModelConfig, optimizer: OptimizerConfig, seed: int) -> State:
    """A fresh state: parameters from `seed`, zero moments, step 0. Pure; run it under `jit` or `eval_shape`."""
    return _state_of(init_params(model, jax.random.key(seed)), optimizer)


def _state_of(params: Params, optimizer: OptimizerConfig) -> State:
    state = {
        "params": params,
        "optimizer": make_optimizer(optimizer).init(params),
        "step": jnp.zeros((), jnp.int32),
        "skipped": {"total": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)},
    }
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


def dropout_keys(seed: int, step: jax.Array, group: int, rows_B: jax.Array) -> jax.Array:
    """[B] keys of a step's dropout in one group, folded from numbers: there is no random state to save.

    Args:
      seed: the run's.
      step: updates made before this one.
      group: the group's place in the batch.
      rows_B: the rows' numbers in the group's global batch.
    """
    key = jax.random.key(seed)
    for number in (step, group):
        key = jax.random.fold_in(key, number)
    return row_keys(key, rows_B)


def attention_on(mesh: Mesh, model: ModelConfig, compute_dtype: str) -> Attend:
    """What computes attention on a mesh (see `resolve_attention`).

    Raises:
      AttentionError: `model.attention` cannot be had there.
    """
    name = resolve_attention(model, mesh.devices.flat[0], compute_dtype).name
    return KERNELS[name] if name == "xla" else map_over_heads(KERNELS[name], mesh)


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
    packed: Collection[str] = (),
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Builds the jitted step `(state, batch) → (state, metrics)`; the state's memory is reused (donated).

    Args:
      accumulation_steps: the batch is worked off in so many equal microbatches, one after the other.
      decoder_start: one of `DECODER_STARTS`.
      packed: groups whose rows hold several examples each (see `model/packed.py`).

    Metrics: `loss` (what is minimised), `loss/<group>` (its mean in that group), `nll/<group>` (mean negative
    log-likelihood, where the loss has other terms too); `target_tokens`, `input_tokens`, and both `…/<group>`;
    `padding_share` (of all positions of inputs and targets), `grad_norm` (before clipping), `learning_rate`,
    `batch_digest` (uint32 [2]); `skipped` and `skipped_in_a_row`, the updates left out so far.

    Raises:
      AttentionError: `model.attention` cannot be had on these devices.
      OptimizerError: a pattern of the optimizer's fits no parameter.
    """
    attend = attention_on(mesh, model, compute_dtype)
    transformation = make_optimizer(optimizer)
    abstract = abstract_state(model, optimizer, mesh)
    learning_rate_factors(optimizer, abstract["params"])
    specs = parameter_specs(abstract["params"], mesh)
    gather = gather_layer if mesh.shape["fsdp"] > 1 else None

    def add_group(params: Params, carry: Sums, group: str, arrays: Any, key: tuple[jax.Array, int], scale: jax.Array):
        """`carry` with this group's (or its microbatch's) gradients and sums of loss and likelihood added."""
        gradients, totals = carry
        table_VD = params["token_embedding"]
        layers = {name: part for name, part in params.items() if name != "token_embedding"}
        decoder_input_BT, targets_BT = decoder_arrays(arrays["targets"], decoder_start)
        ids = arrays["inputs"], decoder_input_BT

        def forward(layers: Params, token_rows: TokenRows) -> jax.Array:
            return hidden_states(
                model,
                params | layers,
                *ids,
                token_rows=token_rows,
                dropout_key=dropout_keys(seed, *key, arrays["row"]),
                compute_dtype=compute_dtype,
                gather=gather,
                attend=attend,
                packed=group in packed,
            )

        rows = look_up(table_VD, ids[0]), look_up(table_VD, ids[1])
        hidden_BTD, backward = jax.vjp(forward, layers, rows)
        sums, d_hidden_BTD, d_table_VD = vocabulary_loss_and_gradients(
            hidden_BTD, table_VD, targets_BT, _is_real(targets_BT), loss.weight(group) * scale,
            gradients["token_embedding"], loss, model.vocab_size,
        )  # fmt: skip
        d_layers, d_rows = backward(d_hidden_BTD)
        for ids_BX, d_rows_BXD in zip(ids, d_rows, strict=True):
            d_table_VD = d_table_VD.at[ids_BX].add(d_rows_BXD.astype(jnp.float32), mode="drop")
        gradients = {
            name: jax.tree.map(lambda total, part: total + part.astype(jnp.float32), gradients[name], d_layers[name])
            for name in d_layers
        }
        return gradients | {"token_embedding": d_table_VD}, totals | {group: totals[group] + jnp.stack(sums)}

    def local_gradients(params: Params, batch: Any, step: jax.Array, scale: jax.Array) -> tuple[Params, Metrics]:
        """Gradients of scale * loss, each device's part of them; by group the sums of loss and likelihood."""
        params = gather_parameters(for_products(params, compute_dtype), specs)
        batch = {
            group: {name: _padded(ids_BX, mesh) for name, ids_BX in arrays.items()}
            | {"row": global_rows(len(arrays["inputs"]), mesh)}
            for group, arrays in batch.items()
        }
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        carry = zeros, {group: jnp.zeros(2, jnp.float32) for group in batch}

        def add_microbatch(carry: Sums, microbatch: Any) -> tuple[Sums, None]:
            for index, (group, arrays) in enumerate(microbatch.items()):
                carry = add_group(params, carry, group, arrays, (step, index), scale)
            return carry, None

        if accumulation_steps == 1:
            carry, _ = add_microbatch(carry, batch)
        else:
            microbatches = jax.tree.map(lambda rows: _split_rows(rows, accumulation_steps), batch)
            carry, _ = jax.lax.scan(add_microbatch, carry, microbatches)
        gradients, totals = carry
        return reduce_gradients(gradients, specs, mesh), sum_over_batch(totals, mesh)

    gradients_by_shard = by_shard(local_gradients, mesh, (specs, P(BATCH_AXES), P(), P()), (specs, P()))

    def train_step(state: State, batch: Any) -> tuple[State, Metrics]:
        counts = {
            group: jnp.sum(_is_real(decoder_arrays(arrays["targets"], decoder_start)[1]))
            for group, arrays in batch.items()
        }
        divisor = sum(loss.weight(group) * count for group, count in counts.items())
        divisor = jnp.where(divisor > 0, divisor, 1.0)  # a batch without a target has no loss
        gradients, totals = gradients_by_shard(state["params"], batch, state["step"], 1 / divisor)
        mean_loss = sum(loss.weight(group) * sums[0] for group, sums in totals.items()) / divisor
        grad_norm = optax.tree.norm(gradients)
        updates, optimizer_state = transformation.update(gradients, state["optimizer"], state["params"])
        updated = {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}
        if optimizer.ema_decay:
            updated["ema"] = optax.incremental_update(updated["params"], state["ema"], 1 - optimizer.ema_decay)
        finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
        # Chosen element by element, in the pass over memory that makes the update anyway.
        new_state = {
            k: jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated[k], state[k]) for k in updated
        }
        skipped = jnp.where(finite, 0, 1)
        new_state |= {
            "step": state["step"] + 1,
            "skipped": {
                "total": state["skipped"]["total"] + skipped,
                "in_a_row": (state["skipped"]["in_a_row"] + 1) * skipped,
            },
        }
        inputs = {group: jnp.sum(arrays["inputs"] != PAD_ID) for group, arrays in batch.items()}
        metrics = {
            "loss": mean_loss,
            "target_tokens": sum(counts.values()),
            "input_tokens": sum(inputs.values()),
            "padding_share": _padding_share(batch),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate(optimizer, state["step"] - state["skipped"]["total"]),
            "batch_digest": batch_digest(batch, mesh),
            "skipped": new_state["skipped"]["total"],
            "skipped_in_a_row": new_state["skipped"]["in_a_row"],
        }
        for group, count in counts.items():
            metrics |= {f"target_tokens/{group}": count, f"input_tokens/{group}": inputs[group]}
            for name, value in zip(("loss", "nll"), totals[group], strict=True):
                if name == "loss" or not loss.is_plain:
                    metrics[f"{name}/{group}"] = value / jnp.maximum(count, 1.0)
        return new_state, metrics

    shardings = jax.tree.map(lambda s: s.sharding, abstract)
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


def _padded(ids_BX: jax.Array, mesh: Mesh) -> jax.Array:
    """Ids with padding at the end, up to a length that the devices lay out in whole tiles: on a TPU a multiple of 8.

    Folding batch and length, as every linear map does, moves no data then (and XLA compiles the step in half the time).
    """
    multiple = 8 if mesh.devices.flat[0].platform == "tpu" else 1
    return jnp.pad(ids_BX, ((0, 0), (0, -ids_BX.shape[1] % multiple)), constant_values=PAD_ID)


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
    packed: Collection[str] = (),
) -> Callable[[str, Any, Any], Metrics]:
    """Builds `(group, params, its arrays) → sums`, jitted, without dropout, smoothing and z-loss.

    Args:
      sentinels: first sentinel id, and one past the last.
      packed: groups whose rows hold several examples each.

    Returns:
      A function giving, whole on every device and for each row, float32 [B] `nll`, `tokens` over all targets, and
      `text_nll`, `text_tokens` over those that are not sentinels.
    """
    specs = parameter_specs(jax.eval_shape(lambda: init_params(model, jax.random.key(0))), mesh)
    gather = gather_layer if mesh.shape["fsdp"] > 1 else None
    attend = attention_on(mesh, model, compute_dtype)

    def eval_step(is_packed: bool, params: Params, arrays: Any) -> Metrics:
        params = gather_parameters(for_products(params, compute_dtype), specs)
        decoder_input_BT, targets_BT = decoder_arrays(arrays["targets"], decoder_start)
        hidden_BTD = hidden_states(
            model,
            params,
            arrays["inputs"],
            decoder_input_BT,
            compute_dtype=compute_dtype,
            gather=gather,
            attend=attend,
            packed=is_packed,
        )
        nll_BT = token_nll(hidden_BTD, params["token_embedding"], targets_BT, loss, model.vocab_size)
        real_BT = targets_BT != PAD_ID
        text_BT = real_BT & ((targets_BT < sentinels[0]) | (targets_BT >= sentinels[1]))
        return {
            "nll": jnp.sum(nll_BT * real_BT, axis=1),
            "tokens": jnp.sum(real_BT, axis=1, dtype=jnp.float32),
            "text_nll": jnp.sum(nll_BT * text_BT, axis=1),
            "text_tokens": jnp.sum(text_BT, axis=1, dtype=jnp.float32),
        }

    steps = {
        is_packed: jax.jit(
            by_shard(partial(eval_step, is_packed), mesh, (specs, P(BATCH_AXES)), P(BATCH_AXES)),
            in_shardings=(None, batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )
        for is_packed in (False, True)
    }
    return lambda group, params, arrays: steps[group in packed](params, arrays)


def for_products(params: Params, compute_dtype: str) -> Params:
    """Parameters with those that enter matrix products, almost all of them, in the dtype of these.

    Cast before they are gathered, they are half the traffic. The token table is looked up in the same dtype.
    """

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        is_factor = path_name(path).endswith(("kernel", "token_embedding"))
        return leaf.astype(compute_dtype) if is_factor else leaf

    return jax.tree_util.tree_map_with_path(cast, params)
