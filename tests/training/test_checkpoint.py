"""Checkpoints of a small state: exact, resharded, kept by rule, refused by name, and untouched by later steps."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deltalm_jax.data.shards import write_atomically
from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints


def make_state(mesh, value: float = 1.0):
    split, whole = NamedSharding(mesh, P("data_x")), NamedSharding(mesh, P())
    return {
        "params": {"kernel": jax.device_put(value * jnp.arange(64.0).reshape(16, 4), split)},
        "optimizer": [jax.device_put(jnp.full(8, value), whole)],
        "step": jax.device_put(jnp.int32(value), whole),
    }


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def checkpoints(tmp_path, warnings):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2, 10, warnings.append)
    yield checkpoints
    checkpoints.close()


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_round_trip_onto_another_mesh(checkpoints):
    state = make_state(make_mesh(MeshConfig()))
    checkpoints.save(3, state, {"note": 1})
    checkpoints.wait()
    record = checkpoints.latest()
    assert (record["step"], record["about"]) == (3, {"note": 1})
    target = abstract(make_state(make_mesh(MeshConfig(data=2, fsdp=4))))
    restored = checkpoints.restore(record, target)
    assert_equal(restored, state)
    assert restored["params"]["kernel"].sharding == target["params"]["kernel"].sharding


def test_a_save_is_not_touched_by_the_steps_after_it(checkpoints):
    """The next step donates the state's memory while the save is still being written."""
    state = make_state(make_mesh(MeshConfig(), jax.devices()[:1]))
    state["params"]["kernel"] = jnp.ones((1024, 1024))
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints.save(1, state, {})
    for _ in range(20):
        state = step(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    restored = checkpoints.restore(checkpoints.latest(), abstract(state))
    assert (np.asarray(restored["params"]["kernel"]) == 1).all()


def test_keep_rules(checkpoints):
    state = make_state(make_mesh(MeshConfig()))
    for step in (5, 10, 15, 20, 25, 30, 35):
        checkpoints.save(step, state, {})
    checkpoints.wait()
    assert checkpoints.steps() == [10, 20, 30, 35], "the newest two, and multiples of ten for good"


def test_a_damaged_later_step_does_not_push_out_the_one_just_saved(tmp_path, warnings):
    """Keep one; 40 is damaged, so the run went back to 35 and now saves 37."""
    state = make_state(make_mesh(MeshConfig()))
    both = Checkpoints(tmp_path, 2, None, warnings.append)
    for step in (35, 40):
        both.save(step, state, {})
    both.close()
    (tmp_path / "40" / "record.json").write_text("{")
    (tmp_path / "33").mkdir()  # left by a kill in the middle of a save
    one = Checkpoints(tmp_path, 1, None, warnings.append)
    assert one.latest()["step"] == 35
    one.save(37, state, {})
    one.close()
    assert [p.name for p in tmp_path.iterdir()] == ["37"]
    assert one.latest()["step"] == 37


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.latest() is None


def test_if_none_verifies_it_is_an_error_not_a_new_start(checkpoints, warnings):
    checkpoints.save(5, make_state(make_mesh(MeshConfig())), {})
    checkpoints.wait()
    (checkpoints.directory / "5" / "record.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .* verifies \(5\)"):
        checkpoints.latest()
    assert "checkpoint 5 is passed over" in warnings[0]


def test_another_format_is_named(checkpoints):
    checkpoints.save(5, make_state(make_mesh(MeshConfig())), {})
    checkpoints.wait()
    path = checkpoints.directory / "5" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match=r"has checkpoint format 99; this version .* reads format 2"):
        checkpoints.verify(5)


def test_trees_are_compared_leaf_by_leaf_before_anything_is_read(checkpoints):
    state = make_state(make_mesh(MeshConfig()))
    checkpoints.save(5, state, {})
    checkpoints.wait()
    other = abstract(state)
    other["params"]["kernel"] = jax.ShapeDtypeStruct((16, 5), jnp.bfloat16)
    other["params"]["bias"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    del other["step"]
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore(checkpoints.latest(), other)
    message = str(error.value)
    assert "params/kernel: checkpoint float32[16, 4], this run bfloat16[16, 5]" in message
    assert "params/bias: checkpoint has no such leaf, this run float32[4]" in message
    assert "step: checkpoint int32[], this run has no such leaf" in message


def test_a_failed_write_is_reported_at_the_next_step(checkpoints, monkeypatch):
    monkeypatch.setattr(checkpoints, "_commit", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    checkpoints.save(5, make_state(make_mesh(MeshConfig())), {})
    while not checkpoints._pending.done():
        pass
    with pytest.raises(CheckpointError, match=r"step 5 is not saved: No space .*checkpoints/5; no step is saved"):
        checkpoints.check()
    assert checkpoints.steps() == []


def test_left_over_deletions_are_finished(tmp_path):
    (tmp_path / ".deleting-5-1").mkdir(parents=True)
    Checkpoints(tmp_path, 1, None, print).close()
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_replaces_the_whole(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
