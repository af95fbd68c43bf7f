"""Golden files of the official model code as parameters of ours, and one small model that several tests share.

The golden files hold numbers put out by microsoft/unilm's DeltaLM at 768a3c87 with fairseq 0.12.2 and torch 1.12.1,
float32 on a CPU, dropout 0: a state dict, token ids, and what the model makes of them. `xlmr_tiny_hf.npz` holds the like
of Hugging Face's `XLMRobertaModel` (transformers 5.23.0, torch 2.13.0). Ids in all of them are fairseq's.
"""

from __future__ import annotations

import json
import pathlib
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from deltalm_jax.model.config import DECODERS, NORM_PLACEMENTS, ModelConfig
from deltalm_jax.model.deltalm import hidden_states
from tests.support.small_models import random_params

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
# Our decoders with each place of the LayerNorms.
VARIANTS = [(decoder, placement) for decoder in DECODERS for placement in NORM_PLACEMENTS]
GOLDEN_NAMES = ("postnorm_lnemb", "postnorm_nolnemb", "prenorm_nolnemb")

# fairseq's <s>, <pad>, </s>, <unk> are rows 0 to 3; ours are <pad>, <unk>, <s>, </s>. All other ids are equal.
FROM_FAIRSEQ = np.array([2, 0, 3, 1])
TO_FAIRSEQ = np.argsort(FROM_FAIRSEQ)

# Our name within a layer -> the official model's.
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
ENCODER_LAYER = {
    "self_attention": ("self_attn", ATTENTION),
    "self_attention_layer_norm": "self_attn_layer_norm",
    "feed_forward": ("", {"input": "fc1", "output": "fc2"}),
    "feed_forward_layer_norm": "final_layer_norm",
}
DECODER_LAYER = {
    "self_attention": ("self_attn", ATTENTION),
    "self_attention_layer_norm": "self_attn_layer_norm",
    "bottom_feed_forward": ("", {"input": "fc3", "output": "fc4"}),
    "bottom_feed_forward_layer_norm": "ffn_layer_norm",
    "cross_attention": ("encoder_attn", ATTENTION),
    "cross_attention_layer_norm": "encoder_attn_layer_norm",
    "top_feed_forward": ("", {"input": "fc1", "output": "fc2"}),
    "top_feed_forward_layer_norm": "final_layer_norm",
}


def our_ids(fairseq_ids: np.ndarray) -> np.ndarray:
    """Token ids of a golden file in our order."""
    return np.where(fairseq_ids < 4, FROM_FAIRSEQ[np.minimum(fairseq_ids, 3)], fairseq_ids).astype(np.int32)


def permute_rows(table: np.ndarray) -> np.ndarray:
    """A golden file's token table, or its gradient, in our order."""
    return np.concatenate([table[TO_FAIRSEQ], table[4:]])


class Golden(NamedTuple):
    """One golden file: the arrays, and its configuration and parameters in our terms."""

    arrays: dict[str, np.ndarray]
    config: ModelConfig
    params: dict[str, Any]

    def tokens(self, case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encoder ids, decoder input ids and target ids of "pad" or "nopad"."""
        names = ("src_tokens", "prev_output_tokens", "target")
        encoder, decoder, target = (our_ids(self.arrays[f"{case}/{name}"]) for name in names)
        return encoder, decoder, target


def load_golden(name: str) -> Golden:
    arrays = dict(np.load(GOLDEN / f"deltalm_tiny_{name}.npz"))
    theirs = json.loads(str(arrays["config_json"]))
    config = ModelConfig(
        vocab_size=theirs["vocab"],
        hidden_size=theirs["d_model"],
        feed_forward_size=theirs["ffn"],
        num_heads=theirs["heads"],
        num_encoder_layers=theirs["encoder_layers"],
        num_decoder_layers=theirs["decoder_layers"],
        max_length=theirs["max_positions"],
        norm_placement="pre" if theirs["normalize_before"] else "post",
        embedding_layer_norm=theirs["layernorm_embedding"],
    )
    state = {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}
    return Golden(arrays, config, params_of(state, config))


def params_of(state: dict[str, np.ndarray], config: ModelConfig) -> dict[str, Any]:
    """Our parameters, of a state dict of the official model."""
    state = dict(state)
    params = {
        "token_embedding": permute_rows(state.pop("encoder.embed_tokens.weight")),
        "encoder": side_of(state, "encoder", ENCODER_LAYER, config.num_encoder_layers),
        "decoder": side_of(state, "decoder", DECODER_LAYER, config.num_decoder_layers),
    }
    assert not state, f"not every tensor of the official model was used: {sorted(state)}"
    return params


def side_of(state: dict[str, np.ndarray], side: str, names: dict[str, Any], num_layers: int) -> dict[str, Any]:
    layers = [_layer(state, f"{side}.layers.{index}", names) for index in range(num_layers)]
    params = {
        "position_embedding": state.pop(f"{side}.embed_positions.weight"),
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
    }
    for ours, theirs in (("embedding_layer_norm", "layernorm_embedding"), ("final_layer_norm", "layer_norm")):
        if f"{side}.{theirs}.weight" in state:
            params[ours] = _layer_norm(state, f"{side}.{theirs}")
    return params


def _layer(state: dict[str, np.ndarray], prefix: str, names: dict[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for ours, theirs in names.items():
        if isinstance(theirs, str):
            params[ours] = _layer_norm(state, f"{prefix}.{theirs}")
        else:
            group, linears = theirs
            path = f"{prefix}.{group}" if group else prefix
            params[ours] = {
                name: {"kernel": state.pop(f"{path}.{linear}.weight").T, "bias": state.pop(f"{path}.{linear}.bias")}
                for name, linear in linears.items()
            }
    return params


def _layer_norm(state: dict[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    return {"scale": state.pop(f"{path}.weight"), "bias": state.pop(f"{path}.bias")}


@pytest.fixture(scope="session", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden file in turn."""
    return load_golden(request.param)


@pytest.fixture(scope="session")
def base_golden() -> Golden:
    """The golden file of the base architecture, which also has gradients."""
    return load_golden("postnorm_lnemb")


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    """A model small enough to run without compiling for long, every size a different number."""
    return ModelConfig(
        vocab_size=40,
        hidden_size=24,
        feed_forward_size=36,
        num_heads=3,
        num_encoder_layers=3,
        num_decoder_layers=2,
        max_length=20,
    )


@pytest.fixture(scope="session")
def small_params(small_config: ModelConfig) -> dict[str, Any]:
    """`random_params` of the small model."""
    return random_params(small_config)


@pytest.fixture(scope="session")
def small_hidden_states(small_config: ModelConfig):
    """`hidden_states` of the small model, compiled once for every test that calls it with the same shapes."""
    return jax.jit(partial(hidden_states, small_config))
