"""Held-out text to measure an encoder on: documents of each language, and pairs with English."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalm_jax.evaluation.texts import EvaluationError
from deltalm_jax.paths import as_path

if TYPE_CHECKING:
    from tasks.corpora import Corpus, CorpusFiles

_ENGLISH = "en"


@dataclasses.dataclass(frozen=True)
class HeldOutText:
    """What is held out in a data folder.

    Attributes:
      corpora: names of those that were read.
      documents: language → documents, each a list of paragraphs.
      pairs: language → (English, translation).
      about_pairs: which pairs these are, for people.
    """

    corpora: tuple[str, ...]
    documents: dict[str, list[list[str]]]
    pairs: dict[str, list[tuple[str, str]]]
    about_pairs: str


def read_held_out(data_dir: str | Path | None, languages: Sequence[str] = (), limit: int | None = None) -> HeldOutText:
    """Reads the split "validation" of all corpora of documents and of pairs in a folder.

    Of the shipped sample, pairs are those of the Declaration of Human Rights alone, of which every language has the same
    paragraphs: its held-out part is the first English document, and a pair is of it if its English side stands there.

    Args:
      data_dir: a folder as `tasks.corpora` describes it; None for the shipped sample.
      languages: only these; default: all there are.
      limit: so many documents and so many pairs of each language, the first ones of its files.

    Raises:
      EvaluationError: a language is in none of the corpora, or nothing is held out.
      CorpusError: a corpus is damaged, or a file has a name that its corpus does not know.
    """
    from tasks.corpora import CC100, CORPORA, SAMPLE_DIR, find_files

    folder = as_path(SAMPLE_DIR if data_dir is None else data_dir)
    found: list[tuple[Corpus, dict[str, CorpusFiles]]] = [
        (corpus, find_files(data_dir, corpus.name))
        for corpus in CORPORA.values()
        if corpus.unit in ("documents", "pairs") and (folder / corpus.name).is_dir()
    ]
    if not found:
        raise EvaluationError(
            f"{folder}: expected corpora in it, such as {folder / 'text'}, found none (docs/corpora.md)"
        )
    there = sorted({language for _, files in found for language in files})
    if missing := [language for language in languages if language not in there]:
        raise EvaluationError(f"{folder}: no text in {', '.join(missing)}. There are: {', '.join(there)}")
    declaration: frozenset[str] | None = None
    about_pairs = "all held-out pairs"
    if data_dir is None:
        declaration = frozenset(next(_held_out(CC100, find_files(None, CC100.name, [_ENGLISH])[_ENGLISH])))
        about_pairs = "the paragraphs of articles 21 to 30 of the Universal Declaration of Human Rights"
    documents: dict[str, list[list[str]]] = {}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for corpus, files in found:
        for language in files if not languages else (code for code in files if code in languages):
            items = _held_out(corpus, files[language])
            if corpus.unit == "pairs" and declaration is not None:
                items = filter(lambda pair: pair[0] in declaration, items)
            kept: list[Any] = (documents if corpus.unit == "documents" else pairs).setdefault(language, [])
            kept.extend(itertools.islice(items, None if limit is None else max(limit - len(kept), 0)))
    if not any(documents.values()) and not any(pairs.values()):
        raise EvaluationError(
            f"{folder}: nothing is held out in {', '.join(languages or there)}: put text into CORPUS/validation/ "
            "(docs/corpora.md)"
        )
    return HeldOutText(
        tuple(corpus.name for corpus, _ in found), _sorted_and_filled(documents), _sorted_and_filled(pairs), about_pairs
    )


def _held_out(corpus: Corpus, files: CorpusFiles) -> Iterator[Any]:
    from tasks.corpora import read_split

    return read_split(corpus, files, "validation")


def _sorted_and_filled(texts: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """By language, without those that have nothing."""
    return {language: items for language, items in sorted(texts.items()) if items}
