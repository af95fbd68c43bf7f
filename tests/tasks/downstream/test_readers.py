"""Readers of published files: what they give, and one error for each kind of damage, with file and line."""

from __future__ import annotations

import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltalm_jax.data.readers import CorpusError
from tasks.downstream_readers import (
    MAX_LINE_BYTES,
    join_chinese,
    read_aligned,
    read_columns,
    read_sgm_pair,
    read_webnlg,
    read_wiki_lingua,
)

DATA = Path(__file__).parent / "data"
LONG = "x" * 200_000
BOM = b"\xef\xbb\xbf"


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pair(folder: Path, first: bytes | str, second: bytes | str) -> list[Path]:
    return [write(folder / "a.x", first), write(folder / "a.y", second)]


def test_aligned_rows_of_three_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, text) for name, text in (("q", "1\n2\n"), ("a", "x\ny"), ("e", " ä \nö\n"))]
    counts: Counter[str] = Counter()
    assert list(read_aligned(paths, counts)) == [("1", "x", "ä"), ("2", "y", "ö")]
    assert counts == {"lines": 6}


def test_byte_order_marks_and_crlf_are_no_fault(tmp_path: Path) -> None:
    paths = pair(tmp_path, BOM + b"one\r\ntwo\r\n", b"un\ndeux\n")
    assert list(read_aligned(paths, Counter())) == [("one", "un"), ("two", "deux")]
    columns = write(tmp_path / "a.tsv", BOM + b"one\tun\r\ntwo\tdeux\r\n")
    assert list(read_columns(columns, Counter())) == [("one", "un"), ("two", "deux")]


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    paths = pair(tmp_path, "one\u2028more\x85\n", "un\n")
    assert list(read_aligned(paths, Counter())) == [("one\u2028more", "un")]


