"""Starting the training command as a user would, in processes of its own, and reading what it left."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[2]

# As small as the sample's vocabulary allows: what is tested is the run, not the model.
SMALL = [
    "ModelConfig.hidden_size=16",
    "ModelConfig.feed_forward_size=32",
    "ModelConfig.num_heads=2",
    "ModelConfig.num_encoder_layers=2",
    "ModelConfig.num_decoder_layers=1",
    "ModelConfig.max_length=32",
    "ModelConfig.scan_layers=True",  # less to compile
    "DataConfig.chunk_length=32",
    "DataConfig.objective_batch_sizes={'span_corruption': 8, 'translation_span_corruption': 8}",
    "OptimizerConfig.warmup_steps=5",
    "TrainConfig.steps=40",
    "TrainConfig.checkpoint_every=5",
    "TrainConfig.eval_every=20",
    "TrainConfig.log_every=1",
]
# Of a line of metrics.jsonl: equal, bit for bit, in runs that are the same.
SAME_METRICS = (
    "loss",
    "loss/span_corruption",
    "loss/translation_span_corruption",
    "grad_norm",
    "learning_rate",
    "batch_digest",
)
TOY_TASKS = {
    "cc100_a": ("span_corruption", 40, 9),
    "cc100_b": ("span_corruption", 11, 2),
    "ccaligned_c": ("translation_span_corruption", 20, 4),
}


def environment(devices: int = 1) -> dict[str, str]:
    """The surroundings of a run: a number of simulated devices, and, in a test, the compilation cache of all tests.

    Such runs take a few steps of a model that is next to nothing: code is compiled quickly rather than well.
    """
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "PYTHONUNBUFFERED": "1",
    }


def command(run_dir: pathlib.Path, prepared: pathlib.Path, *more: str, faults: Sequence[str] = ()) -> list[str]:
    """The training command on toy data. `more`: "Class.field=value" or whole flags; `faults`: of `tests.faults.injector`."""
    bindings = [*SMALL, f"DataConfig.prepared_dir={prepared}", *(m for m in more if not m.startswith("--"))]
    flags = [m for m in more if m.startswith("--")]
    start = ["tests.faults.injector", *faults, "--"] if faults else []
    return [
        sys.executable, "-m", *start, "deltalm_jax.train", "--gin_file=pretrain_tiny.gin", f"--run_dir={run_dir}",
        *(f"--gin.{b}" for b in bindings), *flags,
    ]  # fmt: skip


def run(run_dir: pathlib.Path, prepared: pathlib.Path, *more: str, devices=1, faults=()) -> subprocess.CompletedProcess:
    """Runs the command to its end."""
    return subprocess.run(
        command(run_dir, prepared, *more, faults=faults), env=environment(devices), capture_output=True,
        text=True, timeout=300, cwd=prepared.parent, check=False,
    )  # fmt: skip


def run_processes(
    run_dir: pathlib.Path, prepared: pathlib.Path, processes: int, *more: str, devices: int = 1, faults=()
) -> list[subprocess.Popen]:
    """Starts several processes of one run, joined over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            command(
                run_dir, prepared, *more, f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}",
                f"--process_id={i}", faults=faults,
            ),
            env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=prepared.parent,
        )
        for i in range(processes)
    ]  # fmt: skip


def metrics(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def state(run_dir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by path, read by orbax without the project's code."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((run_dir / "checkpoints" / str(step) / "state").absolute())
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
