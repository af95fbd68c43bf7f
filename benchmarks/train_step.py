"""The training step on a CPU beside the same step in PyTorch: examples a second.

    python -m benchmarks.train_step [--json] [--no_peer] [--d_model 384 --vocab_size 250112 …]

Ours is the step that training runs (`deltalm_jax.training.step`): dropout, blocked loss, clipping, Adam with weight decay, on
full-length batches. PyTorch is `benchmarks/torch_peer.py`, eager, in float32 and with automatic mixed precision in
bfloat16. Each runs in a process of its own with the same number of threads and the same allocator settings, and they take
turns: a window of steps each, after one that is not timed, so that a busy machine is busy for all. `step_cpu_seconds` is
what a step keeps all cores busy for together; other programs change it little.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Rate, machine, show
from deltalm_jax.model.config import RESERVED_POSITIONS, ModelConfig
from deltalm_jax.training.flops import flops_per_step

GROUP = "span_corruption"
HOW_TO_INSTALL = "PyTorch is not installed: pip install -e '.[torch]'"
# What `make pretrain` sets. It is PyTorch's memory as well.
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_MATMUL_SIZE = 3072


def model_config(flags: argparse.Namespace) -> ModelConfig:
    """The model of these flags, with the settings that suit a CPU."""
    return ModelConfig(
        vocab_size=flags.vocab_size,
        hidden_size=flags.d_model,
        feed_forward_size=flags.d_ff,
        num_heads=flags.num_heads,
        num_encoder_layers=flags.num_encoder_layers,
        num_decoder_layers=flags.num_decoder_layers,
        max_length=max(flags.source_length, flags.target_length) + RESERVED_POSITIONS,
        scan_layers=False,
    )


def batch(flags: argparse.Namespace) -> dict[str, np.ndarray]:
    """Random ids without padding, int32."""
    random = np.random.default_rng(0)
    lengths = {"inputs": flags.source_length, "targets": flags.target_length}
    return {
        name: random.integers(4, flags.vocab_size, (flags.batch_size, length), dtype=np.int32)
        for name, length in lengths.items()
    }


def our_work(flags: argparse.Namespace) -> tuple[Callable[[], float], Callable[[], None]]:
    """A function that makes a training step and returns its loss, and one that makes a product of large matrices."""
    import jax
    import jax.numpy as jnp

    from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
    from deltalm_jax.parallel.sharding import batch_sharding
    from deltalm_jax.training.loss import LossConfig
    from deltalm_jax.training.optimizer import OptimizerConfig
    from deltalm_jax.training.step import initial_state, make_train_step

    model, optimizer, mesh = model_config(flags), OptimizerConfig(), make_mesh(MeshConfig())
    state = initial_state(model, optimizer, 0, mesh)
    train_step = make_train_step(
        model,
        optimizer,
        LossConfig(),
        mesh,
        seed=0,
        compute_dtype=flags.dtype,
        accumulation_steps=flags.accumulation_steps,
    )
    arrays = jax.device_put({GROUP: batch(flags)}, batch_sharding(mesh))

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, arrays)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    square = jnp.ones((_MATMUL_SIZE, _MATMUL_SIZE))
    product = jax.jit(jnp.matmul)
    return step, lambda: jax.block_until_ready(product(square, square))


def torch_work(flags: argparse.Namespace, dtype: str) -> tuple[Callable[[], float], Callable[[], None]]:
    """The same of PyTorch's."""
    import torch

    from benchmarks.torch_peer import make_step
    from deltalm_jax.training.optimizer import OptimizerConfig

    arrays = batch(flags)
    step = make_step(
        model_config(flags), OptimizerConfig(), arrays["inputs"], arrays["targets"], dtype, threads=flags.threads
    )
    square = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE)
    return step, lambda: torch.mm(square, square)