@pytest.mark.parametrize(("name", "pack"), [("a.x.gz", gzip.compress), ("a.x.xz", lzma.compress)])
def test_packed_files(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    paths = [write(tmp_path / name, pack(b"one\ntwo\n")), write(tmp_path / "a.y", "un\ndeux\n")]
    assert list(read_aligned(paths, Counter())) == [("one", "un"), ("two", "deux")]
    write(paths[0], pack(b"one\ntwo\n")[:-9])
    with pytest.raises(CorpusError, match=str(paths[0])):
        list(read_aligned(paths, Counter()))


DAMAGE = {
    "invalid_utf8": (b"caf\xe9", "UTF-8"),
    "lone_surrogate": (b"caf\xed\xa0\x80", "UTF-8"),
    "nul": (b"a\x00b", "NUL"),
    "long_line": (LONG.encode(), f"at most {MAX_LINE_BYTES:,} bytes"),
    "empty": (b"  ", "empty line"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_line_is_an_error_with_file_and_line(tmp_path: Path, kind: str) -> None:
    line, expected = DAMAGE[kind]
    paths = pair(tmp_path, b"one\ntwo\nthree\n", b"un\n" + line + b"\ntrois\n")
    rows = read_aligned(paths, Counter())
    assert next(rows) == ("one", "un")
    with pytest.raises(CorpusError, match=rf"a\.y, line 2: expected .*{expected}"):
        list(rows)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_lenient_reader_drops_both_sides_and_counts(tmp_path: Path, kind: str) -> None:
    line, _ = DAMAGE[kind]
    paths = pair(tmp_path, b"one\ntwo\nthree\n", b"un\n" + line + b"\ntrois\n")
    counts: Counter[str] = Counter()
    assert list(read_aligned(paths, counts, lenient=True)) == [("one", "un"), ("three", "trois")]
    assert counts == {"invalid_utf8" if kind == "lone_surrogate" else kind: 1, "lines": 6}


def test_empty_lines_alone_can_be_dropped(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    assert list(read_aligned(pair(tmp_path, "one\n\n", "un\ndeux\n"), counts, drop_empty=True)) == [("one", "un")]
    assert counts["empty"] == 1
    with pytest.raises(CorpusError, match=r"a\.x, line 2: expected UTF-8"):
        list(read_aligned(pair(tmp_path, b"one\n\xff\n", "un\ndeux\n"), Counter(), drop_empty=True))


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(("first", "second"), [("1\n2\n3\n", "1\n"), ("1\n", "1\n2\n3\n")])
def test_unequal_numbers_of_lines_say_both(tmp_path: Path, first: str, second: str, lenient: bool) -> None:
    with pytest.raises(CorpusError) as caught:
        list(read_aligned(pair(tmp_path, first, second), Counter(), lenient=lenient))
    assert f"{first.count('1') + first.count('2') + first.count('3')} lines in {tmp_path / 'a.x'}" in str(caught.value)
    assert f"{second.count('1') + second.count('2') + second.count('3')} lines in {tmp_path / 'a.y'}" in str(
        caught.value
    )


@pytest.mark.parametrize("content", [b"", BOM])
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CorpusError, match=r"a\.x: expected lines of text, found an empty file|a\.x, line 1"):
        list(read_aligned(pair(tmp_path, content, content), Counter()))
    with pytest.raises(CorpusError, match=r"a\.tsv: expected lines of text, found an empty file|a\.tsv, line 1"):
        list(read_columns(write(tmp_path / "a.tsv", content), Counter()))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"a\.x: expected a readable corpus file"):
        list(read_aligned([tmp_path / "a.x", write(tmp_path / "a.y", "1\n")], Counter()))


def test_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tsv", b"one\tun\nno tab\na\tb\tc\n\t\n\xff\tx\nn\x00l\tx\n" + LONG.encode() + b"\tx\ntwo\tdeux\n"
    )
    counts: Counter[str] = Counter()
    assert list(read_columns(path, counts, lenient=True)) == [("one", "un"), ("two", "deux")]
    assert counts == {"columns": 2, "empty": 1, "invalid_utf8": 1, "nul": 1, "long_line": 1, "lines": 8}
    for line, expected in (
        (b"no tab", "two columns separated by a tab, found 1"),
        (b"a\tb\tc", "two columns separated by a tab, found 3"),
        (b"a\t ", "text, found an empty"),
        (b"\xff\tx", "UTF-8"),
        (b"n\x00l\tx", "NUL"),
        (LONG.encode(), "bytes, found a longer one"),
    ):
        rows = read_columns(write(path, b"one\tun\n" + line + b"\n"), Counter())
        assert next(rows) == ("one", "un")
        with pytest.raises(CorpusError, match=rf"a\.tsv, line 2: expected .*{expected}"):
            list(rows)


SGM = "newstest2018-csen-src.cs.sgm", "newstest2018-csen-ref.en.sgm"


def test_sgm_is_read_as_sacrebleu_reads_it(tmp_path: Path) -> None:
    """Against sacreBLEU's own conversion, which the scores of others went through."""
    from sacrebleu.dataset.fake_sgml import FakeSGMLDataset

    paths = [DATA / "wmt10/cs-en" / name for name in SGM]
    converter = FakeSGMLDataset("wmt18", data=[], langpairs={})
    sides = []
    for path in paths:
        converter._convert_format(str(path), str(tmp_path / path.name))
        sides.append((tmp_path / path.name).read_text(encoding="utf-8").splitlines())
    pairs = list(read_sgm_pair(*paths, Counter()))
    assert pairs == list(zip(*sides, strict=True))
    assert pairs[:2] == [
        ("Řeka po dešti stoupla.", "The river rose after the rain."),
        ("Škoda &amp; syn zavřeli dílnu.", "Škoda &amp; Son closed the workshop."),
    ]


def test_sgm_with_other_segments_is_an_error(tmp_path: Path) -> None:
    source, reference = ((DATA / "wmt10/cs-en" / name).read_text(encoding="utf-8") for name in SGM)

    def read(reference: str) -> list[tuple[str, str]]:
        return list(read_sgm_pair(*pair(tmp_path, source, reference), Counter()))

    assert len(read(reference)) == 3
    with pytest.raises(CorpusError, match=r"segment 1 of 'noviny.2' and segment 1 of 'other' at place 3"):
        read(reference.replace("noviny.2", "other"))
    with pytest.raises(CorpusError, match=r"found 3 in .*a\.x and 2 in .*a\.y"):
        read("\n".join(line for line in reference.splitlines() if "bridge" not in line))
    with pytest.raises(CorpusError, match=r"a\.y, line 4: expected <seg id"):
        read(reference.replace("the rain.</seg>", "the rain."))
    with pytest.raises(CorpusError, match=r"a\.y, line 4: expected text in a segment"):
        read(reference.replace("The river rose after the rain.", " "))
    with pytest.raises(CorpusError, match=r"a\.y: expected a test set of WMT"):
        read("only text\n")


def webnlg(path: Path, language: str, **more: Any) -> tuple[list[Any], Counter[str]]:
    counts: Counter[str] = Counter()
    return list(read_webnlg(path, counts, language, **more)), counts


def test_webnlg() -> None:
    (entry,), counts = webnlg(DATA / "webnlg/en/train/1triples/Airport.xml", "en")
    assert entry.triples == (("Aarhus_Airport", "cityServed", '"Aarhus, Denmark"'),)
    assert entry.texts == (
        "Aarhus airport serves the city of Aarhus, Denmark.",
        "The airport of Aarhus is in Denmark & serves that city.",
    )
    assert entry.category == "Airport"
    assert counts == {"bad_text": 1}
    (entry,), _ = webnlg(DATA / "webnlg/en/train/7triples/Astronaut.xml", "en")
    assert [len(entry.triples), entry.triples[-1]] == [7, ("Mission_7", "operator", "NASA")]
    (entry,), counts = webnlg(DATA / "webnlg/ru/test/set.xml", "ru")
    assert entry.texts == ("Турку находится в Финляндии.", "Турку - город в Финляндии.")
    assert counts == {"other_language": 1}


GOOD = (DATA / "webnlg/en/test/set.xml").read_text(encoding="utf-8")
BOMB = '<!DOCTYPE benchmark [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>\n'
WRONG_XML = {
    "cut short": (GOOD[:400], "line [0-9]+, column .*cannot be read"),
    "not closed": (GOOD.replace("</mtriple>", "", 1), "cannot be read: mismatched tag"),
    "entities": (GOOD.replace("<benchmark>", BOMB + "<benchmark>"), "declaration of the entity 'a'"),
    "external entity": (
        GOOD.replace("<benchmark>", '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>\n<benchmark>'),
        "declaration of the entity 'f'",
    ),
    "undeclared entity": (GOOD.replace("Finnish", "&finnish;"), "cannot be read: undefined entity"),
    "another root": ("<html><body/></html>", "line 1: expected .* found the root element <html>"),
    "two parts": (
        GOOD.replace("Turku | country | Finland", "Turku | Finland"),
        "line 6: .* the triple 'Turku | Finland'",
    ),
    "no triples": (GOOD.replace("mtriple", "otriple"), "line 11: .* an entry without <mtriple>"),
    "deep": ("<benchmark>" + "<a>" * 200, "nested over 100 deep"),
    "no entries": ("<benchmark><entries/></benchmark>", "expected entries of WebNLG, found none"),
    "long": (GOOD.replace("Finnish", LONG), "text of over 131,072 characters"),
    "bad utf-8": (GOOD.encode().replace(b"Finnish", b"Finn\xff"), "line 9, .*cannot be read"),
    "nul": (GOOD.replace("Finnish", "Fin\0nish"), "line 9, .*cannot be read"),
    "empty": ("", "cannot be read: no element found"),
}


@pytest.mark.parametrize("kind", WRONG_XML)
def test_wrong_xml_is_an_error_with_the_line(tmp_path: Path, kind: str) -> None:
    content, expected = WRONG_XML[kind]
    with pytest.raises(CorpusError, match=rf"set\.xml.*{expected}"):
        webnlg(write(tmp_path / "set.xml", content), "en")


def test_a_set_without_texts_is_an_error_but_in_training() -> None:
    path = DATA / "webnlg/en/test/set.xml"
    with pytest.raises(CorpusError, match=r"set\.xml, line 11: .*an entry without a text in 'ru'"):
        webnlg(path, "ru")
    assert webnlg(path, "ru", lenient=True) == ([], Counter({"other_language": 2, "no_text": 1}))


def turkish() -> Iterator[dict[str, Any]]:
    for line in (DATA / "wiki_lingua/turkish/validation.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def test_wiki_lingua() -> None:
    rows = list(read_wiki_lingua(DATA / "wiki_lingua/turkish/validation.jsonl", Counter(), "tr"))
    assert rows == [
        ("Suyu kaynatın. Çayı ekleyin.", ["Brew tea."]),
        ("Kapıyı çalın.", ["Knock and wait.", "Wait after knocking."]),
    ]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another language": (lambda e: e["source_aligned"].update(vi="x") or e["source_aligned"].pop("tr"), "to have 'tr'"),
    "swapped": (
        lambda e: e.update(source=e["source_aligned"]["en"]),
        "expected 'source' to be source_aligned\\['tr'\\], found another text",
    ),
    "monolingual": (
        lambda e: e.update(target=e["target_aligned"]["tr"]),
        "expected 'target' to be target_aligned\\['en'\\], found another text",
    ),
    "no source": (lambda e: e.pop("source"), "expected the text 'source', found no such field"),
    "a number": (lambda e: e.update(target=3), "expected the text 'target', found int"),
    "references": (lambda e: e.update(references="Brew tea."), "'references' to be a list, found str"),
    "surrogate": (lambda e: e.update(source="\ud800"), "half a character"),
    "empty": (
        lambda e: e.update(source="", source_aligned={"tr": "", "en": ""}),
        "found an empty line",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_wrong_fields_of_wiki_lingua(tmp_path: Path, kind: str) -> None:
    change, expected = CHANGES[kind]
    first, second = turkish()
    change(second)
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(example) for example in (first, second)))
    with pytest.raises(CorpusError, match=rf"a\.jsonl, line 2: expected .*{expected}|a\.jsonl, line 2: .*{expected}"):
        list(read_wiki_lingua(path, Counter(), "tr"))
    if kind == "empty":
        counts: Counter[str] = Counter()
        assert len(list(read_wiki_lingua(path, counts, "tr", drop_empty=True))) == 1
        assert counts["empty"] == 1


def test_an_article_may_be_long_but_not_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, json.dumps({"source": "я" * 40_000, "target": "Brew tea."}))  # six bytes a letter
    assert [len(source) for source, _ in read_wiki_lingua(path, Counter(), "ru")] == [40_000]
    write(path, json.dumps({"source": "я" * 180_000, "target": "Brew tea."}))
    with pytest.raises(CorpusError, match=r"line 1: expected a line of at most 1,048,576 bytes"):
        list(read_wiki_lingua(path, Counter(), "ru"))


