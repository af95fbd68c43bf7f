"""Validation during pretraining: the loss of each objective on held-out chunks, beside a unigram predictor's.

The unigram predictor knows how often each piece occurs in training targets and nothing of the input: what a model must
beat before it can be said to have learned anything. Both are measured on the same positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deltalm_jax.data.stream import Stream
from deltalm_jax.parallel.sharding import process_rows, put_batch

# Enough to leave the predictor's own sampling error behind: 2 million targets, or this many batches, or all data so often.
_UNIGRAM_TOKENS, _UNIGRAM_BATCHES, _UNIGRAM_EPOCHS = 2_000_000, 400, 4


class Evaluator:
    """Validation of one run: fixed chunks, fixed masks, the same number of batches on every process.

    Args:
      stream: the run's data.
      eval_step: from `make_eval_step`.
      mesh: where batches go.
      vocab_size: rows of the vocabulary.
      batches: validation batches of each objective at most.
    """

    def __init__(
        self,
        stream: Stream,
        eval_step: Callable[[str, Any, Any], dict[str, jax.Array]],
        mesh: Mesh,
        vocab_size: int,
        batches: int,
    ):
        self._stream, self._eval_step, self._mesh = stream, eval_step, mesh
        self._vocab_size, self._sentinels = vocab_size, stream.sentinels
        self.batches = stream.validation_batches(batches)
        self._unigram: dict[str, float] = {}

    def __call__(self, params: Any) -> dict[str, float]:
        """Losses in nats per target.

        Returns:
          For each objective with validation data: `eval/<objective>/loss` (all targets), `…/text_loss` (targets that are
          not sentinels), `…/unigram_loss` (the unigram predictor on those same targets); and for each way in which the
          data groups its languages, `eval/<objective>/<kind>/<group>/loss` and `…/text_loss`, such as
          `eval/span_corruption/script/Cyrl/loss`.
        """
        out: dict[str, float] = {}
        for name, batches in self.batches.items():
            if not batches:
                continue
            task_N, sums = self._sums(name, params)
            out |= {f"eval/{name}/{key}": loss for key, loss in _losses(sums, task_N >= 0).items()}
            if name not in self._unigram:
                self._unigram[name] = self._unigram_loss(name)
            out[f"eval/{name}/unigram_loss"] = self._unigram[name]
            for group, members in self._groups(task_N).items():
                losses = _losses(sums, np.isin(task_N, members))
                out |= {f"eval/{name}/{group}/{key}": loss for key, loss in losses.items()}
        return out

    def _sums(self, name: str, params: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Of every validation row its task (-1: padding) and what the evaluation step summed over it."""
        batch_size = self._stream.objectives[name].batch_size
        rows = process_rows(batch_size, self._mesh)
        sums = []
        for index in range(self.batches[name]):
            arrays = self._stream.validation_batch(name, index, rows)
            batch = put_batch({name: arrays}, {name: batch_size}, self._mesh)[name]
            sums.append(self._eval_step(name, params, batch))
        task_N = np.concatenate([self._stream.validation_tasks(name, i) for i in range(self.batches[name])])
        sums = jax.device_get(sums)
        return task_N, {key: np.concatenate([s[key] for s in sums]).astype(np.float64) for key in sums[0]}

    def _groups(self, task_N: np.ndarray) -> dict[str, list[int]]:
        """The tasks in each "kind/group", of those that occur; sorted."""
        groups: dict[str, list[int]] = {}
        for task in np.unique(task_N[task_N >= 0]).tolist():
            for kind, group in self._stream.prepared.tasks[task].groups.items():
                groups.setdefault(f"{kind}/{group}", []).append(task)
        return dict(sorted(groups.items()))

    def _unigram_loss(self, name: str) -> float:
        counts_V = np.zeros(self._vocab_size, np.int64)
        batches = math.ceil(_UNIGRAM_EPOCHS * self._stream.batches_in_an_epoch(name))
        for step in range(min(_UNIGRAM_BATCHES, batches)):
            counts_V += self._text_counts(self._stream.batch(step, only=name)[name]["targets"])
            if counts_V.sum() >= _UNIGRAM_TOKENS:
                break
        seen_V = np.zeros(self._vocab_size, np.int64)
        for index in range(self.batches[name]):
            seen_V += self._text_counts(self._stream.validation_batch(name, index)["targets"])
        # Add-one over the pieces that can occur as text: a piece unseen in training must not cost infinitely much.
        text_pieces = self._sentinels[0] - 1
        log_probability_V = np.log(counts_V + 1.0) - np.log(counts_V.sum() + text_pieces)
        return float(-(seen_V * log_probability_V).sum() / max(seen_V.sum(), 1))

    def _text_counts(self, targets_BT: np.ndarray) -> np.ndarray:
        counts_V = np.bincount(targets_BT.ravel(), minlength=self._vocab_size)
        counts_V[0] = 0
        counts_V[self._sentinels[0] : self._sentinels[1]] = 0
        return counts_V


def _losses(sums: dict[str, np.ndarray], chosen_N: np.ndarray) -> dict[str, float]:
    """Means per target over the rows chosen: `loss` over all targets, `text_loss` over those that are not sentinels."""
    total = {key: float(values_N[chosen_N].sum()) for key, values_N in sums.items()}
    return {
        "loss": total["nll"] / max(total["tokens"], 1),
        "text_loss": total["text_nll"] / max(total["text_tokens"], 1),
    }
