"""FLOPs against a count over the products that jax would really run, and against worked-out figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from deltalm_jax.model.config import PRESETS, ModelConfig
from deltalm_jax.model.deltalm import hidden_states, init_params, logits, shift_right
from deltalm_jax.training.flops import Throughput, flops_per_step, throughput
from tests.support.programs import matrix_product_operations

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=24, feed_forward_size=40, num_heads=3, num_encoder_layers=3, num_decoder_layers=2
)
BATCH, SOURCE, TARGET = 5, 11, 7


def loss_of(config: ModelConfig) -> tuple[Callable[[Any], jax.Array], Any]:
    """A loss by parameters, and the parameters' shapes."""
    source, target = jnp.ones((BATCH, SOURCE), jnp.int32), jnp.ones((BATCH, TARGET), jnp.int32)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(logits(params, hidden_states(config, params, source, shift_right(target)))))

    return loss, jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def forward_program(config: ModelConfig) -> Any:
    loss, params = loss_of(config)
    return jax.make_jaxpr(loss)(params)


def gradient_program(config: ModelConfig) -> Any:
    loss, params = loss_of(config)
    return jax.make_jaxpr(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_equals_a_count_over_the_program(decoder: str):
    config = dataclasses.replace(CONFIG, decoder=decoder)
    forward, both = (matrix_product_operations(p) for p in (forward_program(config), gradient_program(config)))
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


@pytest.mark.parametrize(("decoder", "norm_placement"), [("interleaved", "post"), ("vanilla", "pre")])
@pytest.mark.parametrize("remat", ["full", "sublayer_outputs", "dots_with_no_batch_dims_saveable", "dots_saveable"])
def test_what_is_computed_twice_is_counted_apart(remat: str, decoder: str, norm_placement: str):
    """The model's own count stays; the hardware's is that of the products in the traced program."""
    plain = dataclasses.replace(CONFIG, decoder=decoder, norm_placement=norm_placement)
    config = dataclasses.replace(plain, remat=remat)
    ours, without = (flops_per_step(c, {"group": (BATCH, SOURCE, TARGET)}) for c in (config, plain))
    assert ours.hardware == matrix_product_operations(gradient_program(config))
    assert (without.recomputed, without.total) == (0, ours.total)


def test_equals_what_xla_counts():
    """XLA counts element-wise work too: of the order of ten operations a number, where the products take thousands at this
    width. So it may find up to 1 % more, and nothing less. Layers are unrolled, for it counts the body of a loop once.
    """
    config = ModelConfig(
        vocab_size=4096, hidden_size=768, feed_forward_size=3072, num_heads=4, num_encoder_layers=2, num_decoder_layers=1,
        max_length=256, scan_layers=False, dropout_rate=0.0,
    )  # fmt: skip
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    source, target = (jax.ShapeDtypeStruct((2, length), jnp.int32) for length in (192, 128))

    def loss(params: Any, source_BS: jax.Array, target_BT: jax.Array) -> jax.Array:
        logits_BTV = logits(params, hidden_states(config, params, source_BS, shift_right(target_BT)))
        return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, target_BT).sum()

    found = jax.jit(jax.grad(loss)).lower(params, source, target).compile().cost_analysis()["flops"]
    ours = flops_per_step(config, {"group": (2, 192, 128)}).total_full_attention
    assert 1 <= found / ours < 1.01


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
def test_a_peak_is_known_or_there_is_a_reason(kind, dtype, peak):
    speed = throughput(CONFIG, {"group": (BATCH, SOURCE, TARGET)}, kind, num_devices=2, compute_dtype=dtype)
    assert speed.peak_flops == peak
    assert bool(speed.reason) == (peak is None)
    names = ("mfu", "mfu_full_attention", "hfu")
    if peak is None:
        assert speed.utilisation({"group": (1.0, 1.0)}, 0.5) == dict.fromkeys(names)
        return
    full = speed.utilisation({"group": (BATCH * SOURCE, BATCH * TARGET)}, 0.5)
    whole = flops_per_step(CONFIG, {"group": (BATCH, SOURCE, TARGET)})
    counts = (whole.total, whole.total_full_attention, whole.total_full_attention)
    assert full == {n: pytest.approx(count / (0.5 * peak)) for n, count in zip(names, counts, strict=True)}


def test_padding_is_work_of_the_devices_but_not_of_the_model():
    """Half of all positions are padding: less than half of the work is left, for attention grows with the square."""
    speed = Throughput(CONFIG, {"group": (4, 10, 6), "other": (2, 8, 8)}, peak_flops=1e9)
    half = speed.utilisation({"group": (20, 12), "other": (8, 8)}, seconds=1.0)
    real = flops_per_step(CONFIG, {"group": (4, 5, 3), "other": (2, 4, 4)})
    assert half["mfu"] == pytest.approx(real.total / 1e9)
    assert half["hfu"] == pytest.approx(flops_per_step(CONFIG, speed.shapes).hardware / 1e9)
    assert half["mfu_full_attention"] < half["hfu"] / 2
