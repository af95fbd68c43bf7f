"""An encoder alone: read with its head for masked language modelling, handed on as an XLM-R, and started from."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
import safetensors.numpy

import deltalm_jax
from deltalm_jax import evaluate, generate
from deltalm_jax.conversion import convert
from deltalm_jax.conversion_request import ConversionError, Request
from deltalm_jax.convert import main
from deltalm_jax.data.vocabulary import UNK_ID, Vocabulary, from_fairseq_ids, to_fairseq_ids
from deltalm_jax.data.vocabulary_extension import extend
from deltalm_jax.decoding import generate as decode
from deltalm_jax.errors import UserError
from deltalm_jax.saved_model import SavedModelError, open_model
from deltalm_jax.weights.state_dict import abstract_params
from tests.support import xlm_roberta_model
from tests.support.small_models import SMALL, write_native
from tests.support.toy_data import SAMPLE_VOCABULARY

ROWS = 61
TOKENS = np.array([[0, 5, 17, 60, 8, 2], [0, 33, 2, 1, 1, 1]])
ENCODER = dataclasses.replace(SMALL, num_decoder_layers=0, sentence_layer=2)


@pytest.fixture(scope="session")
def state() -> xlm_roberta_model.State:
    return xlm_roberta_model.random_state(4, 48, 80, ROWS, 20)


@pytest.fixture
def save_state(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Writes tensors as a folder of Hugging Face's."""

    def write(tensors: xlm_roberta_model.State) -> pathlib.Path:
        (tmp_path / "theirs").mkdir()
        safetensors.numpy.save_file(tensors, tmp_path / "theirs" / "model.safetensors")
        (tmp_path / "theirs" / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
        return tmp_path / "theirs"

    return write


@pytest.fixture(scope="module")
def with_vocabulary(tmp_path_factory) -> pathlib.Path:
    """A native folder of an encoder alone, with the sample's vocabulary."""
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY)
    config = dataclasses.replace(ENCODER, vocab_size=vocabulary.size, hidden_size=12)
    return write_native(tmp_path_factory.mktemp("encoder"), config, vocabulary)


def params_of(folder: pathlib.Path):
    saved = open_model(folder)
    return saved.read(abstract_params(saved.config))


def assert_like_the_oracle(folder: pathlib.Path, state: xlm_roberta_model.State) -> None:
    found = np.asarray(deltalm_jax.load_model(folder).masked_logits(from_fairseq_ids(TOKENS)))
    assert found.dtype == np.float32
    expected = xlm_roberta_model.logits(state, 4, TOKENS)[..., to_fairseq_ids(np.arange(ROWS))]
    real = TOKENS != 1
    np.testing.assert_allclose(found[real][:, :ROWS], expected[real], rtol=0, atol=2e-5)
    assert np.abs(expected).max() > 1


# In


@pytest.mark.parametrize(
    "bias", [("lm_head.bias",), ("lm_head.decoder.bias",), ("lm_head.bias", "lm_head.decoder.bias")]
)
def test_a_head_beside_a_forward_pass_in_numpy(bias, state, save_state, converted):
    tensors = {name: values for name, values in state.items() if name != "lm_head.bias"}
    tensors |= {name: state["lm_head.bias"].copy() for name in bias}
    tensors["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"].copy()
    folder = converted("xlm_roberta", save_state(tensors), architecture="encoder", sentence_layer=3)
    saved = open_model(folder)
    assert (saved.config.num_decoder_layers, saved.config.sentence_layer) == (0, 3)
    assert saved.config.vocab_size == 168  # <mask> taken for the last of 61 rows, 100 sentinels, filler
    assert saved.origin["architecture"] == "encoder"
    assert_like_the_oracle(folder, state)
    head = params_of(folder)["lm_head"]
    assert not head["bias"][ROWS:].any()
    assert head["bias"][:ROWS].all()


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_a_head_of_fairseqs(side, state, save, converted):
    names = {
        "roberta.embeddings.word_embeddings": "sentence_encoder.embed_tokens",
        "roberta.embeddings.position_embeddings": "sentence_encoder.embed_positions",
        "roberta.embeddings.LayerNorm": "sentence_encoder.emb_layer_norm",
        "roberta.encoder.layer": "sentence_encoder.layers",
        "attention.self.query": "self_attn.q_proj",
        "attention.self.key": "self_attn.k_proj",
        "attention.self.value": "self_attn.v_proj",
        "attention.output.dense": "self_attn.out_proj",
        "attention.output.LayerNorm": "self_attn_layer_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
        "output.LayerNorm": "final_layer_norm",
    }
    theirs = {}
    for name, values in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        theirs[f"{side}.{name}"] = values
    position = f"{side}.sentence_encoder.embed_positions.weight"
    theirs[position] = theirs[position] + theirs.pop(f"{side}.roberta.embeddings.token_type_embeddings.weight")
    theirs[f"{side}.lm_head.weight"] = state["roberta.embeddings.word_embeddings.weight"]
    folder = converted("xlm_roberta", save(theirs, "model"), architecture="encoder", num_heads=4)
    assert_like_the_oracle(folder, state)


