"""Updates with numbers that are not finite are left out everywhere; copies of the state that differ are noticed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.parallel.sharding import put_batch
from deltalm_jax.training import group_gradients
from deltalm_jax.training.guards import NonFiniteError
from deltalm_jax.training.integrity import IntegrityCheck, IntegrityError
from deltalm_jax.training.optimizer import OptimizerConfig
from deltalm_jax.training.step import abstract_state, initial_state, make_train_step
from tests.training.test_step import BLOCKS, MODEL, SIZES, make_batch

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, decay_steps=10, ema_decay=0.9)
DEVICE = 5  # whose gradient is poisoned, of eight
POISON = 47  # the first input of the device's first row that sets it off


@pytest.fixture(scope="module")
def trained():
    """State after one good step, then one in which one device's gradient is poisoned, then one more; and the metrics."""
    plain = group_gradients.vocabulary_loss_and_gradients

    def poisoned(hidden, table, targets, *rest):
        sums, d_hidden, *d_output = plain(hidden, table, targets, *rest)
        here = (jax.lax.axis_index("data_x") == DEVICE) & jnp.any(targets == POISON)
        return sums, jnp.where(here, jnp.nan, d_hidden), *d_output

    mesh = make_mesh(MeshConfig(), jax.devices())
    group_gradients.vocabulary_loss_and_gradients = poisoned
    try:
        step = make_train_step(MODEL, OPTIMIZER, BLOCKS, mesh, seed=0, compute_dtype="float32")
        good, bad = make_batch(), make_batch()
        for batch, value in ((good, 46), (bad, POISON)):
            for arrays in batch.values():
                arrays["targets"] = np.where(arrays["targets"] == POISON, 46, arrays["targets"])
            batch["span_corruption"]["targets"][2 * DEVICE, 0] = value
        empty = jax.tree.map(np.zeros_like, good)
        state, states, metrics = initial_state(MODEL, OPTIMIZER, 0, mesh), [], []
        with jax.set_mesh(mesh):
            for batch in (good, bad, bad, good, empty):
                state, found = step(state, put_batch(batch, SIZES, mesh))
                states.append(jax.device_get(state))
                metrics.append(jax.device_get(found))
    finally:
        group_gradients.vocabulary_loss_and_gradients = plain
    return states, metrics


def test_one_device_with_a_gradient_that_is_no_number_moves_nothing_anywhere(trained):
    (first, second, third, *_), metrics = trained
    assert np.isfinite(metrics[1]["loss"])
    assert np.isnan(metrics[1]["grad_norm"])
    for after in (second, third):
        for part in ("params", "optimizer", "ema"):
            for a, b in zip(jax.tree.leaves(first[part]), jax.tree.leaves(after[part]), strict=True):
                assert a.tobytes() == b.tobytes()
    assert [int(s["step"]) for s in trained[0]] == [1, 2, 3, 4, 5]
    assert [int(s["skipped"]["total"]) for s in trained[0]] == [0, 1, 2, 2, 2]
    assert [int(s["skipped"]["in_a_row"]) for s in trained[0]] == [0, 1, 2, 0, 0]
    assert [int(m["skipped_in_a_row"]) for m in metrics] == [0, 1, 2, 0, 0]


def test_after_it_the_run_goes_on_with_the_rate_of_the_updates_made(trained):
    states, metrics = trained
    fourth = jax.tree.leaves(states[3]["params"])
    assert all(np.isfinite(leaf).all() for leaf in fourth)
    assert any((a != b).any() for a, b in zip(fourth, jax.tree.leaves(states[2]["params"]), strict=True))
    rates = [float(m["learning_rate"]) for m in metrics]
    assert rates[1] == rates[2] == rates[3] > rates[4]


def test_a_batch_of_padding_alone_has_loss_zero(trained):
    _, metrics = trained
    assert metrics[4]["loss"] == 0
    assert metrics[4]["grad_norm"] == 0
    assert metrics[4]["target_tokens"] == 0


@pytest.fixture(scope="module")
def check():
    mesh = make_mesh(MeshConfig(slices=2, data=2, fsdp=2), jax.devices())
    model = dataclasses.replace(MODEL, num_encoder_layers=2)
    return IntegrityCheck(abstract_state(model, OPTIMIZER, mesh), mesh), initial_state(model, OPTIMIZER, 0, mesh)


def altered(state, change, path=("params", "token_embedding"), device=6):
    """The state with one device's copy of a leaf changed, and all other copies as they were."""
    leaf = state
    for key in path:
        leaf = leaf[key]
    shards = [
        jax.device_put(change(np.array(s.data)) if s.device.id == device else s.data, s.device)
        for s in leaf.addressable_shards
    ]
    wrong = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)

    def put(tree, path):
        return wrong if not path else tree | {path[0]: put(tree[path[0]], path[1:])}

    return put(state, path)


def flip_lowest_bit(array):
    words = array.copy().view(np.uint32)
    words.flat[words.size // 2] ^= 1
    return words.view(array.dtype)


def test_a_sound_state_passes(check):
    look, state = check
    look(state, 1)


def test_one_bit_of_one_copy_is_noticed_and_the_device_named(check):
    """Of the slices' two copies of a part, neither is in the majority; of a small leaf's eight, one is."""
    look, state = check
    with pytest.raises(
        IntegrityError, match="step 7: copies of params/token_embedding differ: device . of process 0, "
    ):
        look(altered(state, flip_lowest_bit), 7)
    small = ("skipped", "total")
    assert state["skipped"]["total"].sharding.is_fully_replicated
    with pytest.raises(IntegrityError, match="copies of skipped/total differ: device 6 of process 0 have other bits"):
        look(altered(state, flip_lowest_bit, small), 7)


def test_a_number_that_is_not_finite_is_named(check):
    look, state = check
    bad = jax.tree.map(lambda x: x, state)
    kernel = bad["params"]["encoder"]["layers"]["feed_forward"]["input"]
    kernel["kernel"] = kernel["kernel"].at[1, 2, 3].set(jnp.inf)
    with pytest.raises(NonFiniteError, match="params/encoder/layers/feed_forward/input/kernel hold numbers"):
        look(bad, 7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_digests_know_values_and_places(dtype):
    from deltalm_jax.training.digest import array_digest

    array = jnp.arange(1, 25, dtype=dtype).reshape(4, 6)
    seen = {int(array_digest(array)), int(array_digest(array[::-1])), int(array_digest(array.at[3, 5].add(1)))}
    assert len(seen) == 3


def test_specs_are_read_as_splits():
    from deltalm_jax.parallel.sharding import spec_axes

    assert spec_axes(P(("a", "b"), None, "c")) == {"a", "b", "c"}
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    assert NamedSharding(mesh, P()).is_fully_replicated
