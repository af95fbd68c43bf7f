"""The training run, from top to bottom."""

from __future__ import annotations

import contextlib
import json
import pathlib
import platform
import time
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.prefetch import Prefetcher
from deltalm_jax.data.stream import Stream
from deltalm_jax.model.config import resolve_compute_dtype
from deltalm_jax.parallel.mesh import make_mesh
from deltalm_jax.parallel.sharding import check_batch, process_rows, put_batch
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints
from deltalm_jax.training.config import Config
from deltalm_jax.training.evaluation import Evaluator
from deltalm_jax.training.faults import StopRequest
from deltalm_jax.training.metrics import Reporter
from deltalm_jax.training.step import abstract_state, initial_state, make_eval_step, make_train_step


def train(config: Config, prepared: PreparedData, run_dir: pathlib.Path) -> int:
    """Trains, or goes on training, until `steps` (or `stop_at_step`, or a signal).

    Where the parameters come from:
      1. the newest checkpoint in `run_dir` that verifies, if there is one;
      2. else `TrainConfig.init_from`.

    Args:
      config: the run's configuration.
      prepared: its data, opened and checked.
      run_dir: folder for checkpoints, metrics and the effective configuration; made if absent.

    Returns:
      The process's exit code: 0 when the run got where it should, otherwise `StopRequest.exit_code`.

    Raises:
      CheckpointError: no checkpoint can be used, or the configuration differs from the checkpoint's.
      NonFiniteError: training diverged. The last checkpoint precedes it.
    """
    began = time.monotonic()
    stop = config.train.stop_at_step or config.train.steps
    batch_sizes = config.data.objective_batch_sizes

    # Everything that can be wrong is found before a device computes anything.
    stream = Stream(prepared, config.data.objectives(), config.train.seed)
    mesh = make_mesh(config.mesh)
    check_batch(batch_sizes, mesh)
    rows = {name: process_rows(size, mesh) for name, size in batch_sizes.items()}
    compute_dtype = resolve_compute_dtype(config.model, jax.default_backend())
    about = describe(config, prepared, compute_dtype)
    run_dir.mkdir(parents=True, exist_ok=True)
    if config.train.compilation_cache:
        use_compilation_cache(run_dir / "compilation_cache")

    numerics: Any = {"compute_dtype": compute_dtype, "loss_block_tokens": config.train.loss_block_tokens}
    train_step = make_train_step(config.model, config.optimizer, mesh, seed=config.train.seed, **numerics)
    eval_step = make_eval_step(config.model, mesh, sentinels=stream.sentinels, **numerics)
    evaluate = Evaluator(stream, eval_step, mesh, config.model.vocab_size, config.train.eval_batches)

    checkpoints = Checkpoints(
        run_dir / "checkpoints", config.train.keep_checkpoints, config.train.keep_checkpoint_every, print
    )
    record = newest_checkpoint(checkpoints)
    if record is not None:
        check_identity(record["about"]["identity"], about["identity"], run_dir)
        state = checkpoints.restore(record, abstract_state(config.model, config.optimizer, mesh))
        start = int(record["step"])
    else:
        state, start = initial_state(config.model, config.optimizer, config.train.seed, mesh), 0

    reporter = Reporter(run_dir, start, stop, config.train.log_every, speaks=jax.process_index() == 0)
    reporter.begin(config, f"{'resuming at' if start else 'starting from'} step {start:,} of {stop:,}", compute_dtype)

    def make_batch(index: int) -> Any:
        return put_batch(stream.batch(index, rows), batch_sizes, mesh)

    saved = start
    with (
        StopRequest() as stop_request,  # outermost: a second signal must not end the last save
        contextlib.closing(reporter),
        contextlib.closing(checkpoints),
        Prefetcher(make_batch, start, stop, config.data.prefetch) as batches,
        jax.set_mesh(mesh),
    ):
        for step, batch in enumerate(batches, start + 1):
            state, metrics = train_step(state, batch)
            # Reports the step before this one: the host never waits for the step it has just begun.
            reporter.step(step, metrics, batches.waited)
            if step == start + 1:
                jax.block_until_ready(metrics)
                reporter.say(f"first step done {time.monotonic() - began:.1f} s after the start of the run")
            checkpoints.check()

            stopping = stop_request.at(step) or step == stop
            saving = stopping or step % config.train.checkpoint_every == 0
            evaluating = step == config.train.steps or _is_due(step, config.train.eval_every)
            if evaluating or saving:
                reporter.flush(evaluate(state["params"]) if evaluating else {})
            if saving:
                checkpoints.save(step, state, about)
                saved = step
            if evaluating or saving:
                reporter.restart_clock()
            if stopping:
                break
    reporter.say(_last_words(stop_request, start, saved, config.train.steps, run_dir))
    return stop_request.exit_code


def describe(config: Config, prepared: PreparedData, compute_dtype: str) -> dict[str, Any]:
    """What a checkpoint's record says of its run: identity (must not change on resume), vocabulary, versions."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "identity": config.identity() | {"data": prepared.manifest["digest"], "compute_dtype": compute_dtype},
        "vocabulary": prepared.manifest["vocabulary"]["fingerprint"],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }


def use_compilation_cache(folder: pathlib.Path) -> None:
    """Keeps compiled steps in `folder`, so that a restart is quick; a cache that the user has set up wins."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _last_words(stop_request: StopRequest, start: int, saved: int, steps: int, run_dir: pathlib.Path) -> str:
    if stop_request.exit_code and stop_request.signal:
        name = stop_request.signal.name
        return f"{name}: stopped after step {saved:,}, checkpoint saved. Run the same command to go on."
    if saved == start:
        return f"nothing to do: step {start:,} of {steps:,} is reached already. More: --gin.TrainConfig.steps=…"
    return f"done: step {saved:,} of {steps:,}; checkpoints and metrics in {run_dir}"


def newest_checkpoint(checkpoints: Checkpoints) -> dict[str, Any] | None:
    """Process 0's choice of checkpoint, the same on all processes."""
    if jax.process_count() == 1:
        return checkpoints.latest()
    chosen = (checkpoints.latest() or {"step": -1})["step"] if jax.process_index() == 0 else -1
    chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return None if chosen < 0 else checkpoints.verify(chosen)


def check_identity(saved: dict[str, Any], wanted: dict[str, Any], run_dir: pathlib.Path) -> None:
    """Raises CheckpointError with the differences if a run would go on as another run."""
    wanted = json.loads(json.dumps(wanted))
    differences = [
        f"  {key}: {saved.get(key)!r} in the checkpoint, {wanted.get(key)!r} now"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"the run in {run_dir} was started with another configuration; going on would make it a different run:\n"
            + "\n".join(differences)
            + "\nPut the values back, or start a new run with another --run_dir."
        )
