"""The soak of `make test-soak`, shorter."""

from __future__ import annotations

import pytest

from tests.faults.soak import soak


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_bit_for_bit(tmp_path):
    found = soak(tmp_path, kills=8, seed=20)
    assert found["kills"] == 8
    assert found["inside_a_save"] >= 4
    assert found["steps_equal"]
    assert found["state_equal"]
