"""Where the processes of a run listen: on loopback where all are on one machine, else on as few addresses as is known.

Neither jax's coordinator nor gloo, which carries the sums between CPUs, knows passwords or encryption.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket


def is_loopback(host: str) -> bool:
    """Whether a host's name or address says by itself that only this machine is meant."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # another name, whatever it stands for here: to other machines it may stand for another address
        return False


def bind_address(coordinator: str) -> str | None:
    """Where process 0 is to listen as the coordinator.

    Args:
      coordinator: "host:port", by which the other processes reach it.

    Returns:
      "address:port"; None leaves it to jax, which listens on all addresses of the machine: where the user has said another
      one (`JAX_COORDINATOR_BIND_ADDRESS`), or where it is not certain that the others come by one address of this machine
      (a name with several or none, one that means loopback here only, an address that a router translates).
    """
    host, _, port = coordinator.rpartition(":")
    if os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return None
    if is_loopback(host):
        return coordinator
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    addresses = {str(address[0]) for _, _, _, _, address in found}
    if len(addresses) != 1:
        return None
    address = addresses.pop()
    if is_loopback(address) or not _is_here(address):
        return None
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _is_here(address: str) -> bool:
    """Whether it is an address of this machine: whether one may listen there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def exposure_warning(coordinator: str, bound: str | None) -> str:
    """What to say of a coordinator that other machines reach.

    Args:
      coordinator: "host:port", or "auto".
      bound: of `bind_address`.
    """
    place = f"the coordinator, on {bound or 'all addresses of this machine'}"
    if bound is None and coordinator != "auto":
        place += f", port {coordinator.rpartition(':')[2]}"
    return (
        f"warning: {place}, has no authentication: whoever reaches it can join the run or end it. Keep it on a private "
        "network (docs/security.md)"
    )


def keep_gloo_on_loopback() -> None:
    """Lets gloo listen on 127.0.0.1; else it does on the address that this machine's name stands for.

    jax has no public way to say so: where its inside is another one, this does nothing.
    """
    try:
        from jax._src.lib import _jax

        make = _jax.make_gloo_tcp_collectives
    except (ImportError, AttributeError):
        return
    if not isinstance(make, functools.partial):
        _jax.make_gloo_tcp_collectives = functools.partial(make, hostname="127.0.0.1")
