"""The readers against hand-written files, and against independent parsing of the shipped sample."""

from __future__ import annotations

import gzip
import lzma
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from deltalm_jax.data import readers
from deltalm_jax.data.readers import CorpusError, pair_codes, read_cc100, read_ccaligned
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import SAMPLE_DIR
from tests.data.readers.conftest import Write


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_blank_lines_separate_documents(write: Write, suffix: str) -> None:
    text = "eins\nzwei\n\ndrei\n\n\n  \n\t\nvier\nfünf\n\n"
    path = write(f"de.txt{suffix}", text.encode())
    assert list(read_cc100(path)) == [["eins", "zwei"], ["drei"], ["vier", "fünf"]]


@pytest.mark.parametrize("text", ["", "\n", "\n\n\n"])
def test_no_text_is_no_document(write: Write, text: str) -> None:
    assert list(read_cc100(write("de.txt.xz", text.encode()))) == []


def test_last_line_needs_no_line_feed(write: Write) -> None:
    assert list(read_cc100(write("de.txt", b"a\n\nb"))) == [["a"], ["b"]]
    assert list(read_ccaligned(write("de_DE-en_XX.tsv", b"a\tb"))) == [("b", "a")]


def test_only_line_feeds_split_lines(write: Write) -> None:
    text = "a\u2028b\u2029c\nd\re\x85f\x0bg\x0ch\x1ci\n"
    counts: Counter[str] = Counter()
    # U+2028 and U+2029 stay, white-space controls become spaces, U+001C goes.
    assert list(read_cc100(write("de.txt", text.encode()), counts)) == [["a\u2028b\u2029c", "d e f g hi"]]
    assert not counts
    row = "links\u2028und\reins\trechts\x85zwei\t1.05\n"
    assert list(read_ccaligned(write("de_DE-en_XX.tsv", row.encode()))) == [("rechts zwei", "links\u2028und eins")]


def test_windows_files(write: Write) -> None:
    path = write("de.txt.gz", "\ufeffeins\r\nzwei\r\n\r\ndrei\r\n".encode())
    assert list(read_cc100(path)) == [["eins", "zwei"], ["drei"]]
    path = write("en_XX-fr_XX.tsv", "\ufeffone\tun\r\ntwo\tdeux\t1.2\r\n".encode())
    assert list(read_ccaligned(path)) == [("one", "un"), ("two", "deux")]


def test_dropped_lines_are_counted(write: Write) -> None:
    counts: Counter[str] = Counter()
    path = write("de.txt", b"good\nbad \xff\xfe\nhalf \xe4\x00\x00\n\x00\x01\nna\x00ul\n\nnext\n")
    assert list(read_cc100(path, counts)) == [["good", "naul"], ["next"]]
    assert counts == {"invalid_utf8": 2, "empty": 1}

    counts = Counter()
    rows = [b"a\tb", b"a\tb\t1.04", b"a\tb\tc", b"one column", b"a\tb\t1.0\td", b"\tb", b"a\t ", b"", b"\xff\tb"]
    path = write("en_XX-fr_XX.tsv.xz", b"\n".join(rows) + b"\n")
    assert list(read_ccaligned(path, counts)) == [("a", "b"), ("a", "b")]
    assert counts == {"columns": 2, "margin": 1, "empty": 3, "invalid_utf8": 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("de_DE-en_XX.tsv", ("second", "first")), ("en_XX-zh_CN.tsv", ("first", "second"))],
)
def test_english_comes_first_whichever_its_column(write: Write, name: str, expected: tuple[str, str]) -> None:
    assert list(read_ccaligned(write(name, b"first\tsecond\t1.1\n"))) == [expected]


@pytest.mark.parametrize("name", ["de-en.tsv", "de_DE-fr_XX.tsv", "en_XX-en_XX.tsv", "en_XX-de_DE.txt"])
def test_a_name_must_say_which_side_is_english(write: Write, name: str) -> None:
    with pytest.raises(CorpusError, match=r"expected a name like de_DE-en_XX\.tsv\.xz"):
        list(read_ccaligned(write(name, b"a\tb\n")))


def test_pair_codes() -> None:
    assert pair_codes("/x/cx_PH-en_XX.tsv.xz") == ("cx_PH", "en_XX")
    assert pair_codes("en_XX-sr_Latn.tsv") == ("en_XX", "sr_Latn")


