"""The training run, from top to bottom."""

from __future__ import annotations

import contextlib
import pathlib
import time
from typing import Any

import jax

from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.prefetch import Prefetcher
from deltalm_jax.data.stream import Stream
from deltalm_jax.fault_points import reached
from deltalm_jax.model.config import resolve_compute_dtype
from deltalm_jax.model.kernels import resolve_attention
from deltalm_jax.parallel.mesh import make_mesh
from deltalm_jax.parallel.sharding import check_batch, process_rows, put_batch
from deltalm_jax.training.checkpoint import Checkpoints, newest_checkpoint
from deltalm_jax.training.config import RANDOM, Config
from deltalm_jax.training.evaluation import Evaluator
from deltalm_jax.training.faults import StopRequest
from deltalm_jax.training.flops import throughput
from deltalm_jax.training.profiling import Profiler
from deltalm_jax.training.record import check_identity, describe, epochs_line, write_record
from deltalm_jax.training.reporting import Reporter
from deltalm_jax.training.starting_point import start_from_model
from deltalm_jax.training.step import abstract_state, initial_state, make_eval_step, make_train_step


def train(
    config: Config, prepared: PreparedData, run_dir: pathlib.Path, profile_steps: tuple[int, int] | None = None
) -> int:
    """Trains, or goes on training, until `steps` (or `stop_at_step`, or a signal).

    Where the parameters come from:
      1. the newest checkpoint in `run_dir` that verifies, if there is one;
      2. else `TrainConfig.init_from`.

    Args:
      config: the run's configuration.
      prepared: its data, opened and checked.
      run_dir: folder for checkpoints, metrics and the effective configuration; made if absent.
      profile_steps: first and last step of a profiler trace, written to RUN_DIR/profile.

    Returns:
      The process's exit code: 0 when the run got where it should, otherwise `StopRequest.exit_code`.

    Raises:
      CheckpointError: no checkpoint can be used, or the configuration differs from the checkpoint's.
      NonFiniteError: training diverged. The last checkpoint precedes it.
    """
    began = time.monotonic()
    options, batch_sizes = config.train, config.data.objective_batch_sizes
    stop = options.stop_at_step or options.steps
    is_first_process = jax.process_index() == 0

    # Everything that can be wrong is found before a device computes anything.
    stream = Stream(prepared, config.objectives(), options.seed)
    mesh = make_mesh(config.mesh)
    check_batch(batch_sizes, mesh, options.accumulation_steps)
    rows = {name: process_rows(size, mesh) for name, size in batch_sizes.items()}
    compute_dtype = resolve_compute_dtype(config.model, jax.default_backend())
    about = describe(config, prepared, compute_dtype)
    run_dir.mkdir(parents=True, exist_ok=True)
    if options.compilation_cache:
        use_compilation_cache(run_dir / "compilation_cache")

    shared: Any = {"compute_dtype": compute_dtype, "decoder_start": config.data.decoder_start}
    train_step = make_train_step(
        config.model, config.optimizer, config.loss, mesh,
        seed=options.seed, accumulation_steps=options.accumulation_steps, **shared,
    )  # fmt: skip
    eval_step = make_eval_step(config.model, config.loss, mesh, sentinels=stream.sentinels, **shared)
    evaluate = Evaluator(stream, eval_step, mesh, config.model.vocab_size, options.eval_batches)

    checkpoints = Checkpoints(run_dir / "checkpoints", options.keep_checkpoints, options.keep_checkpoint_every, print)
    reached("start")
    record = newest_checkpoint(checkpoints)
    if record is not None:
        reached("restore", record["step"])
        check_identity(record["about"]["identity"], about["identity"], run_dir)
        state = checkpoints.restore(record, abstract_state(config.model, config.optimizer, mesh))
        start, about["start"] = int(record["step"]), record["about"].get("start")
    elif options.init_from == RANDOM:
        state, start = initial_state(config.model, config.optimizer, options.seed, mesh), 0
    else:
        start = 0
        state, about["start"] = start_from_model(config, prepared, mesh)

    if is_first_process:
        write_record(config, stream, run_dir)
    devices = jax.devices()
    speed = throughput(config.model, config.step_shapes(), devices[0].device_kind, len(devices), compute_dtype)
    reporter = Reporter(
        run_dir, start, stop,
        log_every=options.log_every, tensorboard=options.tensorboard, throughput=speed, speaks=is_first_process,
    )  # fmt: skip
    reporter.say(
        f"{'resuming at' if start else 'starting from'} step {start:,} of {stop:,} on {len(devices)} "
        f"{devices[0].platform} device(s), {jax.process_count()} process(es), {compute_dtype}, "
        f"attention {resolve_attention(config.model, devices[0], compute_dtype)}; {run_dir}"
    )
    reporter.say(epochs_line(stream.epochs(options.steps), options.steps))
    if speed.reason:
        reporter.say(f"MFU is not reported: {speed.reason}")
    traced = profile_steps is not None and start < profile_steps[0] <= profile_steps[1] <= stop
    profiler = Profiler(profile_steps if traced else None, run_dir / "profile")
    if profile_steps and not traced:
        reporter.say(f"WARNING: no trace is recorded: steps {profile_steps} do not all lie in {start + 1} to {stop}")

    def make_batch(index: int) -> Any:
        reached("batch", index + 1)
        return put_batch(stream.batch(index, rows), batch_sizes, mesh)

    saved = start
    with (
        StopRequest(start) as stop_request,  # outermost: a second signal must not end the last save
        contextlib.closing(reporter),
        contextlib.closing(checkpoints),
        contextlib.closing(profiler),
        Prefetcher(make_batch, start, stop, config.data.prefetch) as batches,
        jax.set_mesh(mesh),
    ):
        for step, batch in enumerate(batches, start + 1):
            profiler.before(step)
            with jax.transfer_guard("disallow"):  # all that a step needs is on the devices already
                state, metrics = train_step(state, batch)
            # Reports the step before this one: the host never waits for the step it has just begun.
            reporter.step(step, metrics, batches.waited)
            if step == start + 1:
                jax.block_until_ready(metrics)
                reporter.say(f"first step done {time.monotonic() - began:.1f} s after the start of the run")
            if text := profiler.after(step, metrics):
                reporter.say(text)
            checkpoints.check()
            reached("step", step)

            stopping = stop_request.at(step) or step == stop
            saving = stopping or step % options.checkpoint_every == 0
            evaluating = step == options.steps or _is_due(step, options.eval_every)
            if evaluating:
                reached("evaluate", step)
                epochs = {f"epochs/{task}": n for task, n in stream.epochs(step).items()}
                evaluation = evaluate(state.get("ema", state["params"]))
                reporter.flush(evaluation | epochs, by_group=step == options.steps)
            if saving:
                reporter.flush({})
                checkpoints.save(step, state, about)
                saved = step
            if evaluating or saving:
                reporter.restart_clock()
            if stopping:
                reached("close", step)
                break
    reporter.say(_last_words(stop_request, start, saved, options.steps, run_dir))
    return stop_request.exit_code


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
        return f"{name}: stopped after step {saved:,}, checkpoint saved"
    if saved == start:
        return f"nothing to do: step {start:,} of {steps:,} is reached already. More: --gin.TrainConfig.steps=…"
    return f"done: step {saved:,} of {steps:,}; checkpoints and metrics in {run_dir}"
