"""Each claim of the README beside what this machine measures: `make verify`, or `python -m benchmarks.verify` from the
repository's root (a few minutes on two cores).

Exits with 1 if a claim does not hold.
"""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from benchmarks.convert import measure as measure_conversions
from benchmarks.vocabulary_loss import beside_each_other
from deltalm_jax.data.stream import Stream
from deltalm_jax.model.deltalm import init_params, layer_states, logits
from deltalm_jax.training.flops import flops_per_step
from deltalm_jax.training.gin_files import load
from tests.model.conftest import GOLDEN_NAMES, load_golden
from tests.support import runs
from tests.support.toy_data import write_toy_data

Result = tuple[str, bool]


def parameters() -> Result:
    model = load(["pretrain_base.gin"]).model
    tree = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
    return f"{count:,}", count == 362_981_376


def shapes() -> Result:
    data = load(["pretrain_base.gin"]).data
    found = list(data.shapes().values())
    return " and ".join(f"{s}/{t}" for s, t in found), found == [(461, 101), (341, 341)]


def flops() -> Result:
    config = load(["pretrain_base.gin"])
    groups = {n: (config.data.objective_batch_sizes[n], *shape) for n, shape in config.data.shapes().items()}
    step = flops_per_step(config.model, groups)
    share = step.head / step.total
    return f"{step.total / 1e12:,.0f} TFLOP, {share:.0%} in the head", round(step.total / 1e12) == 1236 and round(
        share, 2
    ) == 0.42


def parity() -> Result:
    """Largest difference from the official code over all states and logits of all golden files."""
    worst = 0.0
    for name in GOLDEN_NAMES:
        golden = load_golden(name)
        for case in ("pad", "nopad"):
            encoder, decoder, _ = golden.tokens(case)
            states = layer_states(golden.config, golden.params, encoder, decoder)
            theirs = golden.arrays[f"{case}/logits"]
            theirs = np.concatenate([theirs[..., [1, 3, 0, 2]], theirs[..., 4:]], axis=-1)
            pairs = [(logits(golden.params, states.hidden_BTD), theirs, decoder)]
            for side, stack, tokens in (
                ("encoder", states.encoder_states_NBSD, encoder),
                ("decoder", states.decoder_states_NBTD, decoder),
            ):
                pairs += [(s, golden.arrays[f"{case}/{side}_state_{i}"], tokens) for i, s in enumerate(stack)]
            worst = max(worst, *(float(np.abs(np.asarray(o) - t)[k != 0].max()) for o, t, k in pairs))
    return f"{worst:.1e}", worst < 2e-5


def stream_speed(place: pathlib.Path) -> Result:
    """Examples per second of the paper's two objectives at 512 tokens, read from disk and masked, one thread."""
    objectives = load(["pretrain_base.gin"]).objectives()
    objectives = {n: type(o)(o.corruption, 256, o.sampling_exponent) for n, o in objectives.items()}
    tasks = {"a": ("span_corruption", 2000, 0), "b": ("translation_span_corruption", 2000, 0)}
    stream = Stream(write_toy_data(place / "long", tasks, chunk_length=512), objectives, seed=0)
    stream.batch(0)
    began, batches = time.perf_counter(), 20
    for step in range(1, batches + 1):
        stream.batch(step)
    rate = batches * 512 / (time.perf_counter() - began)
    return f"{rate:,.0f} examples/s", rate > 20_000


def blocked_loss() -> Result:
    """With label smoothing and z-loss, at 16,000 pieces and 2,048 targets (`benchmarks.vocabulary_loss` has more sizes)."""
    row = beside_each_other(16_000, 2_048)
    blocked, plain = row["blocked"], row["plain"]
    difference = max(abs(blocked[key] / plain[key] - 1) for key in ("value", "gradient_norm"))
    times = plain["peak_mb"] / blocked["peak_mb"]
    return f"differs by {difference:.0e}, {times:.1f} times less memory", difference < 1e-5 and times > 3


def conversion(place: pathlib.Path) -> Result:
    """A model of base size in and out, each way in a process of its own (`benchmarks.convert` has them all)."""
    results = measure_conversions(place)
    worst = max(r["peak_bytes"] / r["file_bytes"] for r in results)
    return f"at most {worst:.2f} times the file, {max(r['seconds'] for r in results):.0f} s", worst < 2.5


