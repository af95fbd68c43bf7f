"""Examples of a Task as Python values, and Tasks over rows in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import seqio

from tasks.corpora import CorpusError
from tasks.downstream_places import Place, Row
from tasks.downstream_source import DownstreamSource, Publication

NOTHING = Publication("a title", "a homepage", "the terms.", {"test": "What to do."}, {"test": 1000})


def examples(name: str, split: str, sequence_length: dict[str, int] | None = None) -> list[dict[str, Any]]:
    dataset = seqio.get_mixture_or_task(name).get_dataset(sequence_length=sequence_length, split=split, shuffle=False)
    return [{key: as_text(value) for key, value in example.items()} for example in dataset.as_numpy_iterator()]


def as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [part.decode() for part in value]
    return value


def in_memory(**splits: list[Row]) -> DownstreamSource:
    places = {split: [Place((split,), lambda rows=rows: lambda counts: iter(rows))] for split, rows in splits.items()}
    return DownstreamSource("in_memory", places, NOTHING)


def error_of(name: str, split: str) -> CorpusError:
    """What a Task says when a split of it is opened."""
    with pytest.raises(CorpusError) as caught:
        seqio.TaskRegistry.get(name).get_dataset(sequence_length=None, split=split)
    return caught.value
