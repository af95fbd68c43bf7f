"""Beam search against the libraries whose rules it follows, against a search without cache or arrays, and by algebra.

`tests/golden/beam_search.npz` holds three random models of the configuration `TINY`, four sources, and what other people's
beam search makes of them, run on logits of these models: fairseq 0.12.2's `SequenceGenerator`, and `generate` of Hugging
Face's transformers 5.24.0 with `suppress_tokens=[0]`, for each of `CASES` under `<case>/tokens` and `<case>/scores`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import keystr

from deltalm_jax.decoding import search as search_module
from deltalm_jax.decoding.options import RULES, Requests, SearchOptions
from deltalm_jax.decoding.search import SearchResult, search
from deltalm_jax.model.config import EOS_ID, PAD_ID, ModelConfig
from deltalm_jax.model.deltalm import hidden_states, init_params, logits, shift_right
from tests.model.conftest import load_golden, our_ids

TINY = ModelConfig(
    vocab_size=8,
    hidden_size=8,
    feed_forward_size=12,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    max_length=7,
    scan_layers=False,
)
WORDS = [token for token in range(TINY.vocab_size) if token not in (PAD_ID, EOS_ID)]
SOURCES = np.array([[4, 5, 6, 3, 0], [0, 0, 7, 2, 3], [5, 5, 1, 7, 3], [4, 2, 0, 0, 0]])

# Models whose hypotheses end in ways that tell the rules apart.
SEEDS = (1, 2, 8, 9, 12, 20)

BASE = SearchOptions(beam_size=3, max_length=4)
CASES = {
    "fairseq": BASE,
    "greedy": dataclasses.replace(BASE, beam_size=1),
    "long": dataclasses.replace(BASE, min_length=3),
    "not normalised": dataclasses.replace(BASE, length_penalty=0.0, min_length=0),
    "transformers": dataclasses.replace(BASE, rule="huggingface"),
    "early stopping": dataclasses.replace(BASE, rule="huggingface", early_stopping=True),
    "negative penalty": dataclasses.replace(BASE, rule="huggingface", length_penalty=-1.0, min_length=0),
    "t5": dataclasses.replace(BASE, rule="t5"),
    "t5, long": dataclasses.replace(BASE, rule="t5", length_penalty=3.0, min_length=0),
    "t5, short": dataclasses.replace(BASE, rule="t5", length_penalty=-2.0, min_length=0),
    "no bigram twice": dataclasses.replace(BASE, rule="huggingface", early_stopping=True, no_repeat_ngram_size=2),
}


@pytest.fixture(scope="module")
def libraries() -> dict[str, np.ndarray]:
    return dict(np.load(pathlib.Path(__file__).parent.parent / "golden" / "beam_search.npz"))


@functools.cache
def shapes() -> Any:
    return jax.eval_shape(lambda: init_params(TINY, jax.random.key(0)))


def random_model(seed: int) -> Any:
    """Random parameters of `TINY`."""
    random = np.random.default_rng(seed)

    def values(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return random.normal(mean, 0.3, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(values, shapes())


def hypotheses(result: SearchResult, source: int) -> list[tuple[int, ...]]:
    """The tokens of a source's hypotheses, and a check that there is nothing but padding behind them."""
    out = []
    for tokens, length in zip(result.tokens_BKT[source], result.lengths_BK[source], strict=True):
        assert (tokens[length:] == PAD_ID).all()
        out.append(tuple(tokens[:length].tolist()))
    return out


# A second search: lists of hypotheses, and log-probabilities of whole prefixes from the model without a cache.

PREFIXES = [prefix for length in range(5) for prefix in itertools.product(WORDS, repeat=length)]


@functools.partial(jax.jit, static_argnums=3)
def _prefix_log_probs(params: Any, source_S: jax.Array, tokens_PT: jax.Array, config: ModelConfig) -> jax.Array:
    sources = jnp.broadcast_to(source_S, (len(tokens_PT), len(source_S)))
    hidden_PTD = hidden_states(config, params, sources, tokens_PT)
    last_P = (tokens_PT != PAD_ID).sum(axis=1) - 1
    return jax.nn.log_softmax(logits(params, hidden_PTD[jnp.arange(len(tokens_PT)), last_P]))


