"""Language codes in the names of files of pairs: `de-en.tsv`, `en_XX-zh_CN.tsv.xz`, `Tatoeba_v1_moses_en-pt_br.txt.zip`."""

from __future__ import annotations

import re

# Regions and scripts that some corpora write in lower case; others are told by their capital letter.
_LOWER_CASE_REGIONS = ("br", "cn", "tw", "hk", "mx", "hans", "hant", "latn", "cyrl")

_CODE = rf"[a-z]{{2,3}}(?:[-_](?:[A-Z][A-Za-z]{{1,3}}|{'|'.join(_LOWER_CASE_REGIONS)})|_rom|_zaw)?"
_PAIR = re.compile(rf"(?:^|[^A-Za-z])(?P<first>{_CODE})-(?P<second>{_CODE})$")


def codes_in(stem: str) -> tuple[str, str] | None:
    """The two codes at the end of a file name without its endings, in their order; None where there are none.

    `en_XX-sw_KE` → ("en_XX", "sw_KE"), `news.sw-en` → ("sw", "en"), `ted_de-en` → ("de", "en").
    """
    match = _PAIR.search(stem)
    return (match["first"], match["second"]) if match else None


def is_english(code: str) -> bool:
    """Whether a code is English's: `en`, `en_XX`, `en-GB`, `eng`; in any case."""
    return re.split("[-_]", code.lower())[0] in ("en", "eng")
