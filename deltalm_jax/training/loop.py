"""The training run, from top to bottom."""

from __future__ import annotations

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
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints, write_atomically
from deltalm_jax.training.config import Config
from deltalm_jax.training.evaluation import Evaluator
from deltalm_jax.training.faults import StopRequest
from deltalm_jax.training.metrics import Display, MetricsFile
from deltalm_jax.training.step import abstract_state, initial_state, make_eval_step, make_train_step


class NonFiniteError(RuntimeError):
    """The loss or the gradient is not a finite number any more."""


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
    main, batch_sizes = jax.process_index() == 0, config.data.objective_batch_sizes
    stop = config.train.stop_at_step or config.train.steps
    vocabulary = prepared.manifest["vocabulary"]
    sentinels = (vocabulary["sentinel_start"], vocabulary["sentinel_start"] + vocabulary["num_sentinels"])

    # Everything that can be wrong is found before a device computes anything.
    stream = Stream(prepared, config.data.objectives(), config.train.seed)
    mesh = make_mesh(config.mesh)
    check_batch(batch_sizes, mesh)
    run_dir.mkdir(parents=True, exist_ok=True)
    if config.train.compilation_cache and not jax.config.values["jax_compilation_cache_dir"]:  # the user's own wins
        jax.config.update("jax_compilation_cache_dir", str(run_dir.absolute() / "compilation_cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    compute_dtype = resolve_compute_dtype(config.model, jax.default_backend())
    about = {
        "identity": config.identity() | {"data": prepared.manifest["digest"], "compute_dtype": compute_dtype},
        "vocabulary": vocabulary["fingerprint"],
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")}
        | {"python": platform.python_version()},
    }

    train_step = make_train_step(
        config.model,
        config.optimizer,
        mesh,
        seed=config.train.seed,
        compute_dtype=compute_dtype,
        loss_block_tokens=config.train.loss_block_tokens,
    )
    eval_step = make_eval_step(
        config.model,
        mesh,
        sentinels=sentinels,
        compute_dtype=compute_dtype,
        loss_block_tokens=config.train.loss_block_tokens,
    )
    evaluator = Evaluator(stream, eval_step, mesh, config.model.vocab_size, sentinels, config.train.eval_batches)
    checkpoints = Checkpoints(
        run_dir / "checkpoints", config.train.keep_checkpoints, config.train.keep_checkpoint_every, print
    )

    if (record := newest_checkpoint(checkpoints)) is not None:
        check_identity(record["about"]["identity"], about["identity"], run_dir)
        state = checkpoints.restore(record, abstract_state(config.model, config.optimizer, mesh))
        start = int(record["step"])
    else:
        state, start = initial_state(config.model, config.optimizer, config.train.seed, mesh), 0

    if main:
        write_atomically(
            run_dir / "config.json", json.dumps({"values": config.values(), "origins": config.origins}, indent=1)
        )
    metrics_file = MetricsFile(run_dir / "metrics.jsonl", start) if main else None
    display = Display(stop, start, config.train.log_every, quiet=not main)
    display.say(
        f"{'resuming at' if start else 'starting from'} step {start:,} of {stop:,} on {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s), {jax.process_count()} process(es), {compute_dtype}; {run_dir}"
    )
    rows = {name: process_rows(size, mesh) for name, size in batch_sizes.items()}

    def make_batch(index: int) -> Any:
        return put_batch(stream.batch(index, rows), batch_sizes, mesh)

    def report(step: int, metrics: Any, seconds: float, waited: float, evaluation: dict[str, float]) -> None:
        line = metrics_line(step, jax.device_get(metrics), seconds, waited) | evaluation
        if metrics_file:
            metrics_file.write(line)
        display.step(line)
        if not np.isfinite([line["loss"], line["grad_norm"]]).all():
            raise NonFiniteError(
                f"step {step}: loss {line['loss']}, gradient norm {line['grad_norm']}. Nothing was saved after it. Lower "
                f"OptimizerConfig.learning_rate or lengthen warmup_steps, and go on from the last checkpoint in {run_dir}"
            )

    pending: tuple[int, Any, float, float] | None = (
        None  # metrics are fetched one step late: the host never waits for the step it just began
    )
    tick, saved = time.perf_counter(), start
    with (
        StopRequest() as stop_request,
        Prefetcher(make_batch, start, stop, config.data.prefetch) as batches,
        jax.set_mesh(mesh),
    ):
        for step, batch in enumerate(batches, start + 1):
            state, metrics = train_step(state, batch)
            if pending:
                report(*pending, {})
            now = time.perf_counter()
            pending, tick = (step, metrics, now - tick, batches.waited), now
            if step == start + 1:
                jax.block_until_ready(metrics)
                display.say(f"first step done {time.monotonic() - began:.1f} s after the start of the run")
            checkpoints.check()

            stopping = stop_request.at(step) or step == stop
            evaluating = step == config.train.steps or (config.train.eval_every and step % config.train.eval_every == 0)
            saving = stopping or step % config.train.checkpoint_every == 0
            if evaluating or saving:  # needs the state anyway, so this step's metrics can be awaited
                evaluation = evaluator(state["params"]) if evaluating else {}
                report(*pending, evaluation)
                pending = None
                for text in evaluation_lines(evaluation):
                    display.say(text)
            if saving:
                checkpoints.save(step, state, about)
                saved = step
                tick = time.perf_counter()
            if stopping:
                break
        checkpoints.close()
    display.close()
    if metrics_file:
        metrics_file.close()
    if stop_request.signal:
        display.say(
            f"{stop_request.signal.name}: stopped after step {saved:,}, checkpoint saved. Run the same command to go on."
        )
    elif saved == start:
        display.say(f"nothing to do: step {start:,} of {stop:,} is reached already. More: --gin.TrainConfig.steps=…")
    else:
        display.say(f"done: step {saved:,} of {config.train.steps:,}; checkpoints and metrics in {run_dir}")
    return stop_request.exit_code


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


def metrics_line(step: int, metrics: Any, seconds: float, waited: float) -> dict[str, Any]:
    """One line of `metrics.jsonl`: losses in nats per target, rates per second, `batch_digest` in hexadecimal."""
    tokens = float(metrics["input_tokens"]) + float(metrics["target_tokens"])
    line: dict[str, Any] = {"step": step, "loss": float(metrics["loss"])}
    line |= {name: float(value) for name, value in metrics.items() if name.startswith("loss/")}
    line |= {
        "learning_rate": float(metrics["learning_rate"]),
        "grad_norm": float(metrics["grad_norm"]),
        "tokens_per_second": tokens / seconds,
        "target_tokens_per_second": float(metrics["target_tokens"]) / seconds,
        "data_wait_fraction": min(waited / seconds, 1.0),
        "step_seconds": seconds,
        "batch_digest": "".join(f"{int(word):08x}" for word in metrics["batch_digest"]),
    }
    return line


def evaluation_lines(evaluation: dict[str, float]) -> list[str]:
    """Readable lines for what an `Evaluator` returned."""
    lines = []
    for key in evaluation:
        if key.endswith("/text_loss"):
            name = key.split("/")[1]
            text, unigram = evaluation[key], evaluation[f"eval/{name}/unigram_loss"]
            lines.append(
                f"validation {name}: {evaluation[f'eval/{name}/loss']:.3f} nats per target; on text {text:.3f}, unigram "
                f"predictor {unigram:.3f} ({1 - text / unigram:+.1%} below)"
            )
    return lines
