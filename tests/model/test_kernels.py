"""The kernels of attention give what the formula gives, and each device gets the one that it can have.

Splash runs interpreted here, cuDNN's call through XLA; `tests/parallel/test_attention_on_tpu.py` compiles for a TPU.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from deltalm_jax.model.attention import Attend, KeysValues, Mask, attend_xla
from deltalm_jax.model.config import PRESETS, ModelConfig
from deltalm_jax.model.deltalm import hidden_states
from deltalm_jax.model.kernels import AttentionError, attend_cudnn, attend_splash, resolve_attention

splash = partial(attend_splash, interpret=True)
cudnn = partial(attend_cudnn, implementation="xla")


class Found(NamedTuple):
    outputs: np.ndarray
    outputs_that_count: np.ndarray
    gradients: tuple[jax.Array, ...]


def run(attend: Attend, shape: tuple[int, ...], real: np.ndarray, causal: bool, dtype: str = "float32") -> Found:
    """Outputs, and gradients of a weighted sum of those at positions that see something."""
    batch, targets, heads, size = shape
    keys = jax.random.split(jax.random.key(0), 4)
    query, weights = (jax.random.normal(key, shape) for key in keys[:2])
    key, value = (jax.random.normal(key, (batch, real.shape[1], heads, size)) for key in keys[2:])
    visible = np.logical_or.accumulate(real, axis=1) if causal else np.repeat(real.any(1)[:, None], targets, axis=1)
    counts = visible[:, :, None, None]

    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = attend(*jax.tree.map(lambda x: x.astype(dtype), (query, KeysValues(key, value))), Mask(real, causal))
        assert outputs.dtype == dtype
        return jnp.sum(jnp.where(counts, outputs, 0) * weights), outputs

    (_, outputs), gradients = jax.jit(loss)(query * size**-0.5, key, value)
    outputs = np.float32(outputs)
    return Found(outputs, np.where(counts, outputs, 0), gradients)


def padded_anywhere(batch: int, length: int) -> np.ndarray:
    """Row 0 is padding alone, row 1 begins with it, the rest has it anywhere."""
    real = np.random.default_rng(0).random((batch, length)) < 0.6
    real[0], real[1, :3], real[1, 3] = False, False, True
    return real


def assert_equal(found: Found, expected: Found, tolerance: float) -> None:
    np.testing.assert_allclose(found.outputs_that_count, expected.outputs_that_count, rtol=0, atol=tolerance)
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=10 * tolerance)
    assert np.isfinite(found.outputs).all(), "rows that see nothing are finite too"


# Less than a block of 128; two blocks' worth in one; five blocks of 128, across which a softmax is put together.
@pytest.mark.parametrize(
    ("targets", "sources", "causal"), [(5, 5, True), (7, 150, False), (150, 150, True), (3, 520, False)]
)
def test_splash_equals_the_formula(targets: int, sources: int, causal: bool):
    shape, real = (3, targets, 2, 8), padded_anywhere(3, sources)
    assert_equal(run(splash, shape, real, causal), run(attend_xla, shape, real, causal), 2e-6)


def test_splash_in_bfloat16_is_as_near_as_its_steps():
    """An output is a mean of values. Rounding of queries, keys and values moves it by some 2⁻⁹ of their size each (scores
    are below 4, and so are values), that of weights and of itself by as much again.
    """
    shape, real = (3, 150, 2, 8), padded_anywhere(3, 150)
    exact = run(attend_xla, shape, real, True).outputs_that_count
    bound = 4 * 2**-9 * 4
    for attend in (splash, attend_xla):
        found = run(attend, shape, real, True, "bfloat16").outputs_that_count
        assert np.abs(found - exact).max() < bound
        assert np.abs(found - exact).mean() < bound / 8


@pytest.mark.parametrize(("targets", "sources", "causal"), [(9, 9, True), (5, 9, False)])
def test_cudnn_is_called_for_what_the_formula_says(targets: int, sources: int, causal: bool):
    """Scale, causality and lengths, through XLA; the last row is whole and the first padding alone."""
    shape, real = (4, targets, 2, 8), np.arange(sources) < np.array([[0], [1], [4], [sources]])
    assert_equal(run(cudnn, shape, real, causal), run(attend_xla, shape, real, causal), 2e-6)


def test_cudnn_does_not_answer_wrongly_where_padding_is_not_at_the_end():
    real = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1]], bool)
    outputs = run(cudnn, (3, 4, 1, 8), real, False).outputs
    assert np.isnan(outputs).all(axis=(1, 2, 3)).tolist() == [False, True, True]
    assert np.isfinite(outputs[0]).all()


def test_cudnn_lowers_for_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Shapes, dtypes and masks pass cuDNN's checks at the lengths of pretraining, forward and backward."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)

    def array(*shape: int, dtype: str = "bfloat16") -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    for targets, sources, causal in ((461, 461, False), (101, 101, True), (101, 461, False), (341, 341, True)):

        def loss(query: jax.Array, seen: KeysValues, real: jax.Array, causal: bool = causal) -> jax.Array:
            return attend_cudnn(query, seen, Mask(real, causal)).sum()

        key = array(4, sources, 12, 64)
        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(
            array(4, targets, 12, 64), KeysValues(key, key), array(4, sources, dtype="bool")
        )
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert "__cudnn$fmhaSoftmax(" in text
        assert "__cudnn$fmhaSoftmaxBackward(" in text
        assert ("PADDING_CAUSAL" in text) == causal
        lengths = targets + targets % 2, sources + sources % 2
        assert "{}x{}x".format(*lengths) not in text, "no scores, no matrix of what is masked"


SOURCE = np.array([[2, 11, 12, 13, 3, 0, 0], [2, 14, 15, 16, 17, 18, 3], [0, 0, 2, 0, 19, 20, 3]])
DECODER_INPUT = np.array([[3, 21, 22, 23, 24, 0], [3, 25, 26, 27, 28, 29], [3, 0, 30, 31, 0, 32]])


def loss_of(config: ModelConfig, attend: Attend) -> Any:
    def loss(params: Any) -> jax.Array:
        hidden = hidden_states(config, params, SOURCE, DECODER_INPUT, attend=attend)
        return jnp.sum(jnp.where(DECODER_INPUT[:, :, None] != 0, hidden, 0) ** 3)

    return loss


@pytest.mark.slow
def test_a_model_that_attends_by_splash_is_the_same(small_config, small_params):
    config = dataclasses.replace(small_config, remat="dots_saveable")
    (loss, gradients), (expected, wanted) = (
        jax.jit(jax.value_and_grad(loss_of(config, attend)))(small_params) for attend in (splash, attend_xla)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), gradients, wanted)


def kernels_run(jaxpr: Any) -> int:
    """Kernel calls in a program, those in loops once; what nobody uses the results of does not run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            total += 1
        elif equation.outvars:
            inner = jax.tree.leaves(list(equation.params.values()))
            nested = [value for value in inner if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))]
            total += sum(kernels_run(value) for value in nested)
    return total


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("dots_saveable", 1), ("full", 2)])
def test_dots_saveable_keeps_what_the_kernel_puts_out(small_config, small_params, remat: str, forwards: int):
    """Three attentions in the two loops: a backward kernel each, and a forward one, again where it is recomputed."""
    gradient = jax.grad(loss_of(dataclasses.replace(small_config, remat=remat), splash))
    assert kernels_run(jax.make_jaxpr(gradient)(small_params).jaxpr) == 3 * (forwards + 1)


