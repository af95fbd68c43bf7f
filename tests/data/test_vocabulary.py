"""The vocabulary's layout against XLM-R's published ids, and its two paths (Python, TensorFlow) against each other."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from deltalm_jax.data.readers import read_cc100
from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Vocabulary, VocabularyError
from tasks.corpora import SAMPLE_DIR, find_files

SAMPLE_MODEL = SAMPLE_DIR / "vocabulary.model"


@pytest.fixture(scope="module")
def sample() -> Vocabulary:
    return Vocabulary.load(SAMPLE_MODEL)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The beginning of the declaration in 105 languages, and what no corpus should be trusted to lack."""
    paragraphs = [text for file in find_files(None, "cc100").values() for text in next(read_cc100(file.train[0]))[:3]]
    odd = [
        "",
        " ",
        "😀👩‍👩‍👧",
        "\u2028",
        "a\tb\nc",
        "</s><mask_0><s>",
        "ñññ aaaa",
        "\ufeffx",
        "ﬁ ½ Ⅷ",
        "𐍈𓀀",
        "e\u0301",
        "▁▁a",
    ]
    return paragraphs + odd


def train_model(**options: object) -> bytes:
    model = io.BytesIO()
    sentences = ["the cat sat on the mat", "a dog ran to the cat", "one two three"] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=20, minloglevel=2, **options
    )
    return model.getvalue()