def test_wiki_lingua_without_references_takes_the_target(tmp_path: Path) -> None:
    example = {**next(turkish()), "references": []}
    path = write(tmp_path / "a.jsonl", json.dumps(example))
    assert list(read_wiki_lingua(path, Counter(), "tr")) == [("Suyu kaynatın. Çayı ekleyin.", ["Brew tea."])]


def test_files_that_are_not_json_lines(tmp_path: Path) -> None:
    for content, expected in (
        (
            json.dumps(list(turkish())),
            r"line 1: expected a JSON object a line, found one list .*jq -c '\.\[\]' a\.jsonl",
        ),
        ("{}\n{", "line 1: expected the text 'source', found no such field"),
        ('{"a":', "line 1: expected a JSON object, found: Expecting value"),
        ("3\n", "line 1: expected a JSON object, found int"),
        ("", "found an empty file"),
    ):
        with pytest.raises(CorpusError, match=expected):
            list(read_wiki_lingua(write(tmp_path / "a.jsonl", content), Counter(), "tr"))


def test_the_segmenters_spaces() -> None:
    for segmented, joined in (
        ("中国 的 首都 是 哪里 ？", "中国的首都是哪里？"),
        ("iphone 5 是 2012 年 发布 的", "iphone 5是2012年发布的"),
        ("new york 在 美国 ， 3 . 5 亿", "new york在美国，3.5亿"),
        (" 北京 ", "北京"),
        ("Émile Zola 写 了", "Émile Zola写了"),
    ):
        assert join_chinese(segmented) == joined
