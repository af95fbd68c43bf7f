"""Other people's files, read: equal to the models that they hold."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

import deltalm_jax
from deltalm_jax.data.vocabulary import from_fairseq_ids, to_fairseq_ids
from deltalm_jax.weights.names import FFN_ORDERS
from tests.model.conftest import GOLDEN
from tests.support import official_model

OURS = to_fairseq_ids(np.arange(128))  # columns of fairseq's logits in our order

SOURCE = np.array([[0, 5, 17, 60, 8, 2], [0, 33, 2, 1, 1, 1]])
DECODER = np.array([[2, 9, 44, 51], [2, 7, 21, 2]])


def test_ids_are_permuted_and_back():
    fairseq = np.array([[0, 1, 2, 3, 4, 250_103]])  # <s> <pad> </s> <unk>
    np.testing.assert_array_equal(from_fairseq_ids(fairseq), [[2, 0, 3, 1, 4, 250_103]])
    np.testing.assert_array_equal(to_fairseq_ids(from_fairseq_ids(fairseq)), fairseq)
    assert from_fairseq_ids(fairseq.astype(np.int32)).dtype == np.int32


@pytest.mark.parametrize("name", ["official_state", "official_state_like_large"])
def test_a_released_file_beside_a_forward_pass_in_numpy(name, request, save, converted):
    state = request.getfixturevalue(name)
    path = converted("deltalm", save(state), num_heads=4)

    model = deltalm_jax.load_model(path)

    config = model.config
    assert (config.num_encoder_layers, config.num_decoder_layers, config.hidden_size) == (6, 3, 48)
    assert (config.feed_forward_size, config.max_length, config.vocab_size, config.num_heads) == (80, 20, 61, 4)
    assert config.embedding_layer_norm == (name == "official_state")
    expected = official_model.logits(state, 4, SOURCE, DECODER)[..., OURS[:61]]
    found = model.logits(from_fairseq_ids(SOURCE), from_fairseq_ids(DECODER))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert np.abs(expected).max() > 1


def test_which_feed_forward_network_comes_first_is_an_option(official_state, save, converted):
    """Reading ffn_1 as the top one gives the model of a file in which the two have changed places."""
    swapped = {
        name.replace("ffn_1", "ffn_?").replace("ffn_2", "ffn_1").replace("ffn_?", "ffn_2"): values
        for name, values in official_state.items()
    }
    assert FFN_ORDERS == ("ffn_1_is_bottom", "ffn_1_is_top")
    path = converted("deltalm", save(official_state), num_heads=4, ffn_order="ffn_1_is_top")
    found = deltalm_jax.load_model(path).logits(from_fairseq_ids(SOURCE), from_fairseq_ids(DECODER))
    expected = official_model.logits(swapped, 4, SOURCE, DECODER)[..., OURS[:61]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def assert_golden_logits(path: pathlib.Path, golden: dict[str, np.ndarray], rows: int = 128) -> None:
    model = deltalm_jax.load_model(path)
    for case in ("pad", "nopad"):
        source, target = (golden[f"{case}/{name}"] for name in ("src_tokens", "prev_output_tokens"))
        found = np.asarray(model.logits(from_fairseq_ids(source), from_fairseq_ids(target)))
        np.testing.assert_allclose(
            found[target != 1], golden[f"{case}/logits"][..., OURS[:rows]][target != 1], rtol=0, atol=2e-5
        )


def state_of(golden: dict[str, np.ndarray], prefix: str = "sd/") -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in golden.items() if name.startswith(prefix)}


def test_names_of_a_released_file_as_the_official_loader_maps_them(golden_state, save, converted):
    names = json.loads((GOLDEN / "official_checkpoint_key_map.json").read_text())
    state = state_of(golden_state)
    state["decoder.embed_tokens.weight"] = state["encoder.embed_tokens.weight"]
    official = {theirs: state[model] for theirs, model in names.items()}
    assert len(official) == 8 + 16 * 4 + 32 * 2
    assert_golden_logits(converted("deltalm", save(official), num_heads=4), golden_state)


def test_a_checkpoint_of_a_fine_tuned_model(golden_state, save, converted):
    state = state_of(golden_state)
    table = state["encoder.embed_tokens.weight"]
    state |= {"decoder.embed_tokens.weight": table, "decoder.output_projection.weight": table}
    state |= {f"{side}.version": np.array([3.0], np.float32) for side in ("encoder", "decoder")}
    path = save(state, "model", args=None, optimizer_history=[{"num_updates": 7}], extra_state={"epoch": 2})
    assert_golden_logits(converted("deltalm", path, num_heads=4), golden_state)


def test_a_public_port(golden_state, tmp_path, converted):
    state = {f"model.{name}": values for name, values in state_of(golden_state).items()}
    table = state.pop("model.encoder.embed_tokens.weight")
    for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        state[f"{name}.weight"] = table.copy()
    state["final_logits_bias"] = np.zeros((1, 128), np.float32)
    folder = tmp_path / "port"
    folder.mkdir()
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"encoder_attention_heads": 4}))
    assert_golden_logits(converted("huggingface_deltalm", folder), golden_state)


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_an_encoder_of_hugging_faces(prefix, save_hugging_face_encoder, converted):
    golden = dict(np.load(GOLDEN / "xlmr_tiny_hf.npz"))
    unused = {"pooler.dense.weight": np.ones((32, 32), np.float32), "embeddings.position_ids": np.arange(34)[None]}
    folder = save_hugging_face_encoder(unused, prefix)
    model = deltalm_jax.load_model(converted("xlm_roberta", folder))
    assert model.config.num_decoder_layers == 2
    for case in ("pad", "nopad"):
        tokens = golden[f"{case}/input_ids"]
        found = np.asarray(model.encode(from_fairseq_ids(tokens)))
        np.testing.assert_allclose(found[tokens != 1], golden[f"{case}/hidden_4"][tokens != 1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("prefix", "norm"), [("decoder", "emb_layer_norm"), ("encoder", "layernorm_embedding")])
def test_an_encoder_of_fairseqs_and_the_model_that_starts_from_it(golden_encoder, save, converted, joint, prefix, norm):
    state = state_of(golden_encoder, "xlmr/decoder.sentence_encoder.")
    if joint:  # as in XLM-R's first files: query, key and value in one matrix
        for kind in ("weight", "bias"):
            for layer in range(4):
                name = f"layers.{layer}.self_attn"
                parts = [state.pop(f"{name}.{p}_proj.{kind}") for p in "qkv"]
                state[f"{name}.in_proj_{kind}"] = np.concatenate(parts)
    state = {f"{prefix}.sentence_encoder.{name.replace('emb_layer_norm', norm)}": v for name, v in state.items()}
    state |= {f"{prefix}.lm_head.dense.weight": np.ones((32, 32), np.float32), f"{prefix}.lm_head.bias": np.ones(128)}
    path = converted("xlm_roberta", save(state, "model"), num_heads=4, vocab_size=128)
    assert_golden_logits(path, golden_encoder)
