"""The options of a training step, each against what it should be equal to."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import hidden_states, logits
from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.parallel.sharding import put_batch
from deltalm_jax.training.eval_step import make_eval_step
from deltalm_jax.training.loss import LossConfig
from deltalm_jax.training.optimizer import OptimizerConfig
from deltalm_jax.training.step import abstract_state, initial_state, make_train_step

MODEL = ModelConfig(
    vocab_size=48, hidden_size=16, feed_forward_size=32, num_heads=2, num_encoder_layers=2, num_decoder_layers=1,
    max_length=12, dropout_rate=0.0, compute_dtype="float32",
)  # fmt: skip
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, decay_steps=10)
SIZES = {"span_corruption": 16, "translation_span_corruption": 8}
BLOCKS = LossConfig(block_megabytes=8 * 48 * 4 / 1e6)


def make_batch() -> dict[str, dict[str, np.ndarray]]:
    """Rows of unequal length, so that a mean of means would show."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, (inputs, targets) in {"span_corruption": (10, 4), "translation_span_corruption": (7, 7)}.items():
        batch[name] = {
            "inputs": rng.integers(4, 48, (SIZES[name], inputs)).astype(np.int32),
            "targets": rng.integers(4, 48, (SIZES[name], targets)).astype(np.int32),
        }
        for row in range(SIZES[name]):
            batch[name]["targets"][row, 1 + row % targets :] = 0
    batch["translation_span_corruption"]["targets"][3] = 0
    return batch


@functools.cache
def run(
    model: ModelConfig = MODEL,
    optimizer: tuple[tuple[str, Any], ...] = (),
    loss: tuple[tuple[str, Any], ...] = (),
    accumulation_steps: int = 1,
    decoder_start: str = "eos",
    devices: int = 1,
    steps: int = 1,
):
    """State before, state after, metrics of the last step; options as items, so that runs are shared by tests."""
    options = dataclasses.replace(OPTIMIZER, **{k: dict(v) if isinstance(v, tuple) else v for k, v in optimizer})
    terms = dataclasses.replace(BLOCKS, **{k: dict(v) if isinstance(v, tuple) else v for k, v in loss})
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    step = make_train_step(
        model, options, terms, mesh, seed=0, compute_dtype="float32", accumulation_steps=accumulation_steps,
        decoder_start=decoder_start,
    )  # fmt: skip
    state = initial_state(model, options, 0, mesh)
    before = jax.device_get(state)
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = step(state, put_batch(make_batch(), SIZES, mesh))
    return before, jax.device_get(state), jax.device_get(metrics)


def plain_sums(params, decoder_start="eos"):
    """By the definition: per group the summed negative log-likelihood, the sum of log Z squared, and the targets."""
    sums = {}
    for name, arrays in make_batch().items():
        targets = arrays["targets"]
        start = np.full_like(targets[:, :1], 3)
        decoder = np.concatenate([start, targets[:, :-1]], axis=1)
        if decoder_start == "first_target":
            decoder, targets = targets[:, :-1], targets[:, 1:]
        scores = logits(params, hidden_states(MODEL, params, arrays["inputs"], decoder))
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, targets)
        real = targets != 0
        sums[name] = (
            float((losses * real).sum()),
            float((jax.nn.logsumexp(scores, axis=-1) ** 2 * real).sum()),
            int(real.sum()),
        )
    return sums


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("steps", [2, 4, 8])
def test_accumulation_changes_neither_loss_nor_update(steps, devices):
    if devices * steps > 8:
        pytest.skip("the smaller group has eight rows: with two devices there are no eight microbatches")
    _, wanted_state, wanted = run()
    _, state, metrics = run(accumulation_steps=steps, devices=devices)
    assert metrics["batch_digest"].tolist() == wanted["batch_digest"].tolist()
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], wanted["grad_norm"], rtol=1e-6)
    for name in SIZES:
        np.testing.assert_allclose(metrics[f"loss/{name}"], wanted[f"loss/{name}"], rtol=1e-6)
    # The first moment is a tenth of the clipped gradient. Some gradients are 0 but for rounding (a bias of keys has none).
    moments, wanted_moments = state["optimizer"][1].mu, wanted_state["optimizer"][1].mu
    largest = max(np.abs(x).max() for x in jax.tree.leaves(wanted_moments))
    for ours, theirs in zip(jax.tree.leaves(moments), jax.tree.leaves(wanted_moments), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * largest)


def test_accumulation_takes_less_memory():
    """Of the compiled step, where activations are most of it: so microbatches do follow one another."""
    model = dataclasses.replace(MODEL, max_length=200)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    group = {k: jax.ShapeDtypeStruct((64, 200), jnp.int32) for k in ("inputs", "targets")}

    def temporary_bytes(steps):
        step = make_train_step(
            model, OPTIMIZER, BLOCKS, mesh, seed=0, compute_dtype="float32", accumulation_steps=steps
        )  # fmt: skip
        state = abstract_state(model, OPTIMIZER, mesh)
        return step.lower(state, {"span_corruption": group}).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8) < temporary_bytes(1) / 4


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"accumulation_steps": 4}, marks=pytest.mark.slow),
        pytest.param({"devices": 8}, marks=pytest.mark.slow),
        {"accumulation_steps": 2, "devices": 4},
    ],
    ids=str,
)
def test_dropout_masks_depend_on_neither_microbatches_nor_devices(how):
    model = dataclasses.replace(MODEL, dropout_rate=0.3)
    _, _, whole = run(model, steps=2)
    _, _, split = run(model, steps=2, **how)
    np.testing.assert_allclose(split["loss"], whole["loss"], rtol=1e-6)
    np.testing.assert_allclose(split["grad_norm"], whole["grad_norm"], rtol=1e-5)
    assert abs(float(whole["loss"]) - float(run(steps=2)[2]["loss"])) > 1e-4, "there is dropout"


