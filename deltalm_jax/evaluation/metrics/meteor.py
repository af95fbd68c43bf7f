"""METEOR as NLTK computes it, and under that name only.

It is not METEOR 1.5, the Java program that papers report: matching of paraphrases, weights and tokenisation differ. English
only: stems are Porter's and synonyms WordNet's, which has to be there; without it NLTK's function would leave synonyms out
without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from deltalm_jax.evaluation.metrics.result import MetricError, References, Scores, check_texts, count_references
from deltalm_jax.evaluation.metrics.rouge import words

NAME = "meteor_nltk"


def require_wordnet() -> Any:
    """NLTK's WordNet, read.

    Raises:
      MetricError: NLTK or its data is not there. Nothing is downloaded.
    """
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise MetricError(
            f"{NAME}: expected the package nltk, found none. pip install nltk, or leave {NAME} out."
        ) from error
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        import nltk

        raise MetricError(
            f"{NAME}: expected NLTK's data corpora/wordnet in one of {', '.join(nltk.data.path)}; found it in none. Download "
            f"it with: python -m nltk.downloader wordnet. Or leave {NAME} out; there is no score without it."
        ) from error
    return wordnet


def meteor_nltk(hypotheses: Sequence[str], references: References, wordnet: Any = None) -> Scores:
    """`meteor_nltk`: the mean over the examples, each with its best reference, times 100; words as `rouge.words`.

    Args:
      hypotheses, references: as `check_texts`.
      wordnet: what NLTK asks for `synsets(word)`; default: its own WordNet.

    Raises:
      MetricError: as `check_texts`, or there is no WordNet.
    """
    check_texts(NAME, hypotheses, references)
    wordnet = require_wordnet() if wordnet is None else wordnet
    from nltk.translate.meteor_score import meteor_score

    total = 0.0
    for hypothesis, of_one in zip(hypotheses, references, strict=True):
        total += meteor_score([words(reference) for reference in of_one], words(hypothesis), wordnet=wordnet)
    signature = (
        f"nrefs:{count_references(references)}|best:max|case:lc|norm:nfc|tok:words|stem:porter|wordnet:{_version(wordnet)}"
        f"|average:mean|nltk:{metadata.version('nltk')}"
    )
    return {NAME: {"score": 100 * total / len(hypotheses), "signature": signature}}


def _version(wordnet: Any) -> str:
    return str(wordnet.get_version())
