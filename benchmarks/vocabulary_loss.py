"""The blocked vocabulary loss beside the plain one: peak memory and time at four sizes, each 4 times the last.

    python -m benchmarks.vocabulary_loss [--json]

Each measurement is a process of its own: gradient of the loss (with label smoothing and z-loss) by hidden states and table,
once for its peak of resident memory over what the process held before, then for time. Beside it stand what XLA plans to hold
for the while (its memory analysis of the compiled program: temporary memory, results not counted) and the table's gradient,
which any implementation must return. The blocked loss's temporary memory, less the one accumulator of that gradient, must not
grow with vocabulary × targets: the command exits with 1 if it more than doubles from the first size to the last (64 times
as many logits).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

# Vocabulary × targets; 4 rows of a quarter of the targets each.
SIZES = ((8_000, 1_024), (16_000, 2_048), (32_000, 4_096), (64_000, 8_192))
ROWS, WIDTH, BLOCK_MEGABYTES = 4, 64, 16.0


def measure(kind: str, vocab_size: int, targets: int) -> dict[str, float]:
    """Peak megabytes, seconds, and the value, in this process."""
    import time

    import jax
    import jax.numpy as jnp
    import optax

    from deltalm_jax.training.loss import LossConfig, vocabulary_loss_and_gradients

    config = LossConfig(label_smoothing=0.1, z_loss=1e-4, block_megabytes=BLOCK_MEGABYTES)
    keys = jax.random.split(jax.random.key(0), 3)
    length = targets // ROWS
    hidden_BTD = jax.random.normal(keys[0], (ROWS, length, WIDTH))
    table_VD = jax.random.normal(keys[1], (vocab_size, WIDTH)) * 0.1
    targets_BT = jax.random.randint(keys[2], (ROWS, length), 0, vocab_size)
    weights_BT = jnp.ones((ROWS, length))

    def plain(hidden_BTD, table_VD):
        logits_BTV = hidden_BTD @ table_VD.T
        lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        rest = config.label_smoothing / (vocab_size - 1)
        nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
        everything_BT = vocab_size * lse_BT - logits_BTV.sum(axis=-1)
        smoothed_BT = (1 - config.label_smoothing - rest) * nll_BT + rest * everything_BT
        return (smoothed_BT + config.z_loss * lse_BT**2).sum()

    def blocked(hidden_BTD, table_VD):
        (loss, _), *gradients, _ = vocabulary_loss_and_gradients(
            hidden_BTD, table_VD, targets_BT, weights_BT, 1.0, jnp.zeros_like(table_VD), config, vocab_size
        )
        return loss, gradients

    step = jax.jit({"plain": jax.value_and_grad(plain, argnums=(0, 1)), "blocked": blocked}[kind])
    compiled = step.lower(hidden_BTD, table_VD).compile()

    # Linux counts a peak from when 5 is written here; compiling has had a higher one.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _resident_peak_mb()
    value, gradients = jax.block_until_ready(compiled(hidden_BTD, table_VD))
    used = _resident_peak_mb() - before
    began = time.perf_counter()
    jax.block_until_ready(compiled(hidden_BTD, table_VD))
    seconds = time.perf_counter() - began
    norm = float(optax.tree.norm(gradients))
    planned = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return {
        "peak_mb": used, "planned_mb": planned, "seconds": seconds, "value": float(value), "gradient_norm": norm,
    }  # fmt: skip


def _resident_peak_mb() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def beside_each_other(vocab_size: int, targets: int) -> dict[str, Any]:
    """Both losses at one size, each measured in a process of its own."""
    row: dict[str, Any] = {"vocabulary": vocab_size, "targets": targets}
    row["table_gradient_mb"] = vocab_size * WIDTH * 4 / 2**20
    for kind in ("blocked", "plain"):
        command = [sys.executable, "-m", "benchmarks.vocabulary_loss", "--one", kind, str(vocab_size), str(targets)]
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        row[kind] = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return row


def _line(row: dict[str, Any]) -> str:
    blocked, plain = row["blocked"], row["plain"]
    differences = [abs(blocked[key] / plain[key] - 1) for key in ("value", "gradient_norm")]
    return (
        f"{row['vocabulary']:>6,} pieces × {row['targets']:>5,} targets: "
        f"blocked {blocked['peak_mb']:>6,.0f} MB (planned {blocked['planned_mb']:,.0f}) {blocked['seconds']:.2f} s, "
        f"plain {plain['peak_mb']:>6,.0f} MB (planned {plain['planned_mb']:,.0f}) {plain['seconds']:.2f} s; "
        f"table's gradient {row['table_gradient_mb']:.0f} MB; "
        f"value and gradient norm differ by {differences[0]:.0e} and {differences[1]:.0e}"
    )


def is_flat(rows: list[dict[str, Any]]) -> bool:
    """Whether what the blocked loss holds beside the table's gradient no more than doubles from the first row to the last."""
    first, last = (max(row["blocked"]["planned_mb"] - row["table_gradient_mb"], 1.0) for row in (rows[0], rows[-1]))
    return last <= 2 * first


def main() -> int:
    """Runs all sizes and prints a line each; with --json one object last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vocabulary_loss", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "V", "T"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(measure(flags.one[0], int(flags.one[1]), int(flags.one[2]))))
        return 0
    rows = []
    for vocab_size, targets in SIZES:
        row = beside_each_other(vocab_size, targets)
        rows.append(row)
        print(_line(row), flush=True)
    if flags.json:
        print(json.dumps({"block_mb": BLOCK_MEGABYTES, "flat": is_flat(rows), "sizes": rows}))
    print("flat in vocabulary × targets" if is_flat(rows) else "NOT flat in vocabulary × targets", file=sys.stderr)
    return 0 if is_flat(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
