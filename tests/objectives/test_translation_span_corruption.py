"""One side of each pair masked: the inverse, which side, the counts of each side, and the worst case by brute force."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_jax.data.packing import pack_pairs
from deltalm_jax.objectives import OBJECTIVES, SpanCorruption, TranslationSpanCorruption, make_objective
from deltalm_jax.objectives.hashing import hash_keys
from tests.support.masks import EOS, START, chunk_of_pairs, mask_of, rebuild, stack

ONE = functools.partial(TranslationSpanCorruption, mask_sides="one")


def sides_of(chunk: list[int]) -> list[range]:
    """Where each side stands, its `</s>` included."""
    ends = [0, *(i for i, token in enumerate(chunk) if token == EOS)]
    return [range(a + 1, b + 1) for a, b in itertools.pairwise(ends)]


@settings(max_examples=100, deadline=None)
@given(
    sides=st.lists(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=8), max_size=6),
    seed=st.integers(0, 2**63),
    density=st.sampled_from([0.15, 0.5, 0.9]),
    span=st.sampled_from([1.0, 3.0]),
    sizing=st.sampled_from(["raw", "t5"]),
)
def test_inverse_sides_and_counts(sides, seed, density, span, sizing):
    objective = ONE(density, span, sizing)
    rng = np.random.default_rng(0)
    chunks = [chunk_of_pairs(list(itertools.chain.from_iterable(pairs)), rng) for pairs in sides]
    tokens, lengths = stack(chunks, 220)
    keys = hash_keys(seed, np.arange(len(chunks)))
    corrupted = objective.corrupt(tokens, lengths, keys, START, 200)
    if not chunks:
        return
    masks = mask_of(objective.spans(tokens, lengths, keys), 220)
    for chunk, mask, inputs, targets in zip(chunks, masks, corrupted.inputs_BS, corrupted.targets_BT, strict=True):
        inputs, targets = inputs[: (inputs > 0).sum()], targets[: (targets > 0).sum()]
        if sizing == "t5":
            assert inputs[-1] == targets[-1] == EOS
            inputs, targets = inputs[:-1], targets[:-1]
        rebuilt, sentinels = rebuild(inputs, targets)
        assert rebuilt == chunk
        assert sentinels == list(range(START, START + len(sentinels))), "running on over the pairs"
        assert not mask[0], "<s> is kept"
        spans = 0
        for first, second in zip(sides_of(chunk)[::2], sides_of(chunk)[1::2], strict=True):
            assert mask[first].any() != mask[second].any(), "one side and only one"
            masked = first if mask[first].any() else second
            # As a chunk of its own: its counts, and its last token (its </s>) kept.
            noise, wanted = (int(n[0]) for n in SpanCorruption(density, span, sizing).counts(np.array([len(masked)])))
            begun = mask[masked] & ~mask[masked.start - 1 : masked.stop - 1]
            assert (mask[masked].sum(), begun.sum()) == (noise, wanted)
            assert not mask[masked[-1]]
            spans += wanted
        assert len(sentinels) == spans


def test_a_row_does_not_depend_on_its_batch():
    rng = np.random.default_rng(1)
    chunks = [chunk_of_pairs(rng.integers(1, 30, 2 * n).tolist(), rng) for n in (1, 8, 3, 5)]
    tokens, lengths = stack(chunks, 512)
    keys = hash_keys(5, np.arange(4))
    whole = ONE().corrupt(tokens, lengths, keys, START, 128)
    for rows in ([0], [2, 1], [3, 0, 1, 2] * 50):
        part = ONE().corrupt(tokens[rows], lengths[rows], keys[rows], START, 128)
        assert part.inputs_BS.tobytes() == whole.inputs_BS[rows].tobytes()
        assert part.targets_BT.tobytes() == whole.targets_BT[rows].tobytes()


def test_both_sides_is_the_default_and_another_task():
    rng = np.random.default_rng(1)
    tokens, lengths = stack([chunk_of_pairs([20] * 20, rng)] * 20, 512)
    keys = hash_keys(5, np.arange(20))
    both = TranslationSpanCorruption().corrupt(tokens, lengths, keys, START, 128)
    plain = SpanCorruption(0.5).corrupt(tokens, lengths, keys, START, 128)
    assert both.inputs_BS.tobytes() == plain.inputs_BS.tobytes()
    one = ONE().corrupt(tokens, lengths, keys, START, 128)
    masked = [((c.targets_BT > 0) & (c.targets_BT < START)).sum() for c in (both, one)]
    assert masked[0] / masked[1] == pytest.approx(2.1, abs=0.05), "210 of 421 tokens, or 10 of 21 in 10 sides"


def brute_force(objective: TranslationSpanCorruption, chunk_length: int) -> tuple[int, int, int]:
    """The most inputs, targets and sentinels, by going through all chunks and all choices of sides."""
    longest = (chunk_length - 3) // 2 + 1
    counts = {n: tuple(int(c[0]) for c in objective.counts(np.array([n]))) for n in range(2, longest + 1)}

    def chunks(room: int, smallest: tuple[int, int]):
        yield ()
        for pair in itertools.product(range(2, longest + 1), repeat=2):  # masked side, kept side; in ascending order
            if pair >= smallest and sum(pair) <= room:
                yield from ((pair, *rest) for rest in chunks(room - sum(pair), pair))

    closing = objective.sizing == "t5"
    most = [0, 0, 0]
    for pairs in chunks(chunk_length - 1, (0, 0)):
        if pairs:
            noise, spans = (sum(counts[m][i] for m, _ in pairs) for i in (0, 1))
            sizes = 1 + sum(m + k for m, k in pairs) - noise + spans + closing, noise + spans + closing, spans
            most = [max(a, b) for a, b in zip(most, sizes, strict=True)]
    return tuple(most)


@pytest.mark.parametrize("sizing", ["raw", "t5"])
@pytest.mark.parametrize(("density", "span"), [(0.5, 3.0), (0.15, 3.0), (0.8, 1.0), (0.9, 7.0)])
def test_the_bound_is_the_worst_case(density, span, sizing):
    objective = ONE(density, span, sizing)
    for chunk_length in (5, 6, 7, 8, 9, 12, 15, 18, 21, 24):
        expected = brute_force(objective, chunk_length)
        assert (*objective.lengths(chunk_length), objective.max_sentinels(chunk_length)) == expected


@pytest.mark.parametrize("scale", [0.7, 2.0, 3.5, 5.5])
def test_the_bound_holds_for_packed_pairs(scale):
    """From pairs of about two ids, where most sentinels are needed, to some beyond the longest side."""
    rng = np.random.default_rng(3)
    sizes = np.maximum(rng.lognormal(scale, 0.8, (4000, 2)).astype(int), 1)
    pairs = [(np.full(a, 7), np.full(b, 8)) for a, b in sizes]
    chunks = pack_pairs(pairs, 512)[:300]
    tokens, lengths = stack([c.tolist() for c in chunks], 512)
    assert lengths.max() >= 510
    one = ONE()
    corrupted = one.corrupt(tokens, lengths, hash_keys(1, np.arange(len(chunks))), START, one.max_sentinels(512))
    assert corrupted.inputs_BS.shape[1:] + corrupted.targets_BT.shape[1:] == (512, 337)
    assert (corrupted.inputs_BS > 0).sum(axis=1).max() <= 512
    for row, chunk in enumerate(chunks):
        assert rebuild(corrupted.inputs_BS[row], corrupted.targets_BT[row])[0] == chunk.tolist()


def test_t5_sizing_of_one_side():
    """The longest chunk whose inputs, in the worst case and closed, still fit."""
    one = ONE(sizing="t5")
    raw = one.raw_length(64)
    assert one.lengths(raw)[0] <= 64 < one.lengths(raw + 1)[0]
    assert one.raw_length(512) == 511


def test_what_is_no_chunk_of_pairs_is_refused():
    rng = np.random.default_rng(0)
    good = chunk_of_pairs([3, 4, 5, 6], rng)
    bad = {
        "three sides": chunk_of_pairs([3, 4, 5], rng),
        "not closed": good[:-1],
        "an empty side": [*good, EOS, 9, EOS],
        "no <s>": [9, *good[1:]],
        "no sides": [2, 9, 9, 9, 9],
    }
    for chunk in bad.values():
        tokens, lengths = stack([good, chunk], 64)
        with pytest.raises(ValueError, match="expected <s> and pairs of texts, each closed by </s>"):
            ONE().corrupt(tokens, lengths, hash_keys(np.arange(2)), START, 100)
    # Sides longer than packing makes could outgrow the shapes: better an error than a cut.
    tokens, lengths = stack([chunk_of_pairs([60, 1], rng)] * 20, 64)
    with pytest.raises(ValueError, match="where 38 are the most"):
        ONE().corrupt(tokens, lengths, hash_keys(np.arange(20)), START, 100)
    with pytest.raises(ValueError, match="need 127 sentinels, but the vocabulary has 100"):
        ONE().corrupt(tokens, lengths, hash_keys(np.arange(20)), START, 100, 512)


def test_objectives_are_made_by_name():
    assert make_objective("span_corruption") == SpanCorruption()
    settings = {"noise_density": 0.3, "mean_span_length": 2.0}
    assert make_objective("span_corruption", sizing="t5", mask_sides="one", **settings) == SpanCorruption(
        0.3, 2.0, "t5"
    )
    made = make_objective("translation_span_corruption", sizing="t5", mask_sides="one", **settings)
    assert made == TranslationSpanCorruption(0.3, 2.0, "t5", "one")
    assert {type(make_objective(name)) for name in OBJECTIVES} == set(OBJECTIVES.values())
    with pytest.raises(ValueError, match="mask_sides must be one of both, one, found 'two'"):
        make_objective("translation_span_corruption", mask_sides="two")
