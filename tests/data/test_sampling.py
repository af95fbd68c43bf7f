"""Rates, caps, quotas and the order of chunks, against definitions and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from deltalm_jax.data import sampling
from deltalm_jax.data.sampling import block_quotas, block_size, cap_rates, chunk_order, sampling_rates
from deltalm_jax.objectives.hashing import hash_keys


def test_rates_follow_the_exponent() -> None:
    np.testing.assert_allclose(sampling_rates([1, 3], 1.0), [0.25, 0.75])
    np.testing.assert_allclose(sampling_rates([1, 1000], 0.0), [0.5, 0.5])
    # XLM-R's example of five languages at 0.3, percent, to the published digits.
    shares = sampling_rates([300.8, 66.6, 46.9, 1.6, 0.1], 0.3) * 100
    np.testing.assert_allclose(shares, [39.9, 25.4, 22.8, 8.3, 3.6], atol=0.05)


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0])
def test_a_languages_rate_does_not_depend_on_its_number_of_corpora(exponent: float) -> None:
    whole = sampling_rates([600, 100, 300], exponent)
    divided = sampling_rates([300, 100, 100, 200, 300], exponent, ["de", "sw", "de", "de", "fr"])
    np.testing.assert_allclose([divided[[0, 2, 3]].sum(), divided[1], divided[4]], whole)
    np.testing.assert_allclose(divided[[0, 2, 3]] / divided[0], [1, 1 / 3, 2 / 3])


def test_caps_are_kept_and_the_rest_stays_in_proportion() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        rates = generator.dirichlet(np.full(7, 0.5))
        limits = generator.dirichlet(np.full(7, 0.7)) * generator.uniform(1, 3)
        capped = cap_rates(rates, limits)
        assert capped.sum() == pytest.approx(1)
        assert (capped <= limits * (1 + 1e-9)).all()
        free = capped < limits * (1 - 1e-9)
        assert (
            capped[free] / rates[free] == pytest.approx((capped[free] / rates[free]).max(initial=0))
        ) or not free.any()
        # Nobody is held below a limit that does not bind.
        if free.any():
            assert ((capped / rates)[~free] <= (capped / rates)[free].max() * (1 + 1e-9)).all()
    with pytest.raises(ValueError, match="must sum to 1 at least"):
        cap_rates(np.array([0.5, 0.5]), np.array([0.3, 0.3]))


def test_quotas_sum_to_the_block_and_starve_no_one() -> None:
    quotas = block_quotas(np.array([0.9999, 0.00005, 0.00005]), 8192)
    assert quotas.tolist() == [8190, 1, 1]
    many = sampling_rates(np.arange(1, 10_001), 0.3)
    quotas = block_quotas(many, block_size(many, exact=False))
    assert quotas.sum() == 40_000
    assert quotas.min() >= 1
    generator = np.random.default_rng(1)
    for _ in range(200):
        rates = generator.dirichlet(np.full(50, 0.2))
        quotas = block_quotas(rates, 200)
        assert quotas.sum() == 200
        assert quotas.min() >= 1
    rates = np.array([0.7, 0.3 - 1e-5, 1e-5])
    exact = block_quotas(rates, block_size(rates, exact=True))
    np.testing.assert_allclose(exact / exact.sum(), rates, atol=3e-6)


@pytest.mark.parametrize("chunks", [1, 2, 15, 16, 31, 32, 33, 50, 64, 100])
def test_each_epoch_is_a_permutation_window_by_window(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "WINDOW_CHUNKS", 16)
    orders = []
    for epoch in range(3):
        keys = np.full(chunks, hash_keys(7, epoch))
        order = chunk_order(np.arange(chunks), np.full(chunks, chunks), keys)
        assert sorted(order.tolist()) == list(range(chunks))
        # Evaluated one at a time it is the same: a place needs no other.
        single = [chunk_order(np.array([i]), np.array([chunks]), keys[:1])[0] for i in range(chunks)]
        assert order.tolist() == single
        windows = max(chunks // 16, 1)
        size = chunks // windows
        for start in range(0, windows * size, size):
            part = order[start : start + size]
            assert part.max() - part.min() == size - 1, "a window's chunks lie together"
        orders.append(order.tolist())
    assert chunks < 15 or len({tuple(order) for order in orders}) == 3
    if chunks == 100:
        firsts = {order[0] // 16 for order in orders}
        assert len(firsts) > 1, "windows come in another order each epoch"
