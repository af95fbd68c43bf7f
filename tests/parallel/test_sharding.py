"""Sharding on eight simulated devices: the same numbers on every mesh, and nothing large is whole by mistake."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import jax
import numpy as np
import pytest

from deltalm_jax.model.config import PRESETS
from deltalm_jax.parallel.mesh import MeshConfig, initialize_processes, make_mesh
from deltalm_jax.parallel.sharding import check_batch, path_name, process_rows, put_batch, rule_for
from deltalm_jax.training.digest import batch_digest
from deltalm_jax.training.loss import LossConfig
from deltalm_jax.training.optimizer import OptimizerConfig
from deltalm_jax.training.step import abstract_state, initial_state, make_train_step

MODEL = dataclasses.replace(
    PRESETS["tiny"], vocab_size=104, hidden_size=16, feed_forward_size=32, num_encoder_layers=2, num_decoder_layers=1,
    max_length=16, dropout_rate=0.1, attention_dropout_rate=0.1, activation_dropout_rate=0.1,
)  # fmt: skip
# Constant from the first step on.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-3, warmup_steps=0, decay_steps=1)
MESHES = [
    MeshConfig(),
    MeshConfig(fsdp=2),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, tensor=8),
]
STEPS = 20


def make_batch() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    batch = {}
    for name, (inputs, targets) in {"span_corruption": (14, 5), "translation_span_corruption": (9, 9)}.items():
        batch[name] = {
            "inputs": rng.integers(4, 100, (8, inputs)).astype(np.int32),
            "targets": rng.integers(4, 100, (8, targets)).astype(np.int32),
        }
    batch["span_corruption"]["targets"][3:, 3:] = 0  # rows of unequal weight: a mean of means would differ
    batch["translation_span_corruption"]["inputs"][5] = 0
    batch["translation_span_corruption"]["targets"][5] = 0
    return batch


def loss_blocks(tokens: int, vocab_size: int) -> LossConfig:
    return LossConfig(block_megabytes=tokens * vocab_size * 4 / 1e6 + 1e-9)


def train(config: MeshConfig, devices=None):
    """Metrics of every step, and Adam's first moments after the first step and after the last."""
    mesh = make_mesh(config, devices)
    batch = put_batch(make_batch(), {"span_corruption": 8, "translation_span_corruption": 8}, mesh)
    loss = loss_blocks(16, MODEL.vocab_size)
    step = make_train_step(MODEL, OPTIMIZER, loss, mesh, seed=0, compute_dtype="float32")
    state = initial_state(MODEL, OPTIMIZER, 0, mesh)
    lines = []
    with jax.set_mesh(mesh):
        for number in range(STEPS):
            state, metrics = step(state, batch)
            lines.append(jax.device_get(metrics))
            if number == 0:
                moments = jax.device_get(state["optimizer"][1].mu)
    return lines, moments


