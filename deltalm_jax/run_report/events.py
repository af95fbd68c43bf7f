"""What happened to a run, to be marked on its curves: checkpoints, restarts, skipped steps, loss spikes and rewinds."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

from deltalm_jax.run_report.reading import Run

# Of one kind. A run that skips more steps has other sorrows, and its page says how many there are.
MOST_MARKS = 300


class Kind(enum.Enum):
    """A kind of event: its name, plotly's symbol for it, and the sign that is most like that."""

    CHECKPOINT = "checkpoint", "triangle-up", "▲"
    RESTART = "restart", "diamond", "◆"
    SKIPPED = "skipped step", "x", "✖"
    NOT_FINITE = "loss not finite", "cross", "✚"
    REWIND = "loss spike, and rewind", "star", "★"

    @property
    def words(self) -> str:
        """Its name, in the singular."""
        return self.value[0]

    @property
    def symbol(self) -> str:
        """Plotly's name of its mark in a chart."""
        return self.value[1]

    @property
    def sign(self) -> str:
        """The character that stands for the mark in text."""
        return self.value[2]


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened at a step; `text` says what."""

    kind: Kind
    step: int
    text: str


def events_of(run: Run) -> list[Event]:
    """A run's events, kind by kind, all of them."""
    found = [Event(Kind.CHECKPOINT, point.step, f"{run.name}: checkpoint {point.step:,}") for point in run.checkpoints]
    found += [
        Event(Kind.RESTART, start.step, f"{run.name}: started again from step {start.step:,}, {start.when}")
        for start in run.starts[1:]
    ]
    if skipped := run.series.get("skipped"):
        grew_N = np.diff(skipped.values_N, prepend=0.0)
        for at in np.flatnonzero(grew_N > 0).tolist():
            step = int(skipped.steps_N[at])
            found.append(Event(Kind.SKIPPED, step, f"{run.name}: step {step:,} skipped, loss or gradient not finite"))
    if loss := run.series.get("loss"):
        for at in np.flatnonzero(~np.isfinite(loss.values_N)).tolist():
            step = int(loss.steps_N[at])
            found.append(Event(Kind.NOT_FINITE, step, f"{run.name}: loss {loss.values_N[at]} at step {step:,}"))
    for rewind in run.rewinds:
        words = f"{run.name}: loss {rewind.get('loss')} at step {rewind['step']:,} (median {rewind.get('median')})"
        found.append(Event(Kind.REWIND, rewind["step"], f"{words}; back to step {rewind.get('back_to')}"))
    return found


def some_of(events: Sequence[Event]) -> list[Event]:
    """At most `MOST_MARKS` of each kind, spread over all of them."""
    chosen = []
    for kind in Kind:
        of_kind = [event for event in events if event.kind is kind]
        every = -(-len(of_kind) // MOST_MARKS) or 1
        chosen += of_kind[::every]
    return chosen