def test_what_a_file_lacks_is_drawn_and_said(state, save_state, tmp_path):
    folder = save_state({name: values for name, values in state.items() if not name.startswith("lm_head")})
    request = Request("xlm_roberta", folder, tmp_path / "a", architecture="encoder", sentence_layer=2)
    model = convert(request)
    assert any("no head for masked language modelling" in note for note in model.notes)
    assert any("after layer 2" in note for note in model.notes)
    drawn = params_of(tmp_path / "a")
    assert drawn["lm_head"]["dense"]["kernel"].std() > 0.01
    assert 0.015 < drawn["sentence_projection"]["kernel"].std() < 0.025
    convert(dataclasses.replace(request, output=tmp_path / "b", seed=1))
    other = params_of(tmp_path / "b")
    for path in (("lm_head", "dense"), ("sentence_projection",)):
        a, b = drawn, other
        for name in path:
            a, b = a[name], b[name]
        assert (a["kernel"] != b["kernel"]).all()
    jax.tree.map(np.testing.assert_array_equal, drawn["encoder"], other["encoder"])


def test_a_head_in_parts_or_with_another_table_is_refused(state, save_state, tmp_path):
    table = state["roberta.embeddings.word_embeddings.weight"].copy()
    table[9, 0] += 1
    bias = state["lm_head.bias"].copy()
    bias[7] += 1
    folder = save_state(state)
    for changes, message in (
        ({"lm_head.layer_norm.bias": None}, "there is no tensor 'lm_head.layer_norm.bias'"),
        ({"lm_head.bias": None}, "there is no tensor 'lm_head.bias'"),
        ({"lm_head.decoder.weight": table}, r"'lm_head.decoder.weight' should be a copy of .* row 9"),
        ({"lm_head.decoder.bias": bias}, r"'lm_head.decoder.bias' should be a copy of 'lm_head.bias'.* row 7"),
    ):
        tensors = {name: values for name, values in (state | changes).items() if values is not None}
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        with pytest.raises(UserError, match=message):
            convert(Request("xlm_roberta", folder, tmp_path / "out", architecture="encoder"))
    assert not (tmp_path / "out").exists()


# Out


def test_there_and_back_is_bit_equal(tmp_path, converted):
    start = write_native(tmp_path / "start", ENCODER)
    there = converted("native", start, "there", target="xlm_roberta")
    tensors = safetensors.numpy.load_file(there / "model.safetensors")
    assert len(tensors) == 5 + 16 * 4 + 5
    assert "lm_head.decoder.weight" not in tensors
    back = converted("xlm_roberta", there, "back", architecture="encoder", sentence_layer=2, vocab_size=50)
    assert open_model(back).config == ENCODER
    before, after = params_of(start), params_of(back)
    before.pop("sentence_projection")
    after.pop("sentence_projection")
    jax.tree.map(np.testing.assert_array_equal, after, before)
    told = json.loads((there / "config.json").read_text())
    assert (told["max_position_embeddings"], told["vocab_size"], told["pad_token_id"]) == (22, 50, 1)


