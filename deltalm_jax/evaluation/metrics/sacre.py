"""BLEU and chrF++ by sacreBLEU, with its signatures (Post, 2018, "A Call for Clarity in Reporting BLEU Scores").

Several references: BLEU takes from all of them together, as it is defined (counts clipped at the largest in any reference,
length of the closest one); chrF++ takes for each example the reference that gives the highest score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltalm_jax.evaluation.metrics.result import References, Scores, check_texts

# sacreBLEU's tokenizers that need no further package and no download.
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char")


def bleu(name: str, hypotheses: Sequence[str], references: References, tokenizer: str = "13a") -> Scores:
    """BLEU of a corpus, mixed case, detokenized text.

    Args:
      name: key of the result.
      hypotheses, references: as `check_texts`.
      tokenizer: one of `BLEU_TOKENIZERS`. "13a", of mteval-v13a, is the one that published figures mean; it leaves the danda
        of Hindi and Gujarati (।) with its word, which "intl" does not. "zh" splits Chinese characters and leaves words
        of other scripts whole; "char" splits everything.

    Raises:
      MetricError: as `check_texts`.
    """
    from sacrebleu.metrics import BLEU

    return _score(name, BLEU(tokenize=tokenizer), hypotheses, references)


def chrf_plus_plus(name: str, hypotheses: Sequence[str], references: References) -> Scores:
    """chrF++: F-score (beta 2) over characters up to six and words up to two (Popović, 2017).

    Raises:
      MetricError: as `check_texts`.
    """
    from sacrebleu.metrics import CHRF

    return _score(name, CHRF(word_order=2), hypotheses, references)


def _score(name: str, metric: Any, hypotheses: Sequence[str], references: References) -> Scores:
    check_texts(name, hypotheses, references)
    most = max(map(len, references))
    # One stream for the first references of all examples, one for the second…; None where an example has no such.
    streams = [[of_one[k] if k < len(of_one) else None for of_one in references] for k in range(most)]
    score = metric.corpus_score(list(hypotheses), streams).score
    return {name: {"score": score, "signature": str(metric.get_signature())}}
