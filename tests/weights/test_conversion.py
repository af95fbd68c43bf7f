"""The conversion as a whole: round trips, rows and vocabularies, bad input, and the command."""

from __future__ import annotations

import dataclasses
import json
import lzma
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import deltalm_jax
from deltalm_jax.conversion import convert
from deltalm_jax.conversion_request import Request
from deltalm_jax.convert import main
from deltalm_jax.data.vocabulary import Vocabulary, from_fairseq_ids
from deltalm_jax.data.vocabulary_extension import extend
from deltalm_jax.errors import UserError
from deltalm_jax.model.config import PRESETS
from deltalm_jax.model.deltalm import layer_states
from deltalm_jax.model.warm_start import INITIALIZATIONS
from deltalm_jax.saved_model import open_model
from deltalm_jax.weights.model_folder import write_model
from deltalm_jax.weights.names import official
from deltalm_jax.weights.state_dict import abstract_params, flatten, tensors_of
from deltalm_jax.weights.torch_file import read_torch_file
from tests.support.runs import environment
from tests.support.small_models import SMALL, random_params, write_native
from tests.support.toy_data import SAMPLE_VOCABULARY


def arrays_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("through", ["deltalm", "huggingface_deltalm"])
@pytest.mark.parametrize("change", [{}, {"embedding_layer_norm": False}, {"norm_placement": "pre"}])
def test_there_and_back_is_bit_equal(through, change, tmp_path, converted):
    config = dataclasses.replace(SMALL, **change)
    start = write_native(tmp_path / "start", config)
    there = converted("native", start, "there", target=through)
    back = converted(through, there, "back", num_heads=3)
    assert open_model(back).config == config
    before, after = arrays_of(start), arrays_of(back)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)


@pytest.mark.parametrize(("preset", "tensors"), [("base", 392), ("large", 772)])
def test_the_number_of_tensors_is_that_of_the_released_files(preset, tensors, tmp_path, converted):
    config = dataclasses.replace(
        PRESETS[preset], vocab_size=16, hidden_size=4, feed_forward_size=4, num_heads=2, max_length=4
    )
    start = tmp_path / "start"
    start.mkdir()
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract_params(config))
    write_model(start, config, params, None, {})
    content = read_torch_file(converted("native", start, "official.pt", target="deltalm"))
    assert list(content) == ["weights"]
    assert len(content["weights"]) == tensors


def test_tensors_are_transposed_and_rows_permuted():
    params = random_params(SMALL)
    tensors = dict(tensors_of(params, official("ffn_1_is_bottom")))
    kernel = params["decoder"]["layers"]["bottom_feed_forward"]["input"]["kernel"][1]
    np.testing.assert_array_equal(tensors["decoder.layers.1.ffn_1.fc1.weight"], kernel.T)
    table = tensors["src_embedding.embed_tokens.weight"]
    np.testing.assert_array_equal(table[1], params["token_embedding"][0])  # padding
    np.testing.assert_array_equal(table[2], params["token_embedding"][3])  # </s>
    np.testing.assert_array_equal(table[4:], params["token_embedding"][4:])


# Rows and vocabularies


@pytest.fixture(scope="module")
def encoder_of_the_sample(tmp_path_factory) -> pathlib.Path:
    """An encoder with the sample's vocabulary: a folder of Hugging Face's, its table padded by 5 rows after <mask>."""
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY)
    rows = vocabulary.mask_id + 1 + 5
    config = dataclasses.replace(SMALL, vocab_size=rows, max_length=32, hidden_size=8, feed_forward_size=8, num_heads=2)
    tensors = {}
    for path, leaf in flatten(random_params(config)).items():
        if path == "token_embedding":
            tensors["embeddings.word_embeddings.weight"] = leaf
        elif path.startswith("encoder/position"):
            tensors["embeddings.position_embeddings.weight"] = leaf
        elif path.startswith("encoder/embedding"):
            tensors[f"embeddings.LayerNorm.{'bias' if 'bias' in path else 'weight'}"] = leaf
        elif path.startswith("encoder/layers"):
            for layer, values in enumerate(leaf):
                name = {
                    "self_attention/query": "attention.self.query",
                    "self_attention/key": "attention.self.key",
                    "self_attention/value": "attention.self.value",
                    "self_attention/output": "attention.output.dense",
                    "self_attention_layer_norm": "attention.output.LayerNorm",
                    "feed_forward/input": "intermediate.dense",
                    "feed_forward/output": "output.dense",
                    "feed_forward_layer_norm": "output.LayerNorm",
                }[path.split("/", 2)[2].rsplit("/", 1)[0]]
                kind = "bias" if path.endswith("bias") else "weight"
                tensors[f"encoder.layer.{layer}.{name}.{kind}"] = np.ascontiguousarray(values.T)
    folder = tmp_path_factory.mktemp("encoder")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    (folder / "sentencepiece.bpe.model").write_bytes(SAMPLE_VOCABULARY.read_bytes())
    return folder


