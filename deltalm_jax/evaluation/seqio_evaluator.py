"""Decoding for seqio's own `Evaluator`, for those whose evaluation runs there.

    generator = Generator(load_model("runs/mine"), SearchOptions())
    lengths = {"inputs": 256, "targets": 256}
    converter = seqio.EncDecFeatureConverter(pack=False)
    evaluator = seqio.Evaluator("webnlg_en", converter, eval_split="test", sequence_length=lengths)
    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict_fn(generator), score_fn=no_scores)

`python -m deltalm_jax.evaluate` gives the same scores without it, goes on where it stopped, and shows the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from deltalm_jax.decoding import Generator
from deltalm_jax.model.config import PAD_ID

Predict = Callable[[Any], list[tuple[int, list[int]]]]


def predict_fn(generator: Generator, **limits: Any) -> Predict:
    """What seqio calls for outputs: a dataset of (number, features) → (number, ids of the best hypothesis), padded.

    Args:
      generator: the model, and how it searches.
      **limits: further arguments of `Generator.__call__`: `max_length`, `min_length`, `prefixes`, `seed`.
    """

    def predict(dataset: Any) -> list[tuple[int, list[int]]]:
        numbers, sources = [], []
        for number, features in dataset.as_numpy_iterator():
            tokens_S = np.asarray(features["encoder_input_tokens"])
            numbers.append(int(number))
            sources.append(tokens_S[tokens_S != PAD_ID].tolist())
        outputs = [list(hypotheses[0].tokens) if hypotheses else [] for hypotheses in generator(sources, **limits)]
        longest = max(map(len, outputs), default=0)  # seqio makes one array of them
        return [(n, ids + [PAD_ID] * (longest - len(ids))) for n, ids in zip(numbers, outputs, strict=True)]

    return predict


def no_scores(dataset: Any) -> list[tuple[int, float]]:
    """For `Evaluator.evaluate`, which asks for a function of scores too: none is used by metrics of text."""
    numbers: Iterable[Any] = (number for number, _ in dataset.as_numpy_iterator())
    return [(int(number), 0.0) for number in numbers]
