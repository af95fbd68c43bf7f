"""Masks, and chunks back from what corruption made of them; for the tests of the objectives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from deltalm_jax.objectives.span_corruption import Spans

START = 250_002
BOS, EOS = 2, 3


def mask_of(spans: Spans, width: int) -> np.ndarray:
    """bool [B, width], true where a token lies in a span: +1 where one begins, -1 where it has ended, summed up."""
    change = np.zeros((len(spans.counts_B), width + 1), np.int64)
    rows = np.broadcast_to(np.arange(len(change))[:, None], spans.starts_BK.shape)
    np.add.at(change, (rows, spans.starts_BK), 1)
    np.add.at(change, (rows, spans.starts_BK + spans.lengths_BK), -1)
    depth = np.cumsum(change, axis=1)
    assert depth.min() >= 0
    assert depth.max() <= 1, "spans do not overlap"
    return depth[:, :width].astype(bool)


def rebuild(inputs: np.ndarray, targets: np.ndarray) -> tuple[list[int], list[int]]:
    """Puts the spans of the targets back in place of the sentinels of the inputs; (tokens, sentinels in order)."""
    spans: dict[int, list[int]] = {}
    for token in targets[targets > 0].tolist():
        if token >= START:
            spans[token] = current = []
        else:
            current.append(token)
    tokens, order = [], []
    for token in inputs[inputs > 0].tolist():
        if token >= START:
            order.append(token)
            tokens += spans[token]
        else:
            tokens.append(token)
    assert order == list(spans), "inputs and targets name the same sentinels in the same order"
    return tokens, order


def chunk_of_pairs(sides: Sequence[int], rng: np.random.Generator) -> list[int]:
    """`<s> A </s> B </s> …` with sides of the given lengths, `</s>` not counted, and random ids."""
    return [BOS, *itertools.chain.from_iterable([*rng.integers(4, 250_000, n).tolist(), EOS] for n in sides)]


def stack(chunks: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Chunks as rows, with something behind them that must be ignored; and their lengths."""
    lengths = np.array([len(chunk) for chunk in chunks])
    tokens = np.full((len(chunks), width), 777_777, np.int32)
    for row, chunk in zip(tokens, chunks, strict=True):
        row[: len(chunk)] = chunk
    return tokens, lengths
