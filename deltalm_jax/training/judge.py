"""What judges a validation: its loss, or a score of what the model writes for held-out sources (see `selection.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deltalm_jax.data.stream import Stream
from deltalm_jax.data.vocabulary import EOS_ID
from deltalm_jax.decoding import Generator, LengthLimit, SearchOptions
from deltalm_jax.decoding.texts import text_of
from deltalm_jax.errors import UserError
from deltalm_jax.evaluation.metrics import require, score
from deltalm_jax.model.config import PAD_ID, ModelConfig
from deltalm_jax.parallel.sharding import replicated
from deltalm_jax.training.selection import LOSS

GROUP = "sequence_to_sequence"

# Hypotheses may be so much longer than their source: fine-tuned models end them by themselves, and those that do not are bad
# however long they are.
_LENGTH = LengthLimit(2.0, 20)


class SelectionError(UserError, ValueError):
    """The data cannot tell which checkpoint is the best."""


def make_judge(by: str, examples: int, model: ModelConfig, stream: Stream, mesh: Mesh) -> Callable[[Any, Any], float]:
    """What judges a validation: (parameters, its numbers) → a value.

    Args:
      by: "loss", or the name of a score of `deltalm_jax.evaluation.metrics` ("bleu", "chrf++", "rougeL" of "rouge").
      examples: held-out examples that are decoded, greedily; the first in the order of the validation.
      model: the model.
      stream: the run's data.
      mesh: where the parameters are; each process decodes all examples on its own devices, and gets the same.

    Raises:
      SelectionError: nothing is held out.
      MetricError: an unknown metric, or one that cannot be computed here.
    """
    if by == LOSS:
        names = [name for name, batches in stream.validation_batches(1).items() if batches]
        if not names:
            raise SelectionError('TrainConfig.select_by is "loss", but no objective of these data has validation text')
        return lambda params, evaluation: float(np.mean([evaluation[f"eval/{name}/loss"] for name in names]))
    if GROUP not in stream.objectives:
        raise SelectionError(
            f'TrainConfig.select_by is {by!r}, which is of texts that are decoded; pretraining has "loss"'
        )
    metric = "rouge" if by.startswith("rouge") else by
    require([metric])
    pairs = _held_out(stream, examples)
    if not pairs:
        raise SelectionError(f"TrainConfig.select_by is {by!r}, but no example is held out: put some into validation/")
    vocabulary = stream.prepared.vocabulary()
    sources = [source for source, _ in pairs]
    references = [[vocabulary.decode(target)] for _, target in pairs]
    whole = jax.jit(lambda params: params, out_shardings=replicated(mesh))
    here = jax.local_devices()

    def judge(params: Any, evaluation: Any) -> float:
        del evaluation
        own = jax.tree.map(lambda leaf: leaf.addressable_data(0), whole(params))
        generator = Generator((model, own), SearchOptions(beam_size=1), devices=here[:1])
        with jax.set_mesh(generator.mesh):  # in place of the run's, which is of all devices
            found = generator(sources, max_length=_LENGTH)
        texts = [text_of(hypotheses[0], vocabulary) if hypotheses else "" for hypotheses in found]
        scores = score(metric, texts, references)
        if by not in scores:
            raise SelectionError(f"TrainConfig.select_by is {by!r}; {metric} gives {', '.join(scores)}")
        return scores[by]["score"]

    return judge


def _held_out(stream: Stream, count: int) -> list[tuple[list[int], list[int]]]:
    """Sources, with their `</s>`, and targets, without, of the first examples that are held out."""
    pairs: list[tuple[list[int], list[int]]] = []
    for index in range(stream.validation_batches()[GROUP]):
        batch = stream.validation_batch(GROUP, index)
        for inputs_S, targets_T in zip(batch["inputs"], batch["targets"], strict=True):
            pairs += zip(_parts(inputs_S), [part[:-1] for part in _parts(targets_T)], strict=True)
        if len(pairs) >= count:
            break
    return pairs[:count]


def _parts(tokens_L: np.ndarray) -> list[list[int]]:
    """What each `</s>` closes, with it."""
    real_L = tokens_L[tokens_L != PAD_ID]
    ends = np.flatnonzero(real_L == EOS_ID) + 1
    return [part.tolist() for part in np.split(real_L, ends)[: len(ends)]]
