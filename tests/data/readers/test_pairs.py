"""Pairs of one's own, in columns or line by line; and CCAligned's documents."""

from __future__ import annotations

from collections import Counter

import pytest

from deltalm_jax.data.readers import CorpusError, read_ccaligned_documents, read_parallel
from deltalm_jax.data.readers.names import codes_in, is_english
from tests.data.readers.conftest import Write

EXPECTED = [("one", "moja"), ("two", "mbili")]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("sw-en.tsv", b"moja\tone\nmbili\ttwo\n"),
        ("en-sw.tsv", b"one\tmoja\t1.2\ntwo\tmbili\n"),
        ("news.sw-en.tsv.gz", b"moja\tone\r\nmbili\ttwo\r\n"),
        ("en_XX-sw_KE.tsv.xz", b"one\tmoja\ntwo\tmbili"),
        ("sw-en/anything.tsv", b"moja\tone\nmbili\ttwo\n"),
        ("sw-en/other.en-sw.tsv", b"one\tmoja\ntwo\tmbili\n"),
    ],
)
def test_columns(write: Write, name: str, data: bytes) -> None:
    counts: Counter[str] = Counter()
    path = write(name, data + b"\nbad\n")
    assert list(read_parallel(path, counts)) == EXPECTED
    assert sum(counts.values()) >= 1


@pytest.mark.parametrize("name", ["words.tsv", "sw-fr.tsv", "en-en_GB.tsv", "corpus/words.tsv"])
def test_columns_that_no_name_explains(write: Write, name: str) -> None:
    with pytest.raises(CorpusError, match=r"expected a name like sw-en\.tsv"):
        list(read_parallel(write(name, b"a\tb\n")))


@pytest.mark.parametrize(("english", "other"), [("", ""), (".gz", ""), ("", ".xz"), (".xz", ".gz")])
def test_line_aligned_files(write: Write, english: str, other: str) -> None:
    english_file = write(f"news.en{english}", b"one\n\nbad \xff\ntwo\n")
    path = write(f"news.sw{other}", b"moja\nempty beside\nbad\nmbili\n")
    counts: Counter[str] = Counter()
    assert list(read_parallel(path, counts)) == EXPECTED
    assert counts == {"empty": 1, "invalid_utf8": 1}
    # The English side is among a task's files, and gives nothing of its own.
    assert list(read_parallel(english_file)) == []


def test_line_aligned_files_of_unequal_length(write: Write) -> None:
    english, path = write("a/news.en", b"one\ntwo\n"), write("a/news.sw", b"moja\nmbili\ntatu\nnne\n")
    with pytest.raises(CorpusError) as error:
        list(read_parallel(path))
    assert f"found 2 lines in {english} and 4 in {path}" in str(error.value)


def test_sides_that_are_missing_or_there_twice(write: Write) -> None:
    path = write("news.sw", b"moja\n")
    with pytest.raises(CorpusError, match=r"expected its English side beside it, news\.en"):
        list(read_parallel(path))
    write("news.en", b"one\n")
    write("news.en.gz", b"one\n")
    with pytest.raises(CorpusError, match=r"news\.en and news\.en\.gz are the same text twice"):
        list(read_parallel(path))
    with pytest.raises(CorpusError, match=r"README: expected its English side beside it"):
        list(read_parallel(write("README", b"x")))


def document_row(source: str, target: str) -> str:
    return "\t".join(["a.org", "http://a.org/en", source, "http://a.org/eo", target]) + "\n"


@pytest.mark.parametrize("name", ["en_XX-eo_XX.tsv.xz", "eo_XX-en_XX.tsv.gz"])
def test_lines_of_document_pairs(write: Write, name: str) -> None:
    rows = [
        document_row("Home|One house.| |Two.", "Hejmo|Unu domo.|Du.|"),
        document_row("Only one line", "Nur unu"),
        document_row("a|b|c", "a|b"),
        document_row("| |", "a"),
        document_row("long|" + "x" * ((1 << 20) + 1), "longa|y"),
        "one\ttwo\t1.04\n",
        "\n",
    ]
    counts: Counter[str] = Counter()
    pairs = list(read_ccaligned_documents(write(name, "".join(rows).encode()), counts))
    expected = [
        ("Home", "Hejmo"),
        ("One house.", "Unu domo."),
        ("Two.", "Du."),
        ("Only one line", "Nur unu"),
        ("long", "longa"),
    ]
    assert pairs == (expected if name.startswith("en") else [pair[::-1] for pair in expected])
    assert counts == {"line_counts": 1, "empty": 2, "columns": 1, "long_line": 1}


@pytest.mark.parametrize(
    ("stem", "codes"),
    [
        ("de-en", ("de", "en")),
        ("en_XX-sw_KE", ("en_XX", "sw_KE")),
        ("ted_de-en", ("de", "en")),
        ("Tatoeba_v2023-04-12_moses_en-pt_br", ("en", "pt_br")),
        ("zh_cn-en", ("zh_cn", "en")),
        ("moses_pt_BR-en", ("pt_BR", "en")),
        ("zh-Hans-en", ("zh-Hans", "en")),
        ("en-sr_Latn", ("en", "sr_Latn")),
        ("OpenSubtitles-v2018.de-en", ("de", "en")),
        ("bn_rom-en", ("bn_rom", "en")),
        ("readme", None),
        ("english-swahili", None),
        ("en", None),
    ],
)
def test_codes_in_names(stem: str, codes: tuple[str, str] | None) -> None:
    assert codes_in(stem) == codes


def test_english_under_its_names() -> None:
    assert all(map(is_english, ("en", "EN", "en_XX", "en-GB", "eng", "en_US")))
    assert not any(map(is_english, ("enm", "de", "es", "", "ens")))
