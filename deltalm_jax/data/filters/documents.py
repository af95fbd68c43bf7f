"""The filters of documents and their paragraphs. Shapes: P paragraphs of a block, D documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from deltalm_jax.data.filters.characters import Characters
from deltalm_jax.data.filters.config import FilterConfig
from deltalm_jax.data.filters.counting import EMPTIED, Sieve
from deltalm_jax.data.filters.languages import identify
from deltalm_jax.data.filters.repetition import duplicate_shares, top_ngram_shares
from deltalm_jax.data.filters.test_sets import touches
from deltalm_jax.data.filters.words import Words, folded

Document = list[str]


def filter_documents(
    documents: Sequence[Document],
    language: str,
    script: str | None,
    config: FilterConfig,
    test_ngrams: np.ndarray | None,
    counts: Counter[str],
) -> list[Document]:
    """The documents that stay, with the paragraphs that stay; arguments as of `apply_filters`."""

    def by_form(sieve: Sieve, texts: list[str]) -> None:
        _judge_paragraphs(sieve, texts, script, config)

    def by_content(sieve: Sieve, texts: list[str]) -> None:
        if config.language_identifier and config.language_level == "paragraph":
            sieve.drop("language_identifier", ~identify(config, texts).are(language))
        if test_ngrams is not None:
            words = Words([folded(text) for text in texts])
            sieve.drop("test_sets", touches(words, config.test_set_ngram, test_ngrams))

    # Paragraphs by their form first: menus and the like should not decide what a document is.
    documents = _filter_paragraphs(documents, by_form, counts)
    sieve = Sieve(np.array([sum(map(len, document)) for document in documents], np.int64), counts)
    _judge_documents(sieve, documents, language, config)
    return _filter_paragraphs(sieve.keep_from(documents), by_content, counts)


def _filter_paragraphs(
    documents: Sequence[Document], judge: Callable[[Sieve, list[str]], None], counts: Counter[str]
) -> list[Document]:
    """Documents with the paragraphs that `judge` leaves; documents left with none are counted."""
    texts = [text for document in documents for text in document]
    sieve = Sieve(np.array([len(text) for text in texts], np.int64), counts)
    judge(sieve, texts)
    return without_paragraphs(documents, sieve, counts)


def without_paragraphs(documents: Sequence[Document], sieve: Sieve, counts: Counter[str]) -> list[Document]:
    """Documents with those of their paragraphs that are left in a sieve; documents left with none go, and are counted."""
    kept = iter(sieve.kept_N.tolist())
    shorter = [[text for text in document if next(kept)] for document in documents]
    remaining = [document for document in shorter if document]
    if emptied := len(shorter) - len(remaining):
        counts[EMPTIED] += emptied
    return remaining


def _judge_paragraphs(sieve: Sieve, texts: list[str], script: str | None, config: FilterConfig) -> None:
    characters = Characters(texts)
    if config.paragraph_min_letters:
        sieve.drop("paragraph_min_letters", characters.letters() < config.paragraph_min_letters)
    if config.paragraph_max_characters is not None:
        sieve.drop("paragraph_max_characters", characters.length_T > config.paragraph_max_characters)
    if config.paragraph_min_letter_share:
        sieve.drop("paragraph_min_letter_share", characters.letter_share() < config.paragraph_min_letter_share)
    if config.paragraph_min_script_share:
        assert script, "checked before anything is read"
        sieve.drop("paragraph_min_script_share", characters.script_share(script) < config.paragraph_min_script_share)


def _judge_documents(sieve: Sieve, documents: Sequence[Document], language: str, config: FilterConfig) -> None:
    paragraphs_D, characters_D = duplicate_shares(documents)
    sieve.drop("document_max_duplicate_paragraphs", paragraphs_D > config.document_max_duplicate_paragraphs)
    sieve.drop("document_max_duplicate_characters", characters_D > config.document_max_duplicate_characters)
    if config.document_max_top_ngrams:
        words = Words([" ".join(map(folded, document)) for document in documents])
        bad_D = np.zeros(len(documents), bool)
        for n, most in enumerate(config.document_max_top_ngrams, start=2):
            bad_D |= top_ngram_shares(words, n) > most
        sieve.drop("document_max_top_ngrams", bad_D)
    if config.document_min_letters:
        letters_D = Characters(["".join(document) for document in documents]).letters()
        sieve.drop("document_min_letters", letters_D < config.document_min_letters)
    if config.document_max_characters is not None:
        length_D = np.array([sum(map(len, document)) for document in documents], np.int64)
        sieve.drop("document_max_characters", length_D > config.document_max_characters)
    if config.language_identifier and config.language_level == "document":
        texts = [" ".join(document) for document in documents]
        sieve.drop("language_identifier", ~identify(config, texts).are(language))
