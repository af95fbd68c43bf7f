"""Our encoder is XLM-R's: equality with Hugging Face's `XLMRobertaModel`, state by state, where it is not padding."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import init_params, layer_states
from tests.model.conftest import GOLDEN, our_ids, permute_rows

LAYER = {
    "self_attention": {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
    },
    "self_attention_layer_norm": "attention.output.LayerNorm",
    "feed_forward": {"input": "intermediate.dense", "output": "output.dense"},
    "feed_forward_layer_norm": "output.LayerNorm",
}


@pytest.fixture(scope="module")
def xlmr() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "xlmr_tiny_hf.npz"))


def config_and_encoder(arrays: dict[str, np.ndarray]) -> tuple[ModelConfig, dict[str, Any]]:
    """Our configuration, and the parameters of the encoder with the token table."""
    theirs = json.loads(str(arrays["config_json"]))
    config = ModelConfig(
        vocab_size=theirs["vocab"],
        hidden_size=theirs["d_model"],
        feed_forward_size=theirs["ffn"],
        num_heads=theirs["heads"],
        num_encoder_layers=theirs["layers"],
        num_decoder_layers=1,
        max_length=theirs["max_position_embeddings"] - 2,
    )
    state = {key.removeprefix("hf/"): value for key, value in arrays.items() if key.startswith("hf/")}

    def norm(path: str) -> dict[str, np.ndarray]:
        return {"scale": state.pop(f"{path}.weight"), "bias": state.pop(f"{path}.bias")}

    def linear(path: str) -> dict[str, np.ndarray]:
        return {"kernel": state.pop(f"{path}.weight").T, "bias": state.pop(f"{path}.bias")}

    layers = [
        {
            ours: norm(f"encoder.layer.{index}.{theirs}")
            if isinstance(theirs, str)
            else {name: linear(f"encoder.layer.{index}.{path}") for name, path in theirs.items()}
            for ours, theirs in LAYER.items()
        }
        for index in range(config.num_encoder_layers)
    ]
    # Every token is of type 0, whose embedding may as well be part of its position's.
    positions = state.pop("embeddings.position_embeddings.weight") + state.pop(
        "embeddings.token_type_embeddings.weight"
    )
    params = {
        "token_embedding": permute_rows(state.pop("embeddings.word_embeddings.weight")),
        "encoder": {
            "position_embedding": positions,
            "embedding_layer_norm": norm("embeddings.LayerNorm"),
            "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
        },
    }
    assert not state, f"not every tensor of XLM-R was used: {sorted(state)}"
    return config, params


def test_every_hidden_state(xlmr):
    config, encoder = config_and_encoder(xlmr)
    params = init_params(config, jax.random.key(0)) | encoder
    run = jax.jit(partial(layer_states, config))
    for case in ("pad", "nopad"):
        tokens = our_ids(xlmr[f"{case}/input_ids"])
        real = tokens != PAD_ID
        assert real.all() == (case == "nopad")
        ours = run(params, tokens, tokens).encoder_states_NBSD
        assert len(ours) == 5
        for index, state in enumerate(ours):
            theirs = xlmr[f"{case}/hidden_{index}"]
            np.testing.assert_allclose(state[real], theirs[real], rtol=0, atol=2e-5, err_msg=f"{case} {index}")