def test_objective_weights_make_a_weighted_mean_over_targets():
    before, _, metrics = run(loss=(("objective_weights", (("span_corruption", 3.0),)),))
    sums = plain_sums(before["params"])
    weights = {"span_corruption": 3.0, "translation_span_corruption": 1.0}
    wanted = sum(weights[n] * sums[n][0] for n in sums) / sum(weights[n] * sums[n][2] for n in sums)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-6)
    for name, (nll, _, count) in sums.items():
        np.testing.assert_allclose(metrics[f"loss/{name}"], nll / count, rtol=1e-6)
    assert abs(wanted - float(run()[2]["loss"])) > 1e-3, "weights matter here"


def test_an_objective_of_weight_zero_leaves_no_trace_in_the_gradient():
    """The position rows that only the longer inputs of span corruption reach."""
    _, state, _ = run(loss=(("objective_weights", (("span_corruption", 0.0),)),))
    moment = state["optimizer"][1].mu["encoder"]["position_embedding"]
    assert moment[2:9].any()
    assert not moment[9:].any()


def test_smoothing_and_z_loss_enter_what_is_minimised_and_not_what_is_reported_beside_it():
    before, _, metrics = run(loss=(("z_loss", 0.02),))
    sums = plain_sums(before["params"])
    count = sum(s[2] for s in sums.values())
    np.testing.assert_allclose(metrics["loss"], sum(s[0] + 0.02 * s[1] for s in sums.values()) / count, rtol=1e-6)
    _, _, smoothed = run(loss=(("label_smoothing", 0.2),))
    assert abs(float(smoothed["loss"]) - float(run()[2]["loss"])) > 1e-3
    for name, (nll, _, targets) in sums.items():
        np.testing.assert_allclose(metrics[f"nll/{name}"], nll / targets, rtol=1e-6)
        np.testing.assert_allclose(smoothed[f"nll/{name}"], nll / targets, rtol=1e-6)
    assert not any(key.startswith("nll/") for key in run()[2]), "said once where it is the loss itself"


def test_the_decoder_may_start_from_the_first_target():
    before, _, metrics = run(decoder_start="first_target")
    sums = plain_sums(before["params"], "first_target")
    count = sum(s[2] for s in sums.values())
    assert metrics["target_tokens"] == count == run()[2]["target_tokens"] - 16 - 7, "one fewer in each row with targets"
    np.testing.assert_allclose(metrics["loss"], sum(s[0] for s in sums.values()) / count, rtol=1e-6)


def test_evaluation_starts_the_decoder_the_same_way_and_sums_by_row():
    before, _, _ = run()
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    for start in ("eos", "first_target"):
        evaluate = make_eval_step(
            MODEL, BLOCKS, mesh, sentinels=(40, 48), compute_dtype="float32", decoder_start=start
        )  # fmt: skip
        for name, (nll, _, count) in plain_sums(before["params"], start).items():
            with jax.set_mesh(mesh):
                rows = evaluate(name, before["params"], put_batch(make_batch(), SIZES, mesh)[name])
            assert rows["nll"].shape == (SIZES[name],)
            assert rows["nll"].is_fully_replicated, "every process can read every row"
            np.testing.assert_allclose(rows["nll"].sum(), nll, rtol=1e-6)
            assert rows["tokens"].sum() == count
            targets = make_batch()[name]["targets"][:, start == "first_target" :]
            assert rows["text_tokens"].tolist() == ((targets > 0) & (targets < 40)).sum(axis=1).tolist()


def test_the_moving_average_is_one():
    before, after, _ = run(optimizer=(("ema_decay", 0.75),), steps=1)
    for old, new, average in zip(*map(jax.tree.leaves, (before["params"], after["params"], after["ema"])), strict=True):
        np.testing.assert_allclose(average, 0.75 * old + 0.25 * new, rtol=1e-6, atol=1e-8)
    assert "ema" not in run()[1]
    for with_average, without in zip(*(jax.tree.leaves(s["params"]) for s in (after, run()[1])), strict=True):
        np.testing.assert_array_equal(with_average, without)


@pytest.mark.parametrize("name", [pytest.param("adafactor", marks=pytest.mark.slow), "muon"])
def test_every_optimizer_learns_the_batch_on_several_devices(name):
    _, _, first = run(optimizer=(("name", name),), devices=8)
    _, _, last = run(optimizer=(("name", name),), devices=8, steps=9)
    assert last["loss"] < first["loss"] - 0.3


def test_padding_share():
    ids = np.concatenate([x.ravel() for group in make_batch().values() for x in group.values()])
    np.testing.assert_allclose(run()[2]["padding_share"], (ids == 0).mean(), rtol=1e-6)
