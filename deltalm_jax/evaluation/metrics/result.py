"""What every metric gives, and the checks that come before all of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TypedDict

from deltalm_jax.errors import UserError

References = Sequence[Sequence[str]]


class MetricError(UserError, ValueError):
    """Texts that cannot be scored, or a metric that cannot be computed here; the message says what to do."""


class Score(TypedDict):
    """One number, and what it takes to get the same one again.

    Attributes:
      score: from 0 to 100.
      signature: how it was computed: references, case, tokenizer, version; to be reported beside the score.
    """

    score: float
    signature: str


Scores = dict[str, Score]


def check_texts(name: str, hypotheses: Sequence[str], references: References) -> None:
    """What libraries of metrics do not look at, or answer with a bare IndexError.

    Args:
      name: of the metric.
      hypotheses: one string an example; an empty one is an answer, if a poor one.
      references: for each hypothesis, one or more strings. (sacreBLEU's own functions take the transpose.)

    Raises:
      MetricError: unequal numbers, none at all, or an example without a reference that has text in it.
    """
    if len(hypotheses) != len(references):
        raise MetricError(
            f"{name}: expected one list of references for each hypothesis, found {len(hypotheses):,} hypotheses and "
            f"{len(references):,} lists of references. One of the two is cut short, or belongs to another data set."
        )
    if not hypotheses:
        raise MetricError(
            f"{name}: expected at least one hypothesis, found 0 hypotheses and 0 lists of references. Nothing was decoded, "
            "or the split is empty."
        )
    for index, (hypothesis, of_one) in enumerate(zip(hypotheses, references, strict=True)):
        if not isinstance(hypothesis, str):
            raise MetricError(
                f"{name}: expected hypothesis {index:,} to be a string, found {type(hypothesis).__name__}."
            )
        if isinstance(of_one, str):
            raise MetricError(
                f"{name}: expected a list of references for hypothesis {index:,}, found the string {of_one[:40]!r}. "
                "With one reference each, give [[reference], [reference], …]."
            )
        if not any(reference.strip() for reference in of_one):
            raise MetricError(
                f"{name}: expected a reference for hypothesis {index:,}, found {len(of_one)} of which none has any text. "
                "Leave the example out of hypotheses and references alike."
            )


def count_references(references: References) -> str:
    """The field `nrefs` of a signature: the number of references of each example, or "var" where it varies."""
    numbers = {len(of_one) for of_one in references}
    return str(numbers.pop()) if len(numbers) == 1 else "var"


def folded(text: str) -> str:
    """A text in Unicode's composed form (NFC) and lower case, in which an accent is the same however it is written."""
    return unicodedata.normalize("NFC", text).lower()
