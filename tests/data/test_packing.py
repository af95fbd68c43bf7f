"""Packing against brute force: every id once and in order, whole pairs, bounds, best fit, padding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_jax.data import packing

BOS, EOS = 2, 3
ids = st.integers(4, 40)
documents_strategy = st.lists(st.lists(st.lists(ids, max_size=7), max_size=4), max_size=12)
pairs_strategy = st.lists(st.tuples(st.lists(ids, max_size=12), st.lists(ids, max_size=12)), max_size=60)


def spell(documents: list[list[list[int]]]) -> list[int]:
    """The joined stream, written out one id at a time."""
    stream: list[int] = []
    for document in documents:
        paragraphs = [p for p in document if p]
        if paragraphs:
            stream += [BOS]
        for paragraph in paragraphs:
            stream += [*paragraph, EOS]
    return stream


def unpack(chunk: np.ndarray) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The pairs of a chunk, read back from its separators."""
    assert chunk[0] == BOS
    sides: list[list[int]] = [[]]
    for token in chunk[1:].tolist():
        if token == EOS:
            sides.append([])
        else:
            sides[-1].append(token)
    assert sides.pop() == [], "a chunk ends with </s>"
    assert len(sides) % 2 == 0, "only whole pairs"
    return [(tuple(a), tuple(b)) for a, b in zip(sides[::2], sides[1::2], strict=True)]


@given(documents_strategy, st.integers(2, 17))
def test_join_and_cut_keeps_every_id_in_order(documents: list[list[list[int]]], chunk_length: int) -> None:
    counts: Counter[str] = Counter()
    chunks = packing.join_and_cut(documents, chunk_length, counts)
    stream = spell(documents)
    rest = len(stream) % chunk_length
    lost = 1 if rest == 1 else 0
    assert [t for c in chunks for t in c.tolist()] == stream[: len(stream) - lost]
    assert counts["rest_too_short"] == lost
    assert all(len(c) == chunk_length for c in chunks[:-1])
    assert all(2 <= len(c) <= chunk_length and c.dtype == np.int32 for c in chunks)


def test_join_and_cut_by_hand() -> None:
    documents: list[list[list[int]]] = [[[10, 11], [12]], [], [[]], [[], [13, 14, 15]]]
    chunks = packing.join_and_cut(documents, 4)
    assert [c.tolist() for c in chunks] == [[2, 10, 11, 3], [12, 3, 2, 13], [14, 15, 3]]


@given(pairs_strategy, st.integers(5, 31), st.integers(1, 5))
def test_pack_pairs_places_every_pair_whole_and_once(
    pairs: list[tuple[list[int], list[int]]], chunk_length: int, open_chunks: int
) -> None:
    counts: Counter[str] = Counter()
    chunks = packing.pack_pairs(pairs, chunk_length, open_chunks=open_chunks, counts=counts)
    side = packing.max_side_length(chunk_length)
    expected = Counter((tuple(a[:side]), tuple(b[:side])) for a, b in pairs if a and b)
    assert Counter(pair for chunk in chunks for pair in unpack(chunk)) == expected
    assert all(5 <= len(chunk) <= chunk_length and chunk.dtype == np.int32 for chunk in chunks)
    assert counts["empty_side"] == sum(not a or not b for a, b in pairs)
    assert counts["side_truncated"] == sum((len(a) > side) + (len(b) > side) for a, b in pairs if a and b)
    again = packing.pack_pairs(iter(pairs), chunk_length, open_chunks=open_chunks)
    assert [c.tolist() for c in again] == [c.tolist() for c in chunks]


@settings(max_examples=60)
@given(pairs_strategy, st.integers(9, 40), st.integers(1, 4))
def test_pack_pairs_is_best_fit(pairs: list[tuple[list[int], list[int]]], chunk_length: int, open_chunks: int) -> None:
    """The definition, in the slow way: look at every open chunk, take the one with the least room that suffices."""
    side = packing.max_side_length(chunk_length)
    opened: list[list[int]] = []
    closed: list[list[int]] = []
    for a, b in pairs:
        if not a or not b:
            continue
        text = [*a[:side], EOS, *b[:side], EOS]
        fitting = [chunk for chunk in opened if len(chunk) + len(text) <= chunk_length]
        if fitting:
            chunk = max(fitting, key=len)  # max() keeps the first, that is the oldest, of equals
        else:
            if len(opened) == open_chunks:
                fullest = max(opened, key=len)
                opened.remove(fullest)
                closed.append(fullest)
            chunk = [BOS]
            opened.append(chunk)
        chunk.extend(text)
        if len(chunk) + 4 > chunk_length:
            # By identity: two open chunks may hold equal ids.
            opened = [c for c in opened if c is not chunk]
            closed.append(chunk)
    chunks = packing.pack_pairs(pairs, chunk_length, open_chunks=open_chunks)
    assert [c.tolist() for c in chunks] == closed + opened


def test_largest_pair_fits_and_no_larger_side_would() -> None:
    for chunk_length in (5, 6, 7, 64, 511, 512, 1024):
        side = packing.max_side_length(chunk_length)
        [chunk] = packing.pack_pairs([([7] * 10_000, [8] * 10_000)], chunk_length)
        assert unpack(chunk) == [((7,) * side, (8,) * side)]
        assert len(chunk) == 2 * side + 3 <= chunk_length < 2 * (side + 1) + 3
    assert packing.max_side_length(512) == 254


def lognormal_pairs(count: int) -> list[tuple[list[int], list[int]]]:
    """Pairs with the spread of CCAligned: about 50 ids a pair, the two lengths alike, a long tail."""
    generator = np.random.default_rng(0)
    first = np.clip(generator.lognormal(3.0, 0.7, count), 1, 600).astype(int)
    second = np.clip(first * generator.lognormal(0.05, 0.25, count), 1, 600).astype(int)
    return [([9] * int(a), [9] * int(b)) for a, b in zip(first, second, strict=True)]


def test_padding_is_small_where_next_fit_wastes() -> None:
    pairs = lognormal_pairs(20_000)
    chunks = packing.pack_pairs(pairs, 512)
    sizes = [min(len(a), 254) + min(len(b), 254) + 2 for a, b in pairs]
    assert sum(map(len, chunks)) == sum(sizes) + len(chunks)
    next_fit, room = 0, 0
    for size in sizes:
        if size > room:
            next_fit, room = next_fit + 1, 511
        room -= size
    padding = 1 - sum(map(len, chunks)) / (512 * len(chunks))
    padding_next_fit = 1 - (sum(sizes) + next_fit) / (512 * next_fit)
    assert padding < 0.01
    assert padding_next_fit > 5 * padding


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2, found 1"):
        packing.join_and_cut([], 1)
    with pytest.raises(ValueError, match="at least 5 for pairs, found 4"):
        packing.pack_pairs([], 4)
    with pytest.raises(ValueError, match=r"max_side must lie in 1\.\.254 for chunk_length 512, found 255"):
        packing.pack_pairs([], 512, max_side=255)
    with pytest.raises(ValueError, match="open_chunks must be at least 1, found 0"):
        packing.pack_pairs([], 512, open_chunks=0)
