"""What is measured of an encoder, against plain computations of one sentence, one position, one pair at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.evaluation.encoder import (
    SentenceEncoder,
    chunks_of,
    compare,
    distinct_pairs,
    masked_accuracy,
    over_all,
    retrieval,
    retrieval_accuracy,
)
from deltalm_jax.evaluation.held_out import read_held_out
from deltalm_jax.model.config import PRESETS, ModelConfig
from deltalm_jax.model.deltalm import Params, apply_encoder, init_params
from deltalm_jax.model.encoder_model import masked_states, sentence_states
from deltalm_jax.objectives.hashing import hash_keys, string_key
from deltalm_jax.objectives.masked_language_model import MaskedLanguageModel
from tasks.corpora import SAMPLE_DIR

LENGTH = 24
ENCODER = dataclasses.replace(
    PRESETS["tiny"], hidden_size=32, feed_forward_size=64, num_heads=2, num_encoder_layers=3, num_decoder_layers=0,
    sentence_layer=2, max_length=40, scan_layers=True,
)  # fmt: skip
DOCUMENT = [["Alle Menschen sind frei.", "Jeder hat das Recht auf Arbeit und auf freie Berufswahl."], ["Kurz."]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_DIR / "vocabulary.model")


@pytest.fixture(scope="module")
def params() -> Params:
    return init_params(ENCODER, jax.random.key(1))


def nearest_one_by_one(queries: Any, answers: Any, measure: Any) -> float:
    """Every pair of rows by itself, in the words of the definition."""
    right = 0.0
    for i, query in enumerate(queries):
        scores = [measure(query, answer) for answer in answers]
        best = [j for j, score in enumerate(scores) if score >= max(scores) - 1e-12]
        right += (i in best) / len(best)
    return right / len(queries)


def cosine(a: Any, b: Any) -> float:
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a)) / np.sqrt(np.dot(b, b)))


@pytest.mark.parametrize("by_cosine", [True, False])
def test_retrieval_is_what_a_search_row_by_row_finds(by_cosine: bool):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(40, 6)) * rng.uniform(0.1, 3, size=(40, 1))
    answers = queries + rng.normal(size=(40, 6))
    answers[7], queries[30] = answers[3], queries[31]  # equal rows
    measure = cosine if by_cosine else np.dot
    expected = nearest_one_by_one(queries, answers, measure), nearest_one_by_one(answers, queries, measure)
    assert 0.1 < expected[1] < 0.9
    assert expected[0] != expected[1]
    assert retrieval_accuracy(queries, answers, by_cosine) == pytest.approx(expected, abs=1e-12)


def test_known_accuracies():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(50, 8)).astype(np.float32)
    assert retrieval_accuracy(rows, rows) == (1, 1)
    order = np.arange(50)
    order[10:] = np.roll(order[10:], 1)  # ten stay where they are
    assert retrieval_accuracy(rows, rows[order]) == pytest.approx((0.2, 0.2))
    assert retrieval_accuracy(np.ones((50, 8)), np.ones((50, 8))) == pytest.approx((0.02, 0.02)), "chance"
    # By the inner product the longest answer draws all queries of its side; its own is one of them.
    answers = np.ones((50, 8)) + 0.01 * rows
    answers[4] *= 10
    assert retrieval_accuracy(np.ones((50, 8)) + 0.01 * rows, answers, cosine=False)[0] == pytest.approx(0.02)
    assert retrieval_accuracy(np.full((50, 8), np.nan), rows) == (0, 0)


def test_copies_are_left_out_on_either_side():
    pairs = [((1,), (5,)), ((1,), (6,)), ((2,), (5,)), ((2,), (6,)), ((1,), (5,)), ((5,), (1,))]
    assert distinct_pairs(pairs) == [((1,), (5,)), ((2,), (6,)), ((5,), (1,))]


def cut_off(config: ModelConfig, params: Params, layers: int) -> Callable[[jax.Array], jax.Array]:
    """The model up to a layer: what comes out of it for a sentence alone."""
    encoder = params["encoder"] | {"layers": jax.tree.map(lambda leaf: leaf[:layers], params["encoder"]["layers"])}
    config = dataclasses.replace(config, num_encoder_layers=layers, sentence_layer=0)
    kept = {name: leaf for name, leaf in params.items() if name != "sentence_projection"}
    return jax.jit(lambda tokens_BS: apply_encoder(config, kept | {"encoder": encoder}, tokens_BS))


def test_vectors_are_those_of_each_sentence_alone(params: Params):
    encoder = SentenceEncoder(ENCODER, params)
    rng = np.random.default_rng(2)
    sentences = [encoder.cut(rng.integers(4, 8000, length).tolist()) for length in (3, 3, 15, 38, 60)]
    assert [len(sentence) for sentence in sentences] == [5, 5, 17, 40, 40]
    assert {(sentence[0], sentence[-1]) for sentence in sentences} == {(2, 3)}
    found = encoder(sentences)
    assert {kind: x.shape for kind, x in found.items()} == {
        "mean": (4, 5, 32),
        "first": (4, 5, 32),
        "projected": (1, 5, 32),
    }
    layers = {layer: cut_off(ENCODER, params, layer) for layer in (1, 3)}
    project = jax.jit(partial(sentence_states, ENCODER))
    for k, sentence in enumerate(sentences):
        alone = jnp.array([sentence])
        for layer, output in layers.items():
            state_SD = output(alone)[0]
            np.testing.assert_allclose(found["mean"][layer, k], np.mean(state_SD, axis=0), atol=2e-5)
            np.testing.assert_allclose(found["first"][layer, k], state_SD[0], atol=2e-5)
        np.testing.assert_allclose(found["projected"][0, k], project(params, alone)[0], atol=2e-5)
    assert np.ptp(found["first"][0], axis=0).max() < 1e-6, "the embedding of <s> is the same in all sentences"
    assert np.ptp(found["mean"][0], axis=0).max() > 0.1


@pytest.mark.parametrize("norm_placement", ["post", "pre"])
def test_the_last_state_is_the_encoders_output_in_a_deltalm_too(norm_placement: str):
    config = dataclasses.replace(ENCODER, num_decoder_layers=1, sentence_layer=0, norm_placement=norm_placement)
    params = init_params(config, jax.random.key(0))
    sentence = (2, 17, 40, 9, 3)
    found = SentenceEncoder(config, params)([sentence])
    assert set(found) == {"mean", "first"}
    output_SD = apply_encoder(config, params, jnp.array([sentence]))[0]
    np.testing.assert_allclose(found["mean"][3, 0], np.mean(output_SD, axis=0), atol=1e-5)


def test_retrieval_does_not_depend_on_batches(params: Params, vocabulary: Vocabulary):
    rng = np.random.default_rng(3)
    words = [piece.strip("▁") for piece, _ in vocabulary.pieces()[300:2000] if piece.strip("▁").isalpha()]

    def text() -> str:
        return " ".join(rng.choice(words, rng.integers(2, 30)))

    pairs = {
        "yy": [(english := text(), f"{english} {text()}") for _ in range(14)],
        "zz": [(text(), text()) for _ in range(9)],
    }
    pairs["yy"] += pairs["yy"][:3]
    results = [
        retrieval(SentenceEncoder(ENCODER, params, batch_tokens), vocabulary, pairs) for batch_tokens in (2048, 70, 1)
    ]
    assert results[0] == results[1] == results[2]
    assert results[0]["left_out"] == {"zz": 9}
    of_yy = results[0]["languages"]["yy"]
    assert of_yy["pairs"] == 14
    assert of_yy["first"]["from_english"][0] == pytest.approx(of_yy["chance"]) == pytest.approx(1 / 14)
    assert of_yy["mean"]["to_english"][0] > 3 / 14, "half of either side is the same"
    assert results[0]["average"]["mean"] == of_yy["mean"]


def test_every_representation_is_compared_by_itself():
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(2, 20, 4))
    english = {"mean": rows, "projected": rows[:1]}
    other = {
        "mean": np.stack([rows[0], np.roll(rows[1], 1, axis=0)]),
        "projected": rows[:1] * np.arange(1, 21)[:, None],
    }
    found = compare(english, other)
    assert found["mean"]["from_english"] == [1, 0]
    assert found["projected_cosine"]["to_english"] == [1]
    assert found["projected_inner_product"]["from_english"][0] < 0.5


def test_chunks_are_those_of_pretraining(vocabulary: Vocabulary):
    chunks = chunks_of(vocabulary, DOCUMENT, LENGTH)
    text = "<s>Alle Menschen sind frei.</s>Jeder hat das Recht auf Arbeit und auf freie Berufswahl.</s><s>Kurz.</s>"
    assert vocabulary.decode(np.concatenate(chunks)).replace("> ", ">") == text
    assert {len(chunk) for chunk in chunks[:-1]} == {LENGTH}
    assert len(chunks_of(vocabulary, DOCUMENT, LENGTH, limit=1)) == 1


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_masked_accuracy_is_what_the_full_logits_say(rows: int, params: Params, vocabulary: Vocabulary):
    documents = read_held_out(None, ["de", "en"], limit=1).documents
    chunks = {"de": chunks_of(vocabulary, documents["de"], LENGTH, 40), "xx": []}
    chunks["en"] = chunks_of(vocabulary, documents["en"], LENGTH, 3) + chunks_of(vocabulary, [["Freedom"]], LENGTH)
    # Pieces by how often they occur, so that first choices are sometimes right.
    counts_V = np.bincount(np.concatenate(chunks["de"]), minlength=ENCODER.vocab_size)
    biased = params | {"lm_head": params["lm_head"] | {"bias": jnp.asarray(2 * np.log(counts_V + 0.1), jnp.float32)}}
    found = masked_accuracy(ENCODER, biased, vocabulary, chunks, LENGTH, rows)
    assert list(found) == ["de", "en"]
    table_VD, bias_V = np.asarray(biased["token_embedding"]), np.asarray(biased["lm_head"]["bias"])
    states_of = jax.jit(partial(masked_states, ENCODER))
    totals = np.zeros(3)
    for language in ("de", "en"):
        right, nll, positions = 0, 0.0, 0
        for number, chunk in enumerate(chunks[language]):
            key = np.array([hash_keys(string_key(language), number)], np.uint64)
            masked = MaskedLanguageModel(0.15).corrupt(
                chunk[None], np.array([len(chunk)]), key, 0, 0, mask_id=vocabulary.mask_id
            )
            everywhere = jnp.arange(len(chunk))[None]
            hidden_SD = np.asarray(states_of(biased, masked.inputs_BS, everywhere)[0])
            for place, target in enumerate(masked.targets_BT[0]):
                if target:
                    logits_V = (table_VD @ hidden_SD[place] + bias_V).astype(np.float64)
                    right += int(logits_V.argmax() == target)
                    nll += float(np.log(np.exp(logits_V).sum()) - logits_V[target])
                    positions += 1
        assert positions > 1
        assert found[language]["positions"] == positions
        assert found[language]["chunks"] == len(chunks[language])
        assert found[language]["accuracy"] == pytest.approx(right / positions)
        assert found[language]["loss"] == pytest.approx(nll / positions, rel=1e-4)
        totals += right, nll, positions
    assert 0 < totals[0] < totals[2]
    everything = over_all(found)
    assert everything["accuracy"] == pytest.approx(totals[0] / totals[2])
    assert everything["loss"] == pytest.approx(totals[1] / totals[2], rel=1e-4)
    assert everything["positions"] == totals[2]
