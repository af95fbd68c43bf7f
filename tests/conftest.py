"""Eight simulated devices for the tests of sharding; everything else uses the first. One compilation cache for all."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest

# Before anything imports jax. Tests compile much and compute little, so code is compiled quickly rather than well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_configure(config: pytest.Config) -> None:
    """What one test compiled, or a process that it started, no other compiles again; not even in another worker."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        cache = tempfile.mkdtemp(prefix="deltalm_jax_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


@pytest.fixture
def sample_registered_again() -> Iterator[None]:
    """For tests of commands that register the Tasks of a folder of their own: other tests expect the sample's."""
    yield
    import tasks  # seqio and TensorFlow: not for every test

    tasks.register()


# The files that take longest, most of them with few tests that start processes. Begun last, one of them would keep one worker
# busy while the others have nothing left to do.
_LONGEST = (
    "documentation/test_readme.py", "faults/test_hangs.py", "parallel/test_sharding.py", "faults/test_signals.py",
    "faults/test_resume.py", "test_benchmarks.py", "test_finetuning.py", "test_train_command.py", "faults/test_meshes.py",
    "faults/test_processes.py", "test_own_data.py", "data/test_other_runners.py", "packaging/test_newer_jax.py",
    "training/test_starting_point.py", "training/test_run_in_a_store.py", "launch/test_local_pod.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts those files first."""
    order = {pathlib.Path(__file__).parent / name: place for place, name in enumerate(_LONGEST)}
    assert all(path.exists() for path in order), "a file of _LONGEST has another name now"
    items.sort(key=lambda item: order.get(item.path, len(order)))


# Threads of the library that may end the process in which they run, or write to files of a run that is over.
_WATCHING = ("peers", "watchdog", "run-lock", "signals", "prefetch")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """A watcher that outlives its test ends the tests' own process, minutes later and without a word."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5.0
    while left := [t.name for t in threading.enumerate() if t not in before and t.name.startswith(_WATCHING)]:
        assert time.monotonic() < deadline, f"threads that outlive the test: {left}"
        time.sleep(0.02)
