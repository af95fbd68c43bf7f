"""Seconds from the start of a process to the end of its first step, by part.

    python -m benchmarks.startup [--gin_file=pretrain_tiny.gin] [--gin.Class.field=value …] [--json]

Three runs of the training command in processes of their own, on prepared made-up ids: a first one, which compiles; the same
with the step found in the persistent compilation cache; and one that restores the first one's checkpoint, compiled too. By
default the tiny model; --gin_file=pretrain_base.gin has 363 million parameters (6 GB with Adam and gradients, and the loss's
blocks) and is slow on a CPU: give it
--gin.DataConfig.objective_batch_sizes="{'span_corruption': 1, 'translation_span_corruption': 1}".
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.timing import machine

# Where a part ends: functions of `deltalm_jax.training.loop` that are timed from outside.
_PARTS = {
    "make_train_step": "step built",
    "initial_state": "state initialised",
    "newest_checkpoint": "checkpoint verified",
}


def measure(arguments: list[str]) -> dict[str, float]:
    """Runs the command in this process; seconds of each part, from before the process started."""
    began = float(os.environ["BENCHMARK_BEGAN"])
    times: dict[str, float] = {"interpreter": time.time() - began}
    import jax

    from deltalm_jax import train as command
    from deltalm_jax.training import checkpoint, gin_files, loop, prepared

    times["imports"] = time.time() - began - sum(times.values())

    def timed(module: Any, name: str, part: str) -> None:
        function = getattr(module, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = jax.block_until_ready(function(*args, **kwargs))
            times[part] = time.perf_counter() - start
            return result

        setattr(module, name, wrapper)

    timed(gin_files, "load", "configuration")
    timed(prepared, "open_or_prepare", "data opened")
    for name, part in _PARTS.items():
        timed(loop, name, part)
    timed(checkpoint.Checkpoints, "restore", "checkpoint restored")

    build = loop.make_train_step

    def make_train_step(*args: Any, **kwargs: Any) -> Any:
        step, compiled = build(*args, **kwargs), None

        def train_step(state: Any, batch: Any) -> Any:
            nonlocal compiled
            if compiled is not None:
                return compiled(state, batch)
            start = time.perf_counter()
            lowered = step.lower(state, batch)
            times["step traced"] = time.perf_counter() - start
            start = time.perf_counter()
            compiled = lowered.compile()
            times["step compiled, or found compiled"] = time.perf_counter() - start
            start = time.perf_counter()
            result = jax.block_until_ready(compiled(state, batch))
            times["first step"] = time.perf_counter() - start
            times["all"] = time.time() - began
            return result

        return train_step

    loop.make_train_step = make_train_step
    code = command.main(arguments)
    if code:
        sys.exit(code)
    times["the rest"] = times["all"] - sum(seconds for part, seconds in times.items() if part != "all")
    return times


def _run(place: pathlib.Path, run_dir: str, steps: int, flags: list[str]) -> dict[str, float]:
    command = [
        sys.executable, "-m", "benchmarks.startup", "--one", *flags, f"--run_dir={place / run_dir}",
        f"--gin.DataConfig.prepared_dir={place / 'data'}", f"--gin.TrainConfig.stop_at_step={steps}",
        "--gin.TrainConfig.init_from=random",
    ]  # fmt: skip
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "BENCHMARK_BEGAN": repr(time.time()),
    }
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the run failed:\n{done.stdout[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints a table of the three starts; with --json one object last."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gin_file", default="pretrain_tiny.gin", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    flags, more = parser.parse_known_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if flags.one:
        print(json.dumps(measure([f"--gin_file={flags.gin_file}", *more])))
        return

    from deltalm_jax.training.gin_files import load
    from tests.support.toy_data import write_toy_data

    given = [f"--gin_file={flags.gin_file}", *more]
    config = load([flags.gin_file], [m.removeprefix("--gin.") for m in more])
    tasks = {f"task_{i}": (objective, 2000, 0) for i, objective in enumerate(config.data.objective_batch_sizes)}
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        write_toy_data(place / "data", tasks, chunk_length=config.data.raw_lengths())
        starts = {
            "cold": _run(place, "run", 1, given),
            "compiled": _run(place, "again", 1, given),
            "restored": _run(place, "run", 2, given),
        }
    print(f"{flags.gin_file:34}" + "".join(f"{name:>10}" for name in starts))
    for part in dict.fromkeys(part for times in starts.values() for part in times):
        cells = (f"{times[part]:9.2f} s" if part in times else f"{'':>11}" for times in starts.values())
        print(f"{part:34}" + "".join(cells))
    if flags.json:
        print(json.dumps({"gin_file": flags.gin_file, "seconds": starts, "machine": machine()}))


if __name__ == "__main__":
    main()
