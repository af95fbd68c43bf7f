"""FLOPs against a count over the products that jax would really run, and against worked-out figures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from deltalm_jax.model.config import PRESETS, ModelConfig
from deltalm_jax.model.deltalm import hidden_states, init_params, logits, shift_right
from deltalm_jax.training.flops import flops_per_step

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=24, feed_forward_size=40, num_heads=3, num_encoder_layers=3, num_decoder_layers=2
)
BATCH, SOURCE, TARGET = 5, 11, 7


def counted(jaxpr: Any) -> int:
    """Operations of all matrix products in a program: 2 · size of the result · size contracted, times loop lengths."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted, _ = equation.params["dimension_numbers"][0]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = jax.tree.leaves(list(equation.params.values()))
        total += times * sum(counted(value) for value in inner if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)))
    return total


def programs(config: ModelConfig) -> tuple[int, int]:
    """Operations of the forward pass, and of loss with gradient."""
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    source, target = jnp.ones((BATCH, SOURCE), jnp.int32), jnp.ones((BATCH, TARGET), jnp.int32)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(logits(params, hidden_states(config, params, source, shift_right(target)))))

    forward, both = jax.make_jaxpr(loss)(params), jax.make_jaxpr(jax.value_and_grad(loss))(params)
    return counted(forward), counted(both)


@pytest.mark.parametrize("unroll", [1, 3])
def test_equals_a_count_over_the_program(unroll: int):
    forward, both = programs(dataclasses.replace(CONFIG, scan_unroll=unroll))
    flops = flops_per_step(CONFIG, {"group": (BATCH, SOURCE, TARGET)})
    assert flops.total_full_attention == both == 3 * forward


def test_rematerialisation_is_not_counted():
    """It is work done twice: utilisation in hardware, not of the model."""
    config = dataclasses.replace(CONFIG, remat=True)
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
