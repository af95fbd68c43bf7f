"""The training step and the evaluation step: pure functions, compiled once for the whole run.

State is a dict {"params", "optimizer", "step", "skipped"}, with "ema" where a moving average is kept, and with "contrast"
where sentences are told from one another (`contrast.py`). A batch is a dict of
groups, one per objective g, each with its own static shape, so that span corruption (461 inputs, 101 targets) and translation
span corruption (341, 341) never pad to each other. Loss:

    L = Σ_g weight_g Σ_targets loss / Σ_g weight_g (number of targets; of contrast, of pairs of sentences)

over the *global* batch. A mean of per-device means would weigh a device's targets by how few it happens to have; under
`jit` the sums run over the whole sharded batch, so nothing depends on how it is split. Nor on accumulation: the divisor
is known before the first microbatch, so the microbatches' gradients simply add up to that of the whole batch. Nor do
dropout's masks, which are drawn for each row by its number in the global batch.

What runs on each device (`parallel/sharding.py` has the traffic):

    gather the parameters, in the compute dtype
    for each microbatch, for each group (`group_gradients.py`):
        forward → loss and its gradients, block by block → backward, gradients added up in float32
    sum the gradients over devices, each keeping its own part; then clip and update that part

If the loss or the gradient's norm, which are the same on all devices, is not finite, the update is left out: parameters,
moments, average and queue stay as they were, bit for bit, and "skipped" counts it. "step" goes on, and with it the data.

Shapes: A microbatches, B batch, S inputs, T targets, D model, V vocabulary.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from deltalm_jax.model.attention import Attend
from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import Params, init_params
from deltalm_jax.model.dropout import row_keys
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
    state_shardings,
    sum_over_batch,
)
from deltalm_jax.training.contrast import (
    ContrastConfig,
    check_queue,
    create_contrast_state,
    is_full,
    momentum_part,
    updated_contrast_state,
)
from deltalm_jax.training.digest import batch_digest
from deltalm_jax.training.group_gradients import (
    GRADIENTS,
    Group,
    Setting,
    num_predicted,
)
from deltalm_jax.training.loss import LossConfig
from deltalm_jax.training.optimizer import OptimizerConfig, learning_rate, learning_rate_factors, make_optimizer

State = dict[str, Any]
Metrics = dict[str, jax.Array]
Sums = tuple[Params, Metrics]
# What is reported of the two sums of a group, divided by its targets.
_MEANS = {
    "sequence_to_sequence": ("loss", "nll"),
    "masked_language_model": ("loss", "nll"),
    "contrast": ("loss", "accuracy"),
}


def create_state(
    model: ModelConfig, optimizer: OptimizerConfig, seed: int, contrast: ContrastConfig | None = None
) -> State:
    """A fresh state: parameters from `seed`, zero moments, step 0. Pure; run it under `jit` or `eval_shape`.

    Args:
      contrast: where an objective of that kind is trained; None: there is none.
    """
    return _state_of(init_params(model, jax.random.key(seed)), model, optimizer, contrast)


def _state_of(params: Params, model: ModelConfig, optimizer: OptimizerConfig, contrast: ContrastConfig | None) -> State:
    state = {
        "params": params,
        "optimizer": make_optimizer(optimizer).init(params),
        "step": jnp.zeros((), jnp.int32),
        "skipped": {"total": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)},
    }
    if contrast is not None:
        state["contrast"] = create_contrast_state(contrast, model, params)
    # A copy: the train step donates both.
    return state | ({"ema": jax.tree.map(jnp.copy, params)} if optimizer.ema_decay else {})


def abstract_state(
    model: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh, contrast: ContrastConfig | None = None
) -> State:
    """Shapes, dtypes and shardings of a state; allocates nothing."""
    shapes = jax.eval_shape(lambda: create_state(model, optimizer, 0, contrast))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def initial_state(
    model: ModelConfig, optimizer: OptimizerConfig, seed: int, mesh: Mesh, contrast: ContrastConfig | None = None
) -> State:
    """`create_state` straight into its shards: no device ever holds the whole of what is split."""
    shardings = jax.tree.map(lambda s: s.sharding, abstract_state(model, optimizer, mesh, contrast))
    with jax.set_mesh(mesh):
        return jax.jit(lambda seed: create_state(model, optimizer, seed, contrast), out_shardings=shardings)(seed)


def state_from(
    params: Params,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    shardings: Any,
    contrast: ContrastConfig | None = None,
) -> State:
    """A fresh state with these parameters, which are used up (donated): zero moments, step 0."""
    build = jax.jit(
        lambda params: _state_of(params, model, optimizer, contrast), out_shardings=shardings, donate_argnums=0
    )
    return build(params)


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
    groups: Mapping[str, Group] = MappingProxyType({}),
    contrast: ContrastConfig | None = None,
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Builds the jitted step `(state, batch) → (state, metrics)`; the state's memory is reused (donated).

    Args:
      accumulation_steps: the batch is worked off in so many equal microbatches, one after the other.
      decoder_start: one of `DECODER_STARTS`.
      groups: what each group of the batch is; one that is not named is a `Group()`.
      contrast: where one of them is of that kind.

    Metrics: `loss` (what is minimised), `loss/<group>` (its mean in that group), `nll/<group>` (mean negative
    log-likelihood, where the loss has other terms too), `accuracy/<group>` of contrast; `target_tokens`, `input_tokens`, and
    both `…/<group>`;
    `padding_share` (of all positions of inputs and targets), `grad_norm` (before clipping), `learning_rate`,
    `batch_digest` (uint32 [2]); `skipped` and `skipped_in_a_row`, the updates left out so far.

    Raises:
      AttentionError: `model.attention` cannot be had on these devices.
      MeshError: they cannot share the queue of contrast.
      OptimizerError: a pattern of the optimizer's fits no parameter.
    """
    if contrast is not None:
        check_queue(contrast, mesh)
    attend = attention_on(mesh, model, compute_dtype)
    transformation = make_optimizer(optimizer)
    abstract = abstract_state(model, optimizer, mesh, contrast)
    learning_rate_factors(optimizer, abstract["params"])
    specs = parameter_specs(abstract["params"], mesh)
    gather = gather_layer if mesh.shape["fsdp"] > 1 else None

    setting = Setting(model, loss, contrast, mesh, compute_dtype, decoder_start, gather, attend)
    kinds = collections.defaultdict(Group, groups)

    def local_gradients(
        params: Params, others: tuple[Any, ...], batch: Any, step: jax.Array, scale: Any
    ) -> tuple[Params, Metrics, Any]:
        """Gradients of scale * loss, each device's part of them; by group the two sums; of contrast the keys.

        Args:
          others: the momentum encoder's parameters and this device's part of the queue, where there are any.
        """
        params = gather_parameters(for_products(params, compute_dtype), specs)
        if others:
            momentum, queue_QD = others
            others = gather_parameters(for_products(momentum, compute_dtype), momentum_part(specs)), queue_QD
        batch = {
            group: {name: _padded(ids_BX, mesh) for name, ids_BX in arrays.items()}
            | {"row": global_rows(len(arrays["inputs"]), mesh)}
            for group, arrays in batch.items()
        }
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        carry = zeros, {group: jnp.zeros(2, jnp.float32) for group in batch}

        def add_microbatch(carry: Sums, microbatch: Any) -> tuple[Sums, Any]:
            gradients, totals = carry
            keys = {}
            for index, (name, arrays) in enumerate(microbatch.items()):
                group = kinds[name]
                key = dropout_keys(seed, step, index, arrays["row"])
                weight = loss.weight(name) * scale[group.kind]
                more = others if group.kind == "contrast" else ()
                added = GRADIENTS[group.kind](setting, group, params, arrays, key, weight, gradients, *more)
                gradients, totals = added.gradients, totals | {name: totals[name] + added.sums}
                if added.keys_BD is not None:
                    keys[name] = added.keys_BD
            return (gradients, totals), keys

        if accumulation_steps == 1:
            carry, keys = add_microbatch(carry, batch)
        else:
            microbatches = jax.tree.map(lambda rows: _split_rows(rows, accumulation_steps), batch)
            carry, keys = jax.lax.scan(add_microbatch, carry, microbatches)
            keys = jax.tree.map(_join_rows, keys)
        gradients, totals = carry
        return reduce_gradients(gradients, specs, mesh), sum_over_batch(totals, mesh), keys

    spec_of_others = (momentum_part(specs), P(BATCH_AXES)) if contrast else ()
    gradients_by_shard = by_shard(
        local_gradients, mesh, (specs, spec_of_others, P(BATCH_AXES), P(), P()), (specs, P(), P(BATCH_AXES))
    )

    def train_step(state: State, batch: Any) -> tuple[State, Metrics]:
        counts = {name: num_predicted(kinds[name], arrays, decoder_start) for name, arrays in batch.items()}
        # Contrast counts as soon as its queue is full.
        counting = {kind: jnp.ones(()) for kind in GRADIENTS}
        others: tuple[Any, ...] = ()
        if contrast is not None:
            counting["contrast"] = is_full(state["contrast"]).astype(jnp.float32)
            others = state["contrast"]["params"], state["contrast"]["queue"]
        weights = {name: loss.weight(name) * counting[kinds[name].kind] for name in batch}
        divisor = sum(weights[name] * count for name, count in counts.items())
        divisor = jnp.where(divisor > 0, divisor, 1.0)  # a batch without a target has no loss
        scale = {kind: counts_now / divisor for kind, counts_now in counting.items()}
        gradients, totals, keys = gradients_by_shard(state["params"], others, batch, state["step"], scale)
        mean_loss = sum(weights[name] * sums[0] for name, sums in totals.items()) / divisor
        grad_norm = optax.tree.norm(gradients)
        updates, optimizer_state = transformation.update(gradients, state["optimizer"], state["params"])
        updated = {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}
        if optimizer.ema_decay:
            updated["ema"] = optax.incremental_update(updated["params"], state["ema"], 1 - optimizer.ema_decay)
        if contrast is not None:
            (keys_BD,) = keys.values()
            updated["contrast"] = updated_contrast_state(contrast, state["contrast"], updated["params"], keys_BD)
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
            "padding_share": _padding_share(batch, kinds),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate(optimizer, state["step"] - state["skipped"]["total"]),
            "batch_digest": batch_digest(batch, mesh),
            "skipped": new_state["skipped"]["total"],
            "skipped_in_a_row": new_state["skipped"]["in_a_row"],
        }
        for group, count in counts.items():
            metrics |= {f"target_tokens/{group}": count, f"input_tokens/{group}": inputs[group]}
            for name, value in zip(_MEANS[kinds[group].kind], totals[group], strict=True):
                if name != "nll" or not loss.is_plain:
                    metrics[f"{name}/{group}"] = value / jnp.maximum(count, 1.0)
        return new_state, metrics

    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )


