"""Masked language modelling against its definition: what stays, what comes back, and how often each draw falls."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_jax.objectives import OBJECTIVES, MaskedLanguageModel, SpanCorruption, make_objective
from deltalm_jax.objectives.hashing import hash_keys
from deltalm_jax.objectives.span_corruption import Corrupted
from tests.support.masks import BOS, EOS, START, stack

MASK = START - 1
FEW_PIECES = 54  # <mask> behind fifty pieces, 4 to 53


def masked(chunks: list[list[int]], density: float = 0.15, seed: int = 0, mask_id: int = MASK) -> Corrupted:
    tokens, lengths = stack(chunks, max(len(chunk) for chunk in chunks) + 3)
    keys = hash_keys(seed, np.arange(len(chunks)))
    return MaskedLanguageModel(density).corrupt(tokens, lengths, keys, START, 0, mask_id=mask_id)


def chi_squared(counts: np.ndarray) -> float:
    """Of counts that should be equal, in standard deviations from what chance gives on average."""
    counts = np.asarray(counts, float).ravel()
    freedom = len(counts) - 1
    return float((((counts - counts.mean()) ** 2 / counts.mean()).sum() - freedom) / math.sqrt(2 * freedom))


@settings(max_examples=100, deadline=None)
@given(
    chunks=st.lists(st.lists(st.integers(1, MASK - 1), min_size=2, max_size=90), min_size=1, max_size=90),
    seed=st.integers(0, 2**63),
    density=st.sampled_from(["0.15", "0.5", "0.03", "0.95"]),
)
def test_unpicked_ids_stay_and_targets_restore_the_others(chunks, seed, density):
    found = masked(chunks, float(density), seed)
    for chunk, inputs, targets in zip(chunks, found.inputs_BS.tolist(), found.targets_BT.tolist(), strict=True):
        picked = 0
        for original, shown, wanted in itertools.zip_longest(chunk, inputs, targets, fillvalue=0):
            if wanted:
                assert wanted == original
                assert shown in (MASK, original) or 4 <= shown < MASK
                picked += 1
            else:
                assert shown == original
        exact = len(chunk) * Fraction(density)
        assert math.floor(exact) <= picked <= math.ceil(exact)


def test_counts_are_rounded_at_random_to_the_exact_mean():
    """17 % of 20 is 3.4: three, and four in four of ten rows. 15 % of 20 is 3, always, whatever floats make of it."""
    found = masked([[7] * 20] * 20_000, 0.17)
    counts = np.count_nonzero(found.targets_BT, axis=1)
    assert set(counts.tolist()) == {3, 4}
    assert counts.mean() == pytest.approx(3.4, abs=4 * math.sqrt(0.24 / 20_000))
    for length, whole in ((20, 3), (40, 6), (60, 9), (100, 15), (140, 21), (180, 27)):
        assert (np.count_nonzero(masked([[7] * length] * 300).targets_BT, axis=1) == whole).all()


def test_a_short_chunk_may_have_none_picked():
    counts = np.count_nonzero(masked([[7, 8]] * 10_000).targets_BT, axis=1)
    assert set(counts.tolist()) == {0, 1}
    assert counts.mean() == pytest.approx(0.3, abs=0.02)


def test_every_choice_of_positions_is_equally_likely():
    """Half of six: twenty choices."""
    picked = masked([[BOS, 7, 7, EOS, 7, EOS]] * 20_000, 0.5).targets_BT > 0
    choices, counts = np.unique(picked @ (1 << np.arange(picked.shape[1])), return_counts=True)
    assert len(choices) == math.comb(6, 3)
    assert chi_squared(counts) < 4


def test_every_position_is_picked_as_often_specials_too():
    chunk = [BOS, *range(10, 47), EOS]
    per_position = np.count_nonzero(masked([chunk] * 20_000).targets_BT, axis=0)[: len(chunk)]
    assert per_position.sum() / (20_000 * len(chunk)) == pytest.approx(0.15, abs=0.001)
    assert chi_squared(per_position) < 4


def test_shares_of_what_becomes_of_the_picked():
    """Of a chunk of `</s>` alone, which no random piece is, it shows which were kept."""
    found = masked([[EOS] * 40] * 10_000, mask_id=FEW_PIECES)
    picked = found.targets_BT > 0
    shown = found.inputs_BS[picked]
    assert len(shown) == 60_000
    random = shown[(shown != FEW_PIECES) & (shown != EOS)]
    for share, count in ((0.8, np.sum(shown == FEW_PIECES)), (0.1, len(random)), (0.1, np.sum(shown == EOS))):
        assert count / 60_000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 60_000))
    assert (random.min(), random.max()) == (4, FEW_PIECES - 1), "no special, and no <mask>"
    assert chi_squared(np.bincount(random, minlength=FEW_PIECES)[4:]) < 4
    # One draw for all positions of a row would give the right shares, too.
    hidden = found.inputs_BS == FEW_PIECES
    first_two = hidden[np.arange(10_000)[:, None], np.nonzero(picked)[1].reshape(-1, 6)[:, :2]]
    assert first_two.all(axis=1).mean() == pytest.approx(0.64, abs=0.02)
    # Nor does where a position stands matter.
    assert chi_squared(hidden.sum(axis=0)[:40]) < 4


def test_mask_is_no_random_piece():
    """Among two pieces it would take a third of the draws, and show."""
    shown = (found := masked([[EOS] * 40] * 5000, mask_id=6)).inputs_BS[found.targets_BT > 0]
    assert np.bincount(shown)[3:] / len(shown) == pytest.approx([0.1, 0.05, 0.05, 0.8], abs=0.01)


def test_another_key_is_another_mask():
    one, other = (masked([list(range(10, 210))] * 50, seed=seed).targets_BT > 0 for seed in (0, 1))
    assert (one & other).mean() == pytest.approx(0.15**2 * 200 / 203, abs=0.008)


def test_a_row_does_not_depend_on_its_batch_nor_on_its_padding():
    rng = np.random.default_rng(1)
    chunks = [rng.integers(4, MASK, n).tolist() for n in (512, 40, 3, 0, 128, 511)]
    tokens, lengths = stack(chunks, 512)
    keys = hash_keys(9, np.arange(6))
    objective = MaskedLanguageModel()
    whole = objective.corrupt(tokens, lengths, keys, START, 100, mask_id=MASK)
    for rows in ([0, 1, 2], [3], [4, 5], [5, 0, 3], [*range(6)] * 40):
        part = objective.corrupt(tokens[rows], lengths[rows], keys[rows], START, 100, mask_id=MASK)
        assert part.inputs_BS.tobytes() == whole.inputs_BS[rows].tobytes()
        assert part.targets_BT.tobytes() == whole.targets_BT[rows].tobytes()
    for width, chunk_length in ((128, 128), (128, 300), (300, 128), (300, None)):
        rows = [1, 2, 3, 4]
        other = np.full((4, width), 9, np.int64)
        other[:, :128] = tokens[rows, :128]
        part = objective.corrupt(other, lengths[rows], keys[rows], START, 100, chunk_length, mask_id=MASK)
        for found, expected in ((part.inputs_BS, whole.inputs_BS), (part.targets_BT, whole.targets_BT)):
            assert found.shape == (4, chunk_length or width)
            assert found.dtype == np.int32
            assert (found[:, :128] == expected[rows, :128]).all()
            assert not found[:, 128:].any()


def test_rows_without_enough_tokens_are_all_padding():
    tokens, lengths = stack([[], [7], [7] * 30], 32)
    found = MaskedLanguageModel(0.5).corrupt(tokens, lengths, hash_keys(np.arange(3)), START, 0, mask_id=MASK)
    assert not found.inputs_BS[:2].any()
    assert not found.targets_BT[:2].any()
    assert np.count_nonzero(found.inputs_BS[2]) == 30
    none = MaskedLanguageModel().corrupt(tokens[:0], lengths[:0], hash_keys(np.arange(0)), START, 0, mask_id=MASK)
    assert none.inputs_BS.shape == none.targets_BT.shape == (0, 32)


@pytest.mark.parametrize("density", ["0.15", "0.5", "0.07", "0.29", "0.9"])
def test_most_targets_is_the_most_that_any_length_gives(density):
    objective = MaskedLanguageModel(float(density))
    for chunk_length in range(2, 700):
        assert objective.most_targets(chunk_length) == math.ceil(chunk_length * Fraction(density))
    assert MaskedLanguageModel().most_targets(512) == 77
    length = 37
    counts = np.count_nonzero(masked([[7] * length] * 500, float(density)).targets_BT, axis=1)
    assert counts.max() == objective.most_targets(length)


def test_what_cannot_be_is_refused():
    tokens, lengths = stack([[7] * 20, [7] * 60], 60)
    keys = hash_keys(np.arange(2))
    with pytest.raises(ValueError, match="row 1: a chunk of 60 tokens is longer than chunk_length 59"):
        MaskedLanguageModel().corrupt(tokens, lengths, keys, START, 0, 59, mask_id=MASK)
    with pytest.raises(ValueError, match="mask_id must be above the first piece, 4, found 4"):
        MaskedLanguageModel().corrupt(tokens, lengths, keys, START, 0, mask_id=4)
    for density in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"strictly between 0 and 1, found {density}"):
            MaskedLanguageModel(density)


def test_what_it_says_of_itself():
    objective = make_objective("masked_language_model", sizing="t5", mask_sides="one", mean_span_length=3.0)
    assert objective == MaskedLanguageModel(0.15)
    assert make_objective("masked_language_model", noise_density=0.2) == MaskedLanguageModel(0.2)
    assert objective.lengths(512) == (512, 512)
    assert (objective.raw_length(512), objective.max_sentinels(512)) == (512, 0)
    assert objective.describe() == "15 % of positions picked, 80 % of them masked"


def test_objectives_say_whose_chunks_they_take_and_what_they_are_for():
    found = {name: (made.chunks_of, made.kind, made.uses_mask, made.packed) for name, made in OBJECTIVES.items()}
    documents, pairs, examples = "span_corruption", "translation_span_corruption", "sequence_to_sequence"
    assert found == {
        "span_corruption": (documents, "sequence_to_sequence", False, False),
        "translation_span_corruption": (pairs, "sequence_to_sequence", False, False),
        "sequence_to_sequence": (examples, "sequence_to_sequence", False, True),
        "masked_language_model": (documents, "masked_language_model", True, False),
        "translation_language_model": (pairs, "masked_language_model", True, False),
        "cross_lingual_contrast": (pairs, "contrast", True, False),
    }
    assert all(found[chunks_of][0] == chunks_of for chunks_of, *_ in found.values()), "that one takes its own"


def test_its_mask_is_not_that_of_span_corruption():
    """Both may see one chunk with one key; then they should hide different parts of it."""
    tokens, lengths = stack([list(range(1000, 1200))] * 400, 200)
    keys = hash_keys(3, np.arange(400))
    spans = SpanCorruption().corrupt(tokens, lengths, keys, START, 100)
    in_spans = np.stack([np.isin(tokens[0], row) for row in spans.targets_BT])
    picked = MaskedLanguageModel().corrupt(tokens, lengths, keys, START, 100, mask_id=MASK).targets_BT > 0
    assert (in_spans & picked).mean() == pytest.approx(0.15**2, abs=0.002)
