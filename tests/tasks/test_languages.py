"""The table of languages: known rows, totals that publications give, and refusals."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from deltalm_jax.data.readers import read_cc100
from tasks.corpora import find_files
from tasks.languages import LANGUAGES_CSV, load_languages


def test_known_rows() -> None:
    table = load_languages()
    german = table["de"]
    assert (german.name, german.cc100_file, german.cc100_xz_size) == ("German", "de.txt.xz", "18G")
    assert (german.ccaligned_code, german.ccaligned_file, german.ccaligned_pairs) == (
        "de_DE",
        "de_DE-en_XX.tsv.xz",
        15_300_342,
    )
    assert (german.xlmr_size_gib, german.in_xlmr, german.in_sample) == (66.6, True, True)
    # "no" is no boolean here.
    assert table["no"].name == "Norwegian"
    assert table["ceb"].ccaligned_code == "cx_PH"
    assert table["pt-br"].in_sample
    assert table["lb"].cc100_file == ""
    assert table["lb"].ccaligned_pairs is None


def test_totals_of_the_publications() -> None:
    rows = load_languages().values()
    assert sum(row.in_xlmr for row in rows) == 100
    assert sum(bool(row.cc100_file) for row in rows) == 116
    # The rule of the inference: in XLM-R and with at least 100,000 pairs; Chinese has two rows and counts once.
    rule = {row.code for row in rows if row.in_xlmr and (row.ccaligned_pairs or 0) >= 100_000}
    assert {row.code for row in rows if row.in_77_inferred} == rule
    assert {"zh-Hans", "zh-Hant"} <= rule
    assert len(rule) == 77 + 1
    assert sum(row.in_sample for row in rows) == 105


def test_published_names_agree_with_codes() -> None:
    for row in load_languages().values():
        assert row.cc100_file in ("", f"{row.code}.txt.xz")
        if row.ccaligned_file:
            first, second = sorted([row.ccaligned_code, "en_XX"])
            assert row.ccaligned_file == f"{first}-{second}.tsv.xz"


def test_the_resource_level_follows_its_rule() -> None:
    table = load_languages()
    for row in table.values():
        size = row.xlmr_size_gib
        if size is None and "-" in row.code:
            size = table[row.code.split("-")[0]].xlmr_size_gib
        assert row.resource_level == ("low" if size is None or size < 1 else "medium" if size < 10 else "high"), (
            row.code
        )
        if size is None and row.cc100_xz_size:
            assert row.cc100_xz_size.endswith(("K", "M")), row.code
            assert float(row.cc100_xz_size[:-1]) < 10 or row.cc100_xz_size.endswith("K"), row.code
    levels = [row.resource_level for row in table.values()]
    assert {level: levels.count(level) for level in ("high", "medium", "low")} == {"high": 38, "medium": 32, "low": 56}
    assert table["de"].groups == {"script": "Latn", "resource_level": "high"}
    assert table["pt-br"].groups == {"script": "Latn", "resource_level": "high"}
    assert table["yo"].groups == {"script": "Latn", "resource_level": "low"}


# Scripts that Unicode names its letters after, and those that are made of several or share their letters.
UNICODE_NAMES = {
    "ARABIC": "Arab", "ARMENIAN": "Armn", "BENGALI": "Beng", "CYRILLIC": "Cyrl", "DEVANAGARI": "Deva", "ETHIOPIC": "Ethi",
    "GEORGIAN": "Geor", "GREEK": "Grek", "GUJARATI": "Gujr", "GURMUKHI": "Guru", "HANGUL": "Kore", "HEBREW": "Hebr",
    "HIRAGANA": "Jpan", "KANNADA": "Knda", "KHMER": "Khmr", "LAO": "Laoo", "LATIN": "Latn", "MALAYALAM": "Mlym",
    "MYANMAR": "Mymr", "SINHALA": "Sinh", "TAMIL": "Taml", "TELUGU": "Telu", "THAI": "Thai",
}  # fmt: skip


def test_scripts_are_those_of_the_text() -> None:
    """The letters of the sample's text say which script it is; Han letters do not say which of the two."""
    table = load_languages()
    seen = set()
    for code, file in find_files(None, "cc100").items():
        letters: Counter[str] = Counter()
        for document in read_cc100(file.train[0]):
            letters.update(unicodedata.name(c, "?").split()[0] for text in document for c in text if c.isalpha())
        (name, _) = letters.most_common(1)[0]
        seen.add(table[code].script)
        if code != "tk":  # in Latin and Cyrillic
            expected = {"zh-Hans": "Hans", "zh-Hant": "Hant"}.get(code) or UNICODE_NAMES[name]
            assert table[code].script == expected, code
    assert len(seen) == 25
    romanised = [row for row in table.values() if row.code.endswith("_rom")]
    assert len(romanised) == 5
    assert {row.script for row in romanised} == {"Latn"}
    assert (table["or"].script, table["my_zaw"].script, table["as"].script) == ("Orya", "Mymr", "Beng")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, lines[3]], r"line 128: the code 'ar' stands here a second time"),
        (lambda lines: [*lines, lines[3].replace("ar,", "xx,", 1)], "ccaligned_code 'ar_AR' already belongs to 'ar'"),
        (lambda lines: [*lines, lines[3][2:]], "line 128: expected a language code"),
        (
            lambda lines: [*lines, "xx,X,yes,,,,,,,,0,0,Latn,low"],
            "expected 0 or 1 in the column 'in_xlmr', found 'yes'",
        ),
        (lambda lines: [*lines, "xx,X,1,,,big,,,,,0,0,Latn,low"], "line 128"),
        (lambda lines: [*lines, "xx,X,1,,,,,,,,0,0,latin,low"], "line 128: .* in the column 'script', found 'latin'"),
        (lambda lines: [*lines, "xx,X,1,,,,,,,,0,0,Latn,poor"], "line 128: .*'resource_level', found 'poor'"),
        (lambda lines: [*lines, "xx,X,1,,,,,,,,0,0,Latn"], "line 128: .*'resource_level', found None"),
        (lambda lines: [*lines, "xx,X,1"], "line 128"),
        (lambda lines: [lines[0].replace("in_sample", "sample"), *lines[1:]], "missing: in_sample"),
    ],
)
def test_refusals(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "languages.csv"
    path.write_text("\n".join(change(LANGUAGES_CSV.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_languages(path)
