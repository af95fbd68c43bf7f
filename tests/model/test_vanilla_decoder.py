"""The usual decoder layer, against a forward pass of its own in NumPy, from the definition (arXiv 1706.03762)."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from deltalm_jax.model.config import NORM_PLACEMENTS, PAD_ID
from deltalm_jax.model.deltalm import init_params, layer_states
from deltalm_jax.parallel.sharding import RULES, path_name, rule_for
from tests.support.small_models import random_params

SOURCE = np.array([[2, 11, 12, 13, 3, 0, 0], [2, 14, 15, 16, 17, 18, 3], [0, 0, 0, 2, 19, 20, 3]])
DECODER_INPUT = np.array([[3, 21, 22, 23, 24, 0], [3, 25, 26, 27, 28, 29], [0, 0, 3, 30, 31, 32]])

gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))


def linear(weights: dict[str, Any], inputs: np.ndarray) -> np.ndarray:
    return inputs @ weights["kernel"] + weights["bias"]


def normalise(weights: dict[str, Any], values: np.ndarray) -> np.ndarray:
    spread = np.sqrt(values.var(-1, keepdims=True) + 1e-5)
    return (values - values.mean(-1, keepdims=True)) / spread * weights["scale"] + weights["bias"]


def attention(weights: dict[str, Any], num_heads: int, queries: np.ndarray, source: np.ndarray, allowed: np.ndarray):
    """For one sequence: queries [T, D], source [S, D], allowed [T, S]; head by head."""
    heads = []
    for columns in np.split(np.arange(queries.shape[-1]), num_heads):
        query, key, value = (
            linear(weights[name], inputs)[:, columns]
            for name, inputs in (("query", queries), ("key", source), ("value", source))
        )
        scores = np.where(allowed, query @ key.T / math.sqrt(len(columns)), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(shares / shares.sum(-1, keepdims=True) @ value)
    return linear(weights["output"], np.concatenate(heads, axis=-1))


def decode(config, params, encoded: np.ndarray, source: np.ndarray, tokens: np.ndarray) -> list[np.ndarray]:
    """For one sequence without padding: the residual stream from the embeddings on, and the output."""
    side = jax.tree.map(partial(np.asarray, dtype=np.float64), params["decoder"])
    hidden = np.float64(params["token_embedding"])[tokens] + side["position_embedding"][2 : 2 + len(tokens)]
    hidden = normalise(side["embedding_layer_norm"], hidden)
    states = [hidden]
    back, real = np.tril(np.ones((len(tokens), len(tokens)), bool)), source != PAD_ID
    for index in range(config.num_decoder_layers):
        layer = jax.tree.map(lambda leaf, n=index: leaf[n], side["layers"])

        def sublayer(name: str, inputs: np.ndarray, layer=layer) -> np.ndarray:
            if name == "self_attention":
                return attention(layer[name], config.num_heads, inputs, inputs, back)
            if name == "cross_attention":
                return attention(layer[name], config.num_heads, inputs, encoded, real)
            return linear(layer[name]["output"], gelu(linear(layer[name]["input"], inputs)))

        for name in ("self_attention", "cross_attention", "feed_forward"):
            norm = partial(normalise, layer[f"{name}_layer_norm"])
            if config.norm_placement == "post":
                hidden = norm(hidden + sublayer(name, hidden))
            else:
                hidden = hidden + sublayer(name, norm(hidden))
        states.append(hidden)
    last = normalise(side["final_layer_norm"], hidden) if config.norm_placement == "pre" else hidden
    return [*states, last]


@pytest.mark.parametrize("placement", NORM_PLACEMENTS)
def test_every_state_is_that_of_the_definition(small_config, placement: str):
    config = dataclasses.replace(small_config, decoder="vanilla", norm_placement=placement)
    params = random_params(config)
    ours = jax.device_get(jax.jit(partial(layer_states, config))(params, SOURCE, DECODER_INPUT))
    assert len(ours.decoder_states_NBTD) == config.num_decoder_layers + 1
    for row, (source, tokens) in enumerate(zip(SOURCE, DECODER_INPUT, strict=True)):
        real = tokens != PAD_ID
        theirs = decode(config, params, np.float64(ours.encoded_BSD[row]), source, tokens[real])
        for state, expected in zip([*ours.decoder_states_NBTD, ours.hidden_BTD], theirs, strict=True):
            np.testing.assert_allclose(state[row][real], expected, atol=2e-5)


def test_parameters_are_named_as_the_sharding_table_knows_them(small_config):
    config = dataclasses.replace(small_config, decoder="vanilla")
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    names = ("self_attention", "cross_attention", "feed_forward")
    assert set(params["decoder"]["layers"]) == {*names, *(f"{name}_layer_norm" for name in names)}
    specs = {path_name(p): rule_for(path_name(p)) for p, _ in jax.tree_util.tree_leaves_with_path(params)}
    for name, spec in specs.items():
        twin = name.replace("decoder", "encoder").replace("cross_attention", "self_attention")
        assert spec == specs[twin], "split as the encoder's like"
    assert not any("decoder" in pattern or "cross" in pattern for pattern, _ in RULES), "no rule is the decoder's alone"
