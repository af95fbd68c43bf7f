"""`generate`: results in order that hang on nothing but their source, few programs, and clear refusals."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from deltalm_jax.decoding import Batching, Generator, LengthLimit, SearchOptions, generate
from deltalm_jax.decoding.search import search
from deltalm_jax.model.config import EOS_ID, PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.saved_model import Model

CONFIG = ModelConfig(
    vocab_size=16,
    hidden_size=16,
    feed_forward_size=24,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    max_length=14,
)
BATCHING = Batching(lengths=(7,), tokens=28, shrink=False)


@pytest.fixture(scope="module")
def params() -> Any:
    random = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))

    def values(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return random.normal(path[-1].key == "scale", 0.3, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(values, shapes)


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(1, 16, random.integers(1, 15)).tolist() for _ in range(40)]


@pytest.fixture(scope="module")
def generator(params) -> Generator:
    return Generator((CONFIG, params), SearchOptions(beam_size=3), batching=BATCHING)


LIMIT = LengthLimit(0.5, 2)


def test_a_source_does_not_see_its_batch_its_place_or_padding(generator, sources):
    """Bit for bit, whatever the sources beside it, their order, and where padding stands."""
    random = np.random.default_rng(1)
    expected = generator(sources, max_length=LIMIT)
    assert len({hypotheses[0].tokens for hypotheses in expected}) > 20
    for count in (1, 2, 7, 25, 40):
        chosen = random.permutation(len(sources))[:count]
        padded = []
        for source in chosen:
            tokens = list(sources[source])
            for _ in range(random.integers(0, 6)):
                tokens.insert(random.integers(0, len(tokens) + 1), PAD_ID)
            padded.append(tokens)
        assert generator(padded, max_length=LIMIT) == [expected[source] for source in chosen]
    assert len(expected) == len(sources)


def test_no_more_programs_than_lengths(generator, sources):
    """Whatever the number of sources, their lengths and their limits; what this generator needs is compiled once."""
    generator(sources, max_length=LIMIT)
    before = search._cache_size()
    for count in (1, 3, 40, 17):
        generator(sources[:count], max_length=LIMIT)
        generator(sources[-count:], max_length=LIMIT, min_length=2)
    assert search._cache_size() == before
    assert {(rows, length) for rows, length, *_ in generator.shapes} == {(4, 7), (2, 14)}
    assert len(generator.shapes) == 2
    other = Generator(
        (CONFIG, generator.params), SearchOptions(beam_size=1), batching=Batching(lengths=(14,), tokens=28)
    )
    other(sources[:2], max_length=2)
    assert search._cache_size() == before + 1, "the count would see another program"


def test_shapes_make_no_difference(generator, params, sources):
    expected = generator(sources, max_length=LIMIT)
    shrunk = Generator((CONFIG, params), generator.options, batching=Batching(lengths=(14,), tokens=14 * 64))
    found = shrunk(sources, max_length=LIMIT)
    for ours, others in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in others]
        np.testing.assert_allclose([h.score for h in ours], [h.score for h in others], rtol=0, atol=1e-5)


def test_limits_go_by_a_sources_own_length(generator, sources):
    found = generator(sources, max_length=LIMIT, min_length=2)
    longest = [max(len(h.tokens) for h in hypotheses) - 1 for hypotheses in found]
    limits = [len(source) // 2 + 2 for source in sources]
    assert all(2 <= length <= limit for length, limit in zip(longest, limits, strict=True))
    assert sum(length == limit for length, limit in zip(longest, limits, strict=True)) > 20
    given = generator(sources, max_length=limits, min_length=2)  # by other programs, and so to rounding
    assert [[h.tokens for h in hypotheses] for hypotheses in given] == [[h.tokens for h in hs] for hs in found]


def test_devices_share_the_batches(params, sources):
    options = SearchOptions(beam_size=3)
    one = Generator((CONFIG, params), options, batching=BATCHING)(sources[:9], max_length=LIMIT)
    allowed = np.ones(16, bool)
    four = Generator((CONFIG, params), options, batching=BATCHING, devices=jax.devices()[:4], allowed_tokens=allowed)(
        sources[:9], max_length=LIMIT
    )
    for ours, others in zip(four, one, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in others]


def test_parts_of_the_batches_make_the_whole(generator, sources):
    expected = generator(sources, max_length=LIMIT)
    parts = [generator(sources, max_length=LIMIT, only=(i, 3)) for i in range(3)]
    assert all(sum(bool(part[i]) for part in parts) == 1 for i in range(len(sources)))
    assert [a or b or c for a, b, c in zip(*parts, strict=True)] == expected


def test_a_loaded_model_and_the_best_of_its_hypotheses(params, sources):
    model = Model(CONFIG, params, None)
    found = generate(model, sources[:5], beam_size=4, num_return=3, max_length=6)
    for hypotheses in found:
        assert len({h.tokens for h in hypotheses}) == len(hypotheses) == 3
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        assert all(h.tokens[-1] == EOS_ID and PAD_ID not in h.tokens for h in hypotheses)
    best = generate(model, sources[:5], beam_size=4, max_length=6)
    assert best == [hypotheses[:1] for hypotheses in found]
    assert generate(model, []) == []


def test_by_default_as_long_as_the_model_allows(params, sources):
    [[hypothesis]] = generate((CONFIG, params), sources[:1], beam_size=1, min_length=13)
    assert len(hypothesis.tokens) == 14


def test_banned_tokens_and_beginnings(params, sources):
    plain = generate((CONFIG, params), sources[:6], beam_size=2, max_length=5)
    banned = sorted({token for [h] in plain for token in h.tokens} - {EOS_ID})[:3]
    found = generate((CONFIG, params), sources[:6], beam_size=2, max_length=5, banned_tokens=banned)
    assert not any(set(h.tokens) & set(banned) for [h] in found)
    prefixes = [[], [banned[0]], [5, banned[1], 6], [], [7], [8, 8, 8, 8, 8]]
    forced = generate((CONFIG, params), sources[:6], beam_size=2, max_length=5, banned_tokens=banned, prefixes=prefixes)
    assert forced[0][0].tokens == found[0][0].tokens
    for prefix, [h] in zip(prefixes, forced, strict=True):
        assert list(h.tokens[: len(prefix)]) == prefix
        assert not set(h.tokens[len(prefix) :]) & set(banned)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": [[4, 5], [16]]}, "source 1 has the id 16 at position 0; expected 0 to 15"),
        ({"sources": [[4, -5]]}, "source 0 has the id -5 at position 1"),
        ({"sources": [[4], []]}, "source 1 has 0 tokens.*leave it out"),
        ({"sources": [[4], [0, 0]]}, "source 1 has 0 tokens"),
        ({"sources": [[4] * 15]}, "source 0 has 15 tokens.*expected 1 to 14.*cut it"),
        ({"sources": [[4.0]]}, "source 0 must be a sequence of int ids, found float64"),
        ({"banned_tokens": [1, 2, *range(4, 16)]}, "all tokens but </s> are forbidden"),
        ({"allowed_tokens": np.zeros(16, bool)}, "all tokens but </s> are forbidden"),
        ({"allowed_tokens": np.ones(15, bool)}, r"one for each of the 16 tokens, found bool of shape \(15,\)"),
        ({"banned_tokens": [3]}, "must not hold </s>"),
        ({"banned_tokens": [99]}, "banned_tokens has the id 99"),
        ({"prefixes": [[5] * 6]}, "prefix 0 has 6 tokens, more than the max_length of 5"),
        ({"prefixes": [[3]]}, "prefix 0 must hold neither padding"),
        ({"prefixes": [[5], [5]]}, "one for each of the 1 sources, found 2"),
        ({"max_length": 14}, "max_length of source 0 must be between 1 and 13, found 14"),
        ({"max_length": [1, 2]}, "one for each of the 1 sources"),
        ({"max_length": 2.5}, "max_length must be an int"),
        ({"min_length": 6}, "min_length of source 0 must be between 0 and its max_length of 5, found 6"),
        ({"num_return": 3}, "num_return must be between 1 and beam_size=2, found 3"),
        ({"beam_size": 0}, "beam_size must be at least 1"),
        ({"rule": "transformers"}, "rule must be one of 'fairseq', 't5', 'huggingface', found 'transformers'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(params, arguments: dict[str, Any], message: str):
    arguments = {"sources": [[4, 5]], "beam_size": 2, "max_length": 5} | arguments
    with pytest.raises(ValueError, match=message):
        generate((CONFIG, params), **arguments)


def test_nan_in_one_source_leaves_the_others_bit_equal(generator, params, sources):
    """Only sources of ten tokens and more reach the broken position."""
    expected = generator(sources, max_length=LIMIT)
    broken = jax.tree.map(np.copy, params)
    broken["encoder"]["position_embedding"][2 + 9] = np.nan  # the tenth position
    found = Generator((CONFIG, broken), generator.options, batching=BATCHING)(sources, max_length=LIMIT)
    long = [len(source) >= 10 for source in sources]
    assert 5 < sum(long) < 35
    for ours, others, touched in zip(found, expected, long, strict=True):
        assert np.isnan([h.score for h in ours]).all() if touched else ours == others