def test_padding_of_an_encoders_table_is_replaced_by_sentinels(encoder_of_the_sample, tmp_path):
    model = convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / "start"))
    table, mask_id = np.asarray(model.params["token_embedding"]), model.vocabulary.mask_id
    theirs = arrays_of(encoder_of_the_sample)["embeddings.word_embeddings.weight"]
    assert len(table) == model.config.vocab_size == model.vocabulary.size
    np.testing.assert_array_equal(table[4 : mask_id + 1], theirs[4 : mask_id + 1])
    assert (table[mask_id + 1 : mask_id + 6] != theirs[mask_id + 1 :]).all()
    assert any("5 rows of padding after <mask> left out" in note for note in model.notes)
    opened = open_model(tmp_path / "start")
    assert opened.vocabulary == model.vocabulary
    assert opened.vocabulary.sentinel_start == mask_id + 1


def test_sentinels_in_the_last_rows(encoder_of_the_sample, tmp_path):
    model = convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / "b", sentinel_layout="last_rows"))
    assert model.vocabulary.sentinel_start + 100 == model.vocabulary.size == model.config.vocab_size
    assert open_model(tmp_path / "b").vocabulary == model.vocabulary


def test_numbers_of_sentinels_rows_and_layers(encoder_of_the_sample, tmp_path):
    model = convert(
        Request(
            "xlm_roberta", encoder_of_the_sample, tmp_path / "a", num_sentinels=128, num_decoder_layers=1, vocab_size=9000
        )
    )  # fmt: skip
    assert model.vocabulary.num_sentinels == 128
    assert model.config.num_decoder_layers == 1
    assert model.params["token_embedding"].shape == (9000, 8)
    assert any("encoder layers 0 to 1" in note for note in model.notes)


@pytest.mark.parametrize("initialize", INITIALIZATIONS)
def test_each_initialisation_by_name(initialize, encoder_of_the_sample, tmp_path):
    model = convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / "a", initialize=initialize))
    vanilla = initialize.startswith("vanilla")
    assert (model.config.decoder, model.config.num_decoder_layers) == (
        ("vanilla", 3) if vanilla else ("interleaved", 2)
    )
    layers = model.params["decoder"]["layers"]
    encoder = arrays_of(encoder_of_the_sample)
    theirs = [encoder[f"encoder.layer.{i}.attention.self.query.weight"] for i in range(4)]
    is_copied = {}
    for name in ("self_attention", "cross_attention"):
        ours = np.asarray(layers[name]["query"]["kernel"][0]).T
        is_copied[name] = any(np.array_equal(ours, values) for values in theirs)
    assert is_copied == {
        "self_attention": initialize != "random",
        "cross_attention": initialize not in ("random", "vanilla_random_cross_attention"),
    }
    assert open_model(tmp_path / "a").origin["initialize"] == initialize


def test_the_seed_is_of_what_is_new(encoder_of_the_sample, tmp_path):
    tables = []
    for i, seed in enumerate((3, 3, 4)):
        model = convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / f"{i}", seed=seed))
        tables.append(np.asarray(model.params["token_embedding"]))
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(tables[0][:8000], tables[2][:8000])
    assert (tables[0][-100:] != tables[2][-100:]).all()


