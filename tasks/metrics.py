"""The metrics of `deltalm_jax.evaluation.metrics` as seqio's `metric_fns`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from seqio import metrics

from deltalm_jax.evaluation.metrics import METRICS, MetricError, find, require, score

__all__ = ["METRICS", "MetricError", "metric_fn", "require", "score"]


def metric_fn(name: str) -> Callable[[Sequence[Sequence[str]], Sequence[str]], dict[str, Any]]:
    """A metric as seqio's `metric_fns` take it: (targets, predictions) → seqio's values by name.

    Targets are lists of references, predictions are strings; `tasks.downstream` has the postprocessor that gives both.
    Beside each `NAME` stands `NAME_signature`, as text.

    Raises:
      MetricError: an unknown name; later, as `score`.
    """
    find(name)

    def metric(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, found in score(name, predictions, targets).items():
            values[key] = metrics.Scalar(found["score"])
            values[f"{key}_signature"] = metrics.Text(found["signature"])
        return values

    metric.__name__ = name
    return metric
