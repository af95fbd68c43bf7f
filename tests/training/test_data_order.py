"""What a run leaves out of its data: against a list of batches from which the windows are struck."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_jax.training.data_order import DataOrder

WINDOWS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6)


@given(WINDOWS)
def test_a_step_takes_the_next_batch_that_is_not_left_out(windows):
    order = DataOrder()
    for first, length in windows:
        order = order.without(first, first + length)
    left_out = {batch for first, length in windows for batch in range(first, first + length)}
    kept = [batch for batch in range(300) if batch not in left_out]
    assert [order.batch_of(step) for step in range(100)] == kept[:100]
    assert DataOrder.of(json.loads(json.dumps(order.as_json()))) == order
    assert all(a[1] < b[0] for a, b in zip(order.windows, order.windows[1:], strict=False))


@pytest.mark.parametrize("window", [(5, 5), (7, 5), (-1, 5)])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(ValueError, match="a window of batches goes from a first"):
        DataOrder().without(*window)