def test_a_line_beyond_all_measure_is_dropped_in_bounded_memory(write: Write) -> None:
    line = random.Random(1).randbytes(15_000_000).hex().encode()
    path = write("de.txt", b"before\n" + line + b"\nafter\n\n" + line)
    counts: Counter[str] = Counter()
    tracemalloc.start()
    documents = list(read_cc100(path, counts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents == [["before", "after"]]
    assert counts == {"long_line": 2}
    assert peak < 20_000_000


def test_a_line_of_the_longest_length_is_kept(write: Write) -> None:
    counts: Counter[str] = Counter()
    line = b"y" * readers.MAX_LINE_BYTES
    (document,) = read_cc100(write("de.txt", b"a\n" + line + b"\n" + line + b"y\nb\n"), counts)
    assert [len(paragraph) for paragraph in document] == [1, readers.MAX_LINE_BYTES, 1]
    assert counts == {"long_line": 1}


def test_a_file_without_blank_lines_comes_in_parts(write: Write) -> None:
    lines = [f"paragraph {i} " + "z" * 1000 for i in range(9000)]
    counts: Counter[str] = Counter()
    documents = list(read_cc100(write("de.txt", "\n".join(lines).encode()), counts))
    assert [p for document in documents for p in document] == lines
    assert len(documents) == 3
    assert counts == {"long_document": 2}
    assert max(sum(map(len, document)) for document in documents) <= readers.MAX_DOCUMENT_BYTES


def test_blocks_of_any_size_give_the_same_lines(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(5)
    lines = ["ä" * generator.choice([0, 0, 1, 3, 17, 40]) for _ in range(300)]
    expected = [part.split("\n") for part in "\n".join(lines).split("\n\n")]
    expected = [[p for p in part if p] for part in expected if any(part)]
    paths = [write(f"de.txt{suffix}", "\n".join(lines).encode()) for suffix in ("", ".xz", ".gz")]
    for size in (1, 2, 7, 64, 1 << 20):
        monkeypatch.setattr(readers.compression, "BLOCK_BYTES", size)
        for path in paths:
            assert list(read_cc100(path)) == expected, (size, path)


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_cut_anywhere_is_an_error(write: Write, tmp_path: Path, suffix: str) -> None:
    text = "".join(f"{random.Random(i).random()}\n\n" for i in range(300)).encode()
    whole = write(f"de.txt{suffix}", text).read_bytes()
    path = tmp_path / f"cut.txt{suffix}"
    for size in [0, 1, 5, 12, len(whole) // 2, *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(CorpusError, match=rf"cut\.txt\{suffix}.*(too early|cannot be read|is empty)"):
            list(read_cc100(path))
    path.write_bytes(whole)
    assert len(list(read_cc100(path))) == 300


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_damage_is_an_error_that_says_where(write: Write, suffix: str) -> None:
    data = "".join(f"{random.Random(i).random()}\n" for i in range(80_000)).encode()
    path = write(f"de.txt{suffix}", data)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(CorpusError, match=rf"de\.txt\{suffix}: .* after [\d,]+ bytes of text \(about byte [\d,]+ of"):
        list(read_cc100(path))


@pytest.mark.parametrize(("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_several_streams_in_a_file(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"de.txt{suffix}"
    first, second = compress(b"one\ntw"), compress(b"o\n\nthree\n")
    path.write_bytes(first + second)
    assert list(read_cc100(path)) == [["one", "two"], ["three"]]
    path.write_bytes(first + b"\0" * 8 + second + b"\0" * 4)
    assert list(read_cc100(path)) == [["one", "two"], ["three"]]
    # Damage in the second stream: `lzma.open` takes it for trailing garbage and says nothing.
    path.write_bytes(first + b"\xfd7zXX" + second[5:])
    with pytest.raises(CorpusError, match=r"de\.txt"):
        list(read_cc100(path))
    path.write_bytes(first + second[:-3])
    with pytest.raises(CorpusError, match="too early"):
        list(read_cc100(path))


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    for name in ("de.txt.xz", "de.txt.gz"):
        (tmp_path / name).write_bytes(b"<html>404 Not Found</html>")
        with pytest.raises(CorpusError, match=rf"{name}: .* cannot be read"):
            list(read_cc100(tmp_path / name))
    with pytest.raises(CorpusError, match=r"fr\.txt\.xz: expected a readable corpus file, found: No such file"):
        list(read_cc100(tmp_path / "fr.txt.xz"))


def test_sample_counts_against_independent_parsing() -> None:
    for code in ("de", "zh-Hans", "yo", "en"):
        path = SAMPLE_DIR / "cc100" / f"{code}.txt.xz"
        text = lzma.decompress(path.read_bytes()).decode()
        documents = [part.split("\n") for part in text.removesuffix("\n").split("\n\n")]
        assert list(read_cc100(path)) == documents
        assert len(documents) >= 1
    for name, english in (("de_DE-en_XX", 1), ("en_XX-zh_CN", 0), ("en_XX-yo_NG", 0)):
        path = SAMPLE_DIR / "ccaligned" / f"{name}.tsv.xz"
        rows = [row.split("\t") for row in lzma.decompress(path.read_bytes()).decode().split("\n")[:-1]]
        assert list(read_ccaligned(path)) == [(row[english], row[1 - english]) for row in rows]
        assert len(rows) >= 20


def test_forms_of_one_letter_are_left_to_the_vocabulary(write: Write) -> None:
    """Composed and decomposed, full and half width: as they are in the file, and the same ids in the end."""
    composed, decomposed = "Größe naïve café カ ﬁ", "Gro\u0308ße nai\u0308ve cafe\u0301 ｶ fi"
    path = write("de.txt", f"{composed}\n{decomposed}\n".encode())
    assert list(read_cc100(path)) == [[composed, decomposed]]
    vocabulary = Vocabulary.load(SAMPLE_DIR / "vocabulary.model")
    assert vocabulary.encode(composed) == vocabulary.encode(decomposed)
