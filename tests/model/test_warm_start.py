"""A DeltaLM that starts from an encoder: equal to what the group's own initialisation gave, array by array.

`init_from_xlmr_tiny.npz` holds a tiny XLM-R in fairseq's names, which tensor of it the initialised DeltaLM took for each
of its own (as run, by a program of the same research group's), and that model's states and logits.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deltalm_jax.model.attention import padding_mask
from deltalm_jax.model.config import PAD_ID, PRESETS, ModelConfig
from deltalm_jax.model.decoder_layer import InterleavedLayer
from deltalm_jax.model.deltalm import DeltaLM, init_params, layer_states, logits
from deltalm_jax.model.layer import (
    cross_attention_sublayer,
    feed_forward_sublayer,
    scan_layers,
    self_attention_sublayer,
)
from deltalm_jax.model.warm_start import INITIALIZATIONS, num_decoder_layers, warm_start
from tests.model.conftest import ENCODER_LAYER, GOLDEN, TO_FAIRSEQ, our_ids, params_of, permute_rows, side_of

CONFIG = ModelConfig(
    vocab_size=128,
    hidden_size=32,
    feed_forward_size=64,
    num_heads=4,
    num_encoder_layers=4,
    num_decoder_layers=2,
    max_length=32,
)
VANILLA = dataclasses.replace(CONFIG, decoder="vanilla", num_decoder_layers=3)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(GOLDEN / "init_from_xlmr_tiny.npz"))


@pytest.fixture(scope="module")
def encoder(arrays):
    """The encoder in our terms, by names of the tests' own."""
    theirs = {
        name.replace("xlmr/decoder.sentence_encoder", "encoder").replace(
            "emb_layer_norm", "layernorm_embedding"
        ): values
        for name, values in arrays.items()
        if name.startswith("xlmr/")
    }
    table = permute_rows(theirs.pop("encoder.embed_tokens.weight"))
    ours = {"token_embedding": table, "encoder": side_of(theirs, "encoder", ENCODER_LAYER, 4)}
    assert not theirs
    return ours


def test_every_array_is_the_one_that_the_groups_own_initialisation_took(arrays, encoder):
    mapping = json.loads(str(arrays["mapping_json"]))
    copies = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
    state = {ours: arrays[f"xlmr/{theirs}"] for ours, theirs in mapping.items() if ours not in copies}
    expected = params_of(state, CONFIG)

    started = warm_start(CONFIG, encoder, KEY)

    assert jax.tree.structure(started) == jax.tree.structure(expected)
    assert len(jax.tree.leaves(started)) == 1 + 2 * 3 + 16 + 32
    jax.tree.map(np.testing.assert_array_equal, started, expected)


def test_states_and_logits_of_the_initialised_model(arrays, encoder):
    params = warm_start(CONFIG, encoder, KEY)
    run = jax.jit(partial(layer_states, CONFIG))
    for case in ("pad", "nopad"):
        source, target = (our_ids(arrays[f"{case}/{name}"]) for name in ("src_tokens", "prev_output_tokens"))
        states = run(params, source, target)
        real_source, real_target = source != PAD_ID, target != PAD_ID
        scores = np.asarray(logits(params, states.hidden_BTD))
        theirs = arrays[f"{case}/logits"]
        theirs = np.concatenate([theirs[..., TO_FAIRSEQ], theirs[..., 4:]], axis=-1)
        pairs = [
            (states.encoded_BSD, arrays[f"{case}/encoder_out"], real_source),
            (scores, theirs, real_target),
            *((states.decoder_states_NBTD[i], arrays[f"{case}/decoder_state_{i}"], real_target) for i in range(3)),
        ]
        for ours, expected, real in pairs:
            np.testing.assert_allclose(np.asarray(ours)[real], expected[real], rtol=0, atol=2e-5)


def test_a_decoder_that_looks_at_itself_is_the_encoder(encoder):
    """Without the causal mask, and with cross-attention looking at the decoder's own states, nothing tells them apart.

    Each interleaved layer is then two encoder layers; the results are equal, not only close.
    """
    params = warm_start(CONFIG, encoder, KEY)
    tokens_BS = np.array([[2, 40, 50, 60, 3, 0], [2, 17, 3, 9, 70, 3]])
    mask = padding_mask(jnp.asarray(tokens_BS))
    states = layer_states(CONFIG, params, tokens_BS, tokens_BS)
    no_keys = (None, None)

    def apply_layer(layer: InterleavedLayer, hidden, _):
        hidden, _ = self_attention_sublayer(
            CONFIG, layer.self_attention, layer.self_attention_layer_norm, hidden, mask, no_keys
        )
        hidden = feed_forward_sublayer(
            CONFIG, layer.bottom_feed_forward, layer.bottom_feed_forward_layer_norm, hidden, no_keys
        )
        own = layer.cross_attention.keys_values(hidden)
        hidden = cross_attention_sublayer(
            CONFIG, layer.cross_attention, layer.cross_attention_layer_norm, hidden, own, mask, no_keys
        )
        hidden = feed_forward_sublayer(
            CONFIG, layer.top_feed_forward, layer.top_feed_forward_layer_norm, hidden, no_keys
        )
        return hidden, hidden

    model = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: DeltaLM(CONFIG, rngs=nnx.Rngs(0)))), params)
    _, decoder_states = scan_layers(CONFIG, model.decoder.layers, apply_layer, states.encoder_states_NBSD[0])
    np.testing.assert_array_equal(decoder_states, states.encoder_states_NBSD[2::2])


