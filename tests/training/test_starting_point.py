"""Runs that start from a saved model: from a folder of `convert`, and from another run."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest

import deltalm_jax
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.model.warm_start import warm_start
from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.saved_model import SavedModelError, check_fits, open_model
from deltalm_jax.train import main
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.starting_point import open_starting_point, start_from_model
from deltalm_jax.training.step import abstract_state
from deltalm_jax.weights.model_folder import write_model
from deltalm_jax.weights.state_dict import abstract_params
from tests.support import runs
from tests.support.toy_data import SAMPLE_VOCABULARY, write_toy_data


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A folder with toy data, and a model with its vocabulary beside them."""
    place = tmp_path_factory.mktemp("starts")
    write_toy_data(place / "data", runs.TOY_TASKS)
    config = load(["pretrain_tiny.gin"], runs.SMALL).model
    params = jax.tree.map(np.asarray, jax.jit(lambda: init_params(config, jax.random.key(99)))())
    (place / "model").mkdir()
    write_model(place / "model", config, params, Vocabulary.load(SAMPLE_VOCABULARY), {"made": "by a test"})
    return place


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2}])
def test_a_state_has_the_models_parameters_and_nothing_else_in_it(place, mesh):
    config = load(
        ["pretrain_tiny.gin"],
        [*runs.SMALL, f"TrainConfig.init_from={place / 'model'}", "OptimizerConfig.ema_decay=0.9"],
    )
    devices = jax.devices()[: 2 if mesh else 1]
    state, start = start_from_model(config, PreparedData.open(place / "data"), make_mesh(MeshConfig(**mesh), devices))
    assert start["origin"] == {"made": "by a test"}
    wanted = init_params(config.model, jax.random.key(99))
    for part in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[part], wanted)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state["optimizer"]) if leaf.ndim)
    assert int(state["step"]) == 0


def test_a_run_starts_from_another_and_goes_on_without_it(place):
    """With a learning rate of almost nothing, what it ends with is what it started from: the other's moving average."""
    first, second = place / "first", place / "second"
    done = runs.run(first, place / "data", "TrainConfig.steps=2", "OptimizerConfig.ema_decay=0.5")
    assert done.returncode == 0, done.stderr
    options = [f"TrainConfig.init_from={first}", "OptimizerConfig.learning_rate=1e-25", "TrainConfig.eval_every=0"]
    done = runs.run(second, place / "data", "TrainConfig.steps=1", *options)
    assert done.returncode == 0, done.stderr
    ours, theirs = runs.state(second, 1), runs.state(first, 2)
    names = [name for name in ours if name.startswith("['params']")]
    assert len(names) > 40
    for name in names:
        average = theirs[name.replace("params", "ema")]
        np.testing.assert_allclose(ours[name], average, rtol=0, atol=1e-20, err_msg=name)
    assert any((theirs[name] != theirs[name.replace("params", "ema")]).any() for name in names)

    model = deltalm_jax.load_model(first)
    assert model.vocabulary == Vocabulary.load(SAMPLE_VOCABULARY)
    np.testing.assert_array_equal(model.params["token_embedding"], theirs["['ema']['token_embedding']"])
    assert open_model(first / "checkpoints" / "2").config == model.config

    first.rename(place / "away")
    done = runs.run(second, place / "data", "TrainConfig.steps=2", *options)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 1" in done.stdout
    for step in (1, 2):  # what it started from stays on record
        record = json.loads((second / "checkpoints" / str(step) / "record.json").read_text())
        assert record["about"]["start"]["origin"] == {"run": str(first), "step": 2, "part": "ema"}


@pytest.fixture(scope="module")
def encoder(place) -> pathlib.Path:
    """A folder with an encoder alone of the model's shape, in a row of layers long enough for its decoder."""
    model = load(["pretrain_tiny.gin"], runs.SMALL).model
    config = dataclasses.replace(model, num_decoder_layers=0, sentence_layer=1)
    params = jax.tree.map(np.asarray, jax.jit(lambda: init_params(config, jax.random.key(98)))())
    (place / "encoder").mkdir()
    write_model(place / "encoder", config, params, Vocabulary.load(SAMPLE_VOCABULARY), {"made": "by a test"})
    return place / "encoder"


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2}, {"data": 2, "tensor": 2}])
@pytest.mark.parametrize("max_length", [32, 24])
def test_a_deltalm_that_starts_from_an_encoder(place, encoder, mesh, max_length):
    """It is the one that the conversion of the encoder gives, each array in its place on the mesh and apart from others."""
    options = [
        f"ModelConfig.max_length={max_length}",
        f"DataConfig.chunk_length={max_length}",
        "OptimizerConfig.ema_decay=0.9",
    ]
    config = load(["pretrain_tiny.gin"], [*runs.SMALL, *options, f"TrainConfig.init_from={encoder}"])
    wide = make_mesh(MeshConfig(**mesh), jax.devices()[: math.prod(mesh.values())])
    state, start = start_from_model(config, PreparedData.open(place / "data"), wide)
    assert start["origin"] == {"made": "by a test", "architecture": "encoder", "initialize": "interleaved"}
    saved = open_model(encoder)
    wanted = warm_start(config.model, saved.read(abstract_params(saved.config)), jax.random.key(0))
    assert wanted["decoder"]["position_embedding"].shape[0] == max_length + 2
    for part in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[part], wanted)
    abstract = abstract_state(config.model, config.optimizer, wide)
    same = jax.tree.map(lambda leaf, shape: leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim), state, abstract)
    assert all(jax.tree.leaves(same))
    jax.jit(lambda state: state, donate_argnums=0)(state)  # refuses arrays that share memory


