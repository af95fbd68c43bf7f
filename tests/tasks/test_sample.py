"""The shipped sample: what is in it, that nothing held out is in its training text, and that it can be made again."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import pytest
import sentencepiece
import xxhash

from deltalm_jax.data.readers import read_cc100, read_ccaligned
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import SAMPLE_DIR, find_files
from tasks.languages import load_languages
from tasks.sample import train_vocabulary
from tasks.sample.build import build, split_declaration

ENGLISH_ARTICLE_1 = "All human beings are born free and equal in dignity and rights."
ENGLISH_ARTICLE_30 = "Nothing in this Declaration may be interpreted"


def paragraphs(path: Path | None) -> set[str]:
    assert path is not None
    return {paragraph for document in read_cc100(path) for paragraph in document}


def test_languages_and_size() -> None:
    cc100, ccaligned = find_files(None, "cc100"), find_files(None, "ccaligned")
    in_sample = {row.code for row in load_languages().values() if row.in_sample}
    assert set(cc100) == in_sample
    assert set(ccaligned) == in_sample - {"en"}
    assert len(in_sample) == 105
    assert all(file.validation for file in [*cc100.values(), *ccaligned.values()])
    assert sum(path.stat().st_size for path in SAMPLE_DIR.rglob("*.xz")) < 2_000_000


def test_nothing_held_out_is_in_the_training_text() -> None:
    cc100, ccaligned = find_files(None, "cc100"), find_files(None, "ccaligned")
    english = paragraphs(cc100["en"].validation[0])
    for code, file in cc100.items():
        held_out, train = paragraphs(file.validation[0]), paragraphs(file.train[0])
        assert len(held_out) >= 10
        assert not held_out & train, code
        if code == "en":
            continue
        pairs = list(read_ccaligned(ccaligned[code].validation[0]))
        train_pairs = list(read_ccaligned(ccaligned[code].train[0]))
        assert pairs
        assert train_pairs
        assert not {pair[0] for pair in train_pairs} & (english | {pair[0] for pair in pairs}), code
        assert not {pair[1] for pair in train_pairs} & (held_out | {pair[1] for pair in pairs}), code
        # And across the two corpora: what one trains on, the other does not validate on.
        assert not {pair[1] for pair in pairs} & train, code
        assert not {pair[0] for pair in pairs} & paragraphs(cc100["en"].train[0]), code


def test_the_same_english_is_held_out_in_every_language() -> None:
    def is_message_held_out(english: str) -> bool:
        return xxhash.xxh3_64(english.encode()).intdigest() < 0.1 * 2**64

    declaration = set()
    for document in list(read_cc100(find_files(None, "cc100")["en"].train[0]))[:1]:
        declaration |= set(document)
    for document in list(read_cc100(SAMPLE_DIR / "cc100/validation/en.txt.xz"))[:1]:
        declaration |= set(document)
    assert any(text.startswith(ENGLISH_ARTICLE_1) for text in declaration)
    seen = {True: 0, False: 0}
    for file in find_files(None, "ccaligned").values():
        for path, held_out in ((file.train[0], False), (file.validation[0], True)):
            assert path is not None
            for english, _ in read_ccaligned(path):
                if english not in declaration:
                    assert is_message_held_out(english) == held_out, (path, english)
                    seen[held_out] += 1
    assert 0.07 < seen[True] / (seen[True] + seen[False]) < 0.13


def test_articles_21_to_30_are_the_ones_held_out() -> None:
    rows = [("preamble", "p"), *((f"art{i}.1", f"a{i}") for i in range(1, 31)), ("art30.2", "b30")]
    splits = split_declaration(rows)
    assert list(splits["train"].values()) == ["p", *(f"a{i}" for i in range(1, 21))]
    assert list(splits["validation"].values()) == [*(f"a{i}" for i in range(21, 31)), "b30"]
    with pytest.raises(ValueError, match="found 'article 3'"):
        split_declaration([("article 3", "x")])

    first = next(read_cc100(SAMPLE_DIR / "cc100/en.txt.xz"))
    assert len(first) == 39  # 10 paragraphs of the preamble, 29 of articles 1 to 20
    assert first[10].startswith(ENGLISH_ARTICLE_1)
    last = next(read_cc100(SAMPLE_DIR / "cc100/validation/en.txt.xz"))
    assert last[-1].startswith(ENGLISH_ARTICLE_30)


def test_pairs_are_translations() -> None:
    files = find_files(None, "ccaligned")
    german = dict(read_ccaligned(files["de"].train[0]))
    english = next(text for text in german if text.startswith(ENGLISH_ARTICLE_1))
    assert german[english].startswith("Alle Menschen sind frei und gleich an Würde und Rechten geboren.")
    assert dict(read_ccaligned(files["zh-Hans"].train[0]))[english].startswith("人人生而自由")
    assert files["de"].train[0].name == "de_DE-en_XX.tsv.xz"
    assert files["zh-Hans"].train[0].name == "en_XX-zh_CN.tsv.xz"


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """Two languages of both texts, small enough to work out by hand."""
    udhr, django = tmp_path / "udhr", tmp_path / "django"
    udhr.mkdir()
    django.mkdir()
    (udhr / "en.tsv").write_text("preamble.1\tWhereas\nart1.1\tAll\nart2\tTwo\nart21.1\tVote\nart30.1\tNothing\n")
    (udhr / "zh.tsv").write_text("preamble.1\t鉴于\nart1.1\t人人\nart2.1\t二\nart21.1\t投票\nart30.1\t无\n")
    (udhr / "af.tsv").write_text("art1.1\tAlle\nart21.1\tStem\n")
    messages = "".join(f"Message {i}\t消息 {i}\n" for i in range(40))
    (django / "en-zh.tsv").write_text("URL\tURL\n" + messages + "Message 0\t消息 0\n")
    return udhr, django


def test_build_by_hand(sources: tuple[Path, Path], tmp_path: Path) -> None:
    build(*sources, tmp_path / "out")
    held_out = [i for i in range(40) if xxhash.xxh3_64(f"Message {i}".encode()).intdigest() < 0.1 * 2**64]
    kept = [i for i in range(40) if i not in held_out]
    assert held_out
    folder = tmp_path / "out"
    # English sorts before zh_CN, and after af_ZA.
    names = ["af_ZA-en_XX.tsv.xz", "en_XX-zh_CN.tsv.xz"]
    assert sorted(path.name for path in (folder / "ccaligned").glob("*.xz")) == names
    assert sorted(path.name for path in (folder / "cc100").glob("*.xz")) == ["af.txt.xz", "en.txt.xz", "zh-Hans.txt.xz"]
    assert lzma.decompress((folder / "ccaligned" / names[0]).read_bytes()) == b"Alle\tAll\t1.1000\n"
    chinese = lzma.decompress((folder / "ccaligned" / names[1]).read_bytes()).decode().split("\n")
    assert chinese[:2] == ["Whereas\t鉴于\t1.1000", "All\t人人\t1.1000"]
    assert chinese[2:-1] == [f"Message {i}\t消息 {i}\t1.1000" for i in kept]
    validation = lzma.decompress((folder / "ccaligned/validation" / names[1]).read_bytes()).decode().split("\n")
    assert validation[:2] == ["Vote\t投票\t1.1000", "Nothing\t无\t1.1000"]
    assert validation[2:-1] == [f"Message {i}\t消息 {i}\t1.1000" for i in held_out]

    documents = list(read_cc100(folder / "cc100/zh-Hans.txt.xz"))
    assert documents[0] == ["鉴于", "人人", "二"]
    assert [len(document) for document in documents[1:-1]] == [12] * (len(documents) - 2)
    url_held_out = xxhash.xxh3_64(b"URL").intdigest() < 0.1 * 2**64
    strings = [text for document in documents[1:] for text in document]
    assert strings == ([] if url_held_out else ["URL"]) + [f"消息 {i}" for i in kept]
    assert next(read_cc100(folder / "cc100/validation/zh-Hans.txt.xz")) == ["投票", "无"]


def test_build_gives_the_same_bytes_twice(sources: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(*sources, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.xz"))
    assert len(files) == 10
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


@pytest.mark.parametrize("row", ["Only one column", "a\tb\tc", "a\tb\x00", "a\u2028b\tc"])
def test_build_refuses_rows_it_cannot_write(sources: tuple[Path, Path], tmp_path: Path, row: str) -> None:
    (sources[1] / "en-af.tsv").write_text(f"fine\tgoed\n{row}\n")
    with pytest.raises(ValueError, match=r"en-af\.tsv, line 2: expected two columns"):
        build(*sources, tmp_path / "out")


def test_vocabulary_is_the_one_described() -> None:
    model = (SAMPLE_DIR / "vocabulary.model").read_bytes()
    readme = (SAMPLE_DIR / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(model).hexdigest() in readme
    assert "python -m tasks.sample.train_vocabulary" in readme
    vocabulary = Vocabulary.load(SAMPLE_DIR / "vocabulary.model")
    assert vocabulary.num_pieces == 8000
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    # Byte fallback: any text comes back, and <unk> never occurs.
    assert processor.decode(processor.encode("𓀀 ꙮ")) == "𓀀 ꙮ"
    assert processor.unk_id() not in processor.encode("𓀀 ꙮ")
    # No path of the machine that trained it.
    assert b"/tmp" not in model
    assert b"/home" not in model


def test_training_a_vocabulary_gives_the_same_bytes_twice() -> None:
    texts = [text for document in read_cc100(SAMPLE_DIR / "cc100/en.txt.xz") for text in document]
    first, second = (train_vocabulary.train(texts, num_pieces=500) for _ in range(2))
    assert first == second
    assert sentencepiece.SentencePieceProcessor(model_proto=first).get_piece_size() == 500


def test_no_held_out_text_is_training_text_in_any_language() -> None:
    """Nor of the vocabulary, which is trained on all languages' training text and both corpora's."""
    texts = set(train_vocabulary.training_texts())
    for file in find_files(None, "cc100").values():
        assert not paragraphs(file.validation[0]) & texts
    assert len(texts) > 10_000


def test_token_counts() -> None:
    counts = json.loads((SAMPLE_DIR / "token_counts.json").read_text())
    assert len(counts) == 105 + 104
    processor = sentencepiece.SentencePieceProcessor(model_file=str(SAMPLE_DIR / "vocabulary.model"))
    documents = list(read_cc100(SAMPLE_DIR / "cc100/am.txt.xz"))
    expected = sum(1 + sum(len(processor.encode(text)) + 1 for text in document) for document in documents)
    assert counts["cc100_am"] == expected
    pairs = list(read_ccaligned(SAMPLE_DIR / "ccaligned/am_ET-en_XX.tsv.xz"))
    expected = sum(min(len(processor.encode(side)), 254) + 1 for pair in pairs for side in pair)
    assert counts["ccaligned_am"] == expected


def test_licences_come_along() -> None:
    notice = (SAMPLE_DIR / "NOTICE").read_text(encoding="utf-8")
    for part in (
        "Copyright (c) Titus Wormer",
        "The MIT License",
        "Copyright (c) Django Software Foundation and individual contributors.",
        "3. Neither the name of Django nor the names of its contributors",
        "EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE",
    ):
        assert part in notice
