"""What computes attention, beside each other on this machine's first device: time and memory of forward and backward.

    python -m benchmarks.attention [--rows N] [--json]

At the shapes of DeltaLM-base's pretraining (12 heads of 64), in bfloat16, with rows padded at their end. Each kernel is
also compared with the formula in float32: the largest difference of an output and of a gradient at real positions, as
a share of the largest value. A kernel that this device cannot have is named with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltalm_jax.model.attention import Attend, KeysValues, Mask, attend_xla
from deltalm_jax.model.config import PRESETS
from deltalm_jax.model.kernels import KERNELS, AttentionError, resolve_attention

# Name -> positions that attend, positions attended to, causal.
SHAPES = {
    "span corruption, encoder": (461, 461, False),
    "span corruption, decoder": (101, 101, True),
    "span corruption, decoder to encoder": (101, 461, False),
    "translation, encoder, or decoder to encoder": (341, 341, False),
    "translation, decoder": (341, 341, True),
}
MODEL = PRESETS["base"]
REPEATS = 20


def inputs(rows: int, targets: int, sources: int) -> tuple[jax.Array, KeysValues, jax.Array]:
    """Scaled queries, keys and values, float32, and which positions are real: from four fifths to all of a row."""
    size = MODEL.hidden_size // MODEL.num_heads
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (rows, targets, MODEL.num_heads, size)) * size**-0.5
    key, value = (jax.random.normal(key, (rows, sources, MODEL.num_heads, size)) for key in keys[1:3])
    lengths = jax.random.randint(keys[3], (rows, 1), sources * 4 // 5, sources + 1)
    return query, KeysValues(key, value), jnp.arange(sources) < lengths


def make_gradient(attend: Attend, causal: bool) -> Any:
    """(queries, keys and values, which are real) -> outputs and gradients of half the sum of their squares."""

    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(query: jax.Array, seen: KeysValues, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = attend(query, seen, Mask(real, causal))
        return jnp.sum(outputs.astype(jnp.float32) ** 2) / 2, outputs

    def gradient(query: jax.Array, seen: KeysValues, real: jax.Array) -> tuple[jax.Array, ...]:
        (_, outputs), gradients = loss(query, seen, real)
        return (outputs, *jax.tree.leaves(gradients))

    return jax.jit(gradient)


def measure(attend: Attend, rows: int, targets: int, sources: int, causal: bool) -> dict[str, float]:
    """Milliseconds (median), megabytes beside arguments and results, and differences from the formula in float32."""
    query, seen, real = inputs(rows, targets, sources)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (query, seen))
    compiled = make_gradient(attend, causal).lower(*low, real).compile()
    found = jax.block_until_ready(compiled(*low, real))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*low, real))
        seconds.append(time.perf_counter() - began)
    with jax.default_matmul_precision("highest"):
        exact = make_gradient(attend_xla, causal)(*jax.tree.map(lambda x: x.astype(jnp.float32), low), real)
    differences = [
        float(np.abs(np.float32(ours) - theirs).max() / np.abs(theirs).max())
        for ours, theirs in zip(found, exact, strict=True)
    ]
    return {
        "milliseconds": statistics.median(seconds) * 1000,
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "output_difference": differences[0],
        "gradient_difference": max(differences[1:]),
    }


def main() -> None:
    """Prints a line for each shape and kernel; with --json one object last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, help="rows of a batch; 32 by default, 2 on a CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    flags = parser.parse_args()
    device = jax.devices()[0]
    rows = flags.rows or (2 if device.platform == "cpu" else 32)
    missing, results = {}, []
    for name in KERNELS:
        try:
            resolve_attention(dataclasses.replace(MODEL, attention=name), device, "bfloat16")
        except AttentionError as error:
            missing[name] = str(error)
            print(f"{name}: not measured: {error}")
    for shape, (targets, sources, causal) in SHAPES.items():
        for name in (name for name in KERNELS if name not in missing):
            found = measure(KERNELS[name], rows, targets, sources, causal)
            results.append({"shape": shape, "kernel": name} | found)
            print(
                f"{shape:<44} {name:<7} {found['milliseconds']:>9.2f} ms {found['temporary_mb']:>8.1f} MB; off by "
                f"{found['output_difference']:.0e}, gradients {found['gradient_difference']:.0e}",
                flush=True,
            )
    if flags.json:
        print(json.dumps({"device": device.device_kind, "rows": rows, "not_measured": missing, "results": results}))


if __name__ == "__main__":
    main()