@functools.cache
def prefix_log_probs(seed: int, source: int) -> dict[tuple[int, ...], list[float]]:
    """Of the next token after every prefix of up to four words."""
    tokens = np.array([(EOS_ID, *prefix, *[PAD_ID] * (4 - len(prefix))) for prefix in PREFIXES])
    log_probs = _prefix_log_probs(random_model(seed), SOURCES[source], tokens, TINY)
    return dict(zip(PREFIXES, np.asarray(log_probs, np.float64).tolist(), strict=True))


def has_repetition(tokens: tuple[int, ...], size: int) -> bool:
    ngrams = [tokens[start : start + size] for start in range(len(tokens) - size + 1)]
    return size > 0 and len(set(ngrams)) < len(ngrams)


def score(total: float, length: int, options: SearchOptions) -> float:
    divisor = (5 + length) / 6 if options.rule == "t5" else length
    return total / divisor**options.length_penalty


def slow_search(
    log_probs: dict[tuple[int, ...], list[float]],
    options: SearchOptions,
    prefix: tuple[int, ...] = (),
    allowed: Sequence[int] = WORDS,
) -> list[tuple[float, tuple[int, ...]]]:
    """(score, tokens) of the hypotheses of one source, best first. Under "t5" it goes on to the limit, come what may."""
    count, limit = options.beam_size, options.max_length
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for length in itertools.count(1):
        candidates = []
        for total, tokens in live:
            for token in [EOS_ID, *WORDS]:
                longer = (*tokens, token)
                early = token == EOS_ID and len(tokens) < options.min_length
                late = token != EOS_ID and len(longer) > limit
                strange = token not in [EOS_ID, *allowed]
                if len(prefix) >= length:
                    early = late = False
                    strange = token != prefix[length - 1]
                if not (early or late or strange or has_repetition(longer, options.no_repeat_ngram_size)):
                    candidates.append((total + log_probs[tokens][token], longer))
        candidates = sorted(candidates, reverse=True)[: 2 * count]
        out_of_room = options.rule == "huggingface" and length == limit
        may_end = candidates if options.rule == "t5" else candidates[:count]
        ends = [(score(s, length, options), t) for s, t in may_end if t[-1] == EOS_ID or out_of_room]
        if options.rule == "fairseq":
            ended += ends[: count - len(ended)]
        else:
            ended = sorted(ended + ends, reverse=True)[:count]
        live = [(s, t) for s, t in candidates if t[-1] != EOS_ID and not out_of_room][:count]
        best_live = max((score(s, length, options) for s, _ in live), default=-np.inf)
        hopeless = len(ended) == count and (
            options.rule == "fairseq" or options.early_stopping or best_live <= ended[-1][0]
        )
        if (hopeless and options.rule != "t5") or not live:
            return sorted(ended, reverse=True)
    raise AssertionError


@pytest.mark.parametrize("beam_size", [1, 4])
def test_equal_to_fairseq_on_the_official_model(beam_size: int):
    golden = load_golden("postnorm_lnemb")
    source = our_ids(golden.arrays["pad/src_tokens"])
    result = search(golden.config, golden.params, source, SearchOptions(beam_size=beam_size, max_length=12))
    assert result.tokens_BKT.shape == (3, beam_size, 13)
    for sentence in range(3):
        expected = [f"gen/beam{beam_size}/{sentence}/{rank}" for rank in range(beam_size)]
        tokens = [tuple(our_ids(golden.arrays[f"{name}/tokens"]).tolist()) for name in expected]
        assert hypotheses(result, sentence) == tokens
        scores = [golden.arrays[f"{name}/score"] for name in expected]
        np.testing.assert_allclose(result.scores_BK[sentence], scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("t5")])
