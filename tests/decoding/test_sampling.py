"""What is drawn is distributed as it should be, by chi-square with fixed seeds, and hangs on its source alone."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax.decoding import Batching, Generator, Sampling, SearchOptions, generate
from deltalm_jax.decoding.sampling import draw
from deltalm_jax.model.config import EOS_ID
from tests.decoding.test_search import SOURCES, TINY, WORDS, prefix_log_probs, random_model

LOGITS = np.array([0.3, -np.inf, 2.0, 1.9, -1.0, 0.0, 1.0, -3.0], np.float32)
DRAWS = 20_000


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """How many standard deviations the statistic lies above its mean."""
    assert counts[probabilities == 0].sum() == 0
    expected = counts.sum() * probabilities[probabilities > 0]
    statistic = ((counts[probabilities > 0] - expected) ** 2 / expected).sum()
    freedom = max(len(expected) - 1, 1)
    return (statistic - freedom) / np.sqrt(2 * freedom)


def distribution(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """What should be drawn from, one token after the other."""
    order = sorted(range(len(LOGITS)), key=lambda token: -LOGITS[token])[: top_k or None]
    weights = {token: np.exp(np.float64(LOGITS[token]) / temperature) for token in order}
    total, mass, probabilities = sum(weights.values()), 0.0, np.zeros(len(LOGITS))
    for token in order:
        if mass < top_p:
            probabilities[token] = weights[token]
        mass += weights[token] / total
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "support"),
    [
        (1.0, 0, 1.0, 7),
        (0.5, 0, 1.0, 7),
        (2.0, 3, 1.0, 3),
        (1.0, 0, 0.8, 3),
        (1.0, 0, 0.9, 4),
        (1.5, 5, 0.6, 2),
        (1.0, 99, 0.01, 1),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(temperature: float, top_k: int, top_p: float, support: int):
    probabilities = distribution(temperature, top_k, top_p)
    assert (probabilities > 0).sum() == support
    keys = jax.random.split(jax.random.key(1), (1, DRAWS))
    sampling = Sampling(temperature, top_k, top_p)
    drawn = jax.jit(lambda: draw(sampling, keys, jnp.broadcast_to(LOGITS, (1, DRAWS, len(LOGITS)))))()
    counts = np.bincount(drawn[0], minlength=len(LOGITS))
    assert abs(chi_square(counts, probabilities)) < 4
    if support > 2:
        other = np.roll(probabilities[probabilities > 0], 1)
        assert chi_square(counts[probabilities > 0], other) > 20, "the test would see a wrong distribution"


def test_whole_hypotheses_are_drawn_as_often_as_the_model_says():
    """All of at most two words, by their probability among what is allowed; and their scores are the model's."""
    samples = 4000
    [found] = generate(
        (TINY, random_model(1)),
        SOURCES[2:3],
        sampling=Sampling(),
        num_return=samples,
        max_length=2,
        min_length=0,
        length_penalty=0.0,
        seed=5,
    )
    log_probs = prefix_log_probs(1, 2)
    probabilities, scores = {}, {}
    for words in itertools.chain.from_iterable(itertools.product(WORDS, repeat=n) for n in range(3)):
        tokens = (*words, EOS_ID)
        probabilities[tokens] = 1.0
        scores[tokens] = sum(log_probs[tokens[:place]][token] for place, token in enumerate(tokens))
        for place, token in enumerate(tokens):
            allowed = np.exp([log_probs[tokens[:place]][t] for t in ([EOS_ID] if place == 2 else [*WORDS, EOS_ID])])
            probabilities[tokens] *= np.exp(log_probs[tokens[:place]][token]) / allowed.sum()
    assert len(found) == samples
    counts = np.array([sum(h.tokens == tokens for h in found) for tokens in probabilities])
    assert counts.sum() == samples
    likely = np.array(list(probabilities.values())) * samples > 5
    kept = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(np.array(list(probabilities.values()))[likely], 0)
    expected[-1] = 1 - expected.sum()
    assert abs(chi_square(kept, expected)) < 4
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    np.testing.assert_allclose([h.score for h in found], [scores[h.tokens] for h in found], rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_without_temperature_it_is_greedy(temperature: float):
    model = (TINY, random_model(9))
    greedy = generate(model, SOURCES, beam_size=1, max_length=5)
    found = generate(model, SOURCES, sampling=Sampling(temperature), num_return=2, max_length=5)
    for expected, both in zip(greedy, found, strict=True):
        assert [h.tokens for h in both] == [expected[0].tokens] * 2
        np.testing.assert_allclose([h.score for h in both], expected[0].score, rtol=0, atol=1e-6)


def test_a_sources_draws_hang_on_the_seed_and_its_number_alone():
    options = SearchOptions(beam_size=3, sampling=Sampling(top_p=0.95))
    generator = Generator((TINY, random_model(9)), options, batching=Batching(lengths=(4,), tokens=16, shrink=False))
    sources = [source[source != 0] for source in np.concatenate([SOURCES] * 3)]
    together = generator(sources, max_length=5, seed=3)
    for first in (0, 3, 10):
        numbers = [first + 1, first]
        alone = generator([sources[number] for number in numbers], max_length=5, seed=3, numbers=numbers)
        assert alone == [together[number] for number in numbers]
    assert generator(sources, max_length=5, seed=3) == together
    others = generator(sources, max_length=5, seed=4)
    assert sum(a != b for a, b in zip(together, others, strict=True)) > 8
    assert together[0] != together[4] != together[8], "equal sources have draws of their own"
    assert len({h.tokens for hypotheses in together for h in hypotheses}) > 10


def test_draws_keep_to_what_is_allowed():
    model, random = (TINY, random_model(1)), np.random.default_rng(0)
    for _ in range(5):
        allowed = random.random(TINY.vocab_size) < 0.4
        allowed[7] = True
        found = generate(
            model, SOURCES, sampling=Sampling(3.0), num_return=20, max_length=5, min_length=2, allowed_tokens=allowed
        )
        for hypotheses in found:
            for tokens, _ in hypotheses:
                assert tokens[-1] == EOS_ID
                assert 2 <= len(tokens) - 1 <= 5
                assert allowed[list(tokens[:-1])].all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1)],
)
def test_impossible_draws_are_refused(field: str, value: float):
    with pytest.raises(ValueError, match=f"Sampling.{field} must be .*found {value}"):
        Sampling(**{field: value})


def test_drawing_needs_keys():
    from deltalm_jax.decoding.search import search

    options = dataclasses.replace(SearchOptions(max_length=4), sampling=Sampling())
    with pytest.raises(ValueError, match="needs a key for each source"):
        search(TINY, random_model(0), SOURCES, options)
