"""Every metric by its name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from deltalm_jax.evaluation.metrics.meteor import meteor_nltk, require_wordnet
from deltalm_jax.evaluation.metrics.result import MetricError, References, Scores, check_texts
from deltalm_jax.evaluation.metrics.rouge import rouge, rouge_characters
from deltalm_jax.evaluation.metrics.sacre import BLEU_TOKENIZERS, bleu, chrf_plus_plus
from deltalm_jax.evaluation.metrics.scripts import SCRIPTS, script_ratio


def _nothing_needed() -> None:
    """For metrics that come with the project's packages."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: in configurations and results.
      about: what it is, for lists.
      compute: (hypotheses, references) → scores by name; a metric may have several (ROUGE has three).
      require: raises MetricError where it cannot be computed on this machine. To be asked before hours of decoding.
    """

    name: str
    about: str
    compute: Callable[[Sequence[str], References], Scores]
    require: Callable[[], Any] = _nothing_needed


def score(name: str, hypotheses: Sequence[str], references: References) -> Scores:
    """Scores texts.

    Args:
      name: a key of `METRICS`.
      hypotheses: one string an example, detokenized.
      references: for each hypothesis a list of one or more strings. How several are used: `sacre`, `rouge`, `meteor`.

    Returns:
      Name → {"score": from 0 to 100, "signature": how it was computed}; scores are never rounded.

    Raises:
      MetricError: an unknown name, a metric that cannot be computed here, or unequal, empty or missing texts.
    """
    return find(name).compute(hypotheses, references)


def require(names: Sequence[str]) -> None:
    """Makes sure that metrics can be computed here, before there is anything to score.

    Raises:
      MetricError: an unknown name, or what is missing for one.
    """
    for name in names:
        find(name).require()


def find(name: str) -> Metric:
    """A metric by its name; raises MetricError with the nearest names where there is none."""
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=3)
        hint = f", did you mean {' or '.join(near)}?" if near else "."
        raise MetricError(f"Unknown metric {name!r}{hint} Known: {', '.join(METRICS)}.")
    return METRICS[name]


def _refuse(name: str, command: str) -> NoReturn:
    raise MetricError(
        f"{name}: no model given. It takes weights of another model, which this project neither has nor downloads. Score "
        f"the written outputs with the metric's own program and a model that you have: {command}"
    )


def _by_a_model(name: str, about: str, command: str) -> Metric:
    refuse = functools.partial(_refuse, name, command)

    def compute(hypotheses: Sequence[str], references: References) -> Scores:
        check_texts(name, hypotheses, references)
        refuse()

    return Metric(name, about, compute, refuse)


def _all() -> list[Metric]:
    metrics = []
    for tokenizer in BLEU_TOKENIZERS:
        name = "bleu" if tokenizer == "13a" else f"bleu_{tokenizer}"
        compute = functools.partial(bleu, name, tokenizer=tokenizer)
        metrics.append(Metric(name, f"sacreBLEU's BLEU, tokenizer {tokenizer}", compute))
    metrics += [
        Metric("chrf++", "sacreBLEU's chrF++", functools.partial(chrf_plus_plus, "chrf++")),
        Metric("rouge", "ROUGE-1, -2 and -L over words", rouge),
        Metric("rouge_characters", "ROUGE-1, -2 and -L over characters: Chinese, Japanese, Thai", rouge_characters),
        Metric("meteor_nltk", "NLTK's METEOR (not METEOR 1.5), English, needs WordNet", meteor_nltk, require_wordnet),
        _by_a_model(
            "bertscore",
            "BERTScore; not computed here",
            "bert-score -c hypotheses.txt -r references.txt -m FOLDER_OF_THE_MODEL --num_layers LAYER",
        ),
        _by_a_model(
            "comet",
            "COMET; not computed here",
            "comet-score -s sources.txt -t hypotheses.txt -r references.txt --model MODEL.ckpt",
        ),
    ]
    for script in SCRIPTS:
        compute = functools.partial(script_ratio, script)
        metrics.append(Metric(f"script_{script}", f"share of outputs written in {script}", compute))
    return metrics


METRICS: dict[str, Metric] = {metric.name: metric for metric in _all()}
