"""Long curves made short: nothing that leapt is lost, and means are those of all values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deltalm_jax.run_report.reading import Series
from deltalm_jax.run_report.thinning import MAX_POINTS, thin


def series(values: np.ndarray) -> Series:
    return Series(np.arange(1, len(values) + 1), values.astype(np.float64))


@pytest.mark.parametrize("spike", [0, 12_345, 1_000_002])
def test_a_spike_of_one_step_in_a_million_is_kept(spike: int) -> None:
    values = np.full(1_000_003, 2.0)
    values[spike] = 55.5
    curve = thin(series(values))
    assert len(curve.steps_P) <= MAX_POINTS
    (at,) = np.flatnonzero(curve.highs_P == 55.5)
    first = int(curve.steps_P[at - 1]) + 1 if at else 1
    assert first <= spike + 1 <= curve.steps_P[at], "in the stretch of its step"
    assert curve.lows_P[at] == 2.0, "beside what is ordinary"


def test_what_is_short_stays_as_it_is() -> None:
    values = np.random.default_rng(0).normal(size=MAX_POINTS)
    curve = thin(series(values))
    assert curve.lines == 1
    for found in (curve.means_P, curve.lows_P, curve.highs_P):
        np.testing.assert_array_equal(found, values)


def test_against_a_loop() -> None:
    values = np.random.default_rng(1).normal(size=1007)
    values[[3, 500]] = math.nan
    values[501] = math.inf
    curve = thin(series(values), 100)
    stretches = [values[start : start + 11] for start in range(0, 1007, 11)]
    finite = [[value for value in stretch if math.isfinite(value)] for stretch in stretches]
    assert curve.lines == 11
    np.testing.assert_allclose(curve.means_P, [sum(f) / len(f) for f in finite])
    np.testing.assert_array_equal(curve.lows_P, [min(f) for f in finite])
    np.testing.assert_array_equal(curve.highs_P, [max(f) for f in finite])
    assert curve.steps_P[0] == 11
    assert curve.steps_P[-1] == 1007
    assert curve.not_finite.tolist() == [4, 501, 502]


def test_a_stretch_without_a_number_is_a_gap() -> None:
    curve = thin(series(np.array([1.0, 2.0, math.nan, -math.inf, 3.0, 4.0])), 3)
    np.testing.assert_array_equal(curve.means_P, [1.5, math.nan, 3.5])
    np.testing.assert_array_equal(curve.highs_P, [2.0, math.nan, 4.0])
