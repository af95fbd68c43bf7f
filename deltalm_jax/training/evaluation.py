"""Validation during pretraining: the loss of each objective on held-out chunks, beside a unigram predictor's.

The unigram predictor knows how often each piece occurs in training targets and nothing of the input: what a model must
beat before it can be said to have learned anything. Both are measured on the same positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deltalm_jax.data.stream import Stream
from deltalm_jax.parallel.sharding import process_rows, put_batch

# Enough to leave the predictor's own sampling error behind: 2 million targets, or this many batches.
_UNIGRAM_TOKENS, _UNIGRAM_BATCHES = 2_000_000, 400


class Evaluator:
    """Validation of one run: fixed chunks, fixed masks, the same number of batches on every process.

    Args:
      stream: the run's data.
      eval_step: from `step.make_eval_step`.
      mesh: where batches go.
      vocab_size: rows of the vocabulary.
      batches: validation batches of each objective at most.
    """

    def __init__(
        self,
        stream: Stream,
        eval_step: Callable[[Any, Any], dict[str, jax.Array]],
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
          not sentinels), `…/unigram_loss` (the unigram predictor on those same targets).
        """
        out = {}
        for name, batches in self.batches.items():
            if not batches:
                continue
            batch_size = self._stream.objectives[name].batch_size
            rows = process_rows(batch_size, self._mesh)
            sums = []
            for index in range(batches):
                arrays = self._stream.validation_batch(name, index, rows)
                sums.append(self._eval_step(params, put_batch({name: arrays}, {name: batch_size}, self._mesh)[name]))
            sums = jax.device_get(sums)
            total = {k: float(sum(np.float64(s[k]) for s in sums)) for k in sums[0]}
            out[f"eval/{name}/loss"] = total["nll"] / max(total["tokens"], 1)
            out[f"eval/{name}/text_loss"] = total["text_nll"] / max(total["text_tokens"], 1)
            if name not in self._unigram:
                self._unigram[name] = self._unigram_loss(name)
            out[f"eval/{name}/unigram_loss"] = self._unigram[name]
        return out

    def _unigram_loss(self, name: str) -> float:
        counts_V = np.zeros(self._vocab_size, np.int64)
        for step in range(_UNIGRAM_BATCHES):
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
