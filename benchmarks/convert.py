"""What it takes to convert a model of base size, beside its file: peak memory and time of each way in and out.

    python -m benchmarks.convert [--json]

Each conversion is a process of its own, on a file of random weights that is made first (about 5 GB of disk for a while).
Memory is the peak of what the process held resident, all libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

PRESET = "base"
WAYS = (
    ("deltalm", "official.pt", "native", "native"),
    ("native", "native", "deltalm", "again.pt"),
    ("native", "native", "huggingface_deltalm", "hugging_face"),
    ("huggingface_deltalm", "hugging_face", "native", "back"),
)

_PROGRAM = """
import json, resource, sys, time
began = time.perf_counter()
from deltalm_jax.convert import main
code = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
loaded = [name for name in ("torch", "tensorflow") if name in sys.modules]
print(json.dumps({"code": code, "peak_bytes": peak, "seconds": time.perf_counter() - began, "loaded": loaded}))
"""


def make_file(path: pathlib.Path) -> int:
    """Writes a released file of random weights; returns its bytes. In a process of its own, for the memory's sake."""
    import numpy as np

    from deltalm_jax.model.config import PRESETS
    from deltalm_jax.weights.deltalm import write_official
    from deltalm_jax.weights.names import FFN_ORDERS
    from deltalm_jax.weights.state_dict import abstract_params, flatten, unflatten

    random, config = np.random.default_rng(0), PRESETS[PRESET]
    leaves = flatten(abstract_params(config)).items()
    params = unflatten({name: random.standard_normal(leaf.shape, np.float32) for name, leaf in leaves})
    write_official(path, config, params, FFN_ORDERS[0])
    return path.stat().st_size


def measure(place: pathlib.Path) -> list[dict[str, Any]]:
    """One entry for each way, in order."""
    program = (
        "import pathlib, sys; from benchmarks.convert import make_file; print(make_file(pathlib.Path(sys.argv[1])))"
    )
    making = [sys.executable, "-c", program, str(place / "official.pt")]
    size = int(subprocess.run(making, check=True, capture_output=True, text=True).stdout)
    results = []
    for source, name, target, output in WAYS:
        flags = [f"--from={source}", f"--input={place / name}", f"--to={target}", f"--output={place / output}"]
        done = subprocess.run([sys.executable, "-c", _PROGRAM, *flags], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["code"] == 0, done.stdout
        assert not found["loaded"], found["loaded"]
        results.append({"from": source, "to": target, "file_bytes": size, **found})
    return results


def main() -> None:
    """Prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as place:
        results = measure(pathlib.Path(place))
    if flags.json:
        print(json.dumps(results))
        return
    print(f"a model of {PRESET} size, in a released file of {results[0]['file_bytes'] / 1e9:.2f} GB")
    for result in results:
        peak, ratio = result["peak_bytes"] / 1e9, result["peak_bytes"] / result["file_bytes"]
        way = f"{result['from']:>20} → {result['to']:<20}"
        print(f"{way} {peak:5.2f} GB at most, {ratio:.2f} × the file, {result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