def test_an_encoders_run_goes_on_with_an_encoder(place, encoder):
    sizes = [b for b in runs.SMALL if not b.startswith(("DataConfig.objective_batch_sizes", "ModelConfig.num_decoder"))]
    options = [*sizes, "ModelConfig.sentence_layer=1", f"TrainConfig.init_from={encoder}"]
    config = load(["infoxlm_tiny.gin"], options)
    state, start = start_from_model(
        config, PreparedData.open(place / "data"), make_mesh(MeshConfig(), jax.devices()[:1])
    )
    assert start["origin"] == {"made": "by a test"}
    wanted = open_model(encoder).read(abstract_params(config.model))
    jax.tree.map(np.testing.assert_array_equal, state["params"], wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "vanilla"}, r"a run interleaves its decoder\. .* --architecture=encoder_decoder --initialize"),
        ({"num_heads": 4}, "ModelConfig.num_heads: 2 in .*, 4 in this run"),
        ({"vocab_size": 8112}, "ModelConfig.vocab_size: 8104 in"),
        ({"max_length": 40}, "ModelConfig.max_length: 32 in .*, 40 in this run"),
        ({"num_decoder_layers": 2}, "num_decoder_layers=2 needs 4 encoder layers, found 2"),
        ({"num_decoder_layers": 0}, "ModelConfig.sentence_layer: 1 in .*, 0 in this run"),
    ],
)
def test_a_deltalm_that_cannot_start_from_an_encoder(encoder, change, message):
    model = load(["pretrain_tiny.gin"], runs.SMALL).model
    with pytest.raises(SavedModelError, match=message):
        check_fits(open_model(encoder), dataclasses.replace(model, **change), "this run")


def test_an_encoders_run_does_not_start_from_a_deltalm(place):
    saved = open_model(place / "model")
    with pytest.raises(SavedModelError, match="ModelConfig.num_decoder_layers: 1 in .*, 0 in this run"):
        check_fits(saved, dataclasses.replace(saved.config, num_decoder_layers=0), "this run")


def refusal(place, capsys, *bindings: str) -> str:
    """What the command says; in this process, as nothing is compiled."""
    flags = [*runs.SMALL, f"DataConfig.prepared_dir={place / 'data'}", "TrainConfig.compilation_cache=False", *bindings]
    code = main(["--gin_file=pretrain_tiny.gin", f"--run_dir={place / 'refused'}", *(f"--gin.{b}" for b in flags)])
    assert code == 2
    return capsys.readouterr().err


def test_what_does_not_fit_is_refused(place, capsys):
    error = refusal(place, capsys, f"TrainConfig.init_from={place / 'nowhere'}")
    assert f"{place / 'nowhere'}: there is no such folder" in error
    error = refusal(place, capsys, f"TrainConfig.init_from={place / 'model'}", "ModelConfig.num_heads=4")
    assert f"ModelConfig.num_heads: 2 in {place / 'model'}, 4 in this run" in error

    opened = open_model(place / "model")
    other = Vocabulary.load(SAMPLE_VOCABULARY, sentinel_start=opened.vocabulary.sentinel_start + 2)
    (place / "other").mkdir()
    shapes = jax.eval_shape(lambda: init_params(opened.config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    write_model(place / "other", opened.config, params, other, {})
    error = refusal(place, capsys, f"TrainConfig.init_from={place / 'other'}")
    start = opened.vocabulary.sentinel_start
    assert "is not the one that" in error
    assert f"sentinel_start {start + 2} and {start}" in error


def test_a_vocabulary_that_nobody_knows_is_said(place, capsys):
    opened = open_model(place / "model")
    (place / "unknown").mkdir()
    write_model(place / "unknown", opened.config, opened.read(abstract_params(opened.config)), None, {})
    config = load(["pretrain_tiny.gin"], [*runs.SMALL, f"TrainConfig.init_from={place / 'unknown'}"])
    open_starting_point(config, PreparedData.open(place / "data"))
    assert "WARNING: the vocabulary of" in capsys.readouterr().out


def test_a_tokeniser_that_has_drifted_is_refused(place):
    """The model's vocabulary is the data's, but encodes text otherwise than when the data were prepared."""
    prepared = PreparedData.open(place / "data")
    prepared.manifest["vocabulary"].update(golden_encodings="0" * 64, sentencepiece_version="0.1.99")
    config = load(["pretrain_tiny.gin"], [*runs.SMALL, f"TrainConfig.init_from={place / 'model'}"])
    with pytest.raises(SavedModelError, match=r"do not agree any more: SentencePiece .* than version 0\.1\.99"):
        open_starting_point(config, prepared)


def test_a_folder_with_a_model_and_a_run_in_it_is_refused(place):
    (place / "model" / "checkpoints").mkdir()
    try:
        with pytest.raises(SavedModelError, match="holds both a model"):
            open_model(place / "model")
    finally:
        (place / "model" / "checkpoints").rmdir()


def test_dropout_and_precision_may_change(place):
    saved = open_model(place / "model")
    free = {"dropout_rate": 0.0, "attention_dropout_rate": 0.2, "compute_dtype": "float32", "remat": "full"}
    check_fits(saved, dataclasses.replace(saved.config, **free), "this run")
