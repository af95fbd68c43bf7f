"""seqio's registries: what is put in there, and taken out again."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import seqio
import tensorflow as tf


def add_mixture(name: str, rates: Sequence[tuple[str, float]]) -> None:
    """Registers a Mixture of Tasks with these rates, which goes on when the smallest Task has ended."""
    # seqio's default stops a mixture at the first exhausted task: one epoch would end with the smallest language.
    sample = functools.partial(tf.data.Dataset.sample_from_datasets, stop_on_empty_dataset=False)
    seqio.MixtureRegistry.add(name, list(rates), sample_fn=sample)


def remove_tasks(names: Iterable[str]) -> None:
    """Takes Tasks out, and the Mixtures of nothing else: an earlier call's, which may be of another folder."""
    names = set(names)
    for mixture in list(seqio.MixtureRegistry.names()):
        if all(task.name in names for task in seqio.MixtureRegistry.get(mixture).tasks):
            seqio.MixtureRegistry.remove(mixture)
    for name in names:
        seqio.TaskRegistry.remove(name)
