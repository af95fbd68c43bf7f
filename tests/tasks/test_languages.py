"""The table of languages: known rows, totals that publications give, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, lines[3]], r"line 128: the code 'ar' stands here a second time"),
        (lambda lines: [*lines, lines[3].replace("ar,", "xx,", 1)], "ccaligned_code 'ar_AR' already belongs to 'ar'"),
        (lambda lines: [*lines, lines[3][2:]], "line 128: expected a language code"),
        (lambda lines: [*lines, "xx,X,yes,,,,,,,,0,0"], "expected 0 or 1 in the column 'in_xlmr', found 'yes'"),
        (lambda lines: [*lines, "xx,X,1,,,big,,,,,0,0"], "line 128"),
        (lambda lines: [*lines, "xx,X,1"], "line 128"),
        (lambda lines: [lines[0].replace("in_sample", "sample"), *lines[1:]], "missing: in_sample"),
    ],
)
def test_refusals(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "languages.csv"
    path.write_text("\n".join(change(LANGUAGES_CSV.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_languages(path)
