"""Equality with the official DeltaLM code, state by state, at every position that is not padding."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.model.config import EOS_ID, PAD_ID
from deltalm_jax.model.deltalm import apply_decoder, apply_encoder, hidden_states, layer_states, logits, shift_right
from tests.model.conftest import TO_FAIRSEQ, Golden, permute_rows

TOLERANCE = 2e-5
CASES = ("pad", "nopad")


@pytest.fixture(scope="module")
def states(golden: Golden):
    """Ours, for both cases of the golden file; the shapes are equal, so there is one compilation."""
    run = jax.jit(partial(layer_states, golden.config))
    return {case: jax.device_get(run(golden.params, *golden.tokens(case)[:2])) for case in CASES}


def assert_close_where_real(ours: np.ndarray, theirs: np.ndarray, tokens: np.ndarray) -> None:
    real = tokens != PAD_ID
    assert real.any()
    np.testing.assert_allclose(ours[real], theirs[real], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_every_encoder_state(golden: Golden, states, case: str):
    encoder_tokens = golden.tokens(case)[0]
    ours = states[case].encoder_states_NBSD
    assert len(ours) == golden.config.num_encoder_layers + 1
    for index, state in enumerate(ours):
        assert_close_where_real(state, golden.arrays[f"{case}/encoder_state_{index}"], encoder_tokens)
    assert not ours[0][encoder_tokens == PAD_ID].any(), "embeddings of padding are set to zero"
    assert_close_where_real(states[case].encoded_BSD, golden.arrays[f"{case}/encoder_out"], encoder_tokens)


@pytest.mark.parametrize("case", CASES)
def test_every_decoder_state(golden: Golden, states, case: str):
    decoder_tokens = golden.tokens(case)[1]
    ours = states[case].decoder_states_NBTD
    assert len(ours) == golden.config.num_decoder_layers + 1
    for index, state in enumerate(ours):
        assert_close_where_real(state, golden.arrays[f"{case}/decoder_state_{index}"], decoder_tokens)
    assert_close_where_real(states[case].hidden_BTD, golden.arrays[f"{case}/decoder_features"], decoder_tokens)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_losses(golden: Golden, states, case: str):
    _, decoder_tokens, targets = golden.tokens(case)
    ours = np.asarray(logits(golden.params, states[case].hidden_BTD))
    theirs = golden.arrays[f"{case}/logits"]
    theirs = np.concatenate([theirs[..., TO_FAIRSEQ], theirs[..., 4:]], axis=-1)
    assert_close_where_real(ours, theirs, decoder_tokens)

    weights = targets != PAD_ID
    assert weights.sum() == golden.arrays[f"{case}/ntokens"]
    log_probabilities = np.asarray(jax.nn.log_softmax(ours.astype(np.float64)))
    nll = -np.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose((nll * weights).sum(), golden.arrays[f"{case}/sum_nll"], rtol=2e-5)

    # fairseq's label smoothing: 1 - ε on the target, ε spread over all the others.
    others = 0.1 / (golden.config.vocab_size - 1)
    smoothed = (1 - 0.1 - others) * nll - others * log_probabilities.sum(-1)
    expected = golden.arrays[f"{case}/sum_label_smoothed_loss_eps0.1"]
    np.testing.assert_allclose((smoothed * weights).sum(), expected, rtol=2e-5)


def test_the_parts_make_the_whole(base_golden: Golden):
    config, params = base_golden.config, base_golden.params
    encoder_tokens, decoder_tokens, _ = base_golden.tokens("pad")
    encoded = jax.jit(partial(apply_encoder, config))(params, encoder_tokens)
    parts = jax.jit(partial(apply_decoder, config))(params, encoded, encoder_tokens, decoder_tokens)
    whole = jax.jit(partial(hidden_states, config))(params, encoder_tokens, decoder_tokens)
    for ours in (parts, whole):
        assert_close_where_real(np.asarray(ours), base_golden.arrays["pad/decoder_features"], decoder_tokens)


def test_gradients(base_golden: Golden):
    """Of the summed loss, through the tied table, both position tables and weights at several depths."""
    encoder_tokens, decoder_tokens, targets = base_golden.tokens("pad")

    @jax.jit
    @jax.grad
    def gradient(params):
        hidden = hidden_states(base_golden.config, params, encoder_tokens, decoder_tokens)
        log_probabilities = jax.nn.log_softmax(logits(params, hidden))
        nll = -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(nll * (targets != PAD_ID))

    ours = gradient(base_golden.params)
    encoder_layers, decoder_layers = ours["encoder"]["layers"], ours["decoder"]["layers"]
    theirs = {key.removeprefix("grad/"): value for key, value in base_golden.arrays.items() if key.startswith("grad/")}
    pairs = {
        "encoder.layers.0.self_attn.q_proj.weight": encoder_layers["self_attention"]["query"]["kernel"][0].T,
        "encoder.layers.3.final_layer_norm.weight": encoder_layers["feed_forward_layer_norm"]["scale"][3],
        "decoder.layers.0.fc3.weight": decoder_layers["bottom_feed_forward"]["input"]["kernel"][0].T,
        "decoder.layers.0.encoder_attn.v_proj.bias": decoder_layers["cross_attention"]["value"]["bias"][0],
        "decoder.layers.1.ffn_layer_norm.bias": decoder_layers["bottom_feed_forward_layer_norm"]["bias"][1],
        "decoder.layers.1.fc2.bias": decoder_layers["top_feed_forward"]["output"]["bias"][1],
        "decoder.embed_positions.weight": ours["decoder"]["position_embedding"],
    }
    assert pairs.keys() | {"encoder.embed_tokens.weight"} == theirs.keys()
    for name, value in pairs.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(
        ours["token_embedding"], permute_rows(theirs["encoder.embed_tokens.weight"]), rtol=1e-4, atol=2e-5
    )


def test_decoder_input_is_the_official_one(base_golden: Golden):
    """Where the official input differs from ours it is padding's neighbour: it rotates the final </s> to the front."""
    for case in CASES:
        _, decoder_tokens, targets = base_golden.tokens(case)
        ours = np.asarray(shift_right(targets))
        ended = (ours == EOS_ID) & (np.arange(ours.shape[1]) > 0)
        np.testing.assert_array_equal(np.where(ended, PAD_ID, ours), decoder_tokens)
