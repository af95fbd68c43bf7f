"""New vocabularies, and new pieces for one, against SentencePiece itself."""

from __future__ import annotations

import lzma
import math

import pytest
import sentencepiece

from deltalm_jax.data.fertility import changed_share, fit
from deltalm_jax.data.vocabulary import EOS_ID, UNK_ID, Vocabulary
from deltalm_jax.data.vocabulary_extension import Extension, extend, is_extension, spell
from deltalm_jax.data.vocabulary_training import TrainerSettings, VocabularyTrainingError, train
from tasks.corpora import SAMPLE_DIR


def paragraphs(code: str) -> list[str]:
    """A language of the shipped sample."""
    with lzma.open(SAMPLE_DIR / "cc100" / f"{code}.txt.xz", "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines if line.strip()]


OLD_TEXT = paragraphs("en")
NEW_TEXT = [f"{text} ⵣⴰⵖ" for text in paragraphs("sw")]


def processor_of(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def vocabulary_of(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("model") / "v.model"
    path.write_bytes(model)
    return Vocabulary.load(path)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A vocabulary of the old text, which does not know the new one's Tifinagh."""
    settings = TrainerSettings(num_pieces=600, character_coverage=1.0, byte_fallback=False, num_threads=1)
    return vocabulary_of(train(OLD_TEXT, settings), tmp_path_factory)


@pytest.fixture(scope="module")
def extension(old: Vocabulary) -> Extension:
    return extend(old.model, NEW_TEXT, 200, user_symbols=("<note>",), character_coverage=1.0, num_threads=1)


@pytest.fixture(scope="module")
def new(extension: Extension, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return vocabulary_of(extension.model, tmp_path_factory)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_trained_model_has_the_ids_that_a_vocabulary_needs(
    model_type: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = TrainerSettings(
        num_pieces=600, model_type=model_type, character_coverage=1.0, split_digits=True, user_symbols=("<note>", "@@")
    )
    model = train([*OLD_TEXT, "in 1984 and 2001"], settings)
    vocabulary = vocabulary_of(model, tmp_path_factory)  # which checks <unk>, <s>, </s>
    assert vocabulary.num_pieces == 600
    assert vocabulary.decode(vocabulary.encode("the <note> ⵣ 1984")) == "the <note> ⵣ 1984"
    pieces = [piece for piece, _ in vocabulary.pieces()]
    symbol = pieces.index("<note>") + 1
    assert vocabulary.encode("x<note>y").count(symbol) == 1
    assert UNK_ID not in vocabulary.encode("ⵣ字")  # spelled in bytes
    ids = [pieces[i - 1] for i in vocabulary.encode("1984")]
    assert ids[-4:] == ["1", "9", "8", "4"]
    processor = processor_of(model)
    assert processor.encode("ﬁ　Ａ", out_type=str) == processor.encode("fi A", out_type=str), "nmt_nfkc"
    assert train([*OLD_TEXT, "in 1984 and 2001"], settings) == model, "the same text gives the same bytes"


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(VocabularyTrainingError, match=r"cannot train 5,000 pieces .*Vocabulary size too high"):
        train(OLD_TEXT, TrainerSettings(num_pieces=5000))
    with pytest.raises(VocabularyTrainingError, match="num_pieces must be at least 260, found 100"):
        TrainerSettings(num_pieces=100)
    for symbol, message in (("<mask>", "there already"), ("a b", "one word"), ("", "one word")):
        with pytest.raises(VocabularyTrainingError, match=message):
            TrainerSettings(user_symbols=(symbol,))
    with pytest.raises(VocabularyTrainingError, match="named twice"):
        TrainerSettings(user_symbols=("@", "@"))
    with pytest.raises(VocabularyTrainingError, match="cannot train"):
        train(OLD_TEXT, TrainerSettings(num_pieces=600, normalization="none_such"))


def test_old_pieces_keep_ids_and_scores_and_new_ones_are_appended(
    old: Vocabulary, new: Vocabulary, extension: Extension
) -> None:
    before, after = processor_of(old.model), processor_of(new.model)
    assert after.get_piece_size() == before.get_piece_size() + len(extension.new_pieces)
    for i in range(before.get_piece_size()):
        assert after.id_to_piece(i) == before.id_to_piece(i)
        assert after.get_score(i) == before.get_score(i)
        assert (after.is_unknown(i), after.is_control(i)) == (before.is_unknown(i), before.is_control(i))
    appended = [after.id_to_piece(i) for i in range(before.get_piece_size(), after.get_piece_size())]
    assert appended == list(extension.new_pieces)
    assert appended[0] == "<note>"
    assert len(set(appended)) == len(appended) == 201
    assert not set(appended) & {before.id_to_piece(i) for i in range(before.get_piece_size())}
    assert is_extension(old, new)
    assert not is_extension(new, old)
    assert not is_extension(old, old)


def test_unknown_characters_come_first_and_new_text_gets_shorter(
    old: Vocabulary, new: Vocabulary, extension: Extension
) -> None:
    assert set("ⵣⴰⵖ") <= set(extension.new_characters)
    assert extension.new_pieces[1 : 1 + len(extension.new_characters)] == extension.new_characters
    before, after = fit(old, NEW_TEXT), fit(new, NEW_TEXT)
    assert before.unknown > 0
    assert after.unknown == 0
    assert after.tokens < 0.7 * before.tokens
    assert changed_share(old, new, NEW_TEXT) > 0.8
    assert changed_share(old, new, OLD_TEXT) < 0.1
    for word in {word for text in OLD_TEXT for word in text.split()}:
        assert (old.encode(word) == new.encode(word)) == (max(new.encode(word)) <= old.num_pieces)
    assert new.decode(new.encode(NEW_TEXT[0])) == NEW_TEXT[0]
    assert new.encode("a<note>b").count(old.num_pieces + 1) == 1


def test_scores_are_those_of_the_mixture(old: Vocabulary) -> None:
    scores = []
    for weight in (0.5, 0.01):
        processor = processor_of(extend(old.model, NEW_TEXT, 200, weight=weight, num_threads=1).model)
        scores.append(
            {
                processor.id_to_piece(i): processor.get_score(i)
                for i in range(old.num_pieces, processor.get_piece_size())
            }
        )
    assert scores[0].keys() == scores[1].keys()
    for piece, score in scores[0].items():
        assert score - scores[1][piece] == pytest.approx(math.log(0.5 / 0.01), abs=1e-4)
        assert score < math.log(0.5)


def test_a_piece_is_spelled_as_it_stands_in_a_text(old: Vocabulary) -> None:
    processor = processor_of(old.model)
    pieces = [processor.id_to_piece(i) for i in range(EOS_ID, old.num_pieces)]
    for piece, ids in zip(pieces, spell(old.model, pieces), strict=True):
        assert "".join(processor.id_to_piece(i) for i in ids) == piece
    assert spell(old.model, ["the"]) != spell(old.model, ["▁the"])


def test_what_cannot_be_extended_is_refused(old: Vocabulary) -> None:
    bpe = train(OLD_TEXT, TrainerSettings(num_pieces=600, model_type="bpe", character_coverage=1.0))
    with pytest.raises(VocabularyTrainingError, match="only unigram models"):
        extend(bpe, NEW_TEXT, 10)
    with pytest.raises(VocabularyTrainingError, match="has such a piece already"):
        extend(old.model, NEW_TEXT, 10, user_symbols=("t",))
    with pytest.raises(VocabularyTrainingError, match="weight must lie strictly between"):
        extend(old.model, NEW_TEXT, 10, weight=1.0)
    with pytest.raises(VocabularyTrainingError, match="num_pieces must be at least 1"):
        extend(old.model, NEW_TEXT, 0)


def test_fertility_against_counting(old: Vocabulary) -> None:
    texts = ["the red house", "ⵣ river", "the green river"]
    pieces = [piece for text in texts for piece in processor_of(old.model).encode(text, out_type=str)]
    found = fit(old, texts)
    assert found.tokens == len(pieces)
    assert found.words == 8
    assert found.tokens_per_word == len(pieces) / 8
    assert found.unknown == 1
    assert (found.characters, found.utf8_bytes) == (35, 35 + 2)
    assert found.tokens_per_character == len(pieces) / 35
    assert found.bytes_per_token == 37 / len(pieces)
    assert fit(old, ["これは本です。", "ภาษาไทย"]).words is None
    assert fit(old, ["한국어 문장"]).words == 2
    bytes_known = train(OLD_TEXT, TrainerSettings(num_pieces=600, character_coverage=1.0))
    processor = processor_of(bytes_known)
    assert processor.encode("字", out_type=str)[1:] == ["<0xE5>", "<0xAD>", "<0x97>"]
