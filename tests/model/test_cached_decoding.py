"""Decoding one token at a time gives what decoding all of them at once gives."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import apply_encoder, decode_step, hidden_states, init_cache, logits, take_rows
from tests.model.conftest import TO_FAIRSEQ, VARIANTS, Golden
from tests.support.programs import matrix_product_operations
from tests.support.small_models import random_params

# Padding on either side of the source, and before, within and behind the decoder's input.
SOURCE = np.array([[2, 11, 12, 13, 3, 0, 0], [2, 14, 15, 16, 17, 18, 3], [0, 0, 0, 2, 19, 20, 3]])
DECODER_INPUT = np.array([[3, 21, 22, 23, 24, 0], [3, 25, 0, 26, 0, 27], [0, 0, 3, 30, 31, 32]])


@partial(jax.jit, static_argnums=(0, 4))
def step_by_step(
    config: ModelConfig, params: Any, source: jax.Array, tokens: jax.Array, max_length: int | None = None
) -> tuple[jax.Array, Any]:
    """Hidden states at all decoder input tokens, fed one after the other, and the last cache."""
    cache = init_cache(config, params, apply_encoder(config, params, source), source, max_length)

    def body(cache, tokens_B):
        hidden_BD, cache = decode_step(config, params, cache, tokens_B)
        return cache, hidden_BD

    cache, hidden_TBD = jax.lax.scan(body, cache, tokens.T)
    return hidden_TBD.swapaxes(0, 1), cache


@pytest.fixture(scope="module")
def prompted(small_config, small_params):
    """The small model's cache with three tokens in each row."""
    return step_by_step(small_config, small_params, SOURCE, jnp.array([[3, 21, 22], [3, 25, 26], [3, 30, 31]]), 4)[1]


@pytest.fixture(scope="module")
def step(small_config):
    return jax.jit(partial(decode_step, small_config))