def test_the_decoders_output_can_be_scaled(encoder_of_the_sample, tmp_path):
    request = Request("xlm_roberta", encoder_of_the_sample, tmp_path / "a", decoder_output_rms=2.0)
    scaled, kept = convert(request), convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / "b"))
    tokens = np.random.default_rng(0).integers(4, 8000, (4, 30))
    states = [layer_states(model.config, model.params, tokens, tokens) for model in (scaled, kept)]
    outputs = [np.asarray(s.hidden_BTD) for s in states]
    assert np.sqrt(np.mean(outputs[0] ** 2)) == pytest.approx(2.0, rel=0.1)
    factor = outputs[0] / outputs[1]
    np.testing.assert_allclose(factor, factor.mean(), rtol=1e-3)
    np.testing.assert_array_equal(states[0].decoder_states_NBTD[1], states[1].decoder_states_NBTD[1])


def test_a_fine_tuned_models_rows_can_be_completed(official_state, save, tmp_path):
    path = save(official_state)
    model = convert(Request("deltalm", path, tmp_path / "more", num_heads=4, vocab_size=70))
    table = np.asarray(model.params["token_embedding"])
    np.testing.assert_array_equal(table[4:61], official_state["src_embedding.embed_tokens.weight"][4:])
    assert table.shape == (70, 48)
    assert table[61:].all()
    fewer = convert(Request("deltalm", path, tmp_path / "fewer", num_heads=4, vocab_size=60))
    assert fewer.params["token_embedding"].shape == (60, 48)
    assert any("1 token rows left out" in note for note in fewer.notes)


def test_a_vocabulary_that_is_not_the_models_is_refused(encoder_of_the_sample, official_state, save, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    tensors = arrays_of(encoder_of_the_sample)
    for rows in (4000, 20_000):
        tensors["embeddings.word_embeddings.weight"] = np.ones((rows, 8), np.float32)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        with pytest.raises(
            UserError, match=rf"model\.safetensors: the token table has {rows:,} rows, but .* do not belong"
        ):
            convert(Request("xlm_roberta", folder, tmp_path / "out", num_heads=2, vocabulary=SAMPLE_VOCABULARY))
    with pytest.raises(UserError, match="the token table has 61 rows, but the vocabulary vocabulary.model"):
        convert(Request("deltalm", save(official_state), tmp_path / "out", num_heads=4, vocabulary=SAMPLE_VOCABULARY))
    assert not (tmp_path / "out").exists()


# A vocabulary with more pieces


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> pathlib.Path:
    """The sample's vocabulary with pieces appended: words, one of which is new to it letter by letter, and a symbol."""
    with lzma.open(SAMPLE_VOCABULARY.parent / "cc100" / "yo.txt.xz", "rt", encoding="utf-8") as lines:
        texts = [f"{line.strip()} ߊߋߌ" for line in lines if line.strip()]
    path = tmp_path_factory.mktemp("extended") / "extended.model"
    model = SAMPLE_VOCABULARY.read_bytes()
    path.write_bytes(extend(model, texts, 40, user_symbols=("<note>",), character_coverage=1.0, num_threads=1).model)
    return path


def test_an_extended_vocabulary_takes_the_model_along(encoder_of_the_sample, extended, tmp_path):
    start = convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / "start"))
    longer = convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / "longer", vocabulary=extended))
    later = convert(Request("native", tmp_path / "start", tmp_path / "later", vocabulary=extended))
    old, new = start.vocabulary, longer.vocabulary
    before = np.asarray(start.params["token_embedding"])
    first = old.num_pieces + 1
    pieces = [piece for piece, _ in new.pieces()[old.num_pieces :]]
    assert len(pieces) > 20
    for model in (longer, later):
        table = np.asarray(model.params["token_embedding"])
        assert len(table) == model.config.vocab_size == model.vocabulary.size == new.size > old.size
        np.testing.assert_array_equal(table[:first], before[:first])
        np.testing.assert_array_equal(table[new.mask_id], before[old.mask_id])
        assert np.isfinite(table).all()
        for row, piece in enumerate(pieces, start=first):
            # The old pieces that spell it, found by encoding it within a word or as one.
            ids = old.encode(piece.replace("▁", "")) if piece[0] == "▁" else old.encode("x" + piece)
            if "▁" not in piece[1:] and (piece[0] == "▁" or ids[0] == old.encode("x")[0]):
                parts = ids if piece[0] == "▁" else ids[len(old.encode("x")) :]
                np.testing.assert_allclose(table[row], before[parts].mean(axis=0), rtol=1e-5, atol=1e-6)
        assert any(f"{len(pieces)} new pieces start as the mean" in note for note in model.notes)
    sentinels = slice(new.sentinel_start, new.sentinel_start + 100)
    np.testing.assert_array_equal(
        np.asarray(later.params["token_embedding"])[sentinels], before[old.sentinel_start : old.sentinel_start + 100]
    )

    # Text of old pieces, a sentinel and <mask> in it: the same model, with the same logits for what it knew.
    text = np.array(old.encode("Everyone has the right to education"))[None]
    models = [deltalm_jax.load_model(tmp_path / name) for name in ("start", "later")]
    logits = []
    for model in models:
        v = model.vocabulary
        tokens = np.concatenate([[[2]], text, [[v.mask_id, v.sentinel_start, v.sentinel_start + 7, 3]]], axis=1)
        decoder = np.array([[3, v.sentinel_start, *text[0, :3].tolist(), v.sentinel_start + 1]])
        logits.append(np.asarray(model.logits(tokens, decoder)))
    known = np.r_[1:first, new.mask_id, sentinels]
    was = np.r_[1:first, old.mask_id, old.sentinel_start : old.sentinel_start + 100]
    np.testing.assert_allclose(logits[1][..., known], logits[0][..., was], rtol=1e-4, atol=1e-5)
    assert np.ptp(logits[0]) > 1


