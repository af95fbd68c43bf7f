"""A vocabulary without the pieces that a text does not use cuts that text as before."""

from __future__ import annotations

import lzma
from pathlib import Path

import jax
import numpy as np
import pytest

from deltalm_jax import vocabulary as command
from deltalm_jax.conversion import convert
from deltalm_jax.conversion_request import Request
from deltalm_jax.data.vocabulary import UNK_ID, Vocabulary
from deltalm_jax.data.vocabulary_extension import is_extension
from deltalm_jax.data.vocabulary_training import TrainerSettings, VocabularyTrainingError, train
from deltalm_jax.data.vocabulary_trimming import is_trimmed, trim
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.saved_model import load_model
from deltalm_jax.weights.model_folder import write_model
from tests.support.toy_data import SAMPLE_VOCABULARY

SAMPLE = SAMPLE_VOCABULARY.parent


def paragraphs(code: str) -> list[str]:
    with lzma.open(SAMPLE / "cc100" / f"{code}.txt.xz", "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines if line.strip()]


TEXT = paragraphs("de") + paragraphs("ru")


@pytest.fixture(scope="module")
def old() -> Vocabulary:
    return Vocabulary.load(SAMPLE_VOCABULARY)


@pytest.fixture(scope="module")
def trimmed(old: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trimmed") / "trimmed.model"
    path.write_bytes(trim(old.model, TEXT))
    return path


def test_the_text_is_cut_as_before_and_other_text_can_still_be_spelled(old: Vocabulary, trimmed: Path):
    new = Vocabulary.load(trimmed)
    names = []
    for vocabulary in (old, new):
        pieces = [piece for piece, _ in vocabulary.pieces()]
        names += [[pieces[id - 1] for id in ids] for ids in vocabulary.encode_batch(TEXT)]
    assert names[: len(TEXT)] == names[len(TEXT) :]
    assert 500 < new.num_pieces < old.num_pieces / 2
    assert is_trimmed(old, new)
    assert not is_trimmed(new, old)
    assert not is_extension(old, new)
    assert UNK_ID not in new.encode("Zwei Wörter, die es dort nicht gibt: Fjordpferd & Quallenqualm @#~"), (
        "all characters are there"
    )
    unused = {piece for piece, _ in old.pieces()} - {piece for piece, _ in new.pieces()}
    used = {piece for row in names for piece in row}
    assert not unused & used


def test_rarer_pieces_go_and_their_text_stays(old: Vocabulary, trimmed: Path, tmp_path: Path):
    path = tmp_path / "rarer.model"
    path.write_bytes(trim(old.model, TEXT, min_count=3))
    new = Vocabulary.load(path)
    assert new.num_pieces < Vocabulary.load(trimmed).num_pieces
    assert is_trimmed(old, new)
    for text in TEXT[:50]:
        assert new.decode(new.encode(text)) == old.decode(old.encode(text))


def test_a_model_keeps_the_rows_of_its_pieces(old: Vocabulary, trimmed: Path, tmp_path: Path):
    config = ModelConfig(
        vocab_size=old.size, hidden_size=8, feed_forward_size=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=1,
        max_length=16,
    )  # fmt: skip
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", config, params, old, {})
    made = convert(Request("native", tmp_path / "model", tmp_path / "small", vocabulary=trimmed))
    assert "pieces left out; <mask> and sentinels moved from" in " ".join(made.notes)
    small, new = load_model(tmp_path / "small"), Vocabulary.load(trimmed)
    assert small.config.vocab_size == new.size
    table, rows = params["token_embedding"], np.asarray(small.params["token_embedding"])
    text = TEXT[3]
    np.testing.assert_array_equal(rows[new.encode(text)], table[old.encode(text)])
    np.testing.assert_array_equal(rows[:4], table[:4])
    np.testing.assert_array_equal(rows[new.mask_id], table[old.mask_id])
    np.testing.assert_array_equal(rows[new.sentinel_start + 7], table[old.sentinel_start + 7])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "de.model"
    flags = [f"--vocabulary={SAMPLE_VOCABULARY}", "--mixture=cc100_de", f"--output={output}"]
    assert command.main(["trim", *flags]) == 0
    told = capsys.readouterr().err
    new = Vocabulary.load(output)
    assert f"{new.num_pieces:,} of 8,000 pieces" in told
    with pytest.raises(SystemExit):
        command.main(["trim", *flags, "--min_count=0"])


def test_other_kinds_of_models_are_refused():
    model = train(TEXT, TrainerSettings(num_pieces=400, model_type="bpe", character_coverage=1.0, num_threads=1))
    with pytest.raises(VocabularyTrainingError, match="only unigram models can be trimmed"):
        trim(model, TEXT)
