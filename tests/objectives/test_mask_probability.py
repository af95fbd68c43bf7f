"""Where masks fall: the frequency of each position against its exact probability, derived from the algorithm.

n masked tokens in k spans, M = L - n kept ones. Kept token j stands at position j + X_j, X_j the total length of the
spans before it. The number R of those spans is hypergeometric (of M slots k are chosen, R among the first j + 1), and
X_j is then the sum of the first R of k parts of a uniform composition of n. Position i is kept if some j has
j + X_j = i, and those events exclude each other: P(i kept) = sum over j and r of P(R = r) P(X = i - j | r).
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from scipy import special, stats

from deltalm_jax.objectives import SpanCorruption, TranslationSpanCorruption
from deltalm_jax.objectives.hashing import hash_keys
from tests.objectives.test_span_corruption import draw_masks, possible_masks
from tests.support.masks import EOS, chunk_of_pairs, mask_of, stack


def log_choose(n: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    """Logarithm of the binomial coefficient, -inf where it is 0."""
    n, k = np.broadcast_arrays(np.asarray(n, float), np.asarray(k, float))
    inside = (k >= 0) & (k <= n)
    out = np.full(n.shape, -np.inf)
    n, k = n[inside], k[inside]
    out[inside] = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return out


@functools.cache
def probability_masked(length: int, noise: int, spans: int) -> np.ndarray:
    """Exact probability that each position is masked, by the derivation above; float64 [length]."""
    kept = length - noise
    r, x = np.arange(spans + 1)[:, None], np.arange(noise + 1)[None, :]
    with np.errstate(invalid="ignore"):
        total = log_choose(x - 1, r - 1) + log_choose(noise - x - 1, spans - r - 1) - log_choose(noise - 1, spans - 1)
    given_r = np.exp(total)  # [r, x]
    given_r[0], given_r[-1] = x[0] == 0, x[0] == noise
    out = np.ones(length)
    for j in range(kept):
        of_r = stats.hypergeom.pmf(r[:, 0], kept, spans, j + 1)
        out[j : j + noise + 1] -= of_r @ given_r
    return out


def largest_z(masked: np.ndarray, draws: int, expected: np.ndarray) -> tuple[float, float]:
    """Largest standard score of how often each position was masked, and the bound it passes by chance once in 10,000."""
    certain = (expected < 1e-12) | (expected > 1 - 1e-12)
    np.testing.assert_array_equal(masked[certain], draws * expected[certain].round())
    masked, p = masked[~certain], expected[~certain]
    # A sum of few expected events has longer tails than the normal distribution.
    assert (draws * np.minimum(p, 1 - p)).min() > 100
    z = (masked - draws * p) / np.sqrt(draws * p * (1 - p))
    return float(np.abs(z).max()), float(stats.norm.isf(1e-4 / 2 / len(p)))


def t5_masks(length: int, noise: int, spans: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """T5's mask: kept and masked tokens cut into as many parts each, alternating, kept first and masked last."""
    out = np.zeros((draws, length), bool)
    for row in out:
        at = 0
        cuts = [np.sort(rng.choice(np.arange(1, total), spans - 1, replace=False)) for total in (length - noise, noise)]
        kept, masked = (np.diff([0, *c, t]) for c, t in zip(cuts, (length - noise, noise), strict=True))
        for a, b in zip(kept, masked, strict=True):
            row[at + a : at + a + b] = True
            at += a + b
    return out


def test_the_derivation_against_enumeration():
    for length, noise, spans in ((10, 5, 2), (8, 3, 3), (12, 4, 1), (9, 4, 2), (2, 1, 1), (7, 1, 1)):
        expected = np.mean(possible_masks(length, noise, spans), axis=0)
        np.testing.assert_allclose(probability_masked(length, noise, spans), expected, atol=1e-12)


@pytest.mark.parametrize(("density", "length"), [(0.15, 512), (0.5, 512), (0.15, 568), (0.15, 128)])
def test_frequencies_are_the_derived_ones(density, length):
    objective = SpanCorruption(density, sizing="t5" if length == 568 else "raw")
    noise, spans = (int(n[0]) for n in objective.counts(np.array([length])))
    masks = draw_masks(objective, length, 20_000, 11)
    assert (masks.sum(axis=1) == noise).all()
    found, bound = largest_z(masks.sum(axis=0), 20_000, probability_masked(length, noise, spans))
    assert found < bound