def test_ids_are_the_pieces_own_plus_one(sample: Vocabulary, texts: list[str]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(SAMPLE_MODEL))
    assert processor.id_to_piece([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert (PAD_ID, UNK_ID, BOS_ID, EOS_ID) == (0, 1, 2, 3)
    for text in texts:
        pieces = processor.encode(text, out_type=str)
        assert sample.encode(text) == [processor.piece_to_id(piece) + 1 for piece in pieces]
    assert sample.encode_batch(texts) == [sample.encode(text) for text in texts]


def test_no_text_gives_a_special_id(sample: Vocabulary, texts: list[str]) -> None:
    ids = {token for text in texts for token in sample.encode(text)}
    # Bytes stand in for unknown characters, so <unk> does not occur either.
    assert min(ids) > EOS_ID
    assert max(ids) <= sample.num_pieces


def test_layout_of_the_sample(sample: Vocabulary) -> None:
    assert (sample.num_pieces, sample.mask_id, sample.sentinel_start, sample.size) == (8000, 8001, 8002, 8104)
    assert sample.size % 8 == 0


def test_layout_with_given_sentinels() -> None:
    shifted = Vocabulary.load(SAMPLE_MODEL, sentinel_start=8004, num_sentinels=100)
    assert (shifted.mask_id, shifted.sentinel_start, shifted.size) == (8001, 8004, 8104)
    assert shifted.decode([8001, 8002, 8004, 8103]) == "<mask><unused_8002><mask_0><mask_99>"
    assert Vocabulary.load(SAMPLE_MODEL, num_sentinels=1).size == 8008


def test_decode(sample: Vocabulary) -> None:
    ids = [
        BOS_ID,
        *sample.encode("Hello world"),
        8001,
        *sample.encode("again"),
        8002,
        8101,
        EOS_ID,
        UNK_ID,
        PAD_ID,
        PAD_ID,
    ]
    assert sample.decode(ids) == "<s> Hello world<mask> again<mask_0><mask_99></s><unk>"
    assert sample.decode([]) == ""
    for text in ("Tschüß, 你好 🙂", "Все люди рождаются свободными"):
        assert sample.decode(sample.encode(text)) == text


@pytest.mark.parametrize("bad", [-1, 8104, 250_001])
def test_decode_refuses_ids_out_of_range(sample: Vocabulary, bad: int) -> None:
    with pytest.raises(ValueError, match=rf"id {bad} at position 1.*0 to 8103"):
        sample.decode([5, bad])


@pytest.mark.skipif(
    not os.environ.get("DELTALM_XLMR_VOCABULARY"),
    reason="set DELTALM_XLMR_VOCABULARY to the path of XLM-R's sentencepiece.bpe.model",
)
def test_xlmr_documented_sentences() -> None:
    vocabulary = Vocabulary.load(os.environ["DELTALM_XLMR_VOCABULARY"])
    assert (vocabulary.num_pieces, vocabulary.mask_id, vocabulary.sentinel_start) == (250_000, 250_001, 250_002)
    assert vocabulary.size == 250_104  # rows of the released DeltaLM checkpoint
    # fairseq, examples/xlmr/README.md, without the 0 and 2 around them.
    documented = {
        "Hello world!": [35378, 8999, 38],
        "你好，世界": [6, 124084, 4, 3221],
        "नमस्ते दुनिया": [68700, 97883, 29405],
        "مرحبا بالعالم": [665, 193478, 258, 1705, 77796],
        "Bonjour le monde": [84602, 95, 11146],
    }
    assert {text: vocabulary.encode(text) for text in documented} == documented


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.model.*found nothing"):
        Vocabulary.load(tmp_path / "nothing.model")
    with pytest.raises(FileNotFoundError, match="found a folder"):
        Vocabulary.load(tmp_path)
    for content in (b"", b"<unk>\t0\n<s>\t0\n", SAMPLE_MODEL.read_bytes()[:1000]):
        path = tmp_path / "dict.txt"
        path.write_bytes(content)
        with pytest.raises(VocabularyError, match=r"dict\.txt.*SentencePiece model"):
            Vocabulary.load(path)


@pytest.mark.parametrize(
    "options",
    [{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}, {"bos_id": -1, "eos_id": 1}],
)
def test_refuses_other_special_ids(tmp_path: Path, options: dict[str, int]) -> None:
    path = tmp_path / "other.model"
    path.write_bytes(train_model(**options))
    with pytest.raises(VocabularyError, match=r"other\.model: expected the SentencePiece ids.*found"):
        Vocabulary.load(path)


def test_refuses_bad_sentinels() -> None:
    for count in (0, -5):
        with pytest.raises(VocabularyError, match=f"num_sentinels must be at least 1, found {count}"):
            Vocabulary.load(SAMPLE_MODEL, num_sentinels=count)
    for start in (0, 7999, 8001):
        with pytest.raises(VocabularyError, match=rf"sentinel_start {start} overlaps.*Use 8002 or more"):
            Vocabulary.load(SAMPLE_MODEL, sentinel_start=start)


def test_equality_pickle_and_fingerprint(sample: Vocabulary, tmp_path: Path) -> None:
    sample.encode("loaded before it is pickled")
    again = pickle.loads(pickle.dumps(sample))
    assert again == sample
    assert hash(again) == hash(sample)
    assert again.encode("Hello") == sample.encode("Hello")
    assert len(pickle.dumps(sample)) < 2 * len(sample.model)

    copy = tmp_path / "copy.model"
    copy.write_bytes(SAMPLE_MODEL.read_bytes())
    assert Vocabulary.load(copy) == sample
    other = tmp_path / "other.model"
    other.write_bytes(train_model())
    fingerprints = {
        Vocabulary.load(copy).fingerprint,
        Vocabulary.load(copy, sentinel_start=8004).fingerprint,
        Vocabulary.load(copy, num_sentinels=99).fingerprint,
        Vocabulary.load(other).fingerprint,
    }
    assert sample.fingerprint in fingerprints
    assert len(fingerprints) == 4


def test_describe_is_json(sample: Vocabulary) -> None:
    described = json.loads(json.dumps(sample.describe()))
    assert described["sha256"] == hashlib.sha256(SAMPLE_MODEL.read_bytes()).hexdigest()
    assert described["file"] == "vocabulary.model"
    assert described["sentencepiece_version"] == sentencepiece.__version__
    assert described["fingerprint"] == sample.fingerprint


def test_imports_neither_tensorflow_nor_seqio() -> None:
    program = (
        "import sys; from deltalm_jax.data.vocabulary import Vocabulary;"
        f"assert Vocabulary.load({str(SAMPLE_MODEL)!r}).encode('a');"
        "print([m for m in ('tensorflow', 'seqio', 'apache_beam', 'jax') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_seqio_view(sample: Vocabulary, texts: list[str]) -> None:
    import seqio
    import tensorflow as tf

    view = sample.as_seqio()
    assert isinstance(view, seqio.Vocabulary)
    assert (view.pad_id, view.unk_id, view.bos_id, view.eos_id, view.vocab_size) == (0, 1, 2, 3, 8104)
    assert view.extra_ids == 0
    assert view == Vocabulary.load(SAMPLE_MODEL).as_seqio()
    assert view != Vocabulary.load(SAMPLE_MODEL, sentinel_start=8004).as_seqio()

    in_graph = tf.data.Dataset.from_tensor_slices(texts).map(view.encode_tf)
    for text, ids in zip(texts, in_graph, strict=True):
        assert ids.dtype == tf.int32
        assert ids.numpy().tolist() == view.encode(text) == sample.encode(text), text

    ids_BL = [[2, *sample.encode("Hello world"), 8002, 3], [2, *sample.encode("again"), 3]]
    texts_B = [sample.decode(row) for row in ids_BL]
    assert [view.decode(row) for row in ids_BL] == texts_B
    assert view.decode(tf.constant(ids_BL[0])) == texts_B[0]
    assert view.decode_tf(tf.constant(ids_BL[0])).numpy().decode() == texts_B[0]
    assert [t.decode() for t in view.decode_tf(tf.ragged.constant(ids_BL).to_tensor()).numpy()] == texts_B
    # `</s>` closes paragraphs; seqio's own vocabularies would stop there.
    assert view.decode([3, *sample.encode("on")]) == "</s> on"
