"""Translation language modelling: pairs stay where they are, their sides in either order, and then it is masking."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_jax.objectives import MaskedLanguageModel, TranslationLanguageModel, make_objective
from deltalm_jax.objectives.hashing import hash_keys
from tests.support.masks import BOS, EOS, START, chunk_of_pairs, stack

MASK = START - 1


def unmasked(chunks: list[list[int]], seed: int, width: int = 220) -> list[list[int]]:
    """The chunks as they were before masking, after whatever else was done to them."""
    tokens, lengths = stack(chunks, width)
    keys = hash_keys(seed, np.arange(len(chunks)))
    found = TranslationLanguageModel().corrupt(tokens, lengths, keys, START, 0, mask_id=MASK)
    restored = np.where(found.targets_BT > 0, found.targets_BT, found.inputs_BS)
    assert (np.count_nonzero(restored, axis=1) == lengths).all()
    return [row[:n].tolist() for row, n in zip(restored, lengths, strict=True)]


def pairs_of(chunk: list[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    assert chunk[0] == BOS
    assert chunk[-1] == EOS
    sides = [tuple(side) for closed, side in itertools.groupby(chunk[1:], lambda i: i == EOS) if not closed]
    return list(zip(sides[::2], sides[1::2], strict=True))


@settings(max_examples=100, deadline=None)
@given(
    sides=st.lists(
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=8), min_size=1, max_size=80
    ),
    seed=st.integers(0, 2**63),
)
def test_pairs_stay_in_place_and_only_their_sides_are_exchanged(sides, seed):
    rng = np.random.default_rng(0)
    chunks = [chunk_of_pairs(list(itertools.chain.from_iterable(pairs)), rng) for pairs in sides]
    for before, after in zip(chunks, unmasked(chunks, seed), strict=True):
        assert len(after) == len(before)
        for pair, found in zip(pairs_of(before), pairs_of(after), strict=True):
            assert found in (pair, pair[::-1])


def test_both_orders_are_as_frequent_and_no_coin_falls_like_another():
    chunk = chunk_of_pairs([3, 2, 1, 4, 2, 5, 6, 1], np.random.default_rng(0))
    pairs = pairs_of(chunk)
    exchanged = np.array(
        [[a != b for a, b in zip(pairs_of(row), pairs, strict=True)] for row in unmasked([chunk] * 4000, 1)]
    )
    assert exchanged.mean(axis=0) == pytest.approx(0.5, abs=0.04)
    counts = np.bincount(exchanged @ (1 << np.arange(4)), minlength=16)
    assert counts / 4000 == pytest.approx(1 / 16, abs=0.016)
    assert unmasked([chunk] * 100, 2) != unmasked([chunk] * 100, 1), "another key, other orders"


def test_the_rest_is_masked_language_modelling():
    """With the same key: the positions picked, and what becomes of them, in the sides as they stand after the exchange."""
    chunks = [chunk_of_pairs([9, 7, 5, 12, 1, 1], np.random.default_rng(seed)) for seed in range(100)]
    tokens, lengths = stack(chunks, 64)
    keys = hash_keys(2, np.arange(100))
    found = TranslationLanguageModel(0.3).corrupt(tokens, lengths, keys, START, 0, mask_id=MASK)
    restored = np.where(found.targets_BT > 0, found.targets_BT, found.inputs_BS)
    assert (restored[:, : lengths[0]] != tokens[:, : lengths[0]]).any()
    expected = MaskedLanguageModel(0.3).corrupt(restored, lengths, keys, START, 0, mask_id=MASK)
    assert found.inputs_BS.tobytes() == expected.inputs_BS.tobytes()
    assert found.targets_BT.tobytes() == expected.targets_BT.tobytes()
    assert (found.targets_BT == EOS).any(), "</s> can be picked"
    assert (found.targets_BT[:, 0] == BOS).any(), "<s> can be picked"


def test_a_row_does_not_depend_on_its_batch_nor_on_its_padding():
    rng = np.random.default_rng(1)
    chunks = [chunk_of_pairs(rng.integers(1, 12, 2 * n).tolist(), rng) for n in (1, 8, 3, 5)] + [[]]
    tokens, lengths = stack(chunks, 300)
    keys = hash_keys(5, np.arange(5))
    objective = TranslationLanguageModel()
    whole = objective.corrupt(tokens, lengths, keys, START, 0, mask_id=MASK)
    assert not whole.inputs_BS[4].any()
    assert not whole.targets_BT[4].any()
    for rows in ([0], [2, 1], [4], [3, 0, 1, 2, 4] * 50):
        part = objective.corrupt(tokens[rows, :220], lengths[rows], keys[rows], START, 0, 300, mask_id=MASK)
        assert part.inputs_BS.tobytes() == whole.inputs_BS[rows].tobytes()
        assert part.targets_BT.tobytes() == whole.targets_BT[rows].tobytes()


def test_what_is_no_chunk_of_pairs_is_refused_by_its_row():
    rng = np.random.default_rng(0)
    good = chunk_of_pairs([3, 4, 5, 6], rng)
    bad = {
        "three sides": chunk_of_pairs([3, 4, 5], rng),
        "not closed": good[:-1],
        "an empty side": [*good, EOS, 9, EOS],
        "no <s>": [9, *good[1:]],
        "no sides": [BOS, 9, 9, 9, 9],
        "too short": [BOS, EOS],
    }
    for chunk in bad.values():
        # Behind a row that is left out, and behind a block of others.
        for before in (1, 130):
            tokens, lengths = stack([[], *[good] * before, chunk], 64)
            keys = hash_keys(np.arange(len(lengths)))
            with pytest.raises(ValueError, match=f"row {before + 1}: expected <s> and pairs of texts.*this objective"):
                TranslationLanguageModel().corrupt(tokens, lengths, keys, START, 0, mask_id=MASK)


def test_what_it_says_of_itself():
    objective = make_objective("translation_language_model", sizing="t5", mean_span_length=3.0, noise_density=0.2)
    assert objective == TranslationLanguageModel(0.2)
    assert (objective.lengths(512), objective.most_targets(512)) == ((512, 512), 103)