@pytest.mark.parametrize("density", [0.15, 0.5])
def test_frequencies_in_short_text(density):
    """Lengths 2 to 64, where T5's mask always takes the end; all positions of all lengths are one test."""
    objective, lengths = SpanCorruption(density), np.arange(2, 65)
    masked = np.zeros((63, 64), np.int64)
    for seed in range(10):
        spans = objective.draw_spans(np.tile(lengths, 1000), hash_keys(seed, np.arange(63_000)))
        masked += mask_of(spans, 64).reshape(1000, 63, 64).sum(axis=0)
    expected = np.zeros((63, 64))
    for row, length in zip(expected, lengths, strict=True):
        noise, spans = (int(n[0]) for n in objective.counts(np.array([length])))
        row[:length] = probability_masked(int(length), noise, spans)
    assert (masked.sum(axis=1) == 10_000 * objective.counts(lengths)[0]).all()
    found, bound = largest_z(masked.ravel(), 10_000, expected.ravel())
    assert found < bound


def test_the_test_sees_a_bias():
    """T5's mask of 128 tokens, with the same counts, is found out between the ends, and so is a flat probability."""
    noise, spans = 19, 6
    expected = probability_masked(128, noise, spans)
    masks = t5_masks(128, noise, spans, 8000, np.random.default_rng(0))
    found, bound = largest_z(masks.sum(axis=0)[16:-16], 8000, expected[16:-16])
    assert found > bound + 2
    ours = draw_masks(SpanCorruption(), 128, 20_000, 11).sum(axis=0)[:-1]
    found, bound = largest_z(ours, 20_000, expected[:-1])
    assert found < bound
    found, bound = largest_z(ours, 20_000, np.full(127, noise / 128))
    assert found > 2 * bound


def test_full_chunks_are_masked_evenly():
    """What the derivation comes to at 512 tokens: flat but for both ends, alike but for the last token, never masked."""
    for noise, spans in ((76, 25), (256, 85)):
        p = probability_masked(512, noise, spans)
        assert p.sum() == pytest.approx(noise)
        assert np.ptp(p[20:-21]) < 1e-3 * noise / 512
        assert p[:-1] == pytest.approx(p[-2::-1])
        assert p[-1] == pytest.approx(0, abs=1e-12)
        assert 0 < p[0] < noise / 512


def test_frequencies_with_one_side_masked():
    """Half of each side's own probability, and none for its `</s>`: the coin is fair and the sides are chunks."""
    sides, draws = [9, 40, 1, 6, 17, 2], 20_000
    chunk = chunk_of_pairs(sides, np.random.default_rng(0))
    tokens, lengths = stack([chunk] * draws, len(chunk))
    objective = TranslationSpanCorruption(mask_sides="one")
    masks = mask_of(objective.spans(tokens, lengths, hash_keys(7, np.arange(draws))), len(chunk))
    expected = [0.0]
    for side in sides:
        noise, spans = (int(n[0]) for n in objective.counts(np.array([side + 1])))
        expected += (probability_masked(side + 1, noise, spans) / 2).tolist()
    assert [p for p, token in zip(expected, chunk, strict=True) if token == EOS] == pytest.approx([0] * 6, abs=1e-12)
    found, bound = largest_z(masks.sum(axis=0), draws, np.array(expected))
    assert found < bound
    # Of each pair exactly one side is masked, and the coins of the three are independent: eight patterns, alike.
    ends = np.cumsum([1, *(n + 1 for n in sides)])
    side_masked = np.array([masks[:, begin:end].any(axis=1) for begin, end in itertools.pairwise(ends)])
    assert (side_masked[::2] ^ side_masked[1::2]).all()
    patterns = np.bincount([1, 2, 4] @ side_masked[1::2], minlength=8)
    assert stats.chisquare(patterns).pvalue > 1e-4
