"""The prefetcher: order, depth, errors and closing."""

from __future__ import annotations

import threading
import time

import pytest

from deltalm_jax.data.prefetch import Prefetcher


def test_order_and_end():
    with Prefetcher(lambda i: i * i, 3, 8, depth=2) as batches:
        assert list(batches) == [9, 16, 25, 36, 49]


def test_nothing_to_make():
    with Prefetcher(lambda i: i, 5, 5, depth=1) as batches:
        assert list(batches) == []


def test_no_more_than_depth_ahead():
    made = []
    with Prefetcher(made.append, 0, 100, depth=2) as batches:
        next(batches)
        time.sleep(0.3)
        # One taken, two waiting in the queue, one made and waiting for room.
        assert made == [0, 1, 2, 3]


def test_an_error_comes_where_its_batch_would():
    def make(index: int) -> int:
        if index == 2:
            raise ValueError("shard 7 is damaged")
        return index

    with Prefetcher(make, 0, 5, depth=4) as batches:
        assert [next(batches), next(batches)] == [0, 1]
        with pytest.raises(ValueError, match="shard 7 is damaged"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)


def test_closing_ends_the_thread_at_once():
    before = threading.active_count()
    with Prefetcher(lambda i: i, 0, 10**9, depth=2) as batches:
        next(batches)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert threading.active_count() == before


def test_waiting_is_measured():
    def slow(index: int) -> int:
        time.sleep(0.2)
        return index

    with Prefetcher(slow, 0, 3, depth=1) as batches:
        next(batches)
        assert batches.waited > 0.1
        time.sleep(0.3)
        next(batches)
        assert batches.waited < 0.1
