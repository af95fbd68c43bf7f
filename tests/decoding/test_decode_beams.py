"""Decoding several beams of a source at once is decoding each as a row of its own, with caches moved as beams are."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.model.config import DECODERS, NORM_PLACEMENTS, ModelConfig
from deltalm_jax.model.deltalm import (
    apply_encoder,
    decode_beams,
    decode_step,
    init_beams,
    init_cache,
    logits,
    take_rows,
)
from tests.support.programs import matrix_product_operations
from tests.support.small_models import random_params

CONFIG = ModelConfig(
    vocab_size=33,
    hidden_size=24,
    feed_forward_size=36,
    num_heads=3,
    num_encoder_layers=1,
    num_decoder_layers=2,
    max_length=20,
)
SOURCE = np.array([[2, 11, 12, 13, 3, 0, 0], [0, 14, 15, 16, 17, 18, 3]])
BEAMS, STEPS = 3, 5


def both(config: ModelConfig, dtype: str, seed: int = 0):
    """Logits [steps, sources, beams, V] in either way, with tokens and parents at random; and the last cache of beams."""
    params, random = random_params(config), np.random.default_rng(seed)
    encoded = apply_encoder(config, params, SOURCE, compute_dtype=dtype)
    weights, cache = init_beams(config, params, encoded, SOURCE, BEAMS, STEPS)
    rows = take_rows(init_cache(config, params, encoded, SOURCE, STEPS), np.repeat(np.arange(2), BEAMS))
    beams_step, rows_step = jax.jit(partial(decode_beams, config)), jax.jit(partial(decode_step, config))
    path, ours, theirs = np.zeros((2, BEAMS, STEPS), np.int32), [], []
    for place in range(STEPS):
        tokens = random.integers(1, 33, (2, BEAMS))
        found, cache = beams_step(weights, cache, tokens, place, path)
        hidden, rows = rows_step(params, rows, tokens.reshape(-1))
        ours.append(found)
        theirs.append(logits(params, hidden).reshape(2, BEAMS, -1))
        parents = random.integers(0, BEAMS, (2, BEAMS))
        path[:, :, place] = np.arange(BEAMS)
        path = np.take_along_axis(path, parents[:, :, None], axis=1)
        rows = take_rows(rows, (np.arange(2)[:, None] * BEAMS + parents).reshape(-1))
    return np.stack(ours), np.stack(theirs), cache


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("placement", NORM_PLACEMENTS)
def test_equal_to_rows_of_their_own(decoder: str, placement: str):
    config = dataclasses.replace(CONFIG, decoder=decoder, norm_placement=placement)
    ours, theirs, cache = both(config, "float32")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.abs(ours[-1, :, 0] - ours[-1, :, 1]).max() > 0.1, "beams differ"
    assert [key.shape for key, _ in cache.source] == [(2, 3, 8, 7)] * 2, "the source is there once, not for each beam"
    assert [key.shape for key, _ in cache.target] == [(2, 3, 8, BEAMS * STEPS)] * 2


def test_equal_in_bfloat16():
    """To a few of bfloat16's steps."""
    ours, theirs, cache = both(CONFIG, "bfloat16")
    assert ours.dtype == np.float32
    assert cache.target[0].key_BHKS.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.25)
    assert np.abs(theirs).max() > 2


def test_a_step_does_not_make_the_sources_keys_again():
    """Multiply-adds by hand: weights once for each of 6 beams; a beam looks at its source's 3 · 5 places and 7 tokens."""
    params = random_params(CONFIG)
    encoded = apply_encoder(CONFIG, params, SOURCE)
    weights, cache = init_beams(CONFIG, params, encoded, SOURCE, BEAMS, STEPS)
    path = np.zeros((2, BEAMS, STEPS), np.int32)
    program = jax.make_jaxpr(partial(decode_beams, CONFIG))(weights, cache, np.ones((2, BEAMS), int), 2, path)
    products = 4 * 24**2 + 2 * 24 * 36 + 2 * 24**2 + 2 * 24 * 36
    attention = 2 * 24 * (BEAMS * STEPS + 7)
    assert matrix_product_operations(program.jaxpr) == 2 * 6 * (2 * (products + attention) + 24 * 33)