def test_what_a_vanilla_decoder_takes(encoder):
    layers = encoder["encoder"]["layers"]
    fresh = init_params(VANILLA, KEY)["decoder"]["layers"]
    for initialize in ("vanilla_random_cross_attention", "vanilla_copied_cross_attention"):
        decoder = warm_start(VANILLA, encoder, KEY, initialize)["decoder"]
        jax.tree.map(
            np.testing.assert_array_equal,
            decoder["layers"]["self_attention"],
            jax.tree.map(lambda leaf: leaf[:3], layers["self_attention"]),
        )
        for name in ("self_attention_layer_norm", "feed_forward", "feed_forward_layer_norm"):
            jax.tree.map(
                lambda ours, theirs: np.testing.assert_array_equal(ours, theirs[:3]),
                decoder["layers"][name],
                layers[name],
            )
        copied = initialize == "vanilla_copied_cross_attention"
        for name in ("cross_attention", "cross_attention_layer_norm"):
            source = layers[name.replace("cross", "self")] if copied else fresh[name]
            jax.tree.map(
                lambda ours, theirs: np.testing.assert_array_equal(ours, theirs[:3]), decoder["layers"][name], source
            )
        for name in ("position_embedding", "embedding_layer_norm"):
            jax.tree.map(np.testing.assert_array_equal, decoder[name], encoder["encoder"][name])


def test_random_takes_nothing(encoder):
    jax.tree.map(np.testing.assert_array_equal, warm_start(CONFIG, encoder, KEY, "random"), init_params(CONFIG, KEY))


def test_new_rows_are_drawn_and_the_others_kept(encoder):
    config = dataclasses.replace(CONFIG, vocab_size=4128)
    table = np.asarray(warm_start(config, encoder, KEY)["token_embedding"])
    np.testing.assert_array_equal(table[:128], encoder["token_embedding"])
    new = table[128:]
    assert new.shape == (4000, 32)
    assert abs(new.mean()) < 0.002
    assert abs(new.std() - 32**-0.5) < 0.002
    other = np.asarray(warm_start(config, encoder, jax.random.key(8))["token_embedding"])
    assert (other[128:] != new).all()


def test_a_decoder_is_as_large_as_its_encoder():
    assert [num_decoder_layers(name, 12) for name in INITIALIZATIONS] == [6, 9, 9, 6]


@pytest.mark.parametrize(
    ("change", "initialize", "message"),
    [
        ({"decoder": "vanilla"}, "interleaved", "makes a decoder of kind 'interleaved'"),
        ({}, "vanilla_copied_cross_attention", "makes a decoder of kind 'vanilla'"),
        ({}, "odd", "initialize must be one of interleaved, .*random, found 'odd'"),
        ({"num_decoder_layers": 3}, "interleaved", "num_decoder_layers=3 needs 6 encoder layers, found 4"),
        ({"hidden_size": 64}, "interleaved", "ModelConfig.hidden_size is 64, but the encoder's is 32"),
        ({"feed_forward_size": 32}, "interleaved", "feed_forward_size is 32, but the encoder's is 64"),
        ({"num_encoder_layers": 6}, "interleaved", "num_encoder_layers is 6, but the encoder's is 4"),
        ({"vocab_size": 120}, "interleaved", "vocab_size is 120, but the encoder's table has 128 rows"),
        ({"max_length": 33}, "interleaved", "max_length=33 needs 35 position rows, but the encoder has 34"),
        ({"norm_placement": "pre"}, "interleaved", "norm_placement is 'pre', but the encoder's is 'post'"),
        ({"embedding_layer_norm": False}, "interleaved", "embedding_layer_norm is False, but the encoder's is True"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(encoder, change, initialize, message):
    with pytest.raises(ValueError, match=message):
        warm_start(dataclasses.replace(CONFIG, **change), encoder, KEY, initialize)


def test_large_keeps_the_layer_norm_of_the_encoder_it_starts_from():
    assert PRESETS["large_from_xlmr"].embedding_layer_norm
    assert not PRESETS["large"].embedding_layer_norm
