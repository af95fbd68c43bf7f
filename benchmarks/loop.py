"""What the host adds to a step: the training loop around a step that does nothing, or that takes a given time.

    python -m benchmarks.loop [--steps=50] [--step_seconds=0.25] [--json]

The run is that of pretrain_base.gin: its loop, its state (every array of it, but 8 wide), its batches of 2,048 examples, read
and corrupted by the stream from prepared random ids, put on the device, its metrics. Only the step is replaced. First by one
that returns at once: what is left of a step when the wait for its batch is taken off is the host's own work. Then by one
that takes --step_seconds: how much of that the loop waits for data. The processor time of the loop's thread is told besides:
on a machine that does other things too, it says more than the clock.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from benchmarks.stream import write_prepared_data
from benchmarks.timing import machine
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.training import loop
from deltalm_jax.training.gin_files import load

_NARROW = [
    "ModelConfig.vocab_size=10000",  # holds the ids of the prepared data
    "ModelConfig.hidden_size=8",
    "ModelConfig.feed_forward_size=8",
    "ModelConfig.num_heads=1",
    "TrainConfig.eval_every=0",
    "TrainConfig.checkpoint_every=1000000",
    "TrainConfig.compilation_cache=False",
    "TrainConfig.log_every=1000",
]
_SKIPPED = 5  # of the first steps: compiling, and what was made ahead meanwhile


def measure(place: pathlib.Path, steps: int, step_seconds: float) -> dict[str, Any]:
    """Medians over the steps of a run whose step takes `step_seconds` (0: returns at once)."""
    leaves = 0
    slept: list[float] = []  # a sleep lasts a little longer than it is asked to
    used: list[float] = []  # processor time of this thread

    def make_train_step(*_: Any, **__: Any) -> Any:
        @jax.jit
        def numbers(batch: Any) -> Any:
            names = [f"{kind}/{group}" for kind in ("input_tokens", "target_tokens", "loss") for group in batch]
            names += ["loss", "input_tokens", "target_tokens", "padding_share", "grad_norm", "learning_rate"]
            none_skipped = dict.fromkeys(("skipped", "skipped_in_a_row"), jnp.zeros((), jnp.int32))
            return dict.fromkeys(names, jnp.ones(())) | none_skipped | {"batch_digest": jnp.zeros(2, jnp.uint32)}

        # The state goes in and comes out, in the same memory, as in the real step.
        pass_on = jax.jit(lambda state, batch: (state, numbers(batch)), donate_argnums=0)

        def step(state: Any, batch: Any) -> Any:
            nonlocal leaves
            leaves = leaves or len(jax.tree.leaves(state))
            used.append(time.thread_time())
            began = time.perf_counter()
            if step_seconds:
                time.sleep(step_seconds)
            slept.append(time.perf_counter() - began)
            return pass_on(state, batch)

        return step

    real, loop.make_train_step = loop.make_train_step, make_train_step
    run_dir = place / f"run_{step_seconds}"
    try:
        config = load(["pretrain_base.gin"], [*_NARROW, f"TrainConfig.stop_at_step={steps}"])
        loop.train(config, PreparedData.open(place / "data"), run_dir)
    finally:
        loop.make_train_step = real
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][_SKIPPED:]
    own = [
        line["step_seconds"] * (1 - line["data_wait_fraction"]) - seconds
        for line, seconds in zip(lines, slept[_SKIPPED:], strict=True)
    ]
    processor = [after - before for before, after in itertools.pairwise(used[_SKIPPED:])]
    return {
        "step_seconds": step_seconds,
        "arrays_of_the_state": leaves,
        "host_ms_per_step": {"median": 1e3 * statistics.median(own), "most": 1e3 * max(own)},
        "host_cpu_ms_per_step": 1e3 * statistics.median(processor),
        "data_wait_fraction": sum(ln["data_wait_fraction"] * ln["step_seconds"] for ln in lines)
        / sum(ln["step_seconds"] for ln in lines),
    }


def main() -> None:
    """Prints both measurements; with --json one object last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50, metavar="N")
    parser.add_argument("--step_seconds", type=float, default=0.25, metavar="S", help="how long the second step takes")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        write_prepared_data(place / "data")
        results = [measure(place, flags.steps, seconds) for seconds in (0.0, flags.step_seconds)]
    for result in results:
        host = result["host_ms_per_step"]
        print(
            f"a step of {result['step_seconds']:g} s, {result['arrays_of_the_state']} arrays of state, 2,048 examples: "
            f"the host's own work {host['median']:.2f} ms (at most {host['most']:.1f}), "
            f"{result['host_cpu_ms_per_step']:.2f} ms of processor time, "
            f"waiting for data {result['data_wait_fraction']:.2%}"
        )
    if flags.json:
        print(json.dumps({"runs": results, "machine": machine()}))


if __name__ == "__main__":
    main()
