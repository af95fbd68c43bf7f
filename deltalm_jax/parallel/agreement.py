"""What process 0 of a run says holds for all: its numbers, and the texts that the others compare with theirs.

Collectives: all processes must call these, in the same order. With one process they need none.
"""

from __future__ import annotations

import hashlib

import jax
import numpy as np
from jax.experimental import multihost_utils


def of_first_process(number: int) -> int:
    """Process 0's number (32 bit), on all processes."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def value_of_first_process(value: float) -> float:
    """Process 0's value, on all processes; float32 where there are several."""
    return value if jax.process_count() == 1 else float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def is_as_on_first_process(text: str) -> bool:
    """Whether this process's text is process 0's; compared by sha256."""
    if jax.process_count() == 1:
        return True
    ours = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    return np.array_equal(multihost_utils.broadcast_one_to_all(ours), ours)