def resume(place: pathlib.Path) -> Result:
    """40 steps beside 20, `kill -9`, and the rest: every array and every loss."""
    data = place / "data"
    write_toy_data(data, runs.TOY_TASKS)
    whole = runs.run(place / "whole", data, cache=place / "cache")
    killed = subprocess.Popen(
        runs.command(place / "killed", data),
        env=runs.environment(place / "cache"),
        stdout=subprocess.DEVNULL,
        cwd=place,
    )
    path = place / "killed" / "metrics.jsonl"
    while killed.poll() is None and (not path.exists() or path.read_text().count("\n") < 20):
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    rest = runs.run(place / "killed", data, cache=place / "cache")
    if whole.returncode or rest.returncode:
        return f"a run failed: {whole.stderr}{rest.stderr}", False
    ours, theirs = runs.state(place / "killed", 40), runs.state(place / "whole", 40)
    arrays = sum(ours[k].tobytes() != theirs[k].tobytes() for k in theirs)
    names = ("loss", "batch_digest")
    lines = zip(runs.metrics(place / "killed"), runs.metrics(place / "whole"), strict=True)
    losses = sum(any(a[n] != b[n] for n in names) for a, b in lines)
    return f"{arrays} of {len(theirs)} arrays and {losses} of 40 losses and digests differ", arrays == losses == 0


def restart(place: pathlib.Path) -> Result:
    """Wall time from the command to its first new step, for the tiny configuration on prepared data."""
    # The tiny configuration's own shapes on toy chunks of its length.
    write_toy_data(place / "tiny", runs.TOY_TASKS, chunk_length=128)
    common = [
        sys.executable, "-c", _RESTART, "--gin_file=pretrain_tiny.gin", f"--gin.DataConfig.prepared_dir={place / 'tiny'}",
        f"--run_dir={place / 'restarted'}",
    ]  # fmt: skip
    env = runs.environment()
    subprocess.run([*common, "--gin.TrainConfig.stop_at_step=2"], env=env, check=True, capture_output=True, cwd=place)
    began = time.time()
    process = subprocess.Popen(
        [*common, "--gin.TrainConfig.stop_at_step=50"], env=env, stdout=subprocess.PIPE, text=True, cwd=place
    )
    assert process.stdout is not None
    seconds, heavy = float("nan"), "?"
    for line in process.stdout:
        if line.startswith("first step done"):
            seconds = time.time() - began
            process.terminate()
        if line.startswith("imported:"):
            heavy = line.strip()
    process.wait()
    return f"{seconds:.1f} s, {heavy}", seconds < 15 and heavy == "imported: []"


_RESTART = (
    "import sys; from deltalm_jax.train import main; code = main(sys.argv[1:]);"
    "print('imported:', sorted({'tensorflow', 'seqio', 'apache_beam'} & set(sys.modules)), flush=True)"
)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        place = pathlib.Path(scratch)
        claims: list[tuple[str, str, Callable[[], Result]]] = [
            ("parameters of pretrain_base.gin", "362,981,376", parameters),
            ("shapes at 512 tokens", "461/101 and 341/341", shapes),
            ("FLOPs of a base step", "1,236 TFLOP, 42% in the head", flops),
            ("largest difference from the official code", "below 2e-5", parity),
            ("masked batches at 512 tokens", "over 20,000 examples/s", functools.partial(stream_speed, place)),
            ("blocked loss and gradient beside the plain", "within 1e-5, less memory", blocked_loss),
            ("memory to convert a base-size model", "below 2.5 times its file", functools.partial(conversion, place)),
            ("kill -9 and the rest beside 40 steps", "bit-equal", functools.partial(resume, place)),
            (
                "restart of the tiny run to its first step",
                "below 15 s, no TensorFlow",
                functools.partial(restart, place),
            ),
        ]
        failed = 0
        for name, claim, measure in claims:
            measured, holds = measure()
            failed += not holds
            print(f"{'ok  ' if holds else 'FAIL'}  {name}: claimed {claim}; measured {measured}", flush=True)
    print(f"{len(claims) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
