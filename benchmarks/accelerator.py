"""The training step on an accelerator: step time, model FLOPs utilisation and memory, by batch and attention kernel.

    python -m benchmarks.accelerator [--gin_file=pretrain_base.gin] [--rows=32,64] [--attention=auto,xla] [--json]
        [--objectives=span_corruption] [--steps=10] [--profile=DIR] [--gin.Class.field=VALUE …]

The step is the one that the configuration trains with, on random ids without padding, `--rows` of each objective (its own
number by default). Each line is measured in a process of its own: the memory is then its own too. Utilisation is of the peak
that the maker states for dense bfloat16 products; beside it stands what a large product reaches here in the same minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

_MATMUL_SIZE = 8192


def configuration(gin_file: str, bindings: list[str], rows: int | None, objectives: str | None, attention: str) -> Any:
    """The configuration of a line."""
    from deltalm_jax.training.gin_files import load

    config = load([gin_file], [*bindings, f"ModelConfig.attention={attention!r}"])
    sizes = {
        name: rows or size
        for name, size in config.data.objective_batch_sizes.items()
        if objectives is None or name in objectives.split(",")
    }
    named = {
        name: {key: value for key, value in getattr(config.data, name).items() if key in sizes}
        for name in ("noise_densities", "mean_span_lengths", "sampling_exponents")
    }
    data = dataclasses.replace(config.data, objective_batch_sizes=sizes, **named)
    return dataclasses.replace(config, data=data)


def random_batch(config: Any) -> dict[str, dict[str, np.ndarray]]:
    """Ids without padding, int32."""
    random, sizes = np.random.default_rng(0), config.data.objective_batch_sizes
    return {
        group: {
            name: random.integers(4, config.model.vocab_size, (sizes[group], length), dtype=np.int32)
            for name, length in zip(("inputs", "targets"), lengths, strict=True)
        }
        for group, lengths in config.data.shapes().items()
    }


def matmul_flops() -> float:
    """Operations a second of a large bfloat16 product of random numbers, the best of three spells of ten."""
    import jax
    import jax.numpy as jnp

    shape = (_MATMUL_SIZE, _MATMUL_SIZE)
    left, right = (jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(left, right))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        results = [product(left, right) for _ in range(10)]
        jax.block_until_ready(results)
        seconds.append((time.perf_counter() - began) / 10)
    return 2 * _MATMUL_SIZE**3 / min(seconds)


def measure(config: Any, steps: int, profile: pathlib.Path | None = None) -> dict[str, Any]:
    """A line: what a step of this configuration takes on the first device."""
    import jax

    from deltalm_jax.model.config import resolve_compute_dtype
    from deltalm_jax.model.kernels import resolve_attention
    from deltalm_jax.parallel.mesh import make_mesh
    from deltalm_jax.parallel.sharding import batch_sharding
    from deltalm_jax.training.flops import throughput
    from deltalm_jax.training.step import initial_state, make_train_step

    device = jax.devices()[0]
    dtype = resolve_compute_dtype(config.model, device.platform)
    mesh = make_mesh(config.mesh, [device])
    step = make_train_step(
        config.model, config.optimizer, config.loss, mesh,
        seed=0, compute_dtype=dtype, accumulation_steps=config.train.accumulation_steps,
        decoder_start=config.data.decoder_start, groups=config.data.groups(), contrast=config.contrast_or_none,
    )  # fmt: skip
    arrays = random_batch(config)
    with jax.set_mesh(mesh):
        state = initial_state(config.model, config.optimizer, 0, mesh, config.contrast_or_none)
        batch = jax.device_put(arrays, batch_sharding(mesh))
        began = time.perf_counter()
        compiled = step.lower(state, batch).compile()
        compile_seconds = time.perf_counter() - began
        for _ in range(2):
            state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - began) / steps
        if profile is not None:
            with jax.profiler.trace(str(profile)):
                state, metrics = compiled(state, batch)
                jax.block_until_ready(state)
    shapes = config.step_shapes()
    speed = throughput(config.model, shapes, device.device_kind, 1, dtype)
    tokens = {group: (float(size * inputs), float(size * targets)) for group, (size, inputs, targets) in shapes.items()}
    memory = device.memory_stats() or {}
    return {
        "rows": dict(config.data.objective_batch_sizes),
        "attention": resolve_attention(config.model, device, dtype).name,
        "device": device.device_kind,
        "dtype": dtype,
        "step_seconds": seconds,
        "tokens_per_second": sum(map(sum, tokens.values())) / seconds,
        **speed.utilisation(tokens, seconds),
        "matmul_flops_per_second": None if device.platform == "cpu" else matmul_flops(),
        "peak_memory_bytes": memory.get("peak_bytes_in_use"),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": compile_seconds,
        "loss": float(metrics["loss"]),
    }


def told(line: dict[str, Any]) -> str:
    """A line of the table in Markdown."""
    rows = " + ".join(map(str, line["rows"].values()))
    share = "—" if line["mfu"] is None else f"{line['mfu']:.1%} ({line['mfu_full_attention']:.1%})"
    memory = "—" if line["peak_memory_bytes"] is None else f"{line['peak_memory_bytes'] / 1e9:.1f} GB"
    return (
        f"| {rows} | {line['attention']} | {1e3 * line['step_seconds']:,.0f} ms | {line['tokens_per_second']:,.0f} | "
        f"{share} | {memory} | {line['compile_seconds']:.0f} s |"
    )


def main() -> None:
    """Measures each line and prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gin_file", default="pretrain_base.gin", metavar="FILE")
    parser.add_argument("--rows", default="", metavar="N,N", help="of each objective (default: the file's)")
    parser.add_argument("--attention", default="auto", metavar="NAME,NAME", help="kernels to compare (default: auto)")
    parser.add_argument("--objectives", metavar="NAME,NAME", help="those of the file's that a step has (default: all)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timed, after two that are not")
    parser.add_argument("--profile", type=pathlib.Path, metavar="DIR", help="a profiler trace of one more step of each")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    arguments = sys.argv[1:]
    bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    flags = parser.parse_args([a for a in arguments if not a.startswith("--gin.")])
    if flags.line:
        rows, attention = json.loads(flags.line)
        config = configuration(flags.gin_file, bindings, rows, flags.objectives, attention)
        print(json.dumps(measure(config, flags.steps, flags.profile)))
        return
    lines = []
    print(
        "| rows | attention | a step | tokens/s | MFU (causal attention in full) | memory | compiled in |\n"
        + "|---" * 7
        + "|"
    )
    for rows in map(int, flags.rows.split(",")) if flags.rows else [None]:
        for attention in flags.attention.split(","):
            command = [
                sys.executable,
                "-m",
                "benchmarks.accelerator",
                *arguments,
                f"--line={json.dumps([rows, attention])}",
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                print(f"| {rows or 'own'} | {attention} | failed with {done.returncode}, see above |||||", flush=True)
                continue
            lines.append(json.loads(done.stdout.splitlines()[-1]))
            print(told(lines[-1]), flush=True)
    if lines:
        reached = max(line["matmul_flops_per_second"] or 0 for line in lines)
        product = f"; a product of {_MATMUL_SIZE:,}³: {reached / 1e12:.0f} TFLOP/s" if reached else ""
        print(f"{lines[0]['device']}, {lines[0]['dtype']}{product}")
    if flags.json:
        print(json.dumps({"lines": lines}))
    if not lines:
        sys.exit(1)


if __name__ == "__main__":
    main()
