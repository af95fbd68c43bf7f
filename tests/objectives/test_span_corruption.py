"""Span corruption against its definition: exact inverse, exact counts, T5's sizes, the distribution by enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_jax.objectives import OBJECTIVES, SpanCorruption, TranslationSpanCorruption
from deltalm_jax.objectives.hashing import hash_keys
from tests.support.masks import EOS, START, mask_of, rebuild

CORRUPTIONS = ("span_corruption", "translation_span_corruption")


def random_chunks(lengths: list[int], width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 250_000, (len(lengths), width))
    tokens[np.arange(width)[None] >= np.array(lengths)[:, None]] = 777_777  # whatever stands behind a chunk is ignored
    return tokens


def draw_masks(objective: SpanCorruption, length: int, draws: int, seed: int) -> np.ndarray:
    return mask_of(objective.draw_spans(np.full(draws, length), hash_keys(seed, np.arange(draws))), length)


def test_lengths_are_the_published_ones():
    assert SpanCorruption().lengths(512) == (461, 101)
    assert TranslationSpanCorruption().lengths(512) == (341, 341)
    assert TranslationSpanCorruption().max_sentinels(512) == 85
    noise, spans = SpanCorruption().counts(np.array([512]))
    assert (noise[0], spans[0]) == (76, 25)


@pytest.mark.parametrize(
    ("inputs", "density", "span", "raw", "noise", "spans", "targets"),
    [
        (512, 0.15, 3, 568, 85, 28, 114),
        (512, 0.5, 3, 766, 383, 128, 512),
        (512, 0.25, 3, 614, 154, 51, 206),
        (512, 0.15, 8, 588, 88, 11, 100),
        (1024, 0.15, 3, 1137, 171, 57, 229),
        (1024, 0.5, 3, 1534, 767, 256, 1024),
        (256, 0.5, 3, 382, 191, 64, 256),
        (128, 0.5, 3, 190, 95, 32, 128),
    ],
)
def test_t5_sizes_are_the_published_ones(inputs, density, span, raw, noise, spans, targets):
    """The table that T5's own helper gives."""
    objective = SpanCorruption(density, float(span), "t5")
    assert objective.raw_length(inputs) == raw
    assert [int(n[0]) for n in objective.counts(np.array([raw]))] == [noise, spans]
    assert objective.max_sentinels(raw) == spans
    assert objective.lengths(raw) == (raw - noise + spans + 1, targets)
    assert objective.lengths(raw)[0] <= inputs
    assert SpanCorruption(density, float(span)).raw_length(inputs) == inputs, "raw: what is asked for"


@pytest.mark.parametrize("density", [0.15, 0.3, 0.5, 0.05, 0.7])
@pytest.mark.parametrize("span", [1.0, 3.0, 7.5])
def test_t5_raw_length_is_the_longest_that_fits(density, span):
    """By Python's own rounding, one length after the other, as T5's helper searches."""

    def sizes(raw: int) -> tuple[int, int]:
        noise = min(max(round(raw * density), 1), raw - 1)
        spans = min(max(round(noise / span), 1), raw - noise)
        return raw - noise + spans + 1, noise + spans + 1

    for inputs in (32, 100, 129, 512):
        raw = 2
        while sizes(raw + 1)[0] <= inputs:
            raw += 1
        if density == 0.5 and sizes(raw)[1] > inputs:
            raw -= 1
        assert SpanCorruption(density, span, "t5").raw_length(inputs) == raw


def test_t5_counts_round_halves_to_even():
    objective = SpanCorruption(0.25, 2.0, "t5")
    for length in range(2, 700):
        noise = min(max(round(Fraction(length, 4)), 1), length - 1)
        spans = max(round(Fraction(noise, 2)), 1)
        assert [int(n[0]) for n in objective.counts(np.array([length]))] == [noise, spans]


def test_t5_sizing_closes_both_sides():
    objective = SpanCorruption(0.15, 3.0, "t5")
    lengths = [568, 40, 2, 567]
    tokens = random_chunks(lengths, 568)
    corrupted = objective.corrupt(tokens, np.array(lengths), hash_keys(np.arange(4)), START, 100)
    assert corrupted.inputs_BS.shape == (4, 512)
    assert corrupted.targets_BT.shape == (4, 114)
    assert (corrupted.inputs_BS[0] > 0).all()
    for inputs, targets, row, length in zip(corrupted.inputs_BS, corrupted.targets_BT, tokens, lengths, strict=True):
        inputs, targets = inputs[inputs > 0], targets[targets > 0]
        assert inputs[-1] == targets[-1] == EOS
        assert rebuild(inputs[:-1], targets[:-1])[0] == row[:length].tolist()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("length", [2, 3, 10, 100, 512])
