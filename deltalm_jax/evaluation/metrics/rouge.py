"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) by rouge-score, with tokenizers that know all of Unicode.

rouge-score's own tokenizer deletes what is not ASCII: two equal Chinese or Russian texts get 0, and French words lose their
accents. So there are two of our own, neither with a stemmer:

- words: NFC, lower case, runs of `\\w`. By the package `regex`, whose `\\w` has the vowel signs of Hindi and Gujarati in it;
  Python's `re` takes them for the ends of words, and so would not tell कि from की;
- characters: NFC, lower case, every character that is no white space, punctuation included. It is what is done for Chinese
  (XNLG, Chi et al. 2020, gives perl ROUGE a number for each character), and fits all writing without spaces.

A score is the mean over the examples of the F1 measure, times 100. Several references: for each of the three variants, and
for each example, the one with the highest F1 (not the jack-knife of GEM's tool, which leaves out one reference at a time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata

import regex

from deltalm_jax.evaluation.metrics.result import References, Scores, check_texts, count_references, folded

VARIANTS = ("rouge1", "rouge2", "rougeL")
_WORD = regex.compile(r"\w+")


def words(text: str) -> list[str]:
    """Words in the sense of Unicode: runs of letters, marks, digits and underscores; NFC, lower case."""
    return _WORD.findall(folded(text))


def characters(text: str) -> list[str]:
    """All characters (code points) but white space; NFC, lower case."""
    return [character for character in folded(text) if not character.isspace()]


def rouge(hypotheses: Sequence[str], references: References) -> Scores:
    """`rouge1`, `rouge2` and `rougeL` over words, for writing that has spaces.

    Raises:
      MetricError: as `check_texts`.
    """
    return _score("rouge", hypotheses, references, words, "words", "")


def rouge_characters(hypotheses: Sequence[str], references: References) -> Scores:
    """`rouge1_characters` … over characters: for Chinese, Japanese and Thai.

    Raises:
      MetricError: as `check_texts`.
    """
    return _score("rouge_characters", hypotheses, references, characters, "characters", "_characters")


class _Tokenizer:
    """A function as rouge-score wants it."""

    def __init__(self, tokenize: Callable[[str], list[str]]):
        self.tokenize = tokenize


def _score(
    name: str,
    hypotheses: Sequence[str],
    references: References,
    tokenize: Callable[[str], list[str]],
    unit: str,
    ending: str,
) -> Scores:
    from rouge_score.rouge_scorer import RougeScorer

    check_texts(name, hypotheses, references)
    scorer = RougeScorer(list(VARIANTS), tokenizer=_Tokenizer(tokenize))
    sums = dict.fromkeys(VARIANTS, 0.0)
    for hypothesis, of_one in zip(hypotheses, references, strict=True):
        best = scorer.score_multi(list(of_one), hypothesis)
        for variant in VARIANTS:
            sums[variant] += best[variant].fmeasure
    signature = (
        f"nrefs:{count_references(references)}|best:max|case:lc|norm:nfc|tok:{unit}|stem:no|measure:f1|average:mean"
        f"|rouge-score:{metadata.version('rouge-score')}"
    )
    return {
        variant + ending: {"score": 100 * total / len(hypotheses), "signature": signature}
        for variant, total in sums.items()
    }