@pytest.fixture(scope="module")
def one_device():
    return train(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize(
    "config", [*MESHES[:3], *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES[3:])], ids=str
)
def test_every_mesh_trains_alike(config, one_device):
    """Both objectives, rows of unequal weight, every kind of dropout on: 20 steps, with the gradient of the first."""
    lines, moments = train(config)
    wanted_lines, wanted_moments = one_device
    for ours, theirs in zip(lines, wanted_lines, strict=True):
        assert ours["batch_digest"].tolist() == theirs["batch_digest"].tolist()
        np.testing.assert_allclose(ours["learning_rate"], 1e-3, rtol=1e-6)
        for name in ("loss", "loss/span_corruption", "loss/translation_span_corruption"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)
    np.testing.assert_allclose(lines[0]["grad_norm"], wanted_lines[0]["grad_norm"], rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(moments), jax.tree.leaves(wanted_moments), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_run_that_meshes_are_held_to_learns_and_has_dropout(one_device):
    """Or equality would say little."""
    lines, _ = one_device
    losses = [float(line["loss"]) for line in lines]
    assert losses[-1] < 0.95 * losses[0]
    assert any(late > early for early, late in itertools.pairwise(losses)), "masks differ from step to step"


def test_the_loss_is_the_global_mean_over_targets(one_device):
    metrics = one_device[0][-1]
    counts = {n: float(metrics[f"target_tokens/{n}"]) for n in make_batch()}
    assert counts == {"span_corruption": 8 * 5 - 5 * 2, "translation_span_corruption": 7 * 9}
    weighted = sum(float(metrics[f"loss/{n}"]) * c for n, c in counts.items()) / sum(counts.values())
    np.testing.assert_allclose(metrics["loss"], weighted, rtol=1e-6)


@pytest.mark.parametrize(
    "config",
    [MeshConfig(), pytest.param(MeshConfig(fsdp=4), marks=pytest.mark.slow), MeshConfig(data=4, tensor=2)],
    ids=str,
)
def test_the_loss_blocks_talk_to_no_other_device(config):
    """No all-reduce or all-gather of anything with a vocabulary dimension inside a loop of the compiled step."""
    mesh = make_mesh(config)
    vocabulary = 1000  # no other size of this model
    model = dataclasses.replace(MODEL, vocab_size=vocabulary)
    step = make_train_step(model, OPTIMIZER, loss_blocks(2, vocabulary), mesh, seed=0, compute_dtype="float32")
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_batch())
    with jax.set_mesh(mesh):
        text = step.lower(abstract_state(model, OPTIMIZER, mesh), batch).compile().as_text()
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    assert bodies, "there are loops"
    sizes = {str(vocabulary), str(vocabulary // config.tensor)}
    for computation in re.split(r"\n(?=%?[\w.\-]+ \()", text):
        name = re.match(r"%?([\w.\-]+)", computation)
        if name and name[1] in bodies:
            for line in computation.splitlines():
                if re.search(r" (all-reduce|all-gather)(-start)?\(", line):
                    shape = line.split("=")[1].split("all-")[0]
                    assert not sizes & set(re.findall(r"\d+", shape.partition("{")[0])), line


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "muon"])
@pytest.mark.parametrize("preset", ["base", "large"])
def test_nothing_large_is_whole_on_every_device(preset, optimizer):
    """Under data parallelism every moment above 400 kB is split eight ways; under fsdp × tensor the parameters are too."""
    options = dataclasses.replace(OPTIMIZER, name=optimizer, ema_decay=0.9)
    for config, parts in (
        (MeshConfig(), ["optimizer", "ema"]),
        (MeshConfig(data=1, fsdp=4, tensor=2), ["params", "optimizer", "ema"]),
    ):
        state = abstract_state(PRESETS[preset], options, make_mesh(config))
        for part in parts:
            for path, leaf in jax.tree_util.tree_leaves_with_path(state[part]):
                if math.prod(leaf.shape) < 100_000 or leaf.ndim < 2:  # a vector is never large
                    continue
                shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
                assert shard * 4 <= math.prod(leaf.shape), f"{part}/{path_name(path)} is kept {leaf.sharding.spec}"


def test_every_parameter_has_a_rule_and_every_rule_is_used():
    from deltalm_jax.parallel import sharding

    encoder = dataclasses.replace(MODEL, num_decoder_layers=0, sentence_layer=1)
    states = [abstract_state(model, OPTIMIZER, make_mesh(MeshConfig())) for model in (MODEL, encoder)]
    names = [path_name(p) for state in states for p, _ in jax.tree_util.tree_leaves_with_path(state["params"])]
    used = set()
    for name in names:
        matching = [p for p, _ in sharding.RULES if sharding.re.search(f"(^|[/_]){p}$", name)]
        assert matching, name
        used.add(matching[0])
    assert used == {p for p, _ in sharding.RULES}


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(KeyError, match="no sharding rule for the parameter 'encoder/new_thing'"):
        rule_for("encoder/new_thing")


def test_digest_depends_on_every_id_and_on_order():
    batch = make_batch()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    digest = np.asarray(batch_digest(batch, mesh)).tolist()
    for change in ("id", "order", "group"):
        other = make_batch()
        array = other["span_corruption"]["inputs"]
        if change == "id":
            array[0, 0] += 1
        elif change == "order":
            array[[0, 1]] = array[[1, 0]]
        else:
            group = other["translation_span_corruption"]
            group["inputs"], group["targets"] = group["targets"], group["inputs"]
        assert np.asarray(batch_digest(other, mesh)).tolist() != digest, change


def test_mesh_must_cover_the_devices():
    with pytest.raises(ValueError, match="does not cover 8 devices"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ValueError, match="MeshConfig.fsdp must be a positive integer, found 0"):
        MeshConfig(fsdp=0)


def test_batch_must_divide():
    with pytest.raises(
        ValueError, match=r"'span_corruption'\] is 12, which does not divide over slices × data × fsdp = 8"
    ):
        check_batch({"span_corruption": 12}, make_mesh(MeshConfig()))
    check_batch({"span_corruption": 12}, make_mesh(MeshConfig(data=4, tensor=2)))
    with pytest.raises(ValueError, match="= 4 devices × 2 microbatches: use a multiple of 8"):
        check_batch({"span_corruption": 12}, make_mesh(MeshConfig(data=4, tensor=2)), accumulation_steps=2)


def test_rows_of_a_single_process_are_all_rows():
    assert process_rows(16, make_mesh(MeshConfig(fsdp=2))).tolist() == list(range(16))


def test_half_an_address_is_refused():
    with pytest.raises(ValueError, match="need --coordinator"):
        initialize_processes(None, 2, 0)
    with pytest.raises(ValueError, match="needs --num_processes"):
        initialize_processes("localhost:1", None, 0)
