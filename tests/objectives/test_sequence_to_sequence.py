"""Chunks of examples come apart as they were put together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_jax.data.packing import pack_examples
from deltalm_jax.objectives import make_objective

EOS = 3
ids = st.lists(st.integers(4, 40), min_size=1, max_size=9)
examples_strategy = st.lists(st.tuples(ids, ids), min_size=1, max_size=40)


def rows(chunks: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((len(chunks), length), np.int32)
    for row, chunk in enumerate(chunks):
        tokens[row, : len(chunk)] = chunk
    return tokens, np.array([len(chunk) for chunk in chunks])


def texts(row: np.ndarray) -> list[tuple[int, ...]]:
    """What each `</s>` of a row closes; behind the last there is padding alone."""
    real = row[: np.count_nonzero(row)]
    assert not row[len(real) :].any()
    assert real[-1] == EOS
    ends = np.flatnonzero(real == EOS)
    return [tuple(part[:-1].tolist()) for part in np.split(real, ends[:-1] + 1)]


@given(examples_strategy, st.integers(10, 24), st.integers(10, 24), st.sampled_from([0, 1, 64]))
def test_every_example_comes_back_with_its_target(examples, source_length, target_length, open_chunks):
    chunks = pack_examples(examples, source_length, target_length, open_chunks)
    tokens, lengths = rows(chunks, source_length + target_length)
    objective = make_objective("sequence_to_sequence", source_length=source_length, target_length=target_length)
    found = objective.corrupt(tokens, lengths, np.zeros(len(tokens), np.uint64), 0, 0)
    assert found.inputs_BS.shape == (len(chunks), source_length)
    assert found.targets_BT.shape == (len(chunks), target_length)
    together = []
    for inputs, targets in zip(found.inputs_BS, found.targets_BT, strict=True):
        together += list(zip(texts(inputs), texts(targets), strict=True))
    assert sorted(together) == sorted((tuple(a), tuple(b)) for a, b in examples)
    if not open_chunks:
        assert together == [(tuple(a), tuple(b)) for a, b in examples]


def test_nothing_fits_that_was_put_elsewhere():
    """With all chunks open, no two could have been one."""
    random = np.random.default_rng(0)
    examples = [([5] * random.integers(1, 30), [6] * random.integers(1, 30)) for _ in range(60)]
    chunks = pack_examples(examples, 64, 64, open_chunks=100)
    sizes = [(int((chunk == 5).sum()), int((chunk == 6).sum()), int((chunk == EOS).sum()) // 2) for chunk in chunks]
    assert len(chunks) < 30
    for index, (source, target, count) in enumerate(sizes):
        later = sizes[index + 1 :]
        assert not any(source + count + s + c <= 64 and target + count + t + c <= 64 for s, t, c in later if c == 1), (
            "an example alone in its chunk would have fitted into an earlier one"
        )


def test_long_sources_are_cut_and_long_targets_left_out():
    counts = Counter[str]()
    chunks = pack_examples([([5] * 9, [6]), ([5], [6] * 8), ([], [6]), ([7], [8] * 7)], 8, 8, 0, counts)
    assert [chunk.tolist() for chunk in chunks] == [[5] * 7 + [EOS, 6, EOS], [7, EOS] + [8] * 7 + [EOS]]
    assert counts == {"source_truncated": 1, "long_target": 1, "empty_side": 1}


@pytest.mark.parametrize(
    ("chunk", "what"),
    [
        ([5, EOS, 6], "not closed"),
        ([5, EOS, 6, EOS, 7, EOS], "an odd number"),
        ([5, 6, 7], "no end"),
        ([5] * 8 + [EOS, 6, EOS], "a longer source"),
        ([5, EOS] + [6] * 8 + [EOS], "a longer target"),
    ],
)
def test_other_chunks_are_refused(chunk: list[int], what: str):
    objective = make_objective("sequence_to_sequence", source_length=8, target_length=8)
    good = [5, EOS, 6, EOS]
    tokens, lengths = rows([np.array(good), np.array(chunk)], 16)
    with pytest.raises(ValueError, match=r"row 1 is no chunk of examples for 8 source and 8 target tokens"):
        objective.corrupt(tokens, lengths, np.zeros(2, np.uint64), 0, 0)


def test_sides_of_a_piece_at_least():
    with pytest.raises(ValueError, match="target_length must be at least 2, a piece and </s>, found 1"):
        make_objective("sequence_to_sequence", target_length=1)
