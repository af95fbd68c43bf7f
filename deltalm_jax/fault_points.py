"""Named points in the life of a run at which tests let something go wrong.

The code says `reached("save/record", step)` where a failure would hurt most. It does nothing, unless a handler has been
installed in this very process: no flag, file or environment variable can do so, only code (`tests/faults/injector.py`).
"""

from __future__ import annotations

from collections.abc import Callable

Handler = Callable[[str, int], None]

# Of a training run, in the order of its life. Saving goes on in the background, beside later steps.
POINTS = (
    "prepare",  # before data is prepared in passing
    "start",  # all processes are joined, nothing is restored yet
    "restore",  # a checkpoint has been chosen, nothing of it read
    "batch",  # in the thread that makes batches, before the batch of a step
    "step",  # the boundary after a step
    "evaluate",  # before a validation
    "save/begin",  # before arrays are copied off the devices
    "save/written",  # orbax has written the arrays
    "save/record",  # all is on disk but the record
    "save/retire",  # the record is on disk; before an older step is moved out of the way
    "save/delete",  # an older step has been moved away, and is about to be deleted
    "close",  # after the last step, before the last save is waited for
)

_handler: Handler | None = None


def reached(point: str, step: int = 0) -> None:
    """Says that the code is at a point of `POINTS`; a handler may raise, sleep, or end the process."""
    if _handler is not None:
        _handler(point, step)


def install(handler: Handler | None) -> None:
    """Takes `handler(point, step)` from now on; None takes it out again."""
    global _handler
    _handler = handler