def test_equal_to_the_libraries(libraries: dict[str, np.ndarray], case: str):
    for model in range(3):
        params = jax.tree.map_with_path(lambda path, _, m=model: libraries[f"model/{m}{keystr(path)}"], shapes())
        result = search(TINY, params, SOURCES, CASES[case])
        np.testing.assert_array_equal(result.tokens_BKT, libraries[f"{case}/tokens"][model])
        np.testing.assert_allclose(result.scores_BK, libraries[f"{case}/scores"][model], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_equal_to_a_search_without_a_cache(case: str):
    """On 6 models and 4 sources each; that the option matters is seen in that without it other hypotheses are found."""
    options, without_it = CASES[case], 0
    for seed in SEEDS:
        result = search(TINY, random_model(seed), SOURCES, options)
        for source in range(len(SOURCES)):
            expected = slow_search(prefix_log_probs(seed, source), options)
            assert hypotheses(result, source) == [tokens for _, tokens in expected]
            np.testing.assert_allclose(result.scores_BK[source], [s for s, _ in expected], rtol=2e-6, atol=1e-6)
            for field in dataclasses.fields(options):
                if field.name == "rule" and options.early_stopping:
                    continue  # The two go together.
                default = dataclasses.replace(options, **{field.name: getattr(BASE, field.name)})
                if default != options:
                    without_it += slow_search(prefix_log_probs(seed, source), default) != expected
    assert without_it or options == BASE


@pytest.mark.parametrize("rule", RULES)
def test_each_source_has_limits_and_a_beginning_of_its_own(rule: str):
    """Beside an allowed vocabulary, which a forced beginning need not keep to; on 6 models and 4 sources each."""
    options = dataclasses.replace(BASE, rule=rule)
    least, most, allowed = [0, 2, 1, 4], [1, 2, 3, 4], [1, 4, 5, 7]
    prefixes = [(), (6,), (2, 2), (4, 5, 6)]
    requests = Requests(
        min_length_B=jnp.array(least),
        max_length_B=jnp.array(most),
        prefix_BP=jnp.array([(*prefix, *[PAD_ID] * (3 - len(prefix))) for prefix in prefixes]),
        allowed_V=jnp.isin(jnp.arange(TINY.vocab_size), jnp.array(allowed)),
    )
    for seed in SEEDS:
        result = search(TINY, random_model(seed), SOURCES, options, requests)
        for source, prefix in enumerate(prefixes):
            own = dataclasses.replace(options, min_length=least[source], max_length=most[source])
            expected = slow_search(prefix_log_probs(seed, source), own, prefix, allowed)
            found = [tokens for tokens in hypotheses(result, source) if tokens]
            assert found == [tokens for _, tokens in expected]
            np.testing.assert_allclose(
                result.scores_BK[source, : len(found)], [s for s, _ in expected], rtol=2e-6, atol=1e-6
            )
            assert all(tokens[: len(prefix)] == prefix for tokens in found)


def test_one_beam_takes_the_likeliest_token_each_time():
    result = search(TINY, random_model(2), SOURCES, CASES["greedy"])
    for source in range(len(SOURCES)):
        log_probs, tokens = prefix_log_probs(2, source), ()
        while tokens[-1:] != (EOS_ID,):
            allowed = [EOS_ID] if len(tokens) == 4 else WORDS if not tokens else [*WORDS, EOS_ID]
            tokens = (*tokens, max(allowed, key=log_probs[tokens].__getitem__))
        assert hypotheses(result, source) == [tokens]


def test_a_cache_that_grows_is_as_one_that_was_large_from_the_start(monkeypatch):
    params, options = random_model(9), dataclasses.replace(BASE, max_length=6, min_length=5)
    whole = search(TINY, params, SOURCES, options)
    monkeypatch.setattr(search_module, "_FIRST_CACHE_LENGTH", 2)
    assert search_module._cache_lengths(7) == [2, 4, 7]
    grown = jax.jit(lambda params: search.__wrapped__(TINY, params, SOURCES, options))(params)
    np.testing.assert_array_equal(whole.tokens_BKT, grown.tokens_BKT)
    np.testing.assert_allclose(whole.scores_BK, grown.scores_BK, rtol=0, atol=1e-6)


def test_enough_beams_find_every_hypothesis():
    """All 43 of at most two words, in the order of their scores; so the first is the best there is."""
    options = SearchOptions(beam_size=43, max_length=2, min_length=0)
    result = search(TINY, random_model(0), SOURCES, options)
    for source in range(len(SOURCES)):
        log_probs = prefix_log_probs(0, source)
        scores = {}
        for words in (prefix for prefix in PREFIXES if len(prefix) <= 2):
            tokens = (*words, EOS_ID)
            scores[tokens] = sum(log_probs[tokens[:place]][token] for place, token in enumerate(tokens)) / len(tokens)
        assert hypotheses(result, source) == sorted(scores, key=scores.__getitem__, reverse=True)
        np.testing.assert_allclose(result.scores_BK[source], sorted(scores.values(), reverse=True), rtol=2e-6)


def test_fewer_hypotheses_than_beams():
    result = search(TINY, random_model(0), SOURCES, SearchOptions(beam_size=10, max_length=1))
    np.testing.assert_array_equal(result.lengths_BK, [[2] * 6 + [0] * 4] * 4)
    assert all(sorted(hypotheses(result, source)[:6]) == [(word, EOS_ID) for word in WORDS] for source in range(4))
    assert np.isfinite(result.scores_BK[:, :6]).all()
    assert (result.scores_BK[:, 6:] == -np.inf).all()


@pytest.mark.parametrize("case", ["fairseq", "not normalised", "transformers", "early stopping", "t5", "t5, short"])
def test_scores_are_those_of_teacher_forcing(case: str):
    """Each hypothesis has the log-probability that the model without a cache gives it, and they are in order."""
    options, params = CASES[case], random_model(1)
    result = search(TINY, params, SOURCES, options)
    targets = result.tokens_BKT.reshape(-1, 5)
    hidden = hidden_states(TINY, params, np.repeat(SOURCES, 3, axis=0), shift_right(targets))
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits(params, hidden)), targets[:, :, None], axis=2)[:, :, 0]
    sums = np.where(targets != PAD_ID, log_probs, 0.0).sum(axis=1).reshape(-1, 3)
    divisors = 1 / score(1.0, np.asarray(result.lengths_BK), options)
    assert result.scores_BK.dtype == jnp.float32
    np.testing.assert_allclose(result.scores_BK * divisors, sums, rtol=0, atol=1e-5)
    assert (np.diff(result.scores_BK, axis=1) <= 0).all()
    assert all(len(set(hypotheses(result, b))) == 3 for b in range(len(SOURCES))), "no hypothesis stands twice"
    assert len(np.unique(result.lengths_BK)) > 1


