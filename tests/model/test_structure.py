"""Who may see whom, proved by derivatives: an exact zero where nothing may flow, and none where it must."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deltalm_jax.model.attention import padding_mask
from deltalm_jax.model.config import EOS_ID, PAD_ID
from deltalm_jax.model.decoder_layer import InterleavedLayer
from deltalm_jax.model.deltalm import apply_decoder, apply_encoder, hidden_states, shift_right
from deltalm_jax.model.embedding import position_rows
from deltalm_jax.model.encoder import EncoderLayer
from tests.model.conftest import VARIANTS, load_golden
from tests.support.small_models import random_params

SOURCE = np.array([[2, 11, 12, 13, 3, 0, 0], [2, 14, 15, 16, 17, 18, 3]])
TARGET = np.array([[21, 22, 23, 24, 0, 0], [25, 26, 27, 28, 29, 3]])
DECODER_INPUT = np.array([[3, 21, 22, 23, 24, 0], [3, 25, 26, 27, 28, 29]])


def projection(size: int) -> jax.Array:
    """A direction; LayerNorm makes a plain sum constant."""
    return jax.random.normal(jax.random.key(3), (size,))


@pytest.mark.parametrize(("decoder", "placement"), VARIANTS)
def test_decoder_is_causal(small_config, decoder, placement):
    """Every position of row 1 has a token of its own, so the table's rows stand for positions."""
    config = dataclasses.replace(small_config, decoder=decoder, norm_placement=placement)
    params = random_params(config)
    encoded = jax.jit(partial(apply_encoder, config))(params, SOURCE)

    @jax.jit
    @jax.jacrev
    def influence(table):
        hidden = apply_decoder(config, params | {"token_embedding": table}, encoded, SOURCE, DECODER_INPUT)
        return hidden[1] @ projection(config.hidden_size)

    per_token = np.abs(influence(params["token_embedding"])).max(axis=-1)[:, DECODER_INPUT[1]]
    allowed = np.tril(np.ones_like(per_token, bool))
    assert (per_token[~allowed] == 0).all()
    assert (per_token[allowed] > 0).all()


def test_nothing_flows_from_source_padding(small_config, small_params):
    """Through cross-attention: derivatives by the encoder's output. And the real source reaches every target."""
    encoded = jax.jit(partial(apply_encoder, small_config))(small_params, SOURCE)

    @jax.jit
    @jax.jacrev
    def influence(encoded):
        hidden = apply_decoder(small_config, small_params, encoded, SOURCE, DECODER_INPUT)
        return hidden @ projection(small_config.hidden_size)

    reach = np.abs(influence(encoded)).max(axis=-1)  # [B, T, B, S]
    for row, tokens in enumerate(SOURCE):
        assert (reach[row][:, row][:, tokens == PAD_ID] == 0).all()
        assert (reach[row][:, row][:, tokens != PAD_ID] > 0).all()
        assert (reach[row][:, 1 - row] == 0).all(), "rows of a batch do not mix"


def test_nothing_flows_from_padding_in_an_encoder_layer(small_config):
    layer = EncoderLayer(small_config, rngs=nnx.Rngs(params=0))
    hidden = jax.random.normal(jax.random.key(1), (*SOURCE.shape, small_config.hidden_size))
    mask = padding_mask(jnp.asarray(SOURCE))
    influence = jax.jit(jax.jacrev(lambda h: layer(h, mask) @ projection(small_config.hidden_size)))(hidden)
    reach = np.abs(influence).max(axis=-1)[0][:, 0]  # row 0: [S, S]
    real = SOURCE[0] != PAD_ID
    assert (reach[real][:, ~real] == 0).all()
    assert (reach[real][:, real] > 0).all()


def test_padding_on_the_left_is_as_good_as_on_the_right(small_params, small_hidden_states):
    right = np.asarray(small_hidden_states(small_params, SOURCE, DECODER_INPUT))
    left_source = np.stack([np.roll(row, (row == PAD_ID).sum()) for row in SOURCE])
    left_input = np.stack([np.roll(row, (row == PAD_ID).sum()) for row in DECODER_INPUT])
    assert (left_source[0, :2] == PAD_ID).all()
    left = np.asarray(small_hidden_states(small_params, left_source, left_input))
    np.testing.assert_allclose(left[left_input != PAD_ID], right[DECODER_INPUT != PAD_ID], atol=1e-5)


