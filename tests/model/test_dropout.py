"""Dropout: its rate, its mean, its keys, and where it is applied."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deltalm_jax.model.attention import Mask
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.decoder_layer import InterleavedLayer, VanillaLayer
from deltalm_jax.model.deltalm import hidden_states
from deltalm_jax.model.dropout import dropout, random_words, split_key
from deltalm_jax.model.embedding import embed, position_rows
from deltalm_jax.model.encoder import EncoderLayer

TOKENS = np.array([[2, 11, 12, 13, 3, 0, 0], [2, 14, 15, 16, 17, 18, 3]])


def test_words_are_uniform_in_every_bit():
    words = np.asarray(random_words(jax.random.key(0), (512, 256)))
    bits = words[..., None] >> np.arange(32, dtype=np.uint32) & 1
    deviations = (bits.mean(axis=(0, 1)) - 0.5) * 2 * np.sqrt(words.size)
    assert np.abs(deviations).max() < 4.5
    counts = np.bincount(words.ravel() >> 24, minlength=256)
    chi_squared = ((counts - words.size / 256) ** 2 / (words.size / 256)).sum()
    assert abs(chi_squared - 255) < 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize(("down", "along"), [(0, 1), (0, 2), (0, 64), (1, 0), (1, 1), (1, -1), (7, 0)])
def test_neighbours_are_independent(down: int, along: int):
    """Correlation of masks shifted against each other, in standard deviations; also of the words themselves."""
    words = np.asarray(random_words(jax.random.key(5), (600, 400))).astype(np.float64)
    for values in (words, (words >= 0.1 * 2**32).astype(np.float64)):
        shifted = np.roll(values, (down, along), axis=(0, 1))
        correlation = np.corrcoef(values.ravel(), shifted.ravel())[0, 1]
        assert abs(correlation) * np.sqrt(values.size) < 4.5


def test_keys_give_independent_masks():
    masks = [np.asarray(random_words(key, (200, 300))) >= 2**31 for key in split_key(jax.random.key(1), 4)]
    for index, one in enumerate(masks):
        for other in masks[:index]:
            assert abs((one == other).mean() - 0.5) * 2 * np.sqrt(one.size) < 4.5


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_scale(rate: float):
    values = jnp.full((300, 400), 3.0)
    dropped = np.asarray(dropout(values, rate, jax.random.key(2)))
    kept = dropped != 0
    assert abs(kept.mean() - (1 - rate)) < 4.5 * np.sqrt(rate * (1 - rate) / values.size)
    np.testing.assert_allclose(dropped[kept], 3.0 / (1 - rate), rtol=1e-6)


def test_no_key_or_no_rate_is_the_identity():
    values = jnp.arange(6.0).reshape(2, 3)
    assert dropout(values, 0.5, None) is values
    assert dropout(values, 0.0, jax.random.key(0)) is values


def test_bfloat16_stays_bfloat16():
    assert dropout(jnp.ones((4, 8), jnp.bfloat16), 0.1, jax.random.key(0)).dtype == jnp.bfloat16


def test_the_mean_of_embeddings_is_kept(small_config, small_params):
    """Over many keys; the error of a mean of n values kept at 0.9 is |x| √(0.1 / 0.9 / n)."""
    side = small_params["encoder"]
    run = jax.jit(
        jax.vmap(
            lambda key: embed(
                small_config,
                small_params["token_embedding"][TOKENS],
                side["position_embedding"],
                None,
                position_rows(jnp.asarray(TOKENS)),
                key,
                "float32",
            )
        )
    )
    samples = np.asarray(run(jax.random.split(jax.random.key(0), 4000)))
    expected = small_params["token_embedding"][TOKENS[1]] + side["position_embedding"][2:9]
    np.testing.assert_array_less(np.abs(samples[:, 1].mean(axis=0) - expected), np.abs(expected) * 0.0053 * 5 + 1e-6)
    assert (samples[:, 1] == 0).mean() == pytest.approx(0.1, abs=0.003)


def sublayers_alone(
    config: ModelConfig, layer_class: type[nnx.Module], **rates: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each sub-layer adds to the residual stream without dropout and with it, the others being silenced.

    That is so with pre-normalisation, where a layer adds the outputs of its sub-layers.
    """
    rates = {"dropout_rate": 0.0} | rates
    graph, state = nnx.split(layer_class(dataclasses.replace(config, norm_placement="pre", **rates), rngs=nnx.Rngs(0)))
    hidden = jax.random.normal(jax.random.key(1), (8, 30, config.hidden_size))
    everyone = Mask(jnp.ones((8, 30), bool))

    @jax.jit
    def added(state, key):
        layer = nnx.merge(graph, state)
        if layer_class is EncoderLayer:
            return layer(hidden, everyone, key) - hidden
        return layer(hidden, layer.cross_attention.keys_values(hidden), everyone, everyone, key)[0] - hidden

    found = {}
    for name in (name for name in state if not name.endswith("layer_norm")):
        alone = jax.tree.map_with_path(
            lambda path, leaf, name=name: leaf * (path[0].key == name or path[1].key != "output"), state
        )
        found[name] = np.asarray(added(alone, None)), np.asarray(added(alone, jax.random.key(2)))
    assert len(found) == {EncoderLayer: 2, InterleavedLayer: 4, VanillaLayer: 3}[layer_class]
    return found