TPU, CPU = SimpleNamespace(platform="tpu"), SimpleNamespace(platform="cpu")
GPU = SimpleNamespace(platform="gpu", compute_capability="9.0")
OLD_GPU = SimpleNamespace(platform="gpu", compute_capability="7.5")
AMD_GPU = SimpleNamespace(platform="gpu", compute_capability="gfx90a")


@pytest.mark.parametrize(
    ("device", "fields", "dtype", "name", "reason"),
    [
        (TPU, {}, "bfloat16", "splash", "auto"),
        (GPU, {}, "bfloat16", "cudnn", "auto"),
        (CPU, {}, "float32", "xla", "auto"),
        (CPU, {"attention": "xla"}, "float32", "xla", "as configured"),
        (TPU, {"attention": "xla"}, "bfloat16", "xla", "as configured"),
        (TPU, {"attention": "splash"}, "bfloat16", "splash", "as configured"),
        (TPU, {"attention_dropout_rate": 0.1}, "bfloat16", "xla", "auto: not splash, .*attention_dropout_rate is 0.1"),
        (GPU, {"attention_dropout_rate": 0.1}, "bfloat16", "xla", "auto: not cudnn, .*attention_dropout_rate is 0.1"),
        (GPU, {}, "float32", "xla", "auto: not cudnn, .* compute dtype is float32"),
        (GPU, {"num_heads": 3}, "bfloat16", "xla", "auto: not cudnn, .* the model's are 256"),
        (OLD_GPU, {}, "bfloat16", "xla", "auto: not cudnn, .* this one has 7.5"),
        (AMD_GPU, {}, "bfloat16", "xla", "auto: not cudnn, .* this one has gfx90a"),
    ],
)
def test_each_device_gets_what_it_can_have(device: Any, fields: dict, dtype: str, name: str, reason: str):
    choice = resolve_attention(dataclasses.replace(PRESETS["base"], **fields), device, dtype)
    assert choice.name == name
    assert np.all([part in choice.reason for part in reason.split(".*")])
    assert str(choice) == f"{choice.name} ({choice.reason})"


@pytest.mark.parametrize(
    ("device", "fields", "dtype", "message"),
    [
        (CPU, {"attention": "splash"}, "float32", "'splash', .* runs on a TPU and the device is a CPU"),
        (TPU, {"attention": "cudnn"}, "bfloat16", "'cudnn', .* runs on a GPU and the device is a TPU"),
        (GPU, {"attention": "cudnn"}, "float32", "the compute dtype is float32"),
        (TPU, {"attention": "splash", "attention_dropout_rate": 0.1}, "bfloat16", "attention_dropout_rate is 0.1"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(device: Any, fields: dict, dtype: str, message: str):
    with pytest.raises(AttentionError, match=f"ModelConfig.attention is .*{message}"):
        resolve_attention(dataclasses.replace(PRESETS["base"], **fields), device, dtype)