def test_an_extension_beside_a_fine_tuned_models_table(encoder_of_the_sample, extended, tmp_path):
    """Tables without <mask> and sentinels get none, unless asked for; and the number of sentinels is the old one's."""
    short = Vocabulary.load(SAMPLE_VOCABULARY).mask_id
    convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / "start", num_sentinels=30))
    model = convert(Request("native", tmp_path / "start", tmp_path / "out", vocabulary=extended))
    assert model.vocabulary.num_sentinels == 30
    cut = convert(Request("native", tmp_path / "start", tmp_path / "cut", vocab_size=short))
    assert cut.config.vocab_size == short
    longer = convert(Request("native", tmp_path / "cut", tmp_path / "longer", vocabulary=extended))
    assert longer.config.vocab_size == longer.vocabulary.mask_id
    rows = longer.config.vocab_size
    np.testing.assert_array_equal(longer.params["token_embedding"], model.params["token_embedding"][:rows])


# Bad input: one message with file and tensor, and no output


def _without(state, *names):
    return {key: value for key, value in state.items() if not key.startswith(names)}


def _second_table(state):
    table = state["src_embedding.embed_tokens.weight"].copy()
    table[9, 0] += 1
    return state | {"tgt_embedding.embed_tokens.weight": table}


DAMAGES = {
    "missing tensor": (
        lambda state: _without(state, "decoder.layers.1.ffn_2.fc1.bias"),
        "there is no tensor 'decoder.layers.1.ffn_2.fc1.bias' among its 199",
    ),
    "missing layer": (
        lambda state: _without(state, "encoder.layers.2."),
        "there is no tensor 'encoder.layers.2.",
    ),
    "no model": (
        lambda state: {"a": np.ones(3, np.float32)},
        "there is no tensor 'encoder.embed_tokens.weight' among its 1",
    ),
    "extra tensor": (
        lambda state: state | {"decoder.adapter.weight": np.ones(3, np.float32)},
        "no place for 'decoder.adapter.weight'",
    ),
    "wrong shape": (
        lambda state: state | {"encoder.layers.3.ffn.fc1.weight": np.ones((48, 80), np.float32)},
        r"tensor 'encoder.layers.3.ffn.fc1.weight' has the shape \(48, 80\), expected \(80, 48\)",
    ),
    "NaN": (
        lambda state: state | {"tgt_embedding.embed_positions.weight": np.full((22, 48), np.nan, np.float32)},
        "tensor 'tgt_embedding.embed_positions.weight' is not finite: 1,056 NaN, 0 infinite of 1,056 values",
    ),
    "integers": (
        lambda state: state | {"encoder.layers.0.self_attn.q_proj.bias": np.ones(48, np.int64)},
        "tensor 'encoder.layers.0.self_attn.q_proj.bias' holds int64",
    ),
    "two tables": (
        _second_table,
        "'tgt_embedding.embed_tokens.weight' should be a copy of 'src_embedding.embed_tokens.weight'.* row 9",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused(damage, official_state, save, tmp_path):
    change, message = DAMAGES[damage]
    path = save(change(official_state))
    with pytest.raises(UserError, match=rf"model\.pt: .*{message}"):
        convert(Request("deltalm", path, tmp_path / "out", num_heads=4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]


def test_the_number_of_heads_must_be_said_where_no_published_model_tells(official_state, save, tmp_path):
    path = save(official_state)
    with pytest.raises(UserError, match=r"no published model of width 48: give --num_heads"):
        convert(Request("deltalm", path, tmp_path / "out"))
    with pytest.raises(UserError, match=r"num_heads must divide hidden_size"):
        convert(Request("deltalm", path, tmp_path / "out", num_heads=5))


def test_a_vanilla_decoder_has_a_place_in_one_format_only(encoder_of_the_sample, tmp_path):
    convert(Request("xlm_roberta", encoder_of_the_sample, tmp_path / "v", initialize="vanilla_copied_cross_attention"))
    with pytest.raises(UserError, match="no place for a vanilla one"):
        convert(Request("native", tmp_path / "v", tmp_path / "out", target="deltalm"))
    assert not (tmp_path / "out").exists()
    convert(Request("native", tmp_path / "v", tmp_path / "there", target="huggingface_deltalm"))
    convert(Request("huggingface_deltalm", tmp_path / "there", tmp_path / "back"))
    assert open_model(tmp_path / "back").config == open_model(tmp_path / "v").config
    before, after = arrays_of(tmp_path / "v"), arrays_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "native", "sentinel_layout": "last_rows"}, "--sentinel_layout does not apply to --from=native"),
        ({"source": "native", "num_heads": 4}, "--num_heads does not apply"),
        ({"source": "deltalm", "initialize": "random"}, "--initialize does not apply to --from=deltalm --to=native"),
        ({"source": "xlm_roberta", "ffn_order": "ffn_1_is_top"}, "--ffn_order does not apply"),
        ({"source": "xlm_roberta", "num_decoder_layers": 0}, "--num_decoder_layers must be at least 1, found 0"),
        ({"source": "deltalm", "vocab_size": -5}, "--vocab_size must be at least 4, found -5"),
        ({"source": "xlm_roberta", "decoder_output_rms": 0.0}, "--decoder_output_rms must be above 0"),
        ({"source": "xlm_roberta", "seed": -1}, "--seed must not be negative"),
    ],
)
def test_an_option_that_would_be_ignored_or_is_out_of_range_is_refused(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Request(input=tmp_path, output=tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "bert"),
        ("hidden_act", "relu"),
        ("type_vocab_size", 2),
        ("pad_token_id", 0),
        ("layer_norm_eps", 1e-3),
    ],
)
def test_another_model_with_tensors_of_the_same_names_is_refused(field, value, save_hugging_face_encoder, tmp_path):
    folder = save_hugging_face_encoder()
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4, field: value}))
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(UserError, match=f"config.json says {field}="):
            convert(Request("xlm_roberta", path, tmp_path / "out"))