def test_a_source_does_not_see_its_batch_or_padding():
    params, options = random_model(9), CASES["fairseq"]
    together = search(TINY, params, SOURCES, options)
    alone = search(TINY, params, SOURCES[1:2, 2:], options)
    np.testing.assert_array_equal(together.tokens_BKT[1], alone.tokens_BKT[0])
    np.testing.assert_allclose(together.scores_BK[1], alone.scores_BK[0], rtol=0, atol=1e-5)
    backwards = search(TINY, params, SOURCES[::-1], options)
    np.testing.assert_array_equal(together.tokens_BKT[::-1], backwards.tokens_BKT)
    np.testing.assert_allclose(together.scores_BK[::-1], backwards.scores_BK, rtol=0, atol=1e-5)
    assert np.diff(np.sort(together.scores_BK[:, 0])).min() > 1e-3, "the sources differ"


def test_rows_of_padding_have_no_hypotheses_and_the_loop_ends_with_the_last_source(monkeypatch):
    """The decoder takes as many steps as the longest hypothesis has tokens, and none for padding alone."""
    steps = []

    def counted(*arguments: Any) -> Any:
        jax.debug.callback(lambda: steps.append(1))
        return decode_beams(*arguments)

    decode_beams = search_module.decode_beams
    monkeypatch.setattr(search_module, "decode_beams", counted)
    options = SearchOptions(beam_size=2, max_length=6)
    sources = np.concatenate([SOURCES[:2], np.zeros_like(SOURCES[:2])])
    result = search(TINY, random_model(18), sources, options)
    jax.effects_barrier()
    assert len(steps) == result.lengths_BK.max() < 7
    assert (result.lengths_BK[:2] > 0).all()
    assert (result.tokens_BKT[2:] == PAD_ID).all()
    assert (result.lengths_BK[2:] == 0).all()
    assert (result.scores_BK[2:] == -np.inf).all()

    steps.clear()
    search(TINY, random_model(18), np.zeros_like(sources), options)
    jax.effects_barrier()
    assert not steps


