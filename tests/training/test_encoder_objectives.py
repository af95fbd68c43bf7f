"""Masked language modelling and contrast in the training step, against the losses written down in NumPy, in float64."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltalm_jax.model.config import PRESETS
from deltalm_jax.model.deltalm import apply_encoder
from deltalm_jax.model.encoder_model import masked_states, sentence_states
from deltalm_jax.parallel.mesh import MeshConfig, MeshError, make_mesh
from deltalm_jax.parallel.sharding import put_batch
from deltalm_jax.training.contrast import ContrastConfig
from deltalm_jax.training.eval_step import make_eval_step
from deltalm_jax.training.group_gradients import Group
from deltalm_jax.training.loss import LossConfig
from deltalm_jax.training.optimizer import OptimizerConfig
from deltalm_jax.training.step import initial_state, make_train_step

V, D, MOST = 48, 16, 4
MODEL = dataclasses.replace(
    PRESETS["tiny"], vocab_size=V, hidden_size=D, feed_forward_size=32, num_heads=2, num_encoder_layers=3,
    num_decoder_layers=0, sentence_layer=2, max_length=16, dropout_rate=0.0, scan_layers=True,
)  # fmt: skip
CONTRAST = ContrastConfig(temperature=0.5, queue_size=16, momentum=0.75)
GROUPS = {
    "masked_language_model": Group("masked_language_model", most_targets=MOST),
    "translation_language_model": Group("masked_language_model", most_targets=MOST),
    "cross_lingual_contrast": Group("contrast"),
}
SIZES = dict(zip(GROUPS, (8, 8, 8), strict=True))
# Constant from the first step on.
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2, final_learning_rate=1e-2, warmup_steps=0, decay_steps=1, gradient_clip_norm=0.0,
    weight_decay=0.0,
)  # fmt: skip
LOSS = LossConfig(block_megabytes=5 * V * 4 / 1e6, objective_weights={"cross_lingual_contrast": 0.5})
FULL = 3  # steps until the queue of 16 has been filled by 8 keys each, and counts


def make_batch(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Masked texts of several lengths with up to MOST targets a row, one row without any; and pairs of sentences."""
    rng, batch = np.random.default_rng(seed), {}
    for name in list(GROUPS)[:2]:
        inputs, targets = np.zeros((8, 10), np.int32), np.zeros((8, 10), np.int32)
        for row in range(8):
            length = rng.integers(4, 11)
            inputs[row, :length] = rng.integers(4, V, length)
            places = rng.choice(length, rng.integers(0 if row else 1, MOST + 1), replace=False)
            targets[row, places] = rng.integers(4, V, len(places))
        batch[name] = {"inputs": inputs, "targets": targets}
    sides = {"inputs": rng.integers(4, V, (8, 7)), "targets": rng.integers(4, V, (8, 9))}
    for side in sides.values():
        side[2, 5:] = 0
    batch["cross_lingual_contrast"] = {name: side.astype(np.int32) for name, side in sides.items()}
    return batch


@functools.cache
def run(steps: int, devices: int = 1, mesh: MeshConfig | None = None, accumulation_steps: int = 1):
    """States before and after each step, and its metrics."""
    mesh = make_mesh(mesh or MeshConfig(), jax.devices()[:devices])
    step = make_train_step(
        MODEL, OPTIMIZER, LOSS, mesh, seed=0, compute_dtype="float32", accumulation_steps=accumulation_steps,
        groups=GROUPS, contrast=CONTRAST,
    )  # fmt: skip
    state = initial_state(MODEL, OPTIMIZER, 3, mesh, CONTRAST)
    states, metrics = [jax.device_get(state)], []
    with jax.set_mesh(mesh):
        for number in range(steps):
            state, found = step(state, put_batch(make_batch(number), SIZES, mesh))
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(found))
    return states, metrics


def log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def masked_sum(params, arrays) -> tuple[float, int]:
    """The sum over masked positions, position by position, from the encoder's output and the head's definition."""
    hidden = np.asarray(apply_encoder(MODEL, params, jnp.asarray(arrays["inputs"])), np.float64)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["lm_head"])
    total = 0.0
    rows, places = np.nonzero(arrays["targets"])
    for row, place in zip(rows, places, strict=True):
        x = hidden[row, place] @ head["dense"]["kernel"] + head["dense"]["bias"]
        x = x * 0.5 * (1 + np.array([math.erf(value / 2**0.5) for value in x]))
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * head["layer_norm"]["scale"] + head["layer_norm"]["bias"]
        logits = x @ np.asarray(params["token_embedding"], np.float64).T + head["bias"]
        total -= log_softmax(logits)[arrays["targets"][row, place]]
    return total, len(rows)


