"""Span corruption against its definition: exact inverse, exact counts, and the distribution by enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_jax.objectives import OBJECTIVES, SpanCorruption, TranslationSpanCorruption
from deltalm_jax.objectives.hashing import hash_keys

START, SENTINELS = 250_002, 100


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


def random_chunks(lengths: list[int], width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 250_000, (len(lengths), width))
    tokens[np.arange(width)[None] >= np.array(lengths)[:, None]] = 777_777  # whatever stands behind a chunk is ignored
    return tokens


def test_lengths_are_the_published_ones():
    assert SpanCorruption().lengths(512) == (461, 101)
    assert TranslationSpanCorruption().lengths(512) == (341, 341)
    assert TranslationSpanCorruption().max_sentinels(512) == 85
    noise, spans = SpanCorruption().counts(np.array([512]))
    assert (noise[0], spans[0]) == (76, 25)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("length", [2, 3, 10, 100, 512])
def test_lengths_bound_every_raw_length(name, length):
    objective = OBJECTIVES[name]()
    inputs, targets = objective.lengths(length)
    noise, spans = objective.counts(np.arange(2, length + 1))
    raw = np.arange(2, length + 1)
    assert inputs == max(raw - noise + spans)
    assert targets == max(noise + spans)


@pytest.mark.parametrize("name", OBJECTIVES)
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
)
def test_inverse_and_counts(lengths, seed, density, span):
    objective = SpanCorruption(density, span)
    tokens = random_chunks(lengths, 128)
    keys = hash_keys(seed, np.arange(len(lengths)))
    corrupted = objective.corrupt(tokens, np.array(lengths), keys, START, 200)
    noise, spans = objective.counts(np.array(lengths))
    for row, length in enumerate(lengths):
        rebuilt, sentinels = rebuild(corrupted.inputs_BS[row], corrupted.targets_BT[row])
        assert rebuilt == tokens[row, :length].tolist()
        assert sentinels == list(range(START, START + spans[row])), "ascending from the first"
        assert (corrupted.targets_BT[row] > 0).sum() == noise[row] + spans[row]
        assert (corrupted.inputs_BS[row] > 0).sum() == length - noise[row] + spans[row]
        assert corrupted.inputs_BS[row, (corrupted.inputs_BS[row] > 0).sum() - 1] == tokens[row, length - 1], "end kept"


def test_padding_stands_only_at_the_end():
    lengths = [2, 17, 512, 300]
    corrupted = SpanCorruption().corrupt(
        random_chunks(lengths, 512), np.array(lengths), hash_keys(np.arange(4)), START, 100
    )
    for array in (corrupted.inputs_BS, corrupted.targets_BT):
        real = array > 0
        assert (np.sort(real, axis=1)[:, ::-1] == real).all()


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
    masks = objective.mask(np.full(draws, 10), hash_keys(3, np.arange(draws)), 10)
    counts = Counter(map(tuple, masks.tolist()))
    assert set(counts) == set(expected)
    per_mask = draws / len(expected)
    chi_squared = sum((counts[m] - per_mask) ** 2 / per_mask for m in expected)
    assert chi_squared < 82  # 39 degrees of freedom: p = 0.00007


def test_no_positional_bias_beyond_the_last_token():
    """A token is masked with the mean probability, except near the end, where the kept last token shows."""
    masks = SpanCorruption().mask(np.full(20_000, 512), hash_keys(5, np.arange(20_000)), 512)
    share = masks.mean(axis=0)
    assert not masks[:, -1].any()
    assert abs(share[:400].mean() - 76 / 512) < 0.003
    assert abs(share[:50].mean() - share[200:250].mean()) < 0.006


def test_a_row_does_not_depend_on_its_batch():
    lengths = np.array([512, 40, 512, 3, 128, 511])
    tokens, keys = random_chunks(lengths.tolist(), 512), hash_keys(9, np.arange(6))
    objective = TranslationSpanCorruption()
    whole = objective.corrupt(tokens, lengths, keys, START, 100)
    for split in ([0, 1, 2], [3], [4, 5], [5, 0, 3]):
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


def test_too_few_sentinels_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="need 85 sentinels, but the vocabulary has 64"):
        TranslationSpanCorruption().corrupt(
            random_chunks([512], 512), np.array([512]), hash_keys(np.arange(1)), START, 64
        )


def test_a_chunk_longer_than_the_shape_is_refused():
    with pytest.raises(ValueError, match="600 tokens is longer than chunk_length 512"):
        SpanCorruption().corrupt(random_chunks([600], 600), np.array([600]), hash_keys(np.arange(1)), START, 100, 512)


@pytest.mark.parametrize("arguments", [(0.0, 3.0), (1.0, 3.0), (0.15, 0.5)])
def test_senseless_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="noise_density|mean_span_length"):
        SpanCorruption(*arguments)