def _padding_share(batch: Any, kinds: Mapping[str, Group]) -> jax.Array:
    # Of masked texts, the targets are 0 wherever nothing is masked.
    texts = ("inputs",), ("inputs", "targets")
    arrays = [batch[name][text] for name in batch for text in texts[kinds[name].kind != "masked_language_model"]]
    return sum(jnp.sum(ids == PAD_ID) for ids in arrays) / sum(ids.size for ids in arrays)


def _padded(ids_BX: jax.Array, mesh: Mesh) -> jax.Array:
    """Ids with padding at the end, up to a length that the devices lay out in whole tiles: on TPU and GPU a multiple of 8.

    Folding batch and length, as every linear map does, moves no data on a TPU then (and XLA compiles the step in half the
    time); on a GPU cuDNN's attention is not given copies of an even length.
    """
    multiple = 1 if mesh.devices.flat[0].platform == "cpu" else 8
    return jnp.pad(ids_BX, ((0, 0), (0, -ids_BX.shape[1] % multiple)), constant_values=PAD_ID)


def _split_rows(array_BX: jax.Array, num_microbatches: int) -> jax.Array:
    """[B, …] → [A, B / A, …]. Microbatch i has rows i, i + A, …, so that every device keeps its own rows."""
    batch = array_BX.shape[0]
    return jnp.swapaxes(array_BX.reshape(batch // num_microbatches, num_microbatches, *array_BX.shape[1:]), 0, 1)


def _join_rows(array_AX: jax.Array) -> jax.Array:
    """The inverse of `_split_rows`."""
    return jnp.swapaxes(array_AX, 0, 1).reshape(-1, *array_AX.shape[2:])


def for_products(params: Params, compute_dtype: str) -> Params:
    """Parameters with those that enter matrix products, almost all of them, in the dtype of these.

    Cast before they are gathered, they are half the traffic. The token table is looked up in the same dtype.
    """

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        is_factor = path_name(path).endswith(("kernel", "token_embedding"))
        return leaf.astype(compute_dtype) if is_factor else leaf

    return jax.tree_util.tree_map_with_path(cast, params)
