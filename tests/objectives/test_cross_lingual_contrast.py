"""Cross-lingual contrast: sides are translations of each other, all pairs and all eight orders occur, and lengths bound."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_jax.data.packing import pack_pairs
from deltalm_jax.objectives import CrossLingualContrast, make_objective
from deltalm_jax.objectives.hashing import hash_keys
from deltalm_jax.objectives.span_corruption import Corrupted
from tests.support.masks import BOS, EOS, START, chunk_of_pairs, stack

MASK = START - 1
NOTHING = 1e-12
"""A density at which no position is picked: it shows the sides as they are before they are masked."""

Sentence = tuple[int, int]  # number of the pair, and which of its two texts


def text(pair: int, which: int, length: int) -> list[int]:
    """A text whose ids say where it comes from, and which of its ids each is."""
    return [10_000 + 1000 * pair + 500 * which + place for place in range(length)]


def chunk_of(lengths: list[tuple[int, int]]) -> list[int]:
    sides = (text(pair, which, n) for pair, both in enumerate(lengths) for which, n in enumerate(both))
    return [BOS, *itertools.chain.from_iterable([*side, EOS] for side in sides)]


def contrast(chunks: list[list[int]], width: int = 128, density: float = NOTHING, seed: int = 0, **fields) -> Corrupted:
    tokens, lengths = stack(chunks, width)
    keys = hash_keys(seed, np.arange(len(chunks)))
    return CrossLingualContrast(density, **fields).corrupt(tokens, lengths, keys, START, 0, mask_id=MASK)


def texts_of(side: np.ndarray) -> list[list[int]]:
    """The texts of `<s> text </s> text </s>`; nothing but padding may follow."""
    ids = side[: np.count_nonzero(side)].tolist()
    assert not side[len(ids) :].any()
    assert ids[0] == BOS
    assert ids[-1] == EOS
    return [list(part) for closed, part in itertools.groupby(ids[1:], lambda i: i == EOS) if not closed]


def source(ids: list[int]) -> Sentence:
    return (ids[0] - 10_000) // 1000, (ids[0] - 10_000) % 1000 // 500


@settings(max_examples=100, deadline=None)
@given(
    chunks=st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), min_size=1, max_size=80
    ),
    seed=st.integers(0, 2**63),
)
def test_the_sides_are_translations_of_each_other(chunks, seed):
    found = contrast([chunk_of(lengths) for lengths in chunks], seed=seed)
    for lengths, inputs, targets in zip(chunks, found.inputs_BS, found.targets_BT, strict=True):
        sides = [[source(ids) for ids in texts_of(side)] for side in (inputs, targets)]
        for side, sentences in zip((inputs, targets), sides, strict=True):
            whole = [text(pair, which, lengths[pair][which]) for pair, which in sentences]
            assert texts_of(side) == whole, "whole sentences, unchanged"
            assert len(sentences) == min(len(lengths), 2), "two, or the only one"
            assert len({which for _, which in sentences}) == 1, "those that stand at the same place of their pairs"
        assert sorted((pair, 1 - which) for pair, which in sides[0]) == sorted(sides[1])


def test_all_eight_orders_of_all_pairs_are_as_frequent():
    found = contrast([chunk_of([(3, 4), (1, 2), (6, 5)])] * 24_000)
    counts = Counter(
        (tuple(map(source, texts_of(a))), tuple(map(source, texts_of(b))))
        for a, b in zip(found.inputs_BS, found.targets_BT, strict=True)
    )
    # Three pairs of pairs, either first on one side, either first on the other, either text of them as inputs.
    assert len(counts) == 3 * 8
    assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 53  # 23 degrees of freedom: p = 0.0004


def test_the_only_pair_of_a_chunk_comes_alone_and_either_way_round():
    found = contrast([chunk_of([(3, 4)])] * 1000, width=8 + 4)
    ways = Counter(
        (tuple(a[a > 0].tolist()), tuple(b[b > 0].tolist()))
        for a, b in zip(found.inputs_BS, found.targets_BT, strict=True)
    )
    first, second = (BOS, *text(0, 0, 3), EOS), (BOS, *text(0, 1, 4), EOS)
    assert set(ways) == {(first, second), (second, first)}
    assert ways[first, second] == pytest.approx(500, abs=70)


def test_both_sides_are_masked_and_each_by_itself():
    chunks = [chunk_of([(20, 20), (20, 20)])] * 5000
    plain, found = contrast(chunks), contrast(chunks, density=0.15)
    hidden = []
    for before, after in ((plain.inputs_BS, found.inputs_BS), (plain.targets_BT, found.targets_BT)):
        real = before > 0
        assert (real.sum(axis=1) == 43).all()
        assert not after[~real].any()
        changed = before != after
        assert changed[real].mean() == pytest.approx(0.15 * 0.9, abs=0.003)
        assert (after[changed] == MASK).mean() == pytest.approx(8 / 9, abs=0.008)
        assert after[changed].min() >= 4, "no special as a random piece"
        hidden.append((after == MASK)[:, :43])
        assert hidden[-1].mean(axis=0) == pytest.approx(0.12, abs=0.02), "<s> and </s> as often as others"
    assert (hidden[0] & hidden[1]).mean() == pytest.approx(0.12**2, abs=0.002)
    assert contrast(chunks, density=0.5).inputs_BS.tobytes() != found.inputs_BS.tobytes()


def test_a_row_does_not_depend_on_its_batch_nor_on_its_padding():
    rng = np.random.default_rng(1)
    chunks = [chunk_of_pairs(rng.integers(1, 12, 2 * n).tolist(), rng) for n in (1, 8, 3, 5)] + [[], [BOS]]
    tokens, lengths = stack(chunks, 300)
    keys = hash_keys(5, np.arange(6))
    objective = CrossLingualContrast()
    whole = objective.corrupt(tokens, lengths, keys, START, 0, mask_id=MASK)
    assert whole.inputs_BS.shape == whole.targets_BT.shape == (6, 296)
    assert whole.inputs_BS.dtype == whole.targets_BT.dtype == np.int32
    assert not whole.inputs_BS[4:].any()
    assert not whole.targets_BT[4:].any()
    for rows in ([0], [2, 1], [4], [3, 0, 1, 2, 5, 4] * 50):
        part = objective.corrupt(tokens[rows, :220], lengths[rows], keys[rows], START, 0, 300, mask_id=MASK)
        assert part.inputs_BS.tobytes() == whole.inputs_BS[rows].tobytes()
        assert part.targets_BT.tobytes() == whole.targets_BT[rows].tobytes()


@pytest.mark.parametrize("chunk_length", [5, 6, 7, 8, 9, 10, 11, 14, 17])
def test_lengths_are_the_worst_case(chunk_length):
    """By going through all chunks of one pair and of two, as packing makes them."""
    longest = (chunk_length - 3) // 2
    most = 0
    for a, b in itertools.product(range(1, longest + 1), repeat=2):
        most = max(most, 1 + a + 1)
        for c, d in itertools.product(range(1, longest + 1), repeat=2):
            if 1 + a + b + c + d + 4 <= chunk_length:
                most = max(most, 1 + a + 1 + c + 1)
    assert CrossLingualContrast().lengths(chunk_length) == (most, most)


def test_packed_chunks_fit():
    rng = np.random.default_rng(3)
    sizes = np.maximum(rng.lognormal(3.5, 1.2, (2000, 2)).astype(int), 1)
    chunks = [chunk.tolist() for chunk in pack_pairs([(np.full(a, 7), np.full(b, 8)) for a, b in sizes], 512)]
    chunks.append([BOS, *[7] * 253, EOS, 8, EOS, *[7] * 252, EOS, 8, EOS])
    found = contrast(chunks, 512, seed=1)
    assert found.inputs_BS.shape[1] == found.targets_BT.shape[1] == 508
    assert {np.count_nonzero(found.inputs_BS[-1]), np.count_nonzero(found.targets_BT[-1])} == {508, 5}


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=3),
    cap=st.integers(5, 44),
    seed=st.integers(0, 2**63),
)
def test_sides_are_cut_to_a_length_asked_for(lengths, cap, seed):
    whole, cut = (
        contrast([chunk_of(lengths)], 140, seed=seed),
        contrast([chunk_of(lengths)], 140, seed=seed, side_length=cap),
    )
    assert cut.inputs_BS.shape == cut.targets_BT.shape == (1, cap)
    for before, after in ((whole.inputs_BS[0], cut.inputs_BS[0]), (whole.targets_BT[0], cut.targets_BT[0])):
        texts, kept = texts_of(before), texts_of(after)
        assert np.count_nonzero(after) == min(np.count_nonzero(before), cap), "no room is left while a text is cut"
        for one, part in zip(texts, kept, strict=True):
            assert part == one[: len(part)]
            assert len(part) == len(one) or len(part) + 1 >= (cap - 1) // 2, "half of the room stays"


def test_what_cannot_be_is_refused():
    good = chunk_of([(3, 4), (5, 6)])
    for chunk in (good[:-1], [*good, 9, EOS], [9, *good[1:]], [BOS, EOS]):
        for before in (1, 130):
            with pytest.raises(ValueError, match=f"row {before + 1}: expected <s> and pairs of texts.*this objective"):
                contrast([[], *[good] * before, chunk], 64)
    with pytest.raises(
        ValueError, match="row 1: a side of 62 tokens is longer than 60, the most that a chunk packed for"
    ):
        contrast([good, chunk_of([(60, 1)])], 64)
    contrast([good, chunk_of([(60, 1)])], 64, side_length=60)
    tokens, lengths = stack([good], 64)
    with pytest.raises(ValueError, match="row 0: a chunk of 23 tokens is longer than chunk_length 20"):
        CrossLingualContrast().corrupt(tokens, lengths, hash_keys(np.arange(1)), START, 0, 20, mask_id=MASK)
    with pytest.raises(ValueError, match="chunk_length must be at least 5 for pairs, found 4"):
        CrossLingualContrast().lengths(4)
    with pytest.raises(ValueError, match="side_length must be at least 5, .* found 4"):
        CrossLingualContrast(side_length=4)
    with pytest.raises(ValueError, match="noise_density"):
        CrossLingualContrast(1.0)


def test_what_it_says_of_itself():
    objective = make_objective(
        "cross_lingual_contrast",
        sizing="t5",
        mask_sides="one",
        mean_span_length=3.0,
        noise_density=0.2,
        side_length=256,
    )
    assert objective == CrossLingualContrast(0.2, 256)
    assert objective.lengths(512) == (256, 256)
    assert objective.lengths(100) == (96, 96)
    assert (objective.raw_length(512), objective.max_sentinels(512)) == (512, 0)
