"""Examples that share a row do not see one another: the model gives each what it gives it alone."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.model.attention import Attend, KeysValues, Mask, attend_xla
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import hidden_states, shift_right
from deltalm_jax.model.kernels import attend_cudnn, attend_splash
from deltalm_jax.model.packed import source_segments, target_segments
from tests.model.conftest import VARIANTS
from tests.support.small_models import random_params

SOURCES = [[11, 12, 13, 3], [14, 3], [15, 16, 17, 18, 3], [3]]
TARGETS = [[21, 3], [22, 23, 24, 3], [3], [25, 26, 3]]
INPUTS_BS = np.array([[*itertools.chain(*SOURCES), 0, 0]])
TARGETS_BT = np.array([[*itertools.chain(*TARGETS), 0]])

splash = partial(attend_splash, interpret=True)
cudnn = partial(attend_cudnn, implementation="xla")


def padded(rows: list[list[int]]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.array([row + [0] * (longest - len(row)) for row in rows])


def test_segments_are_read_from_the_ids():
    assert source_segments(INPUTS_BS).tolist() == [[1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4]]
    assert target_segments(shift_right(TARGETS_BT)).tolist() == [[1, 1, 2, 2, 2, 2, 3, 4, 4, 4, 5]]


@pytest.mark.parametrize(("decoder", "norm_placement"), VARIANTS)
def test_a_packed_row_gives_what_its_examples_give_alone(small_config: ModelConfig, decoder: str, norm_placement: str):
    config = dataclasses.replace(small_config, decoder=decoder, norm_placement=norm_placement)
    params = random_params(config)
    packed = hidden_states(config, params, INPUTS_BS, shift_right(TARGETS_BT), packed=True)[0]
    alone = hidden_states(config, params, padded(SOURCES), shift_right(padded(TARGETS)))
    ends = np.cumsum([len(target) for target in TARGETS])
    for example, (target, end) in enumerate(zip(TARGETS, ends, strict=True)):
        length = len(target)
        np.testing.assert_allclose(packed[end - length : end], alone[example, :length], rtol=0, atol=2e-6)
    unpacked = hidden_states(config, params, INPUTS_BS, shift_right(TARGETS_BT))[0]
    assert np.abs(unpacked[: len(TARGETS[0])] - packed[: len(TARGETS[0])]).max() > 1e-3


def test_no_gradient_reaches_other_examples(small_config: ModelConfig, small_params: dict[str, Any]):
    config, params = small_config, small_params
    decoder_input = shift_right(TARGETS_BT)

    def second_example(rows: Any) -> jax.Array:
        return jnp.sum(
            hidden_states(config, params, INPUTS_BS, decoder_input, token_rows=rows, packed=True)[0, 2:6] ** 2
        )

    rows = (
        jnp.take(params["token_embedding"], INPUTS_BS, axis=0),
        jnp.take(params["token_embedding"], decoder_input, axis=0),
    )
    source, target = jax.grad(second_example)(rows)
    assert np.flatnonzero(np.abs(source[0]).sum(axis=1)).tolist() == [4, 5]
    assert np.flatnonzero(np.abs(target[0]).sum(axis=1)).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("attend", [splash, cudnn])
@pytest.mark.parametrize("causal", [True, False])
def test_kernels_keep_examples_apart(attend: Attend, causal: bool):
    """Outputs and gradients are the formula's; padding is at the end, as in prepared data, and sees what it may."""
    key_segments = np.concatenate([source_segments(INPUTS_BS), source_segments(np.flip(INPUTS_BS, 1))])
    query_segments = key_segments if causal else np.array([[1, 2, 2, 3, 4], [1, 1, 3, 3, 4]])
    real = np.concatenate([INPUTS_BS != 0, INPUTS_BS == INPUTS_BS])
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (*query_segments.shape, 2, 8))
    seen = KeysValues(*(jax.random.normal(key, (*key_segments.shape, 2, 8)) for key in keys[1:]))

    @partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
    def loss(attend: Attend, query: jax.Array, seen: KeysValues) -> tuple[jax.Array, jax.Array]:
        outputs = attend(query, seen, Mask(jnp.asarray(real), causal, (query_segments, key_segments)))
        return jnp.sum(outputs**2), outputs

    (_, outputs), gradients = loss(attend, query, seen)
    (_, expected), expected_gradients = loss(attend_xla, query, seen)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=2e-6)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
