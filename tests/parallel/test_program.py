"""Traffic read from a compiled program, against programs whose traffic is known; names of topologies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.parallel.program import read_program
from deltalm_jax.parallel.topology import TopologyError, parse_topology
from deltalm_jax.training.optimizer import OptimizerConfig
from deltalm_jax.training.plan import least_bytes
from deltalm_jax.training.step import abstract_state, make_train_step
from tests.parallel.test_sharding import MODEL, loss_blocks, make_batch

# As libtpu writes it: a gather that runs beside two fusions is begun in one and goes on in the other; S(1) is on-chip.
TPU_TEXT = """
%async_collective_fusion.1 (p: bf16[2,8]) -> bf16[16,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%fused_computation.1 (p: bf16[2,8]) -> bf16[16,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%body (t: (f32[5,4], f32[4])) -> (f32[5,4], f32[4]) {
  %t = (f32[5,4]{1,0}, f32[4]{0:T(128)S(1)}) parameter(0)
  %stack = f32[5,4]{1,0} get-tuple-element(%t), index=0
  %sum = f32[4]{0:T(128)S(1)} get-tuple-element(%t), index=1
  %all-reduce.1 = f32[4]{0:T(128)S(1)} all-reduce(%sum), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %row = f32[4]{0:T(128)S(1)} fusion(%stack, %all-reduce.1), kind=kLoop, calls=%other
  ROOT %out = (f32[5,4]{1,0}, f32[4]{0:T(128)S(1)}) tuple(%stack, %row)
}

ENTRY %main (a: bf16[2,8], b: (f32[5,4], f32[4])) -> f32[4] {
  %a = bf16[2,8]{1,0} parameter(0)
  %b = (f32[5,4]{1,0}, f32[4]{0:T(128)S(1)}) parameter(1)
  %begun = bf16[16,8]{1,0} fusion(%a), kind=kCustom, calls=%fused_computation.1
  %going = bf16[16,8]{1,0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1
  %loop = (f32[5,4]{1,0}, f32[4]{0:T(128)S(1)}) while(%b), condition=%c, body=%body, x={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_count_as_often_as_they_run():
    gather, reduce = sorted(read_program(TPU_TEXT).collectives, key=lambda c: c.kind)
    assert (gather.kind, gather.group, gather.size, gather.times) == ("all-gather", tuple(range(8)), 256, 1)
    assert gather.sent == 256 * 7 / 8
    assert (reduce.kind, reduce.group, reduce.size, reduce.times) == ("all-reduce", (0, 4), 16, 5)
    assert reduce.sent == 5 * 2 * 16 / 2


def test_a_turn_of_a_loop_reads_its_own_row_of_a_stack():
    gather = 256 + 32  # once, though two fusions have it
    rows = 5 * 16
    assert read_program(TPU_TEXT).memory_bytes == gather + rows


# libtpu notes no trip count; what it looks up and adds is in place; "-start" has both ends in its shape.
TPU_LOOP = """
%condition (t: (s32[], f32[6,4])) -> pred[] {
  %turns = s32[]{:T(128)} constant(6)
  %t = (s32[]{:T(128)}, f32[6,4]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%counter, %turns), direction=LT
}

%body (t: (s32[], f32[6,4])) -> (s32[], f32[6,4]) {
  %t = (s32[]{:T(128)}, f32[6,4]{1,0}) parameter(0)
  %stack = f32[6,4]{1,0} get-tuple-element(%t), index=1
  %all-reduce.1 = f32[4]{0:S(1)} all-reduce(%stack), replica_groups={{0,1}}, to_apply=%add
  ROOT %out = (s32[]{:T(128)}, f32[6,4]{1,0}) tuple(%stack, %stack)
}

%adding (p: f32[100,8], i: s32[3], u: f32[3,8]) -> f32[100,8] {
  ROOT %scatter.1 = f32[100,8]{1,0} scatter(%p, %i, %u), to_apply=%add
}

%looking (p: f32[100,8], i: s32[3]) -> f32[3,8] {
  ROOT %gather.1 = f32[3,8]{1,0} gather(%p, %i), offset_dims={1}
}

ENTRY %main (t: (s32[], f32[6,4]), p: f32[100,8], i: s32[3], u: f32[3,8]) -> f32[] {
  %t = (s32[]{:T(128)}, f32[6,4]{1,0}) parameter(0)
  %p = f32[100,8]{1,0} parameter(1)
  %i = s32[3]{0} parameter(2)
  %u = f32[3,8]{1,0} parameter(3)
  %w = (s32[]{:T(128)}, f32[6,4]{1,0}) while(%t), condition=%condition, body=%body
  %room = f32[100,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %part = ((f32[100,8]{1,0}), f32[10,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:10], [0:8]}
  %came = f32[10,8]{1,0:S(1)} slice-done(%part)
  %added = f32[100,8]{1,0} fusion(%p, %i, %u), kind=kCustom, calls=%adding
  ROOT %found = f32[3,8]{1,0} fusion(%added, %i), kind=kCustom, calls=%looking
}
"""


def test_loops_and_rows_as_libtpu_writes_them():
    program = read_program(TPU_LOOP)
    (reduce,) = program.collectives
    assert (reduce.kind, reduce.times) == ("all-reduce", 6)
    rows = 3 * 8 * 4
    loop = 6 * 16  # each turn its own row
    part = 10 * 8 * 4
    assert program.memory_bytes == loop + part + 3 * (rows + 12) + (rows + rows + 12)


SLICES = """
ENTRY %main (a: f32[6,4]) -> f32[6,4] {
  %a = f32[6,4]{1,0} parameter(0)
  %after-all = token[] after-all()
  ROOT %send = (f32[6,4]{1,0:T(8,128)}, u32[], token[]) send(%a, %after-all), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:63}",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_sums_between_slices_as_libtpu_writes_them():
    (found,) = read_program(SLICES).collectives
    assert (found.kind, found.group, found.size, found.sent) == ("all-reduce", (0, 64), 96, 96)
    with pytest.raises(ValueError, match="cannot tell what this transfer between slices carries"):
        read_program(SLICES.replace("ALL_REDUCE", "ONE_TO_ONE"))


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="cannot tell how often this loop .* turns: %w"):
        read_program(TPU_LOOP.replace("direction=LT", "direction=NE"))


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter"])
def test_a_collective_that_xla_compiled_here(kind: str):
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    act = {
        "all-reduce": lambda x: jax.lax.psum(x, "data_x"),
        "all-gather": lambda x: jax.lax.all_gather(x, "data_x", tiled=True),
        "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "data_x", tiled=True),
    }[kind]
    local = jax.shard_map(act, mesh=mesh, in_specs=P("data_x"), out_specs=P("data_x"), check_vma=False)
    text = jax.jit(local).lower(jax.ShapeDtypeStruct((64, 3), jnp.float32)).compile().as_text()
    (found,) = read_program(text).collectives
    whole = 16 * 3 * 4 * (4 if kind == "all-gather" else 1)
    assert (found.kind, found.group, found.size) == (kind, (0, 2, 4, 6), whole)


def test_a_step_sends_little_more_than_it_must():
    """Eight devices that split the batch: the parameters once, the gradients once, and small things."""
    mesh = make_mesh(MeshConfig())
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, decay_steps=10)
    state = abstract_state(MODEL, optimizer, mesh)
    step = make_train_step(MODEL, optimizer, loss_blocks(16, 104), mesh, seed=0, compute_dtype="bfloat16")
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_batch())
    with jax.set_mesh(mesh):
        text = step.lower(state, batch).compile().as_text()
    sent = sum(collective.sent for collective in read_program(text).collectives)
    least = least_bytes(state["params"], mesh, passes=2)
    assert least <= sent * 1.001
    # XLA on a CPU sends bfloat16 as float32; metrics and counts are a few hundred bytes.
    assert sent <= 1.5 * least


def test_topologies_by_name():
    pod = parse_topology("2*v5e:8x8")
    assert (pod.chips, pod.slices, pod.dimensions, pod.generation.flops) == (128, 2, (8, 8), 197e12)
    assert parse_topology("v5p:4x4x4").chips == 64
    for name in ("v5e", "v5e:16", "v9:2x2", "0*v5e:2x2", "v5e:2x2;"):
        with pytest.raises(TopologyError, match="expected a topology such as"):
            parse_topology(name)