def test_lengths_bound_every_raw_length(name, length):
    objective = OBJECTIVES[name]()
    inputs, targets = objective.lengths(length)
    noise, spans = objective.counts(np.arange(2, length + 1))
    raw = np.arange(2, length + 1)
    assert inputs == max(raw - noise + spans)
    assert targets == max(noise + spans)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_counts_are_floors_in_exact_arithmetic(name):
    """Against rational arithmetic: products such as 0.15 * 20 must not fall below a whole number."""
    density = {"span_corruption": (15, 100), "translation_span_corruption": (1, 2)}[name]
    for length in range(2, 513):
        noise = min(max(length * density[0] // density[1], 1), length - 1)
        got_noise, got_spans = OBJECTIVES[name]().counts(np.array([length]))
        assert (got_noise[0], got_spans[0]) == (noise, min(max(noise // 3, 1), length - noise))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 128), min_size=1, max_size=8),
    seed=st.integers(0, 2**63),
    density=st.sampled_from([0.15, 0.5, 0.05, 0.8]),
    span=st.sampled_from([1.0, 3.0, 7.5]),
    sizing=st.sampled_from(["raw", "t5"]),
)
def test_inverse_and_counts(lengths, seed, density, span, sizing):
    objective = SpanCorruption(density, span, sizing)
    tokens = random_chunks(lengths, 128)
    keys = hash_keys(seed, np.arange(len(lengths)))
    corrupted = objective.corrupt(tokens, np.array(lengths), keys, START, 200)
    noise, spans = objective.counts(np.array(lengths))
    for row, length in enumerate(lengths):
        inputs, targets = corrupted.inputs_BS[row], corrupted.targets_BT[row]
        inputs, targets = inputs[: (inputs > 0).sum()], targets[: (targets > 0).sum()]
        assert (inputs > 0).all(), "padding stands at the end only"
        assert (targets > 0).all()
        if sizing == "t5":
            assert inputs[-1] == targets[-1] == EOS
            inputs, targets = inputs[:-1], targets[:-1]
        rebuilt, sentinels = rebuild(inputs, targets)
        assert rebuilt == tokens[row, :length].tolist()
        assert sentinels == list(range(START, START + spans[row])), "ascending from the first"
        assert len(targets) == noise[row] + spans[row]
        assert len(inputs) == length - noise[row] + spans[row]
        assert inputs[-1] == tokens[row, length - 1], "the last token is kept"


@pytest.mark.parametrize("sizing", ["raw", "t5"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_thousands_of_chunks(name, sizing):
    """Every length from 2 to 64, forty times, and full chunks, in one ragged batch."""
    objective = OBJECTIVES[name](sizing=sizing)
    lengths = np.concatenate([np.tile(np.arange(2, 65), 40), np.full(200, 512), np.arange(480, 512)])
    tokens = random_chunks(lengths.tolist(), 512)
    corrupted = objective.corrupt(tokens, lengths, hash_keys(4, np.arange(len(lengths))), START, 100)
    noise, spans = objective.counts(lengths)
    closing = int(sizing == "t5")
    for array, sizes in ((corrupted.inputs_BS, lengths - noise + spans), (corrupted.targets_BT, noise + spans)):
        assert ((array > 0) == (np.arange(array.shape[1]) < (sizes + closing)[:, None])).all()
    for row, (inputs, targets) in enumerate(zip(corrupted.inputs_BS, corrupted.targets_BT, strict=True)):
        if closing:
            inputs, targets = inputs[inputs > 0][:-1], targets[targets > 0][:-1]
        rebuilt, sentinels = rebuild(inputs, targets)
        assert rebuilt == tokens[row, : lengths[row]].tolist()
        assert sentinels == list(range(START, START + spans[row]))


def possible_masks(length: int, noise: int, spans: int) -> list[tuple[bool, ...]]:
    """All masks of the algorithm, by its definition: compositions of the noise times choices of slots, equally likely."""
    masks = []
    for cuts in itertools.combinations(range(1, noise), spans - 1):
        span_lengths = np.diff([0, *cuts, noise])
        for slots in itertools.combinations(range(length - noise), spans):
            mask: list[bool] = []
            for kept in range(length - noise):
                if kept in slots:
                    mask += [True] * int(span_lengths[slots.index(kept)])
                mask.append(False)
            masks.append(tuple(mask))
    return masks


def test_every_mask_is_equally_likely():
    """10 tokens, half masked, spans of 2 on average: 4 · 10 = 40 masks, and a χ² test over 40,000 draws."""
    objective, draws = SpanCorruption(0.5, 2.0), 40_000
    expected = possible_masks(10, 5, 2)
    assert len(set(expected)) == len(expected) == math.comb(4, 1) * math.comb(5, 2)
    counts = Counter(map(tuple, draw_masks(objective, 10, draws, 3).tolist()))
    assert set(counts) == set(expected)
    per_mask = draws / len(expected)
    chi_squared = sum((counts[m] - per_mask) ** 2 / per_mask for m in expected)
    assert chi_squared < 82  # 39 degrees of freedom: p = 0.00007


def test_a_row_does_not_depend_on_its_batch():
    lengths = np.array([512, 40, 512, 3, 128, 511])
    tokens, keys = random_chunks(lengths.tolist(), 512), hash_keys(9, np.arange(6))
    objective = TranslationSpanCorruption()
    whole = objective.corrupt(tokens, lengths, keys, START, 100)
    for split in ([0, 1, 2], [3], [4, 5], [5, 0, 3], [*range(6)] * 40):
        part = objective.corrupt(tokens[split], lengths[split], keys[split], START, 100)
        assert part.inputs_BS.tobytes() == whole.inputs_BS[split].tobytes()
        assert part.targets_BT.tobytes() == whole.targets_BT[split].tobytes()


def test_rows_without_enough_tokens_are_all_padding():
    corrupted = SpanCorruption().corrupt(
        random_chunks([0, 1, 30], 32), np.array([0, 1, 30]), hash_keys(np.arange(3)), START, 100
    )
    assert not corrupted.inputs_BS[:2].any()
    assert not corrupted.targets_BT[:2].any()
    assert corrupted.inputs_BS[2].any()


def test_density_and_span_length_are_heeded():
    """Each changes the counts by as much as it should: in what is produced, not only in what is announced."""
    tokens, keys = random_chunks([120] * 50, 120), hash_keys(np.arange(50))
    found = {}
    for density, span in ((0.15, 3.0), (0.3, 3.0), (0.15, 6.0)):
        corrupted = SpanCorruption(density, span).corrupt(tokens, np.full(50, 120), keys, START, 100)
        sentinels = corrupted.targets_BT >= START
        found[density, span] = int(sentinels.sum()) / 50, int(((corrupted.targets_BT > 0) & ~sentinels).sum()) / 50
    assert found == {(0.15, 3.0): (6, 18), (0.3, 3.0): (12, 36), (0.15, 6.0): (3, 18)}


@pytest.mark.parametrize(("length", "sizing", "needed"), [(512, "raw", 85), (766, "t5", 128)])
def test_too_few_sentinels_are_refused_with_the_numbers(length, sizing, needed):
    objective, tokens = TranslationSpanCorruption(sizing=sizing), random_chunks([length], length)
    with pytest.raises(ValueError, match=f"need {needed} sentinels, but the vocabulary has {needed - 1}"):
        objective.corrupt(tokens, np.array([length]), hash_keys(np.arange(1)), START, needed - 1)
    objective.corrupt(tokens, np.array([length]), hash_keys(np.arange(1)), START, needed)


def test_a_chunk_longer_than_the_shape_is_refused():
    with pytest.raises(ValueError, match="600 tokens is longer than chunk_length 512"):
        SpanCorruption().corrupt(random_chunks([600], 600), np.array([600]), hash_keys(np.arange(1)), START, 100, 512)
    with pytest.raises(ValueError, match="at most 65,535 tokens can be corrupted, found 70,000"):
        SpanCorruption().corrupt(np.zeros((0, 70_000), int), np.zeros(0, int), np.zeros(0, int), START, 10**5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 3.0), "noise_density"),
        ((1.0, 3.0), "noise_density"),
        ((0.15, 0.5), "mean_span_length"),
        ((0.15, 3.0, "T5"), "sizing must be one of raw, t5, found 'T5'"),
    ],
)
def test_senseless_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpanCorruption(*arguments)


def test_inputs_too_short_for_any_chunk_are_refused():
    with pytest.raises(ValueError, match="no chunk has inputs of at most 2 tokens"):
        SpanCorruption(sizing="t5").raw_length(2)