def contrast_sum(state, arrays) -> tuple[float, int]:
    query = np.asarray(sentence_states(MODEL, state["params"], arrays["inputs"]), np.float64)
    key = np.asarray(sentence_states(MODEL, state["contrast"]["params"], arrays["targets"]), np.float64)
    queue = np.asarray(state["contrast"]["queue"], np.float64)
    scores = np.concatenate([(query * key).sum(axis=1, keepdims=True), query @ queue.T], axis=1) / CONTRAST.temperature
    return -log_softmax(scores)[:, 0].sum(), int((scores.argmax(axis=1) == 0).sum())


def test_the_loss_is_the_joint_mean_once_the_queue_is_full():
    states, metrics = run(FULL + 2)
    for number, found in enumerate(metrics):
        state, batch = states[number], make_batch(number)
        sums = {name: masked_sum(state["params"], batch[name]) for name in list(GROUPS)[:2]}
        total, count = map(sum, zip(*sums.values(), strict=True))
        for name, (part, targets) in sums.items():
            np.testing.assert_allclose(found[f"loss/{name}"], part / targets, rtol=1e-5)
        contrast, picked = contrast_sum(state, batch["cross_lingual_contrast"])
        np.testing.assert_allclose(found["loss/cross_lingual_contrast"], contrast / 8, rtol=1e-5)
        assert found["accuracy/cross_lingual_contrast"] == picked / 8
        assert found["target_tokens/cross_lingual_contrast"] == 8
        if number < 2:  # 16 keys of 8 a step
            np.testing.assert_allclose(found["loss"], total / count, rtol=1e-5)
        else:
            np.testing.assert_allclose(found["loss"], (total + 0.5 * contrast) / (count + 4), rtol=1e-5)


def test_the_queue_holds_the_last_keys_in_their_order_and_the_momentum_encoder_follows():
    steps = 5
    states, _ = run(steps)
    keys = [
        sentence_states(MODEL, states[n]["contrast"]["params"], make_batch(n)["cross_lingual_contrast"]["targets"])
        for n in range(steps)
    ]
    queue = np.zeros((16, D), np.float32)
    slow = jax.tree.map(np.asarray, states[0]["contrast"]["params"])
    for n in range(steps):
        for row in range(8):
            queue[(8 * n + row) % 16] = keys[n][row]
        after = states[n + 1]["contrast"]
        np.testing.assert_allclose(after["queue"], queue, atol=1e-6)
        assert (after["next"], after["filled"]) == (8 * (n + 1) % 16, min(16, 8 * (n + 1)))
        fast = {name: states[n + 1]["params"][name] for name in slow}
        slow = jax.tree.map(lambda s, f: (0.75 * s + 0.25 * f).astype(np.float32), slow, fast)
        for ours, wanted in zip(jax.tree.leaves(after["params"]), jax.tree.leaves(slow), strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-7)


def plain_loss(params, state, batch):
    """The joint mean, differentiable by jax as it stands."""
    total, count = 0.0, 0.0
    for name in list(GROUPS)[:2]:
        arrays = batch[name]
        everywhere = jnp.broadcast_to(jnp.arange(10), (8, 10))
        hidden = masked_states(MODEL, params, arrays["inputs"], everywhere)
        logits = hidden @ params["token_embedding"].T + params["lm_head"]["bias"]
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), arrays["targets"][:, :, None], axis=-1)[..., 0]
        total += jnp.sum(nll * (arrays["targets"] > 0))
        count += (arrays["targets"] > 0).sum()
    arrays = batch["cross_lingual_contrast"]
    query = sentence_states(MODEL, params, arrays["inputs"])
    key = sentence_states(MODEL, state["contrast"]["params"], arrays["targets"])
    own = jnp.sum(query * key, axis=1, keepdims=True)
    scores = jnp.concatenate([own, query @ state["contrast"]["queue"].T], axis=1) / CONTRAST.temperature
    contrast = -jnp.sum(jax.nn.log_softmax(scores)[:, 0])
    return (total + 0.5 * contrast) / (count + 4)


