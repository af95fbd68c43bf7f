"""What the processes of a run listen on, as the system has it (/proc/net/tcp), and where the coordinator is told to."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from deltalm_jax.parallel import listening, mesh
from tests.support import runs
from tests.support.toy_data import write_toy_data

# Where this very process listens.
LOOK = r"""
import os, pathlib

def look():
    inodes = set()
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        try:
            inodes.add(str(entry.readlink()))
        except OSError:
            pass
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                print("listens", fields[1])
    print("looked", flush=True)
"""
# Joins a run as `train` does, and takes part in a sum.
JOIN = f"""
{LOOK}
import sys
import numpy as np
from deltalm_jax.parallel.mesh import initialize_processes

initialize_processes(sys.argv[1], 2, int(sys.argv[2]))
import jax
from jax.experimental import multihost_utils

assert multihost_utils.process_allgather(np.array([jax.process_index()])).ravel().tolist() == [0, 1]
look()
multihost_utils.sync_global_devices("both have looked")
"""
TRAIN = f"""
{LOOK}
import socket, sys
from deltalm_jax import fault_points, train

def at(point, step):
    if (point, step) == ("step", 3):
        look()
        with socket.create_server(("127.0.0.1", 0)):
            look()

fault_points.install(at)
sys.exit(train.main(sys.argv[1:]))
"""


def address_of(hexadecimal: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as /proc/net/tcp and tcp6 write it: words of four bytes, each the wrong way round."""
    data = bytes.fromhex(hexadecimal.partition(":")[0])
    address = ipaddress.ip_address(b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4)))
    return getattr(address, "ipv4_mapped", None) or address


def test_addresses_of_the_system_are_read_right():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = f"{server.getsockname()[1]:04X}"
        (own,) = [
            line.split()[1]
            for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
        ]
    assert address_of(own) == ipaddress.ip_address("127.0.0.1")
    assert address_of("00000000000000000000000000000000:9AC1") == ipaddress.ip_address("::")
    assert address_of("00000000000000000000000001000000:9AC1") == ipaddress.ip_address("::1")
    assert address_of("0000000000000000FFFF00000100007F:9AC1") == ipaddress.ip_address("127.0.0.1")


def can_rename_the_machine() -> bool:
    """Whether a process may be run on what it takes for a machine of another name."""
    if not shutil.which("unshare") or os.geteuid() != 0:
        return False
    done = subprocess.run(["unshare", "--uts", "hostname", "127.0.0.2"], capture_output=True, timeout=10, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not pathlib.Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_processes_joined_over_loopback_listen_nowhere_else(host, renamed):
    """gloo would listen on the address that the machine's name stands for; here 127.0.0.2, which tells it from 127.0.0.1."""
    if renamed and not can_rename_the_machine():
        pytest.skip("the machine's name cannot be changed for a process")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"{host}:{probe.getsockname()[1]}"
    start = ["unshare", "--uts", "sh", "-c", 'hostname 127.0.0.2 && exec "$@"', "sh"] if renamed else []
    processes = [
        subprocess.Popen(
            [*start, sys.executable, "-c", JOIN, coordinator, str(i)], env=runs.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert "warning" not in err, "loopback needs none"
        found = [address_of(line.split()[1]) for line in out.splitlines() if line.startswith("listens")]
        assert found, "gloo listens at least"
        allowed = {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
        assert set(found) <= allowed
    ports = {line.split()[1].partition(":")[2] for line in outputs[0][0].splitlines() if line.startswith("listens")}
    assert f"{int(coordinator.rpartition(':')[2]):04X}" in ports, "the coordinator was looked at"


@pytest.mark.skipif(not pathlib.Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_a_run_of_one_process_listens_nowhere(tmp_path):
    """With TensorBoard's files and a profiler's trace in the making. What would be found is shown by a server at the end."""
    write_toy_data(tmp_path / "data", runs.TOY_TASKS)
    flags = runs.command(tmp_path / "run", tmp_path / "data", "TrainConfig.steps=4", "--profile_steps=2,4")[3:]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *flags],
        env=runs.environment(), capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "tensorboard").is_dir()
    assert (tmp_path / "run" / "profile").is_dir()
    in_the_run, with_a_server = done.stdout.split("looked\n")[:2]
    assert "listens" not in in_the_run
    assert with_a_server.count("listens") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.8.8"])
def test_a_coordinator_on_loopback_stays_there(host):
    assert listening.bind_address(f"{host}:1234") == f"{host}:1234"


@pytest.mark.parametrize(
    ("resolved", "here", "expected"),
    [
        (["192.0.2.7"], True, "192.0.2.7:1234"),
        (["2001:db8::7"], True, "[2001:db8::7]:1234"),
        (["192.0.2.7"], False, None),
        (["192.0.2.7", "192.0.2.8"], True, None),
        (["127.0.1.1"], True, None),
        ([], True, None),
    ],
    ids=["one address", "IPv6", "translated by a router", "several", "loopback here only", "unknown"],
)
def test_another_coordinator_listens_on_its_own_address_where_that_is_certain(monkeypatch, resolved, here, expected):
    def resolve(host, port, type):
        assert host == "head"
        if not resolved:
            raise socket.gaierror
        return [(None, type, 0, "", (address, 0)) for address in resolved]

    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(listening, "_is_here", lambda address: here)
    assert listening.bind_address("head:1234") == expected


def test_whether_an_address_is_this_machines():
    assert listening._is_here("127.0.0.1")
    assert not listening._is_here("203.0.113.9"), "an address for documentation: nobody's"


def test_the_user_has_the_last_word(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:1234")
    assert listening.bind_address("127.0.0.1:1234") is None


@pytest.mark.parametrize(
    ("coordinator", "process", "bound", "words"),
    [
        ("head:1234", 0, "192.0.2.7:1234", "warning: the coordinator, on 192.0.2.7:1234, has no authentication"),
        ("head:1234", 0, None, "on all addresses of this machine, port 1234, has no authentication"),
        ("head:1234", 1, None, ""),
        ("127.0.0.1:1234", 0, "127.0.0.1:1234", ""),
        ("auto", 0, None, "warning: the coordinator, on all addresses of this machine, has no authentication"),
    ],
)
def test_one_line_warns_of_a_coordinator_that_others_reach(monkeypatch, capsys, coordinator, process, bound, words):
    told = {}
    monkeypatch.setattr(mesh.jax.distributed, "initialize", lambda *_, **more: told.update(more))
    monkeypatch.setattr(mesh, "keep_gloo_on_loopback", lambda: None)
    monkeypatch.setattr(mesh, "bind_address", lambda _: bound)
    mesh.initialize_processes(coordinator, *((None, None) if coordinator == "auto" else (2, process)))
    err = capsys.readouterr().err
    assert (words in err) if words else err == ""
    assert err.count("\n") == bool(words)
    assert told.get("coordinator_bind_address") == (bound if coordinator != "auto" else None)
