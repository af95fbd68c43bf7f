"""What saving a checkpoint costs: how long training stands still, how long the save takes, and what of it is verification.

    python -m benchmarks.checkpoint [--small] [--saves=3] [--output=DIR] [--json]

The state has the shapes of pretrain_base.gin with Adam's moments (4.4 GB; --small: pretrain_small.gin), and random
numbers in it, as a trained one does not compress. It is saved --saves times, over and over; the median counts.

    stopped       in `save`: training cannot go on. Beside it a plain copy of the state off the devices (`jax.device_get`,
                  then `numpy.copy`: on a CPU the former copies nothing)
    arrays        orbax writes them, in the background
    digests       files and folders put on disk, each file read back for its digest
    record        record written, read back and compared with the files
    retiring      older step deleted
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks.timing import machine
from deltalm_jax import fault_points
from deltalm_jax.training import gin_files
from deltalm_jax.training.checkpoint import Checkpoints
from deltalm_jax.training.step import create_state


def random_state(gin_file: str) -> Any:
    """A training state of that configuration's shapes on the default device, with random numbers for arrays."""
    config = gin_files.load([gin_file])
    shapes = jax.eval_shape(lambda: create_state(config.model, config.optimizer, 0))
    random = np.random.default_rng(0)

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.dtype == np.float32:
            return jax.device_put(random.standard_normal(shape.shape, np.float32))
        return jax.device_put(np.zeros(shape.shape, shape.dtype))

    return jax.tree.map(fill, shapes)


def plain_copy(state: Any) -> float:
    """Seconds to copy the state to the host, leaf by leaf, and again within it if the first copied nothing."""
    began = time.perf_counter()
    copies = [np.copy(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]
    seconds = time.perf_counter() - began
    del copies
    return seconds


def one_save(checkpoints: Checkpoints, step: int, state: Any) -> dict[str, float]:
    """Seconds of each part of a save."""
    times: dict[str, float] = {}
    fault_points.install(lambda point, _: times.setdefault(point, time.perf_counter()))
    try:
        began = time.perf_counter()
        checkpoints.save(step, state, {})
        stopped = time.perf_counter()
        checkpoints.wait()
        ended = time.perf_counter()
    finally:
        fault_points.install(None)
    return {
        "stopped": stopped - began,
        "arrays": times["save/written"] - stopped,
        "digests": times["save/record"] - times["save/written"],
        "record": times["save/retire"] - times["save/record"],
        "retiring": ended - times["save/retire"],
        "save": ended - began,
    }


def measure(gin_file: str, saves: int, folder: pathlib.Path) -> dict[str, Any]:
    """Medians of the parts, of the plain copy, and the share of digests and record in the whole."""
    state = random_state(gin_file)
    copies = [plain_copy(state) for _ in range(saves)]
    checkpoints = Checkpoints(folder, 1, None, print)
    runs = [one_save(checkpoints, step, state) for step in range(1, saves + 1)]
    checkpoints.close()
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    shares = [(run["digests"] + run["record"]) / run["save"] for run in runs]
    return {
        "gin_file": gin_file,
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "plain_copy": statistics.median(copies),
        **median,
        "verification_share": statistics.median(shares),
        "saves": saves,
        "device": jax.devices()[0].device_kind,
        "machine": machine(),
    }


def main() -> None:
    """Prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the state of pretrain_small.gin")
    parser.add_argument("--saves", type=int, default=3, metavar="N")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="on which disk (default: the temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args()
    if flags.output:
        flags.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoint_", dir=flags.output) as folder:
        gin_file = "pretrain_small.gin" if flags.small else "pretrain_base.gin"
        result = measure(gin_file, flags.saves, pathlib.Path(folder))
    if flags.json:
        print(json.dumps(result))
        return
    size = result["bytes"]
    print(
        f"{result['gin_file']}: {size / 1e9:.2f} GB of state on {result['device']}, median of {result['saves']} saves"
    )
    print(
        f"{'training stopped':28}{result['stopped']:8.2f} s   (a plain copy of the state: {result['plain_copy']:.2f} s)"
    )
    for name in ("arrays", "digests", "record", "retiring"):
        print(f"{name:28}{result[name]:8.2f} s")
    print(f"{'whole save':28}{result['save']:8.2f} s   ({size / result['save'] / 1e9:.2f} GB/s)")
    print(f"{'digests and record':28}{result['verification_share']:8.1%}   of the whole")
    about = result["machine"]
    print(f"{about['processor']}, {about['cores']} cores, load {about['load']}")


if __name__ == "__main__":
    main()