def test_the_table_ends_with_mask_where_the_vocabulary_is_known(with_vocabulary, tmp_path, converted):
    model = convert(Request("native", with_vocabulary, tmp_path / "there", target="xlm_roberta"))
    mask_id, size = model.vocabulary.mask_id, model.vocabulary.size
    assert model.config.vocab_size == mask_id + 1
    assert any(f"{size - mask_id - 1} token rows after <mask> left out" in note for note in model.notes)
    assert any("projection of sentences" in note for note in model.notes)
    tensors = safetensors.numpy.load_file(tmp_path / "there" / "model.safetensors")
    ours = params_of(with_vocabulary)
    for name, leaf in (("roberta.embeddings.word_embeddings.weight", ours["token_embedding"]),
                       ("lm_head.bias", ours["lm_head"]["bias"])):  # fmt: skip
        assert len(tensors[name]) == mask_id + 1
        np.testing.assert_array_equal(tensors[name][4:], leaf[4 : mask_id + 1])
        np.testing.assert_array_equal(tensors[name][:4], leaf[[2, 0, 3, 1]])  # <s> <pad> </s> <unk>
    assert (tmp_path / "there" / "sentencepiece.bpe.model").read_bytes() == SAMPLE_VOCABULARY.read_bytes()

    back = converted("xlm_roberta", tmp_path / "there", "back", architecture="encoder", sentence_layer=2)
    assert open_model(back).config == open_model(with_vocabulary).config
    after = params_of(back)
    for params in (ours, after):
        params["token_embedding"] = params["token_embedding"][: mask_id + 1]
        params["lm_head"]["bias"] = params["lm_head"]["bias"][: mask_id + 1]
        params.pop("sentence_projection")
    jax.tree.map(np.testing.assert_array_equal, after, ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_decoder_layers": 2, "sentence_layer": 0}, r"no place for a decoder \(num_decoder_layers=2\)"),
        ({"norm_placement": "pre"}, "no place for norm_placement='pre'"),
        ({"embedding_layer_norm": False}, "no place for embeddings without a LayerNorm"),
    ],
)
def test_another_model_is_not_written_as_an_xlm_roberta(change, message, tmp_path):
    start = write_native(tmp_path / "start", dataclasses.replace(ENCODER, **change))
    with pytest.raises(ConversionError, match=message):
        convert(Request("native", start, tmp_path / "out", target="xlm_roberta"))
    assert not (tmp_path / "out").exists()


# From an encoder of ours to a DeltaLM


def test_a_deltalm_from_our_encoder_is_the_one_from_theirs(state, save_state, tmp_path, converted):
    theirs = save_state(state)
    encoder = converted("xlm_roberta", theirs, "encoder", architecture="encoder", seed=5)
    for initialize in ("interleaved", "vanilla_copied_cross_attention"):
        options = {"initialize": initialize, "decoder_output_rms": 0.7}
        expected = converted("xlm_roberta", theirs, f"theirs_{initialize}", seed=5, **options)
        found = converted("native", encoder, f"ours_{initialize}", seed=5, architecture="encoder_decoder", **options)
        assert open_model(found).config == open_model(expected).config
        jax.tree.map(np.testing.assert_array_equal, params_of(found), params_of(expected))
    assert open_model(found).origin["architecture"] == "encoder"
    with pytest.raises(ConversionError, match="--architecture does not apply to .* this is a DeltaLM"):
        converted("native", found, "again", architecture="encoder_decoder")


def test_an_extended_vocabulary_takes_the_head_along(with_vocabulary, tmp_path):
    path = tmp_path / "extended.model"
    texts, symbols = ["ߊߋߌ kọ́ ẹ̀kọ́ ẹgbẹ́ ọmọ"] * 50, ("<note>",)
    model = extend(
        SAMPLE_VOCABULARY.read_bytes(), texts, 12, user_symbols=symbols, character_coverage=1.0, num_threads=1
    )
    path.write_bytes(model.model)
    model = convert(Request("native", with_vocabulary, tmp_path / "longer", vocabulary=path))
    old, new = Vocabulary.load(SAMPLE_VOCABULARY), model.vocabulary
    assert new.num_pieces > old.num_pieces
    before, after = params_of(with_vocabulary)["lm_head"]["bias"], params_of(tmp_path / "longer")["lm_head"]["bias"]
    assert len(after) == new.size == model.config.vocab_size
    first = old.num_pieces + 1
    np.testing.assert_array_equal(after[:first], before[:first])
    assert after[new.mask_id] == before[old.mask_id]
    sentinels = [slice(v.sentinel_start, v.sentinel_start + 100) for v in (new, old)]
    np.testing.assert_array_equal(after[sentinels[0]], before[sentinels[1]])
    assert not after[sentinels[0].stop :].any()
    spelt = 0
    for row, (piece, _) in enumerate(new.pieces()[old.num_pieces :], start=first):
        ids = [i for i in old.encode(piece.replace("▁", "")) if i != UNK_ID]
        if piece[0] == "▁" and ids and "▁" not in piece[1:]:
            np.testing.assert_allclose(after[row], before[ids].mean(), rtol=1e-5)
            spelt += 1
    assert spelt


