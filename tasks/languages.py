"""The table of languages: `languages.csv`, one row a language code used in task names and files.

Sources of its columns: the listing of CC100's site (files and compressed sizes), XLM-R's paper, Table 6 (text sizes;
`tokens_millions` counts words between spaces, useless for Thai, Japanese or Chinese), CCAligned's file list and OPUS's
counts of it. `in_77_inferred`: DeltaLM's 77 translation languages were never listed; XLM-R's languages with at least
100,000 CCAligned pairs are exactly 77.

`script` is the one that the language's corpus files are written in, by ISO 15924: Latn for the romanised variants (`*_rom`),
Mymr for Burmese in Unicode and in Zawgyi alike. It is the main one where a file holds two (the sample's Turkmen: half of
it is Cyrillic).

`resource_level` follows from `xlmr_size_gib`: "high" from 10 GiB on, "medium" from 1 GiB on, else "low". A variant without
a size of its own takes that of its language (`pt-br`: that of `pt`); a language without any is "low": where CC100 has it
at all, its file is below 10 MB.

`aliases` are other codes that corpora use for the language: old ones (`iw` for Hebrew), national ones (`fil`), and those of
the part that is nearly all of it (`nb` for Norwegian, `zh` for simplified Chinese). Case, `-` and `_` do not count.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

LANGUAGES_CSV = Path(__file__).parent / "languages.csv"
RESOURCE_LEVELS = ("high", "medium", "low")

_SCRIPT = "[A-Z][a-z]{3}"


@dataclasses.dataclass(frozen=True)
class Language:
    """One row of the table; figures that are not known are None, names that do not exist are "".

    Attributes:
      code: CC100's code where it has one (`de`, `zh-Hans`), used in file and task names.
      name: English name.
      in_xlmr: one of XLM-R's 100 training languages (romanised variants counted as there).
      cc100_file: name of the published CC100 file.
      cc100_xz_size: its size as the site lists it (`82G`).
      xlmr_size_gib: text XLM-R was trained on, GiB.
      xlmr_tokens_millions: the same in white-space separated words, millions.
      ccaligned_code: code in CCAligned's file names (`de_DE`); set by this project where `ccaligned_file` is "".
      ccaligned_file: name of the published sentence-aligned file with English.
      ccaligned_pairs: pairs in it.
      in_77_inferred: among the inferred 77 languages of DeltaLM's bilingual data.
      in_sample: the shipped sample has it.
      script: the script of its corpus files, ISO 15924 (`Latn`).
      resource_level: "high", "medium" or "low".
      aliases: other codes for it.
    """

    code: str
    name: str
    in_xlmr: bool
    cc100_file: str
    cc100_xz_size: str
    xlmr_size_gib: float | None
    xlmr_tokens_millions: float | None
    ccaligned_code: str
    ccaligned_file: str
    ccaligned_pairs: int | None
    in_77_inferred: bool
    in_sample: bool
    script: str
    resource_level: str
    aliases: tuple[str, ...]

    @property
    def groups(self) -> dict[str, str]:
        """What a validation by groups of languages goes by: kind of group → the group that this language is in."""
        return {"script": self.script, "resource_level": self.resource_level}


def load_languages(path: str | Path = LANGUAGES_CSV) -> dict[str, Language]:
    """Reads the table, in file order.

    Raises:
      ValueError: missing columns, an empty or repeated code, or a cell that is no number or no 0/1; names the line.
    """
    languages: dict[str, Language] = {}
    pair_codes: dict[str, str] = {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        fields = [field.name for field in dataclasses.fields(Language)]
        if missing := [field for field in fields if field not in (rows.fieldnames or [])]:
            raise ValueError(f"{path}: expected the columns {', '.join(fields)}; missing: {', '.join(missing)}.")
        for row in rows:
            try:
                language = _parse(row)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
            if language.code in languages:
                raise ValueError(f"{path}, line {rows.line_num}: the code {language.code!r} stands here a second time.")
            pair_code = language.ccaligned_code
            if pair_code in pair_codes:
                raise ValueError(
                    f"{path}, line {rows.line_num}: ccaligned_code {pair_code!r} already belongs to "
                    f"{pair_codes[pair_code]!r}."
                )
            if pair_code:
                pair_codes[pair_code] = language.code
            languages[language.code] = language
    seen: dict[str, str] = {}
    for language in languages.values():
        for code in (language.code, *language.aliases):
            if (owner := seen.setdefault(_plain(code), language.code)) != language.code:
                raise ValueError(f"{path}: {code!r}, a code of {language.code!r}, already belongs to {owner!r}.")
    return languages


class Codes:
    """What language a code means: the table's, by code or alias."""

    def __init__(self, table: Mapping[str, Language]):
        """An index of a table."""
        self.table = table
        self._codes = {_plain(code): row.code for row in table.values() for code in (row.code, *row.aliases)}

    def find(self, code: str) -> str:
        """The table's code for `code` or one of its aliases (`iw` and `IW` → `he`, `zh_hans` → `zh-Hans`); else `code`."""
        return self._codes.get(_plain(code), code)

    def find_regional(self, code: str) -> str:
        """As `find`, and where the table has a language without the region, that language: `en_GB` → `en`.

        A script is no region (`uz_Cyrl` stays), and South Azerbaijani (`az_IR`) is another language than `az`.
        """
        found = self.find(code)
        base, *region = re.split("[-_]", code)
        if found in self.table or len(region) != 1 or len(region[0]) != 2 or _plain(code) in _NOT_THEIR_BASE:
            return found
        return self.find(base)


_NOT_THEIR_BASE = ("az-ir",)


def _plain(code: str) -> str:
    return code.lower().replace("_", "-")


def _parse(row: dict[str, str]) -> Language:
    if not row["code"]:
        raise ValueError("expected a language code in the column 'code', found nothing.")
    return Language(
        code=row["code"],
        name=row["name"],
        in_xlmr=_flag(row, "in_xlmr"),
        cc100_file=row["cc100_file"],
        cc100_xz_size=row["cc100_xz_size"],
        xlmr_size_gib=_number(row, "xlmr_size_gib"),
        xlmr_tokens_millions=_number(row, "xlmr_tokens_millions"),
        ccaligned_code=row["ccaligned_code"],
        ccaligned_file=row["ccaligned_file"],
        ccaligned_pairs=int(row["ccaligned_pairs"]) if row["ccaligned_pairs"] else None,
        in_77_inferred=_flag(row, "in_77_inferred"),
        in_sample=_flag(row, "in_sample"),
        script=_one_of(row, "script", _SCRIPT),
        resource_level=_one_of(row, "resource_level", "|".join(RESOURCE_LEVELS)),
        aliases=tuple(row["aliases"].split()),
    )


def _flag(row: dict[str, str], column: str) -> bool:
    if row[column] not in ("0", "1"):
        raise ValueError(f"expected 0 or 1 in the column {column!r}, found {row[column]!r}.")
    return row[column] == "1"


def _one_of(row: dict[str, str], column: str, pattern: str) -> str:
    if not re.fullmatch(pattern, row[column] or ""):
        raise ValueError(f"expected {pattern} in the column {column!r}, found {row[column]!r}.")
    return row[column]


def _number(row: dict[str, str], column: str) -> float | None:
    return float(row[column]) if row[column] else None
