"""What the paper's languages have in the published corpora, before any file is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalm_jax.data.readers import CorpusError
from deltalm_jax.paths import as_path
from tasks.corpora.corpus import CCALIGNED, CORPORA
from tasks.corpora.finding import CorpusFiles, files_by_language
from tasks.corpora.layout import VALIDATION
from tasks.languages import Codes, load_languages


def published_files(data_dir: str | Path, corpus_name: str, languages: Sequence[str] = ()) -> dict[str, CorpusFiles]:
    """The files of the paper's languages in a corpus, whether they are there or not; sorted by language code.

    DeltaLM's monolingual text is of XLM-R's 100 languages, its parallel text of 77 (`Language.in_77_inferred`: which ones
    was never said). Other codings (`.gz`, plain) of a published file, and held-out text, are taken where they lie in the
    folder.

    Args:
      data_dir: a folder as `tasks.corpora` describes it; need not exist yet.
      corpus_name: "cc100" or "ccaligned".
      languages: codes of the table to add.

    Raises:
      CorpusError: a language of which the corpus has no published file; or two files for one language.
    """
    corpus, codes = CORPORA[corpus_name], Codes(load_languages())
    table = codes.table
    of_documents = corpus.unit == "documents"
    chosen = {row.code for row in table.values() if (row.in_xlmr if of_documents else row.in_77_inferred)} | set(
        languages
    )
    folder = as_path(data_dir) / corpus.name
    train, held_out = (files_by_language(path, corpus, codes) for path in (folder, folder / VALIDATION))
    files = {}
    for code in sorted(chosen):
        row = table.get(code)
        name = row and (row.cc100_file if of_documents else row.ccaligned_file)
        if not name and code in languages:
            raise CorpusError(f"{corpus.title} publishes no file of {code!r} (tasks/languages.csv).")
        if name:
            files[code] = CorpusFiles(code, train.get(code, (folder / name,)), held_out.get(code, ()))
    return files


def published_size(corpus_name: str, language: str) -> float:
    """How much text a published file of `published_files` has, by the publications: GiB of CC100, pairs of CCAligned.

    Raises:
      KeyError: no such language.
    """
    row = load_languages()[language]
    if corpus_name == CCALIGNED.name:
        return float(row.ccaligned_pairs or 0)
    if row.xlmr_size_gib:
        return row.xlmr_size_gib
    # A language that XLM-R did not have. Text is 3.7 times its compressed size (English: 300.8 GiB in 82G).
    number, unit = row.cc100_xz_size[:-1], row.cc100_xz_size[-1:]
    return 3.7 * float(number) * {"G": 1.0, "M": 2**-10, "K": 2**-20}[unit]
