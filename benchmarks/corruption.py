"""Corruption alone, of chunks in memory, on one core: `python -m benchmarks.corruption [--json]`.

Beside it T5's routine, one example at a time through tf.data (`benchmarks.t5_preprocessor`), on the same chunks.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator

from benchmarks.timing import Rate, machine, measure, show, use_one_core

LENGTH, BATCH, VOCABULARY, SENTINELS = 512, 256, 250_104, 128
DENSITIES = {"span_corruption": 0.15, "translation_span_corruption": 0.5}


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corruption", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    flags = parser.parse_args()
    use_one_core()
    ours = dict(_ours())
    peers = dict(_t5())
    result = {
        "benchmark": "corruption",
        # Half of the examples from each objective, as in a step.
        "examples_per_second": round(len(DENSITIES) / sum(1 / ours[name].best for name in DENSITIES), 1),
        "examples": f"{LENGTH} raw tokens, batches of {BATCH}, one core",
        "objectives": {name: rate.entry() for name, rate in ours.items()},
        "peers": {name: rate.entry() for name, rate in peers.items()},
        "machine": machine(),
    }
    show(result, f"corruption of {LENGTH} raw tokens", [*ours.items(), *peers.items()], flags.json)
    return 0


def _ours() -> Iterator[tuple[str, Rate]]:
    import numpy as np

    from deltalm_jax.objectives import make_objective
    from deltalm_jax.objectives.hashing import hash_keys
    from tests.support.masks import chunk_of_pairs, stack

    rng = np.random.default_rng(0)
    # Pairs of about 12 and 12 tokens, as in CCAligned, in chunks that are all but full.
    chunks = [chunk_of_pairs(_sides(rng, LENGTH), rng) for _ in range(BATCH)]
    tokens_BL, lengths_B = stack(chunks, LENGTH)
    for name, mask_sides in (
        ("span_corruption", "both"),
        ("translation_span_corruption", "both"),
        ("translation_span_corruption, one side", "one"),
    ):
        objective = make_objective(name.split(",")[0], mask_sides=mask_sides)
        seeds = itertools.count()
        lengths = np.full(BATCH, LENGTH) if name == "span_corruption" else lengths_B

        def run(objective=objective, seeds=seeds, lengths=lengths) -> int:
            keys_B = hash_keys(next(seeds), np.arange(BATCH))
            objective.corrupt(tokens_BL, lengths, keys_B, VOCABULARY - SENTINELS, SENTINELS, LENGTH)
            return BATCH

        yield name, measure(run)


def _sides(rng, length: int) -> list[int]:
    """Lengths of sides that fill a chunk."""
    sides: list[int] = []
    while True:
        pair = [max(int(n), 1) for n in rng.lognormal(2.5, 0.6, 2)]
        if 1 + sum(sides) + len(sides) + sum(pair) + 2 > length:
            return sides or [length // 3, length // 3]
        sides += pair


def _t5() -> Iterator[tuple[str, Rate]]:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    from deltalm_jax.quiet import quiet_imports

    with quiet_imports():
        import numpy as np
        import tensorflow as tf

        from benchmarks.t5_preprocessor import corrupt

    tokens = np.random.default_rng(0).integers(4, VOCABULARY - SENTINELS, (2048, LENGTH)).astype(np.int32)
    for density in DENSITIES.values():
        chunks = tf.data.Dataset.from_tensor_slices(tokens).repeat()
        seeds = tf.data.Dataset.random(0).batch(4).map(lambda x: tf.reshape(tf.bitcast(x, tf.int64)[:4], [2, 2]))
        dataset = tf.data.Dataset.zip(chunks, seeds).map(
            lambda ids, seed, density=density: corrupt(ids, seed, density, 3.0, VOCABULARY)
        )
        iterator = iter(dataset.batch(BATCH))
        yield f"T5's routine in tf.data, {density:.0%}", measure(lambda it=iterator: len(next(it)["inputs"]), 6, 1.0)


if __name__ == "__main__":
    sys.exit(main())
