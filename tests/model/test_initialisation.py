"""Fresh parameters: distributions as fairseq's, and no two layers alike."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import init_params

CONFIG = ModelConfig(
    vocab_size=5_000, hidden_size=64, feed_forward_size=192, num_heads=4, num_encoder_layers=3, num_decoder_layers=2
)


@pytest.fixture(scope="module")
def initialise():
    return jax.jit(partial(init_params, CONFIG))


@pytest.fixture(scope="module")
def params(initialise):
    return jax.device_get(initialise(jax.random.key(7)))


def leaves_named(params, *names: str):
    found = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    return [(path, leaf) for path, leaf in found if path.split("/")[-len(names) :] == list(names)]


def test_everything_is_float32(params):
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_tables_are_normal_with_empty_padding_rows(params):
    tables = [(params["token_embedding"], 0)] + [(params[s]["position_embedding"], 1) for s in ("encoder", "decoder")]
    for table, padding in tables:
        assert not table[padding].any()
        used = np.delete(table, padding, axis=0)
        assert (np.abs(used).max(axis=1) > 0).all()
        assert used.std() == pytest.approx(64**-0.5, rel=0.02)
        assert np.mean(used**4) / np.mean(used**2) ** 2 == pytest.approx(3.0, rel=0.06), "the kurtosis of a normal"
    assert tables[1][0].shape == (514, 64)
    assert not np.array_equal(tables[1][0], tables[2][0])


def test_kernels_are_xavier_uniform(params):
    kernels = leaves_named(params, "kernel")
    assert len(kernels) == 6 + 12
    for path, kernel in kernels:
        gain = np.sqrt(0.5) if path.split("/")[-2] in ("query", "key", "value") else 1.0
        bound = gain * np.sqrt(6 / (kernel.shape[-2] + kernel.shape[-1]))
        for layer in kernel:
            assert bound * 0.99 < np.abs(layer).max() <= bound, path
            assert layer.std() == pytest.approx(bound / np.sqrt(3), rel=0.05), path


def test_biases_and_layer_norms_start_neutral(params):
    biases, scales = leaves_named(params, "bias"), leaves_named(params, "scale")
    assert len(biases) == 18 + len(scales)
    assert all(not bias.any() for _, bias in biases)
    assert all((scale == 1).all() for _, scale in scales)


def test_no_two_kernels_are_alike(params):
    single = [layer.ravel()[:100] for _, kernel in leaves_named(params, "kernel") for layer in kernel]
    assert len({layer.tobytes() for layer in single}) == len(single) == 3 * 6 + 2 * 12


def test_the_key_decides(initialise, params):
    again, other = (jax.device_get(initialise(jax.random.key(seed))) for seed in (7, 8))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    assert not np.array_equal(params["token_embedding"], other["token_embedding"])


def test_shapes(params):
    attention = {name: {"kernel": (64, 64), "bias": (64,)} for name in ("query", "key", "value", "output")}
    feed_forward = {"input": {"kernel": (64, 192), "bias": (192,)}, "output": {"kernel": (192, 64), "bias": (64,)}}
    norm = {"scale": (64,), "bias": (64,)}
    decoder_layer = {
        "self_attention": attention,
        "self_attention_layer_norm": norm,
        "bottom_feed_forward": feed_forward,
        "bottom_feed_forward_layer_norm": norm,
        "cross_attention": attention,
        "cross_attention_layer_norm": norm,
        "top_feed_forward": feed_forward,
        "top_feed_forward_layer_norm": norm,
    }
    encoder_layer = {
        "self_attention": attention,
        "self_attention_layer_norm": norm,
        "feed_forward": feed_forward,
        "feed_forward_layer_norm": norm,
    }

    def stacked(layer, num):
        return jax.tree.map(lambda shape: (num, *shape), layer, is_leaf=lambda x: isinstance(x, tuple))

    assert jax.tree.map(np.shape, params) == {
        "token_embedding": (5_000, 64),
        "encoder": {
            "position_embedding": (514, 64),
            "embedding_layer_norm": norm,
            "layers": stacked(encoder_layer, 3),
        },
        "decoder": {
            "position_embedding": (514, 64),
            "embedding_layer_norm": norm,
            "layers": stacked(decoder_layer, 2),
        },
    }
