"""Checkpoints of a small state: exact, resharded, kept by rule, refused by name, and untouched by later steps.

What goes wrong on disk is in `test_checkpoint_record.py` (reading) and `test_checkpoint_directory.py` (writing).
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.checkpoint import one_save
from deltalm_jax.data.shards import write_atomically
from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.parallel.sharding import path_name
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints
from deltalm_jax.training.resuming import check_counters


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


def test_temporary_steps_do_not_count_among_the_kept_and_go_with_the_next(checkpoints):
    state = make_state(make_mesh(MeshConfig()))
    for step, temporary in ((5, False), (15, False), (16, True)):
        checkpoints.save(step, state, {}, temporary=temporary)
    checkpoints.wait()
    assert checkpoints.steps() == [5, 15, 16]
    checkpoints.save(17, state, {}, temporary=True)
    checkpoints.wait()
    assert checkpoints.steps() == [5, 15, 17]
    assert checkpoints.latest()["step"] == 17


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


def test_dtypes_and_shardings_are_those_asked_for_or_it_is_refused(checkpoints, monkeypatch):
    """orbax would cast without a word. What it gives back is looked at, too."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    state = make_state(mesh)
    checkpoints.save(5, state, {})
    checkpoints.wait()
    record, target = checkpoints.latest(), abstract(state)
    for dtype in (jnp.bfloat16, jnp.float16):
        other = abstract(state)
        other["optimizer"][0] = jax.ShapeDtypeStruct((8,), dtype, sharding=target["optimizer"][0].sharding)
        with pytest.raises(CheckpointError, match=rf"optimizer/0: checkpoint float32\[8\], this run {dtype.__name__}"):
            checkpoints.restore(record, other)
        with pytest.raises(CheckpointError, match=rf"0: checkpoint float32\[8\], this run {dtype.__name__}"):
            checkpoints.restore_part(record, "optimizer", other["optimizer"])
    restore = checkpoints._orbax.restore

    def cast(*arguments):
        restored = restore(*arguments)
        return restored | {"optimizer": [restored["optimizer"][0].astype(jnp.bfloat16)]}

    monkeypatch.setattr(checkpoints._orbax, "restore", cast)
    with pytest.raises(CheckpointError, match=r"optimizer/0 was read as bfloat16\[8\], not as float32\[8\]"):
        checkpoints.restore(record, target)

    def gather(*arguments):
        restored = restore(*arguments)
        return restored | {"params": jax.device_put(restored["params"], NamedSharding(mesh, P()))}

    monkeypatch.setattr(checkpoints._orbax, "restore", gather)
    with pytest.raises(CheckpointError, match=r"params/kernel was read onto .*not .*data_x"):
        checkpoints.restore(record, target)


def counted(step, count, skipped=None):
    """A state of real optimizers' with these counters."""
    params = {"w": jnp.ones(3)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.scale_by_schedule(lambda n: 1.0))
    fresh = optimizer.init(params)
    state = jax.tree.map(lambda x: jnp.int32(count) if x.dtype == jnp.int32 else x, fresh)
    assert sum(x.dtype == jnp.int32 for x in jax.tree.leaves(fresh)) >= 2
    more = {} if skipped is None else {"skipped": {"total": jnp.int32(skipped), "in_a_row": jnp.int32(0)}}
    return {"params": params, "optimizer": state, "step": jnp.int32(step)} | more


@pytest.mark.parametrize(("step", "count", "skipped"), [(7, 7, None), (7, 7, 0), (7, 4, 3), (0, 0, 0)])
def test_counters_that_agree(step, count, skipped):
    check_counters(counted(step, count, skipped), {"step": step})


@pytest.mark.parametrize(
    ("step", "count", "skipped", "message"),
    [
        (6, 7, None, "step is 6, expected 7"),
        (7, 6, 0, "optimizer/1/0/count is 6, expected 7"),
        (7, 7, 1, "optimizer/1/0/count is 7, expected 6"),
        (7, 8, -1, "skipped/total is -1, of 7 steps"),
        (7, 0, 8, "skipped/total is 8, of 7 steps"),
    ],
)
def test_counters_that_disagree_are_named_with_their_numbers(step, count, skipped, message):
    with pytest.raises(CheckpointError, match=f"checkpoint 7 is at odds with itself: .*{message}"):
        check_counters(counted(step, count, skipped), {"step": 7})


def test_one_of_several_optimizer_counters_is_enough():
    state = counted(7, 7)
    places = jax.tree_util.tree_leaves_with_path(state["optimizer"])
    counters = [path for path, leaf in places if leaf.dtype == jnp.int32]
    for wrong in counters:
        optimizer = jax.tree_util.tree_map_with_path(
            lambda path, leaf, wrong=wrong: leaf + 1 if path == wrong else leaf, state["optimizer"]
        )
        with pytest.raises(CheckpointError, match=rf"{path_name(wrong)} is 8, expected 7 \("):
            check_counters(state | {"optimizer": optimizer}, {"step": 7})


def test_the_benchmarks_parts_add_up_to_the_whole(checkpoints):
    times = one_save(checkpoints, 5, make_state(make_mesh(MeshConfig())))
    assert checkpoints.latest()["step"] == 5
    whole = times.pop("save")
    assert set(times) == {"stopped", "arrays", "digests", "record", "retiring"}
    assert sum(times.values()) == pytest.approx(whole)
    assert min(times.values()) >= 0


def test_atomic_write_replaces_the_whole(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