def test_sentences_of_an_encoder_of_ours_by_another_layer(tmp_path, converted):
    """The projection is drawn where there was none, and kept where there was one; all else stays."""
    start = write_native(tmp_path / "start", dataclasses.replace(ENCODER, sentence_layer=0))
    first = converted("native", start, "first", architecture="encoder", sentence_layer=2)
    second = converted("native", first, "second", architecture="encoder", sentence_layer=3, seed=1)
    assert [open_model(folder).config.sentence_layer for folder in (start, first, second)] == [0, 2, 3]
    before, after = params_of(start), params_of(second)
    assert "sentence_projection" not in before
    jax.tree.map(np.testing.assert_array_equal, after, before | {"sentence_projection": after["sentence_projection"]})
    np.testing.assert_array_equal(
        after["sentence_projection"]["kernel"], params_of(first)["sentence_projection"]["kernel"]
    )
    with pytest.raises(UserError, match="start: ModelConfig.sentence_layer is a layer of an encoder"):
        converted("native", start, "out", architecture="encoder", sentence_layer=5)


# What an encoder alone does, and does not


def test_a_loaded_encoder(tmp_path):
    model = deltalm_jax.load_model(write_native(tmp_path / "encoder", ENCODER))
    tokens = np.array([[2, 9, 17, 3, 0, 0]])
    assert model.encode(tokens).shape == (1, 6, 24)
    padded, alone = model.masked_logits(tokens), model.masked_logits(tokens[:, :4])
    np.testing.assert_allclose(padded[:, :4], alone, rtol=0, atol=1e-5)
    with pytest.raises(SavedModelError, match="an encoder alone, without a decoder: ask for masked_logits"):
        model.logits(tokens, tokens)
    with pytest.raises(ValueError, match="an encoder alone"):
        decode(model, [[2, 9, 3]])
    config = dataclasses.replace(ENCODER, num_decoder_layers=1, sentence_layer=0)
    deltalm = deltalm_jax.load_model(write_native(tmp_path / "deltalm", config))
    with pytest.raises(SavedModelError, match="no head for masked language modelling"):
        deltalm.masked_logits(tokens)


def test_commands_that_write_text_refuse_it_in_one_line(with_vocabulary, tmp_path, capsys):
    source = tmp_path / "source"
    source.write_text("a\n")
    for command, flags in (
        (generate, [f"--input={source}", f"--output={tmp_path / 'out'}"]),
        (evaluate, [f"--source={source}", f"--reference={source}", f"--output={tmp_path / 'out'}"]),
    ):
        assert command.main([f"--checkpoint={with_vocabulary}", *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {with_vocabulary}")
        assert "an encoder alone" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_made(with_vocabulary, tmp_path, capsys):
    flags = ["--from=native", f"--input={with_vocabulary}", "--to=xlm_roberta", f"--output={tmp_path / 'out'}"]
    assert main(flags) == 0
    assert "4 layers × 12, 3 heads, 8,002 token rows, an encoder alone" in capsys.readouterr().out
    flags[2:] = ["--to=huggingface_deltalm", f"--output={tmp_path / 'other'}"]
    assert main(flags) == 2
    assert "stays an encoder alone: --architecture=encoder_decoder starts a DeltaLM" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "xlm_roberta", "target": "xlm_roberta"}, "--to=xlm_roberta does not apply to --from=xlm_roberta"),
        ({"source": "deltalm", "target": "xlm_roberta"}, "--to=xlm_roberta does not apply to --from=deltalm"),
        ({"source": "deltalm", "architecture": "encoder"}, "--architecture does not apply to --from=deltalm"),
        ({"source": "xlm_roberta", "sentence_layer": 8}, "--sentence_layer does not apply .* an encoder alone"),
        (
            {"source": "xlm_roberta", "architecture": "encoder", "initialize": "random"},
            "--initialize does not apply to --from=xlm_roberta --to=native --architecture=encoder: it is of a decoder",
        ),
        ({"source": "native", "num_decoder_layers": 3}, "--num_decoder_layers does not apply .* it is of a decoder"),
        (
            {"source": "native", "target": "xlm_roberta", "architecture": "encoder_decoder"},
            "--to=xlm_roberta is an encoder",
        ),
        (
            {"source": "xlm_roberta", "architecture": "encoder", "sentence_layer": 0},
            "--sentence_layer must be at least 1",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        Request(input=tmp_path, output=tmp_path / "out", **options)
