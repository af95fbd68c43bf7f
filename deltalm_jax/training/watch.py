"""What looks after a training run while it runs: requests to stop, the watchdog, and the watch over other processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from deltalm_jax.training.coordination import Coordination
from deltalm_jax.training.faults import StopRequest
from deltalm_jax.training.peers import Peers
from deltalm_jax.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Watch:
    """See the classes; from `watching`."""

    stop_request: StopRequest
    watchdog: Watchdog
    peers: Peers


def unwatched() -> Watch:
    """For a run inside another program: signals are that program's affair, and nothing ends its process."""
    return Watch(StopRequest(), Watchdog(0.0), Peers(None))


@contextlib.contextmanager
def watching(stop_request: StopRequest, hang_limit: float) -> Iterator[Watch]:
    """Watches what happens inside. The processes of the run are joined, but none needs to have looked at its devices yet:
    that is where each first waits for the others.

    Args:
      stop_request: entered already.
      hang_limit: seconds that a step may take; 0 for no limit.
    """
    coordination = Coordination.of_this_run()
    stop_request.train_from_here(several=coordination is not None)
    peers = Peers(coordination, lambda: watchdog.doing)
    watchdog = Watchdog(hang_limit, peers.name(), peers.tell, peers.elsewhere)
    with peers, watchdog:
        yield Watch(stop_request, watchdog, peers)
