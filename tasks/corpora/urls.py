"""Where the published files of the corpora are, and on what terms they may be used."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from deltalm_jax.data.readers import CorpusError
from tasks.corpora.corpus import CC100, CCALIGNED, CCALIGNED_DOCUMENTS, OPUS
from tasks.languages import Language

# What can be fetched: corpus → where its files are, if no --mirror says otherwise.
SERVERS = {
    CC100.name: "https://data.statmt.org/cc-100",
    CCALIGNED.name: "https://data.statmt.org/cc-aligned/sentence-aligned",
    CCALIGNED_DOCUMENTS.name: "https://data.statmt.org/cc-aligned",
    OPUS.name: "https://object.pouta.csc.fi",
}
TERMS = {
    CC100.name: "No claims of the preparers'; Common Crawl's terms of use hold for the content.",
    CCALIGNED.name: "No claims of the preparers'; Common Crawl's terms of use hold for the content.",
    CCALIGNED_DOCUMENTS.name: "No claims of the preparers'; Common Crawl's terms of use hold for the content.",
    OPUS.name: "Each corpus has its own licence: see its page on https://opus.nlpl.eu, and LICENSE in the archives.",
}

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_OPUS_CORPUS = re.compile(r"^(?P<corpus>[A-Za-z0-9_.-]+)/(?P<version>v[A-Za-z0-9_.-]+)$")


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file, under one of several names that it may have.

    Attributes:
      language: code of the table.
      names: paths in the corpus's folder. There may be a file under each, and under none.
      urls: of the names.
      about_bytes: size by the table, rounded; None: the server has to be asked.
    """

    language: str
    names: tuple[str, ...]
    urls: tuple[str, ...]
    about_bytes: int | None = None


def published(
    corpus_name: str, languages: Sequence[Language], server: str | None = None, opus_corpora: Sequence[str] = ()
) -> list[Published]:
    """The files of some languages in a corpus.

    Args:
      corpus_name: a key of `SERVERS`.
      languages: rows of the table; those without a file in the corpus are left out.
      server: in place of the corpus's.
      opus_corpora: of OPUS, these: `Tatoeba/v2023-04-12`.

    Raises:
      CorpusError: a name in `opus_corpora` has another form.
    """
    server = (server or SERVERS[corpus_name]).rstrip("/")
    if corpus_name == OPUS.name:
        return [_of_opus(server, corpus, row) for corpus in opus_corpora for row in languages if row.code != "en"]
    files = []
    for row in languages:
        name, size = row.cc100_file, _bytes(row.cc100_xz_size)
        if corpus_name == CCALIGNED.name:
            name, size = row.ccaligned_file, None
        elif corpus_name == CCALIGNED_DOCUMENTS.name:
            # Of documents, English always stands first.
            name, size = f"en_XX-{row.ccaligned_code}.tsv.xz" if row.ccaligned_code and row.code != "en" else "", None
        if name:
            files.append(Published(row.code, (name,), (f"{server}/{name}",), size))
    return files


def _of_opus(server: str, corpus: str, row: Language) -> Published:
    match = _OPUS_CORPUS.match(corpus)
    if not match or ".." in corpus:
        raise CorpusError(f"expected a corpus of OPUS with its version, such as Tatoeba/v2023-04-12, found {corpus!r}")
    names, urls = [], []
    for code in _opus_codes(row):
        pair = "-".join(sorted((code, "en")))
        names.append(f"{corpus}/moses/{pair}.txt.zip")
        urls.append(f"{server}/OPUS-{corpus}/moses/{pair}.txt.zip")
    return Published(row.code, tuple(names), tuple(urls))


def _opus_codes(row: Language) -> list[str]:
    """The codes that OPUS's corpora have for a language: `zh-cn` is zh_cn in one and zh_CN in another."""
    codes: list[str] = []
    for code in (row.code, *row.aliases):
        base, *region = code.replace("-", "_").split("_")
        if not region:
            codes.append(base)
        elif len(region[0]) == 2:
            codes += [f"{base}_{region[0].lower()}", f"{base}_{region[0].upper()}"]
        else:
            codes.append(f"{base}_{region[0].capitalize()}")
    return list(dict.fromkeys(codes))


def _bytes(size: str) -> int | None:
    """`305M` → bytes."""
    return int(float(size[:-1]) * _UNITS[size[-1]]) if size else None