def test_more_than_one_token_type_is_refused(save_hugging_face_encoder, tmp_path):
    folder = save_hugging_face_encoder({"embeddings.token_type_embeddings.weight": np.ones((2, 32), np.float32)})
    with pytest.raises(UserError, match=r"token_type_embeddings.weight' has the shape \(2, 32\), expected \(1, 32\)"):
        convert(Request("xlm_roberta", folder, tmp_path / "out"))


def test_layout_and_dropout_survive_hugging_face(encoder_of_the_sample, tmp_path):
    start = convert(
        Request("xlm_roberta", encoder_of_the_sample, tmp_path / "a", sentinel_layout="last_rows", num_sentinels=110)
    )
    (tmp_path / "b").mkdir()
    config = dataclasses.replace(start.config, dropout_rate=0.0, activation_dropout_rate=0.25)
    write_model(tmp_path / "b", config, start.params, start.vocabulary, {})
    convert(Request("native", tmp_path / "b", tmp_path / "there", target="huggingface_deltalm"))
    back = convert(Request("huggingface_deltalm", tmp_path / "there", tmp_path / "back"))
    assert back.config == config
    assert back.vocabulary == start.vocabulary


def test_a_description_that_is_none_gives_one_line(official_state, save, converted):
    folder = converted("deltalm", save(official_state), num_heads=4)
    whole = json.loads((folder / "model.json").read_text())
    for change, message in (
        ({"vocabulary": "x"}, "cannot be read as a model's description"),
        ({"vocabulary": {"a": 1}}, "cannot be loaded as described"),
        ({"arrays": []}, "cannot be read as a model's description"),
        ({"origin": 3}, "cannot be read as a model's description"),
        ({"format": 2}, "has the format 2; this version reads format 1"),
        ({"model": {"vocab_size": "a"}}, "cannot be read as a model's description"),
    ):
        (folder / "model.json").write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=message):
            open_model(folder)


