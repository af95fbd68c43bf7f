"""FLOPs against a count over the products that jax would really run, and against worked-out figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from deltalm_jax.model.config import PRESETS, ModelConfig
from deltalm_jax.model.deltalm import hidden_states, init_params, logits, shift_right
from deltalm_jax.training.flops import flops_per_step, throughput
from tests.support.programs import matrix_product_operations

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=24, feed_forward_size=40, num_heads=3, num_encoder_layers=3, num_decoder_layers=2
)
BATCH, SOURCE, TARGET = 5, 11, 7


def programs(config: ModelConfig) -> tuple[int, int]:
    """Operations of the forward pass, and of loss with gradient."""
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    source, target = jnp.ones((BATCH, SOURCE), jnp.int32), jnp.ones((BATCH, TARGET), jnp.int32)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(logits(params, hidden_states(config, params, source, shift_right(target)))))

    forward, both = jax.make_jaxpr(loss)(params), jax.make_jaxpr(jax.value_and_grad(loss))(params)
    return matrix_product_operations(forward), matrix_product_operations(both)


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_equals_a_count_over_the_program(decoder: str):
    config = dataclasses.replace(CONFIG, decoder=decoder)
    forward, both = programs(config)
    flops = flops_per_step(config, {"group": (BATCH, SOURCE, TARGET)})
    assert flops.total_full_attention == both == 3 * forward


def test_a_vanilla_decoder_by_hand():
    """It lacks one feed-forward network a layer: two products of 24 × 40 for each target token, and nothing else."""
    interleaved, vanilla = (
        flops_per_step(dataclasses.replace(CONFIG, decoder=kind), {"group": (BATCH, SOURCE, TARGET)})
        for kind in ("interleaved", "vanilla")
    )
    layers, forward_and_backward, operations = 2, 3, 2
    missing = layers * forward_and_backward * operations * (2 * 24 * 40) * BATCH * TARGET
    assert interleaved.linear - vanilla.linear == missing == 806_400
    assert dataclasses.replace(vanilla, linear=interleaved.linear) == interleaved


def test_rematerialisation_is_not_counted():
    """It is work done twice: utilisation in hardware, not of the model."""
    config = dataclasses.replace(CONFIG, remat="full")
    assert programs(config)[1] > flops_per_step(config, {"group": (BATCH, SOURCE, TARGET)}).total_full_attention


def test_half_the_causal_square_is_left_out():
    """Exactly half; of the T (T + 1) / 2 pairs that a mask allows it is all but the diagonal's half."""
    flops = flops_per_step(CONFIG, {"group": (1, SOURCE, TARGET)})
    operations_per_pair = 3 * 2 * 2 * CONFIG.hidden_size * CONFIG.num_decoder_layers
    allowed = sum(1 for t in range(TARGET) for s in range(TARGET) if s <= t)
    left_out = flops.total_full_attention - flops.total
    assert left_out == flops.causal_half == operations_per_pair * TARGET**2 / 2
    assert left_out - operations_per_pair * (TARGET**2 - allowed) == operations_per_pair * TARGET / 2


@pytest.mark.parametrize(("target", "tera", "head"), [(512, 1.16, 0.507), (256, 0.735, 0.401)])
def test_worked_out_figures_of_base(target: int, tera: float, head: float):
    """Per sequence of 512 source tokens, with a vocabulary of 250,000."""
    config = dataclasses.replace(PRESETS["base"], vocab_size=250_000)
    flops = flops_per_step(config, {"group": (1, 512, target)})
    assert flops.total / 1e12 == pytest.approx(tera, abs=0.005)
    assert flops.head / flops.total == pytest.approx(head, abs=0.0005)
    assert 0.04 < flops.attention / flops.total < 0.055


def test_groups_add_up():
    one, other = (3, 461, 101), (2, 341, 341)
    both = flops_per_step(CONFIG, {"a": one, "b": other})
    assert both == flops_per_step(CONFIG, {"a": one}) + flops_per_step(CONFIG, {"b": other})
    assert flops_per_step(CONFIG, {"a": one}).total == 3 * flops_per_step(CONFIG, {"a": (1, 461, 101)}).total


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("TPU v4", "bfloat16", 2 * 275e12),
        ("TPU v4 lite", "bfloat16", 2 * 138e12),
        ("TPU v5p", "bfloat16", 2 * 459e12),
        ("TPU v5 lite", "bfloat16", 2 * 197e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 2 * 989.4e12),
        ("NVIDIA H100 PCIe", "bfloat16", 2 * 756e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 2 * 312e12),
        ("NVIDIA L40S", "bfloat16", 2 * 362e12),
        ("NVIDIA L40", "bfloat16", None),
        ("TPU v5", "bfloat16", 2 * 459e12),
        ("TPU v4", "float32", None),
        ("cpu", "bfloat16", None),
    ],
)
def test_mfu_is_of_the_known_peak_or_has_a_reason(kind, dtype, peak):
    speed = throughput(1e12, kind, num_devices=2, compute_dtype=dtype)
    assert speed.peak_flops == peak
    assert bool(speed.reason) == (peak is None)
    assert speed.mfu(0.5) == (None if peak is None else pytest.approx(2e12 / peak))
