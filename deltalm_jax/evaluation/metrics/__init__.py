"""Metrics for the six downstream tasks: one registry of names, one form of result.

    score("bleu", ["The cat sat."], [["The cat sat.", "A cat was sitting."]])
    # {"bleu": {"score": 100.0, "signature": "nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"}}

A score goes from 0 to 100, and its signature says how to get it again. `tasks.metrics` has the same for seqio Tasks. Nothing
here imports TensorFlow: a training run scores what it decodes by these.
"""

from deltalm_jax.evaluation.metrics.registry import METRICS, Metric, find, require, score
from deltalm_jax.evaluation.metrics.result import MetricError, References, Score, Scores

__all__ = ["METRICS", "Metric", "MetricError", "References", "Score", "Scores", "find", "require", "score"]