@pytest.mark.parametrize("layer_class", [EncoderLayer, InterleavedLayer, VanillaLayer])
def test_the_output_of_each_sub_layer_is_dropped(small_config, layer_class: type[nnx.Module]):
    """With pre-normalisation and all sub-layers but one silenced, what a layer adds is that one's output, dropped out.

    And no two sub-layers are dropped out at the same places.
    """
    masks = []
    for plain, dropped in sublayers_alone(small_config, layer_class, dropout_rate=0.25).values():
        gone = dropped == 0
        assert gone.mean() == pytest.approx(0.25, abs=4.5 * np.sqrt(0.25 * 0.75 / gone.size))
        np.testing.assert_allclose(dropped[~gone], plain[~gone] / 0.75, atol=1e-5)
        masks.append(gone)
    for index, one in enumerate(masks):
        for other in masks[:index]:
            assert (one & other).mean() == pytest.approx(0.25**2, abs=0.015)


@pytest.mark.parametrize("layer_class", [EncoderLayer, InterleavedLayer, VanillaLayer])
@pytest.mark.parametrize("rate", ["attention_dropout_rate", "activation_dropout_rate"])
def test_the_inside_of_each_sub_layer_is_dropped(small_config, layer_class: type[nnx.Module], rate: str):
    """Attention weights by the one rate, activations by the other, and neither by the other's."""
    for name, (plain, dropped) in sublayers_alone(small_config, layer_class, **{rate: 0.25}).items():
        changed = np.abs(dropped - plain).max() > 0.01
        assert changed == (("attention" in name) == (rate == "attention_dropout_rate")), name


@pytest.mark.parametrize("rate", ["dropout_rate", "attention_dropout_rate", "activation_dropout_rate"])
def test_each_rate_acts_and_the_key_decides(small_config, small_params, small_hidden_states, rate: str):
    none = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0, "activation_dropout_rate": 0.0}
    config = dataclasses.replace(small_config, **none | {rate: 0.2})
    run = jax.jit(partial(hidden_states, config))
    once, again, other = (run(small_params, TOKENS, TOKENS, dropout_key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0.01
    assert np.abs(once - small_hidden_states(small_params, TOKENS, TOKENS)).max() > 0.01


def test_keys_of_another_kind_will_do():
    key = jax.random.fold_in(jax.random.key(0, impl="rbg"), 3)
    assert (dropout(jnp.ones((200, 100)), 0.1, key) == 0).mean() == pytest.approx(0.1, abs=0.01)
