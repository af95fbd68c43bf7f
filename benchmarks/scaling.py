"""What splitting a step costs: the same global batch on more devices, more processes, more microbatches, more layers.

    python -m benchmarks.scaling [--devices] [--processes] [--accumulation] [--depth] [--steps=5] [--json]

Devices are simulated ones of this machine's cores, so nothing here can get faster by being split, and no figure is a claim
of speed on accelerators. What can be seen is what the splitting itself adds: a step's time over that on one device, where all
have the same cores. Without a choice among the four, all are measured; each row in processes of its own.

  --devices: 1, 2, 4 and 8 simulated devices in one process, along `data` and along `fsdp`.
  --processes: 1, 2 and 4 processes of one device each, joined over loopback (gloo).
  --accumulation: 1, 2, 4 and 8 microbatches; a step's time for each example should not change.
  --depth: 12 and 24 encoder layers (half as many decoder layers), compiled only; the time should not change.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.timing import machine

BATCH = 32  # examples of each objective, in all
SHAPES = {"span_corruption": (115, 26), "translation_span_corruption": (85, 85)}  # of 128 raw tokens


def measure(flags: argparse.Namespace) -> dict[str, float]:
    """One row, in this process (and those it is joined with)."""
    import dataclasses

    import jax
    import numpy as np

    from deltalm_jax.model.config import PRESETS
    from deltalm_jax.parallel.mesh import MeshConfig, initialize_processes, make_mesh
    from deltalm_jax.parallel.sharding import process_rows, put_batch
    from deltalm_jax.training.loss import LossConfig
    from deltalm_jax.training.optimizer import OptimizerConfig
    from deltalm_jax.training.step import abstract_state, initial_state, make_train_step

    row = json.loads(flags.one)
    if row["processes"] > 1:
        initialize_processes(flags.coordinator, row["processes"], flags.process_id)
    layers = row["layers"]
    model = dataclasses.replace(
        PRESETS["tiny"], scan_layers=True, num_encoder_layers=layers, num_decoder_layers=layers // 2
    )
    mesh = make_mesh(MeshConfig(**{"data": 1, row["axis"]: row["devices"] * row["processes"]}))
    step = make_train_step(
        model, OptimizerConfig(), LossConfig(), mesh,
        seed=0, compute_dtype="float32", accumulation_steps=row["microbatches"],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    rows = process_rows(BATCH, mesh)
    batch = {
        name: {
            "inputs": rng.integers(4, 8000, (BATCH, inputs), np.int32)[rows],
            "targets": rng.integers(4, 8000, (BATCH, targets), np.int32)[rows],
        }
        for name, (inputs, targets) in SHAPES.items()
    }
    batch = put_batch(batch, dict.fromkeys(SHAPES, BATCH), mesh)
    with jax.set_mesh(mesh):
        lowered = step.lower(abstract_state(model, OptimizerConfig(), mesh), batch)
        began, cpu_began = time.perf_counter(), time.process_time()
        compiled = lowered.compile()
        out = {"compile_seconds": time.perf_counter() - began, "compile_cpu_seconds": time.process_time() - cpu_began}
        out |= {"instructions": compiled.as_text().count(" = ")}
        if flags.steps:
            state, times = initial_state(model, OptimizerConfig(), 0, mesh), []
            for _ in range(flags.steps + 1):
                began = time.perf_counter()
                state, metrics = compiled(state, batch)
                jax.block_until_ready((state, metrics))
                times.append(time.perf_counter() - began)
            out |= {"step_seconds": statistics.median(times[1:]), "loss": float(metrics["loss"])}
    return out


def row(
    steps: int, *, devices: int = 1, processes: int = 1, axis: str = "data", microbatches: int = 1, layers: int = 4
):
    """Measures a row in processes of its own: what it is, and the slowest process's figures."""
    about = {
        "devices": devices, "processes": processes, "axis": axis, "microbatches": microbatches, "layers": layers,
    }  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "benchmarks.scaling", f"--one={json.dumps(about)}", f"--steps={steps}"]
    started = [
        subprocess.Popen(
            [*command, f"--coordinator={address}", f"--process_id={i}"], env=env, stdout=subprocess.PIPE, text=True
        )
        for i in range(processes)
    ]
    texts = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{about} failed")
    results = [json.loads(text.splitlines()[-1]) for text in texts]
    return about | max(results, key=lambda result: result.get("step_seconds", 0.0))


def _beside(title: str, name: str, rows: list[dict[str, Any]], figure: str) -> None:
    print(title)
    for one in rows:
        unit = f"{one[figure]:8.2f} s" if figure.endswith("seconds") else f"{one[figure]:8,}"
        print(f"  {one[name]:>3} {name:12} {unit}, {one[figure] / rows[0][figure]:5.2f} × the first", flush=True)


def main() -> None:
    """Runs what was chosen and prints it; with --json one object last."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("devices", "processes", "accumulation", "depth"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps timed of each row; the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    for name in ("one", "coordinator"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--process_id", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(measure(flags)))
        return
    everything = not (flags.devices or flags.processes or flags.accumulation or flags.depth)
    result: dict[str, Any] = {"examples": len(SHAPES) * BATCH, "machine": machine()}
    if flags.devices or everything:
        for axis in ("data", "fsdp"):
            result[axis] = [row(flags.steps, devices=n, axis=axis) for n in (1, 2, 4, 8)]
            _beside(f"simulated devices along {axis}, {os.cpu_count()} cores", "devices", result[axis], "step_seconds")
    if flags.processes or everything:
        result["processes"] = [row(flags.steps, processes=n) for n in (1, 2, 4)]
        _beside("processes over loopback, one device each", "processes", result["processes"], "step_seconds")
    if flags.accumulation or everything:
        result["accumulation"] = [row(flags.steps, microbatches=n) for n in (1, 2, 4, 8)]
        _beside("microbatches of the same batch", "microbatches", result["accumulation"], "step_seconds")
    if flags.depth or everything:
        result["depth"] = [row(0, layers=n) for n in (12, 24)]
        _beside("encoder layers, compiled", "layers", result["depth"], "compile_seconds")
        _beside("the same, seconds of processor time", "layers", result["depth"], "compile_cpu_seconds")
        _beside("encoder layers, instructions of the compiled step", "layers", result["depth"], "instructions")
    if flags.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