def test_gradients_are_those_that_jax_derives_and_finite_differences_find():
    """Adam's first moment after a step from zero is (1 - beta1) times the gradient."""
    states, _ = run(FULL)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    full = states[FULL] | {"optimizer": states[0]["optimizer"], "step": states[0]["step"]}
    step = make_train_step(
        MODEL, OPTIMIZER, LOSS, mesh, seed=0, compute_dtype="float32", groups=GROUPS, contrast=CONTRAST
    )
    batch = make_batch(99)
    with jax.set_mesh(mesh):
        after, metrics = step(jax.tree.map(jnp.asarray, full), put_batch(batch, SIZES, mesh))
    loss, wanted = jax.value_and_grad(plain_loss)(full["params"], full, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    mu = next(
        part.mu
        for part in jax.tree.leaves(after["optimizer"], is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(part, "mu")
    )
    found = jax.tree.map(lambda leaf: np.asarray(leaf) / (1 - OPTIMIZER.beta1), mu)
    names = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, gradient), ours in zip(names, jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(ours, gradient, atol=2e-6, err_msg=jax.tree_util.keystr(path))
    assert np.abs(wanted["sentence_projection"]["kernel"]).max() > 1e-3
    assert np.abs(wanted["lm_head"]["bias"]).max() > 1e-3

    def total(distance: float) -> float:
        """The loss in NumPy, so far along the gradient's direction."""
        moved = jax.tree.map(lambda p, g: p + distance * g / norm, full["params"], wanted)
        sums = [masked_sum(moved, batch[name]) for name in list(GROUPS)[:2]]
        contrast, _ = contrast_sum(full | {"params": moved}, batch["cross_lingual_contrast"])
        return (sum(part for part, _ in sums) + 0.5 * contrast) / (sum(count for _, count in sums) + 4)

    norm = float(optax.tree.norm(found))
    np.testing.assert_allclose((total(0.01) - total(-0.01)) / 0.02, norm, rtol=5e-3)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)


@pytest.mark.parametrize(
    ("devices", "mesh", "accumulation_steps"),
    [(2, MeshConfig(), 2), (8, MeshConfig(data=2, fsdp=2, tensor=2), 1)],
    ids=["two microbatches on two devices", "data 2, fsdp 2, tensor 2"],
)
def test_neither_devices_nor_microbatches_change_losses_keys_or_their_order(devices, mesh, accumulation_steps):
    states, metrics = run(FULL + 2)
    others, other_metrics = run(FULL + 2, devices, mesh, accumulation_steps)
    for ours, theirs in zip(other_metrics, metrics, strict=True):
        for name in ("loss", *(f"loss/{group}" for group in GROUPS)):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5)
    np.testing.assert_allclose(others[-1]["contrast"]["queue"], states[-1]["contrast"]["queue"], atol=2e-5)
    assert others[-1]["contrast"]["next"] == states[-1]["contrast"]["next"]


def test_an_update_that_is_left_out_leaves_queue_and_momentum_encoder_as_they_were():
    states, _ = run(FULL)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step = make_train_step(
        MODEL, OPTIMIZER, LOSS, mesh, seed=0, compute_dtype="float32", groups=GROUPS, contrast=CONTRAST
    )
    before = states[FULL]
    poisoned = jax.tree.map(jnp.asarray, before)
    poisoned["params"]["sentence_projection"]["kernel"] = jnp.full((D, D), jnp.nan)
    with jax.set_mesh(mesh):
        after, metrics = step(poisoned, put_batch(make_batch(7), SIZES, mesh))
    assert metrics["skipped"] == 1
    for ours, wanted in zip(jax.tree.leaves(after["contrast"]), jax.tree.leaves(before["contrast"]), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_a_queue_that_devices_cannot_share_is_refused():
    mesh = make_mesh(MeshConfig(), jax.devices()[:3])
    with pytest.raises(MeshError, match=r"ContrastConfig.queue_size is 16, .* = 3 devices: use a multiple of 3"):
        make_train_step(MODEL, OPTIMIZER, LOSS, mesh, seed=0, compute_dtype="float32", groups=GROUPS, contrast=CONTRAST)


def test_evaluation_of_masked_texts_sums_by_row():
    states, _ = run(FULL)
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    evaluate = make_eval_step(MODEL, LOSS, mesh, sentinels=(40, V), compute_dtype="float32", groups=GROUPS)
    batch, name = make_batch(5), "masked_language_model"
    with jax.set_mesh(mesh):
        rows = evaluate(name, states[0]["params"], put_batch(batch, SIZES, mesh)[name])
    total, count = masked_sum(states[0]["params"], batch[name])
    np.testing.assert_allclose(rows["nll"].sum(), total, rtol=1e-5)
    assert rows["tokens"].tolist() == (batch[name]["targets"] > 0).sum(axis=1).tolist()
    assert rows["tokens"].sum() == count