@pytest.mark.parametrize("case", ["pad", "nopad"])
def test_logits_are_the_official_models(golden: Golden, case: str):
    source, tokens, _ = golden.tokens(case)
    hidden, _ = step_by_step(golden.config, golden.params, source, tokens)
    ours, theirs = logits(golden.params, hidden), golden.arrays[f"{case}/logits"]
    theirs = np.concatenate([theirs[..., TO_FAIRSEQ], theirs[..., 4:]], axis=-1)
    real = tokens != PAD_ID
    np.testing.assert_allclose(ours[real], theirs[real], rtol=0, atol=2e-5)
    whole = logits(golden.params, jax.jit(partial(hidden_states, golden.config))(golden.params, source, tokens))
    np.testing.assert_allclose(ours[real], whole[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("decoder", "placement"), VARIANTS)
def test_equal_to_all_at_once(small_config, decoder: str, placement: str):
    config = dataclasses.replace(small_config, decoder=decoder, norm_placement=placement)
    params = random_params(config)
    hidden, cache = step_by_step(config, params, SOURCE, DECODER_INPUT, 6)
    whole = jax.jit(partial(hidden_states, config))(params, SOURCE, DECODER_INPUT)
    real = DECODER_INPUT != PAD_ID
    np.testing.assert_allclose(logits(params, hidden)[real], logits(params, whole)[real], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(cache["target"]["length"], [real.sum(axis=1)])


def test_equal_in_bfloat16_and_with_the_layers_unrolled(small_config, small_params):
    """To rounding, which falls elsewhere: by a few of bfloat16's steps of 2⁻⁸ on values near 1."""
    config = dataclasses.replace(small_config, scan_layers=False)
    encoded = apply_encoder(config, small_params, SOURCE, compute_dtype="bfloat16")
    cache = init_cache(config, small_params, encoded, SOURCE, 6)
    assert {leaf.dtype for part in cache.values() for name, leaf in part.items() if name in ("key", "value")} == {
        jnp.dtype("bfloat16")
    }
    step, hidden = jax.jit(partial(decode_step, config)), []
    for tokens in DECODER_INPUT.T:
        hidden_BD, cache = step(small_params, cache, tokens)
        hidden.append(hidden_BD)
    assert hidden[0].dtype == jnp.bfloat16
    whole = jax.jit(partial(hidden_states, config, compute_dtype="bfloat16"))(small_params, SOURCE, DECODER_INPUT)
    real = DECODER_INPUT != PAD_ID
    np.testing.assert_allclose(np.float32(np.stack(hidden, axis=1))[real], np.float32(whole)[real], atol=0.06)


def test_padding_leaves_a_row_as_it_was(prompted, small_params, step):
    _, after = step(small_params, prompted, np.array([PAD_ID, 22, PAD_ID]))
    for name, leaf in after["target"].items():
        before = prompted["target"][name]
        np.testing.assert_array_equal(leaf[:, [0, 2]], before[:, [0, 2]])
        assert not np.array_equal(leaf[:, 1], before[:, 1])


def test_a_full_row_gets_nan_and_keeps_what_it_has(prompted, small_params, step):
    """Row 1 has room for one more token than rows 0 and 2, which are full after the first of these steps."""
    hidden, full = step(small_params, prompted, np.array([22, PAD_ID, 32]))
    assert np.isfinite(hidden).all()
    hidden, after = step(small_params, full, np.array([23, 27, 33]))
    assert np.isnan(hidden).all(axis=1).tolist() == [True, False, True]
    np.testing.assert_array_equal(after["target"]["length"], [[4, 4, 4]])
    for name in ("key", "value"):
        np.testing.assert_array_equal(after["target"][name][:, [0, 2]], full["target"][name][:, [0, 2]])
    alone, _ = step(small_params, prompted, np.array([PAD_ID, 27, PAD_ID]))
    np.testing.assert_allclose(hidden[1], alone[1], atol=1e-6, err_msg="another row's overflow is its own affair")


def test_rows_can_be_reordered_and_repeated(prompted, small_params, step):
    """Three rows, each with a source and a past of its own, as five beams in another order."""
    order, tokens = np.array([2, 0, 0, 1, 2]), np.array([5, 6, 7, 8, 9])
    moved = take_rows(prompted, order)
    assert all(leaf.shape[1] == 5 for leaf in jax.tree.leaves(moved))
    hidden, after = step(small_params, moved, tokens)
    for place, (row, token) in enumerate(zip(order, tokens, strict=True)):
        alone, alone_after = step(small_params, prompted, np.full(3, token))
        np.testing.assert_allclose(hidden[place], alone[row], atol=1e-6)
        jax.tree.map(
            lambda ours, theirs, p=place, r=row: np.testing.assert_allclose(ours[:, p], theirs[:, r], atol=1e-6),
            after,
            alone_after,
        )


def test_beams_of_one_source_exchange_their_pasts_only(small_config, small_params, step):
    """Reordering the part that grows equals reordering everything where the sources are the same."""
    same_source = np.repeat(SOURCE[1:2], 3, axis=0)
    _, cache = step_by_step(small_config, small_params, same_source, jnp.array([[3, 21], [3, 25], [3, 30]]), 4)
    order, tokens = np.array([1, 1, 0]), np.array([5, 6, 7])
    hidden, _ = step(small_params, cache | {"target": take_rows(cache["target"], order)}, tokens)
    expected, _ = step(small_params, take_rows(cache, order), tokens)
    np.testing.assert_array_equal(hidden, expected)
    assert np.abs(hidden - step(small_params, cache, tokens)[0]).max() > 0.01


def test_a_step_costs_what_one_token_costs(small_config, small_params, prompted):
    """The source's keys and values are not made again: multiply-adds by hand, for 3 rows of 7 source and 4 + 1 target."""
    program = jax.make_jaxpr(partial(decode_step, small_config))(small_params, prompted, np.array([5, 6, 7]))
    weights = 4 * 24**2 + 2 * 24 * 36 + 2 * 24**2 + 2 * 24 * 36
    attention = 2 * 24 * (7 + 4 + 1)
    assert matrix_product_operations(program.jaxpr) == 2 * 2 * 3 * (weights + attention)


def test_a_cache_can_be_donated(small_config, small_params):
    """Made outside `jit`, where equal arrays may share a buffer."""
    encoded = jnp.ones((2, 7, small_config.hidden_size))
    cache = init_cache(small_config, small_params, encoded, SOURCE[:2])
    assert cache["target"]["key"].shape == (2, 2, small_config.max_length, 3, 8)
    _, after = jax.jit(partial(decode_step, small_config), donate_argnums=1)(small_params, cache, np.array([3, 3]))
    assert cache["target"]["key"].is_deleted()
    np.testing.assert_array_equal(after["target"]["length"], [[1, 1]])


@pytest.mark.parametrize("max_length", [0, 21])
def test_a_cache_of_impossible_length_is_refused(small_config, small_params, max_length: int):
    with pytest.raises(ValueError, match=f"max_length={max_length} must be .* ModelConfig.max_length=20"):
        init_cache(small_config, small_params, jnp.ones((3, 7, 24)), SOURCE, max_length)


@pytest.mark.parametrize("tokens", [np.array([[5], [6], [7]]), np.array([5, 6]), np.int32(5)])
def test_tokens_of_another_shape_are_refused(small_config, small_params, prompted, tokens: np.ndarray):
    with pytest.raises(ValueError, match=r"one token id for each of the 3 rows .*found shape"):
        decode_step(small_config, small_params, prompted, tokens)
