"""The probes see in weights what was put there."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from deltalm_jax.data.vocabulary import Vocabulary, to_fairseq_ids
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.warm_start import warm_start
from deltalm_jax.probe import main
from deltalm_jax.weights.names import official
from deltalm_jax.weights.probes import mask_texts, probe_feed_forwards, probe_sentinels, swap_feed_forwards
from deltalm_jax.weights.state_dict import tensors_of
from tests.support import official_model
from tests.support.small_models import random_params, write_native
from tests.support.toy_data import SAMPLE_VOCABULARY

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=24,
    feed_forward_size=36,
    num_heads=3,
    num_encoder_layers=4,
    num_decoder_layers=2,
    max_length=64,
)
TEXTS = [list(range(10, 30)), list(range(5, 15)), [4 + i % 30 for i in range(70)]]


def nll_in_numpy(params, inputs_BS, targets_BT) -> float:
    """By the official model in NumPy; padding stands on the right only."""
    state = dict(tensors_of(params, official("ffn_1_is_bottom")))
    state["tgt_embedding.embed_tokens.weight"] = state["src_embedding.embed_tokens.weight"]
    decoder = np.concatenate([np.full((len(targets_BT), 1), 3), targets_BT[:, :-1]], axis=1)
    scores = official_model.logits(state, 3, to_fairseq_ids(inputs_BS), to_fairseq_ids(decoder))
    log_probabilities = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probabilities, to_fairseq_ids(targets_BT)[:, :, None], axis=2)
    return float(-picked.mean())


def test_three_spans_are_masked_and_come_back():
    texts = mask_texts(TEXTS)
    inputs, targets = texts.with_sentinels(37)
    assert inputs.shape == (2, 44)  # the second text is too short
    np.testing.assert_array_equal(inputs[0][:16], [2, 10, 37, 14, 15, 16, 38, 20, 21, 22, 39, 26, 27, 28, 29, 3])
    assert not inputs[0][16:].any()
    np.testing.assert_array_equal(targets[0], [37, 11, 12, 13, 38, 17, 18, 19, 39, 23, 24, 25])
    backwards = texts.with_sentinels(39, -1)[1]
    np.testing.assert_array_equal(backwards[:, [0, 4, 8]], [[39, 38, 37]] * 2)
    spans = {37: targets[1][1:4], 38: targets[1][5:8], 39: targets[1][9:12]}
    rebuilt = [t for i in inputs[1][1:-1] for t in spans.get(int(i), [i])]
    assert rebuilt == TEXTS[2][:48]
    with pytest.raises(ValueError, match="no text has 18 tokens"):
        mask_texts([[5] * 17])


def test_every_row_is_scored_as_the_first_sentinel():
    params = random_params(CONFIG)
    texts = mask_texts(TEXTS)
    rows = probe_sentinels(CONFIG, params, 36, texts)
    assert [row.id for row in rows] == [36, 37, 38, 39]
    for row in rows:
        for found, step in ((row.ascending, 1), (row.descending, -1)):
            if 36 <= row.id + 2 * step < 40:
                assert found == pytest.approx(nll_in_numpy(params, *texts.with_sentinels(row.id, step)), abs=1e-4)
            else:
                assert found == float("inf")
    vectors = params["token_embedding"][36:]
    for i, row in enumerate(rows):
        others = [v for k, v in enumerate(vectors) if k != i]
        cosines = [v @ vectors[i] / np.linalg.norm(v) / np.linalg.norm(vectors[i]) for v in others]
        assert row.norm == pytest.approx(np.linalg.norm(vectors[i]), rel=1e-5)
        assert row.cosine == pytest.approx(np.mean(cosines), abs=1e-5)


def test_exchanged_networks_show_beside_their_encoder():
    encoder = random_params(CONFIG)
    params = warm_start(CONFIG, {k: encoder[k] for k in ("token_embedding", "encoder")}, jax.random.key(0))
    texts = mask_texts(TEXTS)
    layers = encoder["encoder"]["layers"]
    right = probe_feed_forwards(CONFIG, params, 36, texts, layers)
    wrong = probe_feed_forwards(CONFIG, swap_feed_forwards(params), 36, texts, layers)
    assert right.cosines.shape == (2, 2, 2)
    np.testing.assert_allclose(right.cosines[:, [0, 1], [0, 1]], 1, rtol=1e-5)
    assert (np.abs(right.cosines[:, [0, 1], [1, 0]]) < 0.3).all()
    np.testing.assert_allclose(wrong.cosines, right.cosines[:, ::-1])
    assert (right.nll_as_read, right.nll_swapped) == pytest.approx((wrong.nll_swapped, wrong.nll_as_read), abs=1e-5)
    assert right.nll_as_read == pytest.approx(nll_in_numpy(params, *texts.with_sentinels(36)), abs=1e-4)
    assert probe_feed_forwards(CONFIG, params, 36, texts).cosines.size == 0


@pytest.mark.parametrize("what", ["sentinels", "ffn"])
def test_the_command_tells_what_it_found(what, tmp_path, capsys):
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY, num_sentinels=3)
    config = dataclasses.replace(CONFIG, vocab_size=vocabulary.size, hidden_size=6)
    write_native(tmp_path, config, vocabulary)
    assert main([what, f"--checkpoint={tmp_path}", "--num_texts=4"]) == 0
    out = capsys.readouterr().out
    if what == "sentinels":
        assert out.count("\n") == 1 + 1 + (vocabulary.size - vocabulary.mask_id) + 1
        assert "likeliest: row" in out
    else:
        assert "with the networks exchanged" in out
    empty = tmp_path / "text"
    empty.write_text("short\n")
    assert main([what, f"--model={tmp_path}", f"--text={empty}"]) == 2  # the flag's first name
    assert "text: no text has 18 tokens or more" in capsys.readouterr().err