def test_nan_shows_in_the_scores_of_its_source_alone():
    """A position that only the two sources of four tokens and more reach is broken."""
    params = random_model(1)
    expected = search(TINY, params, SOURCES, CASES["fairseq"])
    params["encoder"]["position_embedding"][5] = np.nan
    result = search(TINY, params, SOURCES, CASES["fairseq"])
    assert np.isnan(result.scores_BK[::2]).all()
    for ours, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(ours[1::2], other[1::2])


def test_devices_search_for_their_own_sources_without_communication():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    params, options = random_model(9), CASES["fairseq"]
    sharded = jax.jit(
        jax.shard_map(
            lambda params, source: search(TINY, params, source, options),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec("data"),
            check_vma=False,
        )
    )
    program = sharded.lower(params, SOURCES).compile()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", program.as_text())
    expected = search(TINY, params, SOURCES, options)
    result = program(params, SOURCES)
    np.testing.assert_array_equal(result.tokens_BKT, expected.tokens_BKT)
    np.testing.assert_allclose(result.scores_BK, expected.scores_BK, rtol=0, atol=1e-5)


def test_one_program_for_all_sources_of_a_shape():
    before = [search(TINY, random_model(0), SOURCES, CASES["fairseq"]), search._cache_size()][1]
    for seed in SEEDS:
        search(TINY, random_model(seed), SOURCES[::-1], CASES["fairseq"])
    assert search._cache_size() == before


def test_the_compute_dtype_is_used():
    params, options = random_model(9), CASES["greedy"]
    exact = search(TINY, params, SOURCES, options)
    rounded = search(TINY, params, SOURCES, options, compute_dtype="bfloat16")
    assert rounded.scores_BK.dtype == jnp.float32
    assert 1e-4 < np.abs(rounded.scores_BK - exact.scores_BK).max() < 0.1


@pytest.mark.parametrize(("rule", "most"), [("fairseq", 6), ("huggingface", 7)])
def test_hypotheses_fit_the_position_table(rule: str, most: int):
    """The longest allowed fills it; one more is refused."""
    options = SearchOptions(beam_size=1, max_length=most, min_length=most, rule=rule)
    result = search(TINY, random_model(0), SOURCES, options)
    assert (result.lengths_BK == 7).all()
    assert np.isfinite(result.scores_BK).all()
    with pytest.raises(ValueError, match=rf"max_length={most + 1} needs 8 positions .*=7: ask for at most {most}"):
        search(TINY, random_model(0), SOURCES, dataclasses.replace(options, max_length=most + 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beam_size", 0),
        ("max_length", 0),
        ("min_length", -1),
        ("min_length", 201),
        ("length_penalty", float("nan")),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_ngram_size", 1),
        ("rule", "transformers"),
        ("early_stopping", True),
    ],
)
def test_options_out_of_range_are_refused(field: str, value: Any):
    with pytest.raises(ValueError, match=f"SearchOptions.{field} must be .*found '?{value}"):
        SearchOptions(**{field: value})


def test_options_of_a_wrong_type_are_refused():
    with pytest.raises(TypeError, match=r"SearchOptions.beam_size must be int, found 4.0 \(float\)"):
        SearchOptions(beam_size=4.0)