def test_more_padding_changes_nothing(small_params, small_hidden_states):
    wide_source, wide_input = np.pad(SOURCE, [(0, 0), (0, 4)]), np.pad(DECODER_INPUT, [(0, 0), (0, 3)])
    wide = np.asarray(small_hidden_states(small_params, wide_source, wide_input))
    tight = np.asarray(small_hidden_states(small_params, SOURCE, DECODER_INPUT))
    np.testing.assert_allclose(wide[:, :6], tight, atol=1e-5)


def test_rows_of_nothing_but_padding_are_harmless(small_config, small_params, small_hidden_states):
    """They stay finite, forward and backward, and leave the other rows alone.

    And as the loss has no weight at padding, no padding row of a table gets a gradient from anywhere.
    """
    source = np.concatenate([SOURCE, np.zeros_like(SOURCE[:1])])
    target = np.concatenate([TARGET, np.zeros_like(TARGET[:1])])

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        hidden = hidden_states(small_config, params, source, shift_right(jnp.asarray(target)))
        return jnp.sum((hidden @ projection(small_config.hidden_size)) * (target != PAD_ID)), hidden

    (value, hidden), gradients = loss(small_params)
    assert np.isfinite(value)
    assert np.isfinite(hidden).all()
    np.testing.assert_allclose(hidden[:2], small_hidden_states(small_params, SOURCE, DECODER_INPUT), atol=1e-5)

    assert jax.tree.all(jax.tree.map(lambda leaf: np.isfinite(leaf).all(), gradients))
    assert not np.asarray(gradients["token_embedding"][PAD_ID]).any()
    for side in ("encoder", "decoder"):
        assert not np.asarray(gradients[side]["position_embedding"][:2]).any()
        assert np.asarray(gradients[side]["position_embedding"][2]).any()


def test_positions_count_real_tokens_from_two():
    tokens = jnp.array([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7], [0, 5, 0, 6, 0], [0, 0, 0, 0, 0]])
    expected = [[2, 3, 4, 1, 1], [1, 1, 2, 3, 4], [1, 2, 1, 3, 1], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(position_rows(tokens), expected)


def test_shift_right():
    np.testing.assert_array_equal(shift_right(jnp.asarray(TARGET)), DECODER_INPUT)
    assert DECODER_INPUT[0, 0] == EOS_ID


def test_too_long_a_sequence_is_refused(small_config, small_params):
    long = np.full((1, small_config.max_length + 1), 5)
    with pytest.raises(ValueError, match=r"21 tokens .*max_length=20"):
        apply_encoder(small_config, small_params, long)


def test_an_id_outside_the_table_does_not_pass_unseen(small_config, small_params):
    tokens = np.array([[5, small_config.vocab_size]])
    assert np.isnan(apply_encoder(small_config, small_params, tokens)).any()


def test_an_interleaved_layer_is_two_encoder_layers():
    """Filled with encoder layers 2i and 2i + 1, unmasked, and shown its own state as the source, it is these two.

    The encoder's states here are the official model's, and so is the assignment of its layers' parts.
    """
    golden = load_golden("postnorm_nolnemb")
    source = golden.tokens("pad")[0]
    mask = padding_mask(jnp.asarray(source))
    layers = golden.params["encoder"]["layers"]
    graph = nnx.graphdef(InterleavedLayer(golden.config, rngs=nnx.Rngs(params=0)))

    for index in range(2):
        first, second = (jax.tree.map(lambda leaf, n=n: leaf[n], layers) for n in (2 * index, 2 * index + 1))
        parts = {
            "self_attention": first["self_attention"],
            "self_attention_layer_norm": first["self_attention_layer_norm"],
            "bottom_feed_forward": first["feed_forward"],
            "bottom_feed_forward_layer_norm": first["feed_forward_layer_norm"],
            "cross_attention": second["self_attention"],
            "cross_attention_layer_norm": second["self_attention_layer_norm"],
            "top_feed_forward": second["feed_forward"],
            "top_feed_forward_layer_norm": second["feed_forward_layer_norm"],
        }
        before, between, after = (golden.arrays[f"pad/encoder_state_{2 * index + n}"] for n in range(3))
        layer = nnx.merge(graph, jax.tree.map(jnp.asarray, parts))
        source_seen = layer.cross_attention.keys_values(jnp.asarray(between))
        ours = np.asarray(layer(jnp.asarray(before), source_seen, mask, mask)[0])
        np.testing.assert_allclose(ours[source != PAD_ID], after[source != PAD_ID], atol=2e-5)
