"""The mean of a run's checkpoints, as a model of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from deltalm_jax.conversion import convert
from deltalm_jax.conversion_request import ConversionError, Request
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.saved_model import SavedModelError, load_model
from deltalm_jax.training.checkpoint import Checkpoints
from tests.support.small_models import SMALL
from tests.support.toy_data import SAMPLE_VOCABULARY

CONFIG = dataclasses.replace(SMALL, vocab_size=8104, num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three checkpoints with parameters of their own."""
    folder = tmp_path_factory.mktemp("run")
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY)
    (folder / "vocabulary.model").write_bytes(vocabulary.model)
    identity = {f"ModelConfig.{name}": value for name, value in vars(CONFIG).items()}
    about = json.loads(json.dumps({"identity": identity, "vocabulary": vocabulary.describe()}))
    with Checkpoints(folder / "checkpoints", 5, None, print) as checkpoints:
        for step in (1, 2, 3):
            state = {"params": init_params(CONFIG, jax.random.key(step)), "step": np.int32(step)}
            checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), about)
    return folder


def test_the_mean_of_the_newest_two(run: Path, tmp_path: Path):
    made = convert(Request("native", run, tmp_path / "mean", average_last=2))
    assert made.origin["step"] == [2, 3]
    second, third = (init_params(CONFIG, jax.random.key(step)) for step in (2, 3))
    mean = load_model(tmp_path / "mean").params
    for found, a, b in zip(*map(jax.tree.leaves, (mean, second, third)), strict=True):
        np.testing.assert_allclose(found, (np.float64(a) + b) / 2, rtol=1e-6)
    alone = convert(Request("native", run, tmp_path / "one", average_last=1))
    for found, b in zip(*map(jax.tree.leaves, (alone.params, third)), strict=True):
        np.testing.assert_array_equal(found, b)


def test_what_cannot_be_averaged_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(SavedModelError, match=r"expected at least 4 checkpoints to average, found 3 \(1, 2, 3\)"):
        convert(Request("native", run, tmp_path / "out", average_last=4))
    with pytest.raises(ConversionError, match="--average_last must be at least 1, found 0"):
        Request("native", run, tmp_path / "out", average_last=0)
    with pytest.raises(ConversionError, match="--average_last does not apply to --from=deltalm"):
        Request("deltalm", run, tmp_path / "out", average_last=2)
    convert(Request("native", run, tmp_path / "folder"))
    with pytest.raises(SavedModelError, match="expected a run, whose checkpoints can be averaged"):
        convert(Request("native", tmp_path / "folder", tmp_path / "out", average_last=2))
