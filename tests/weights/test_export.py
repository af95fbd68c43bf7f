"""A model that `convert` hands on does in transformers what it does here: the same logits, the same beams."""

from __future__ import annotations

import dataclasses
import os
import tempfile

import numpy as np
import pytest

# Before transformers is imported: nothing is looked up on the network, and the model's code is copied to a folder of ours.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="hugging_face_modules_"))

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import deltalm_jax  # noqa: E402
from deltalm_jax.conversion import convert  # noqa: E402
from deltalm_jax.conversion_request import Request  # noqa: E402
from deltalm_jax.data.vocabulary import EOS_ID, PAD_ID, Vocabulary, from_fairseq_ids, to_fairseq_ids  # noqa: E402
from deltalm_jax.decoding.options import SearchOptions  # noqa: E402
from deltalm_jax.decoding.search import search  # noqa: E402
from deltalm_jax.model.config import ModelConfig  # noqa: E402
from deltalm_jax.weights.model_folder import write_model  # noqa: E402
from tests.support.small_models import random_params  # noqa: E402
from tests.support.toy_data import SAMPLE_VOCABULARY  # noqa: E402

pytestmark = pytest.mark.torch

BASE_STYLE = ModelConfig(
    vocab_size=30,
    hidden_size=24,
    feed_forward_size=36,
    num_heads=3,
    num_encoder_layers=2,
    num_decoder_layers=1,
    max_length=32,
)
LARGE_STYLE = dataclasses.replace(BASE_STYLE, embedding_layer_norm=False)
EARLY_STOPPING = (False, True)


def export(config: ModelConfig, folder, vocabulary: Vocabulary | None = None):
    """(our model, transformers' model) of the same random weights, the latter from a folder of `convert`."""
    (folder / "native").mkdir()
    params = random_params(config)
    params["token_embedding"][EOS_ID] *= 4  # hypotheses should end, some of them early
    write_model(folder / "native", config, params, vocabulary, {})
    convert(Request("native", folder / "native", folder / "exported", target="huggingface_deltalm"))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "exported", trust_remote_code=True).eval()
    return deltalm_jax.load_model(folder / "native"), theirs


@pytest.mark.parametrize("config", [BASE_STYLE, LARGE_STYLE], ids=["base", "large"])
def test_the_same_logits_and_the_same_beams(config, tmp_path):
    ours, theirs = export(config, tmp_path)
    random = np.random.default_rng(1)
    tokens = random.integers(4, 30, (6, 9))
    tokens[2:4, 5:] = PAD_ID
    source = torch.tensor(to_fairseq_ids(tokens))
    decoder = np.concatenate([np.full((6, 1), 3), random.integers(4, 30, (6, 6))], axis=1)
    with torch.no_grad():
        scores = theirs(
            source, attention_mask=source != 1, decoder_input_ids=torch.tensor(to_fairseq_ids(decoder))
        ).logits
    found = np.asarray(ours.logits(tokens, decoder))[..., from_fairseq_ids(np.arange(30))]
    np.testing.assert_allclose(found, scores.numpy(), rtol=0, atol=1e-4)

    ended_early = 0
    for early_stopping in EARLY_STOPPING:
        options = SearchOptions(
            beam_size=4, max_length=12, length_penalty=0.7, rule="huggingface", early_stopping=early_stopping
        )
        result = search(config, ours.params, tokens, options)
        generated = theirs.generate(
            source, attention_mask=source != 1, num_beams=4, num_return_sequences=4, max_new_tokens=12, min_new_tokens=1,
            length_penalty=0.7, early_stopping=early_stopping, do_sample=False, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        beams = from_fairseq_ids(generated.sequences[:, 1:].numpy())
        np.testing.assert_allclose(result.scores_BK.reshape(-1), generated.sequences_scores.numpy(), atol=1e-4)
        for row, (hypothesis, length) in enumerate(
            zip(result.tokens_BKT.reshape(24, -1), result.lengths_BK.reshape(-1), strict=True)
        ):
            np.testing.assert_array_equal(
                hypothesis[:length], beams[row][:length], err_msg=f"early_stopping={early_stopping} {row}"
            )
        ended_early += int((result.lengths_BK < 12).sum())
    assert ended_early > 4


def test_text_goes_through_the_exported_tokenizer_and_back(tmp_path):
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY)
    config = dataclasses.replace(BASE_STYLE, vocab_size=vocabulary.size)
    ours, theirs = export(config, tmp_path, vocabulary)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    text = "Alle Menschen sind frei"
    batch = tokenizer(text, return_tensors="pt")
    tokens = from_fairseq_ids(batch["input_ids"].numpy())
    assert tokens[0].tolist() == [*vocabulary.encode(text), 3]
    with torch.no_grad():
        encoded = theirs.get_encoder()(**batch).last_hidden_state.numpy()
    np.testing.assert_allclose(ours.encode(tokens), encoded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("vocabulary", [None, Vocabulary.load(SAMPLE_VOCABULARY)], ids=["unknown", "known"])
def test_an_encoder_alone_as_an_xlm_roberta(vocabulary, tmp_path):
    rows = vocabulary.size if vocabulary else 30
    config = dataclasses.replace(BASE_STYLE, vocab_size=rows, num_decoder_layers=0, sentence_layer=1)
    (tmp_path / "native").mkdir()
    write_model(tmp_path / "native", config, random_params(config), vocabulary, {})
    convert(Request("native", tmp_path / "native", tmp_path / "exported", target="xlm_roberta"))
    theirs, loading = transformers.XLMRobertaForMaskedLM.from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert theirs.lm_head.decoder.weight is theirs.roberta.embeddings.word_embeddings.weight
    kept = vocabulary.mask_id + 1 if vocabulary else rows
    assert theirs.config.vocab_size == kept
    tokens = np.random.default_rng(1).integers(4, kept, (6, 9))
    tokens[2:4, 5:] = PAD_ID
    tokens[:, 3] = kept - 1
    source = torch.tensor(to_fairseq_ids(tokens))
    with torch.no_grad():
        scores = theirs.eval()(source, attention_mask=source != 1).logits.numpy()
    ours = deltalm_jax.load_model(tmp_path / "native")
    found = np.asarray(ours.masked_logits(tokens))[..., from_fairseq_ids(np.arange(kept))]
    np.testing.assert_allclose(found[tokens != PAD_ID], scores[tokens != PAD_ID], rtol=0, atol=1e-4)
    assert np.abs(scores).max() > 0.5
    if vocabulary:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
        text = "Alle Menschen sind frei"
        ids = from_fairseq_ids(np.array(tokenizer(text)["input_ids"]))
        assert ids.tolist() == [2, *vocabulary.encode(text), 3]
        assert from_fairseq_ids(np.array(tokenizer.mask_token_id)) == vocabulary.mask_id
        assert len(tokenizer) == kept
