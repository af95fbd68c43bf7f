"""Small models of random weights, in memory and as folders of our own form."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.weights.model_folder import write_model

# No two of its sizes are equal, so that a mistaken axis shows.
SMALL = ModelConfig(
    vocab_size=50,
    hidden_size=24,
    feed_forward_size=36,
    num_heads=3,
    num_encoder_layers=4,
    num_decoder_layers=2,
    max_length=20,
)


def random_params(config: ModelConfig) -> dict[str, Any]:
    """Random parameters in which no bias, scale or padding row is trivial, so that leaving one out shows."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    random = np.random.default_rng(0)

    def values(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return random.normal(mean, 0.2, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(values, shapes)


def write_native(folder: pathlib.Path, config: ModelConfig, vocabulary: Vocabulary | None = None) -> pathlib.Path:
    """Makes a folder of our own form with `random_params`; returns it."""
    folder.mkdir(exist_ok=True)
    write_model(folder, config, random_params(config), vocabulary, {"made": "by a test"})
    return folder