def test_an_output_that_is_there_is_kept(official_state, save, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError, match=r"out: exists already"):
        convert(Request("deltalm", save(official_state), tmp_path / "out", num_heads=4))
    assert (tmp_path / "out").read_text() == "precious"


def test_a_model_folder_that_was_changed_is_refused(official_state, save, tmp_path, converted):
    folder = converted("deltalm", save(official_state), num_heads=4)
    arrays = folder / "model.safetensors"
    content = bytearray(arrays.read_bytes())
    content[-1] ^= 1
    arrays.write_bytes(content)
    with pytest.raises(
        UserError, match=r"model\.safetensors: is missing or not what model\.json beside it vouches for"
    ):
        deltalm_jax.load_model(folder)
    (folder / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.json: cannot be read as a model's description"):
        deltalm_jax.load_model(folder)
    with pytest.raises(UserError, match="neither a model of .* nor a run"):
        deltalm_jax.load_model(tmp_path)
    with pytest.raises(UserError, match=r"model\.json: is a file, where a folder is expected .*: name a model of"):
        deltalm_jax.load_model(folder / "model.json")


def test_the_command_prints_what_it_did_and_imports_no_torch(official_state, save, tmp_path):
    program = (
        "import sys; from deltalm_jax.convert import main; code = main(sys.argv[1:]); "
        "sys.exit(code or ('torch imported' if 'torch' in sys.modules or 'tensorflow' in sys.modules else 0))"
    )
    flags = ["--from=deltalm", f"--input={save(official_state)}", f"--output={tmp_path / 'out'}", "--num_heads=4"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6-3 layers × 48, 4 heads, 61 token rows, interleaved decoder" in done.stdout
    assert "the vocabulary is not recorded" in done.stdout
    assert main([*flags[:2], f"--output={tmp_path / 'out'}"]) == 2


def test_a_file_cut_short_gives_one_line(official_state, save, tmp_path, capsys):
    path = save(official_state)
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["--from=deltalm", f"--input={path}", f"--output={tmp_path / 'out'}", "--num_heads=4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


class Bomb:
    """What unpickling would run."""

    def __init__(self, canary: pathlib.Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_a_checkpoint_that_would_run_something_gives_one_line(tmp_path, capsys):
    path, canary = tmp_path / "bomb.pt", tmp_path / "canary"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weights": Bomb(canary)}, protocol=2))
    assert main(["--from=deltalm", f"--input={path}", f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert f"{path}" in error
    assert "nothing was executed" in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bomb.pt"]


def test_ids_of_a_loaded_model_are_ours(official_state, save, converted):
    model = deltalm_jax.load_model(converted("deltalm", save(official_state), num_heads=4))
    padded = model.encode(from_fairseq_ids(np.array([[0, 9, 2, 1, 1]])))
    alone = model.encode(from_fairseq_ids(np.array([[0, 9, 2]])))
    np.testing.assert_allclose(padded[:, :3], alone, rtol=0, atol=1e-5)