def work(flags: argparse.Namespace) -> None:
    """A worker: answers each line of its input, the number of steps to make, with a line of seconds and the last loss."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    step, product = (
        our_work(flags) if flags.worker == "ours" else torch_work(flags, flags.worker.removeprefix("torch_"))
    )
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    step()
    product()
    product_seconds = []
    for _ in range(5):
        began = time.perf_counter()
        product()
        product_seconds.append(time.perf_counter() - began)
    gflops = 2e-9 * _MATMUL_SIZE**3 / min(product_seconds)
    print(json.dumps({"first_step_seconds": first, "matmul_gflops": gflops}), flush=True)
    for line in sys.stdin:
        step()  # gets back the memory that the system took while others ran
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = step()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "loss": loss}), flush=True)


class Worker:
    """A process that makes steps when it is told to."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.train_step", *arguments, "--worker", name]
        self._process = subprocess.Popen(
            command,
            env={"JAX_PLATFORMS": "cpu", **ALLOCATOR, **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name = name
        self.about = self._answer()
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.loss = float("nan")

    def make(self, steps: int) -> None:
        """A window: so many steps, and what one of them took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["seconds"] / steps)
        self.cpu_seconds.append(answer["cpu_seconds"] / steps)
        self.loss = answer["loss"]

    def stop(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def rate(self, batch_size: int) -> Rate:
        """Examples a second."""
        return Rate(batch_size / min(self.seconds), batch_size / statistics.median(self.seconds))

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process for {self.name} ended with code {self._process.wait()}; see above")
        return json.loads(line)


def result_of(worker: Worker, flags: argparse.Namespace, gflops: float) -> dict[str, Any]:
    """What one of them came to; the best window, and the median one of examples."""
    rate, seconds = worker.rate(flags.batch_size), min(worker.seconds)
    return {
        "examples_per_second": round(rate.best, 3),
        "median_examples_per_second": round(rate.median, 3),
        "tokens_per_second": round(rate.best * (flags.source_length + flags.target_length), 1),
        "step_seconds": round(seconds, 4),
        "step_cpu_seconds": round(min(worker.cpu_seconds), 4),
        "gflops_per_second": round(gflops / seconds, 1),
        "matmul_peak_gflops_per_second": round(worker.about["matmul_gflops"], 1),
        "share_of_matmul_peak": round(gflops / seconds / worker.about["matmul_gflops"], 3),
        "first_step_seconds": round(worker.about["first_step_seconds"], 2),
        "loss": round(worker.loss, 4),
    }


def measure(flags: argparse.Namespace, arguments: list[str]) -> tuple[dict[str, Any], list[tuple[str, Rate | None]]]:
    """The result, and the table's rows."""
    torch_found = importlib.util.find_spec("torch") is not None
    names = ["ours"] + (["torch_float32", "torch_bfloat16"] if flags.peer and torch_found else [])
    workers = {name: Worker(name, arguments) for name in names}
    for _ in range(flags.windows):
        for worker in workers.values():
            worker.make(flags.steps)
    for worker in workers.values():
        worker.stop()
    shape = (flags.batch_size, flags.source_length, flags.target_length)
    gflops = flops_per_step(model_config(flags), {GROUP: shape}).total / 1e9
    found = {name: result_of(worker, flags, gflops) for name, worker in workers.items()}
    result = found["ours"] | {"dtype": flags.dtype, "threads": flags.threads, "gflop_per_step": round(gflops, 1)}
    peer: dict[str, Any] | None = None
    if len(workers) > 1:
        peer = {name: found[name] for name in names[1:]}
        for name in names[1:]:
            mine, other = workers["ours"].seconds, workers[name].seconds
            result[f"times_{name}"] = round(min(other) / min(mine), 2)
            result[f"median_times_{name}"] = round(statistics.median(other) / statistics.median(mine), 2)
    elif flags.peer:
        result["peer_missing"] = HOW_TO_INSTALL
    result |= {"peer": peer, "machine": machine()}
    labels = {
        "ours": f"deltalm_jax, {flags.dtype}",
        "torch_float32": "PyTorch, float32",
        "torch_bfloat16": "PyTorch, bfloat16 autocast",
    }
    rows: list[tuple[str, Rate | None]] = []
    for name, worker in workers.items():
        rows.append((labels[name], worker.rate(flags.batch_size)))
    if flags.peer and not torch_found:
        rows.append((labels["torch_float32"], None))
    return result, rows


def main() -> None:
    """Measures, and prints a table or, with --json, one object last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    for name, default in (
        ("d_model", 256),
        ("d_ff", 1024),
        ("num_heads", 4),
        ("vocab_size", 16_384),
        ("num_encoder_layers", 4),
        ("num_decoder_layers", 2),
        ("batch_size", 8),
        ("source_length", 461),
        ("target_length", 101),
        ("accumulation_steps", 1),
        ("steps", 2),
        ("windows", 5),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default:,}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our products")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="PyTorch beside it")
    parser.add_argument("--no_peer", dest="peer", action="store_false", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        work(flags)
        return
    result, rows = measure(flags, sys.argv[1:])
    title = f"a training step of {flags.batch_size} × ({flags.source_length} + {flags.target_length}) tokens"
    show(result, title, rows, flags.json)


if __name__ == "__main__":
    main()
