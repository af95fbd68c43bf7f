"""Every source is in one batch of a shape that it fits, and there are few shapes."""

from __future__ import annotations

import numpy as np
import pytest

from deltalm_jax.decoding.batching import Batching, bucket_lengths, plan_batches


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("devices", [1, 3])
def test_every_source_is_decoded_once(shrink: bool, devices: int):
    batching = Batching(lengths=(4, 8, 16, 64), tokens=50, shrink=shrink)
    for seed in range(20):
        random = np.random.default_rng(seed)
        lengths = random.integers(1, 31, random.integers(0, 200)).tolist()
        batches = plan_batches(lengths, batching, 30, devices)
        assert sorted(source for batch in batches for source in batch.sources) == list(range(len(lengths)))
        assert len({(batch.length, batch.rows) for batch in batches}) <= len({batch.length for batch in batches}) <= 4
        for batch in batches:
            assert 1 <= len(batch.sources) <= batch.rows
            assert batch.rows % devices == 0
            assert batch.rows < 50 // batch.length + devices
            below = [bucket for bucket in (0, 4, 8, 16, 30) if bucket < batch.length][-1]
            assert all(below < lengths[source] <= batch.length for source in batch.sources)
        if not shrink:
            rows = {4: 12, 8: 6, 16: 3, 30: 1} if devices == 1 else {4: 12, 8: 6, 16: 3, 30: 3}
            assert {batch.length: batch.rows for batch in batches}.items() <= rows.items()


def test_few_sources_make_small_batches():
    batches = plan_batches([3] * 5 + [20], Batching(tokens=2048), 512)
    assert [(batch.length, batch.rows, len(batch.sources)) for batch in batches] == [(32, 8, 6)]
    assert plan_batches([], Batching(), 512) == []


def test_the_models_own_limit_is_the_last_length():
    assert bucket_lengths(Batching(), 512) == [32, 64, 128, 256, 512]
    assert bucket_lengths(Batching(), 100) == [32, 64, 100]
    assert bucket_lengths(Batching(), 1024) == [32, 64, 128, 256, 512, 1024]


@pytest.mark.parametrize(
    ("field", "value"), [("lengths", ()), ("lengths", (8, 4)), ("lengths", (4, 4)), ("lengths", (0, 4)), ("tokens", 0)]
)
def test_impossible_shapes_are_refused(field, value):
    with pytest.raises(ValueError, match=f"Batching.{field} must .*found"):
        Batching(**{field: value})
