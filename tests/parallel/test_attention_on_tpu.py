"""Attention on four TPU chips, compiled by the TPU's own compiler without one: splash never holds the scores."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from deltalm_jax.model.attention import Attend, KeysValues, Mask, attend_xla
from deltalm_jax.model.config import PRESETS
from deltalm_jax.model.kernels import KERNELS, attend_splash
from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.parallel.sharding import BATCH_AXES, batch_sharding, by_shard, map_over_heads
from deltalm_jax.parallel.topology import parse_topology
from deltalm_jax.training.loss import LossConfig
from deltalm_jax.training.optimizer import OptimizerConfig
from deltalm_jax.training.step import abstract_state, make_train_step

# Lengths that no other size equals, and that 128 does not divide: the step pads them to 304 and 272, splash both to 384.
INPUTS, TARGETS, ROWS = 300, 270, 4
SCORES = rf"\[(?:\d+,)*(?:{INPUTS}|{TARGETS}|304|272|384),(?:{INPUTS}|{TARGETS}|304|272|384)\]"
SPLASH = {"splash_mha_fwd_segmented_residuals", "splash_mha_dkv_segmented_no_residuals"}


@pytest.fixture(scope="module")
def chips() -> list[Any]:
    """Four v5e chips that exist for the compiler alone."""
    return parse_topology("v5e:2x2").devices()


def by_rows_and_heads(attend: Attend, mesh: Mesh, causal: bool = False) -> Callable[..., jax.Array]:
    """`attend` as a step runs it: each device on its own rows and heads."""

    def local(query: jax.Array, seen: KeysValues, real: jax.Array) -> jax.Array:
        return map_over_heads(attend, mesh)(query, seen, Mask(real, causal))

    return by_shard(local, mesh, (P(BATCH_AXES), P(BATCH_AXES), P(BATCH_AXES)), P(BATCH_AXES))


@pytest.mark.tpu
@pytest.mark.parametrize("name", ["splash", "xla"])
def test_only_the_formula_holds_scores(chips, name: str):
    """Gradients of the decoder looking at the encoder, with heads of 64 as base has."""
    mesh = make_mesh(MeshConfig(tensor=2), chips)
    attend = by_rows_and_heads(KERNELS[name], mesh)

    def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    def loss(query: jax.Array, seen: KeysValues, real: jax.Array) -> jax.Array:
        return jnp.sum(attend(query, seen, real).astype(jnp.float32) ** 2)

    key = array(ROWS, INPUTS, 2, 64)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(
            array(ROWS, TARGETS, 2, 64), KeysValues(key, key), array(ROWS, INPUTS, dtype="bool")
        )
    assert_scores_only_in_the_formula(lowered.compile().as_text(), name)


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.parametrize("name", ["splash", "xla"])
def test_a_training_step_holds_scores_only_with_the_formula(chips, name: str):
    """Two layers with one self-attention and a cross-attention more; "auto" is splash here."""
    mesh = make_mesh(MeshConfig(), chips)
    model = dataclasses.replace(
        PRESETS["tiny"], vocab_size=512, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, max_length=384,
        scan_layers=True, attention="auto" if name == "splash" else name,
    )  # fmt: skip
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, decay_steps=10)
    step = make_train_step(model, optimizer, LossConfig(), mesh, seed=0, compute_dtype="bfloat16")
    ids = {name: jax.ShapeDtypeStruct((ROWS, n), jnp.int32) for name, n in (("inputs", INPUTS), ("targets", TARGETS))}
    with jax.set_mesh(mesh):
        text = step.lower(abstract_state(model, optimizer, mesh), {"group": ids}).compile().as_text()
    assert_scores_only_in_the_formula(text, name)
    calls = text.count('custom_call_target="tpu_custom_call"')
    assert calls == (6 if name == "splash" else 0), "three attentions, forward and backward"


def assert_scores_only_in_the_formula(text: str, name: str) -> None:
    assert set(re.findall(r"splash_mha_\w+?residuals", text)) == (SPLASH if name == "splash" else set())
    assert bool(re.findall(SCORES, text)) == (name == "xla")


@pytest.mark.parametrize("heads", [4, 3])
def test_on_many_devices_attention_is_the_same(heads: int):
    """Eight simulated devices, two of them sharing the heads where these divide."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    query, key, value = jax.random.normal(jax.random.key(0), (3, 4, 6, heads, 8))
    real = jnp.array(np.random.default_rng(0).random((4, 6)) < 0.7).at[:, 0].set(True)
    seen, mask = KeysValues(key, value), Mask(real, causal=True)

    def splash(query: jax.Array, seen: KeysValues, mask: Mask) -> jax.Array:
        assert query.shape == (1, 6, heads // 2 if heads % 2 == 0 else heads, 8)
        return attend_splash(query, seen, mask, interpret=True)

    with jax.set_mesh(mesh):
        found = jax.jit(by_rows_and_heads(splash, mesh, causal=True))(query, seen, real)
    np.testing.assert_allclose(found, attend_xla(query, seen, mask), rtol=0, atol=2e-6)
