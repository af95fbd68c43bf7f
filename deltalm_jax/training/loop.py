"""The training run, from top to bottom."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.prefetch import Prefetcher
from deltalm_jax.data.stream import Stream
from deltalm_jax.fault_points import reached
from deltalm_jax.model.config import resolve_compute_dtype
from deltalm_jax.model.kernels import resolve_attention
from deltalm_jax.parallel.agreement import value_of_first_process
from deltalm_jax.parallel.mesh import make_mesh
from deltalm_jax.parallel.sharding import check_batch, process_rows, put_batch
from deltalm_jax.paths import absolute
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints, newest_checkpoint
from deltalm_jax.training.config import RANDOM, Config
from deltalm_jax.training.data_order import DataOrder
from deltalm_jax.training.eval_step import make_eval_step
from deltalm_jax.training.evaluation import Evaluator
from deltalm_jax.training.exchange import Exchange
from deltalm_jax.training.faults import StopRequest
from deltalm_jax.training.flops import Throughput, throughput
from deltalm_jax.training.guards import Guard, LossSpike, NonFiniteError
from deltalm_jax.training.integrity import IntegrityCheck, IntegrityError
from deltalm_jax.training.profiling import Profiler
from deltalm_jax.training.record import describe, epochs_line, write_record
from deltalm_jax.training.reporting import Reporter
from deltalm_jax.training.resuming import check_counters, check_identity, note_rewind, place_in_data
from deltalm_jax.training.run_files import RunFiles, run_files
from deltalm_jax.training.selection import Best, as_record, best_of
from deltalm_jax.training.starting_point import start_from_model
from deltalm_jax.training.step import State, abstract_state, initial_state, make_train_step
from deltalm_jax.training.watch import Watch, unwatched
from deltalm_jax.training.watchdog import LONG

# To one checkpoint: data that leap each time are not at fault.
_MAX_REWINDS = 5


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same throughout a run."""

    config: Config
    run_dir: pathlib.Path
    files: RunFiles
    began: float
    last_step: int
    stream: Stream
    mesh: Mesh
    train_step: Callable[[State, Any], tuple[State, dict[str, jax.Array]]]
    evaluate: Evaluator
    judge: Callable[[Any, Any], float] | None
    check: IntegrityCheck
    exchange: Exchange
    checkpoints: Checkpoints
    speed: Throughput
    profiler: Profiler
    watch: Watch


@dataclasses.dataclass
class _Place:
    """Where a run stands: its state after `step` updates, what of the data it leaves out, and what checkpoints say of it."""

    state: State
    step: int
    order: DataOrder
    recent_losses: Sequence[float]
    about: dict[str, Any]
    best: Best | None


def train(
    config: Config,
    prepared: PreparedData,
    run_dir: pathlib.Path,
    profile_steps: tuple[int, int] | None = None,
    allowed_changes: Sequence[str] = (),
    watch: Watch | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> int:
    """Trains, or goes on training, until `steps` (or `stop_at_step`, or a signal).

    Where the parameters come from:
      1. the newest checkpoint in `run_dir` that verifies, if there is one;
      2. else `TrainConfig.init_from`.

    Args:
      config: the run's configuration.
      prepared: its data, opened and checked.
      run_dir: folder (or place in a bucket, from `run_path`) for checkpoints, metrics and the effective configuration; made
        if absent.
      profile_steps: first and last step of a profiler trace, written to RUN_DIR/profile.
      allowed_changes: names of identity fields that may differ from the checkpoint's.
      watch: what looks after the run; None for nothing.
      confirm: from `owned`, called in the background before a checkpoint counts.

    Returns:
      The process's exit code: 0 when the run got where it should, otherwise `StopRequest.exit_code`.

    Raises:
      CheckpointError: no checkpoint can be used, or the configuration differs from the checkpoint's.
      NonFiniteError: training diverged. The last checkpoint precedes it.
      IntegrityError: the devices do not agree on the state.
    """
    began, watch = time.monotonic(), watch or unwatched()
    options, batch_sizes = config.train, config.data.objective_batch_sizes
    stop = options.stop_at_step or options.steps

    # Everything that can be wrong is found before a device computes anything.
    stream = Stream(prepared, config.objectives(), options.seed)
    mesh = make_mesh(config.mesh)
    check_batch(batch_sizes, mesh, options.accumulation_steps)
    compute_dtype = resolve_compute_dtype(config.model, jax.default_backend())
    about = describe(config, prepared, compute_dtype)
    if options.compilation_cache:
        use_compilation_cache(run_dir / "compilation_cache")

    shared: Any = {
        "compute_dtype": compute_dtype,
        "decoder_start": config.data.decoder_start,
        "groups": config.data.groups(),
    }
    train_step = make_train_step(
        config.model, config.optimizer, config.loss, mesh,
        seed=options.seed, accumulation_steps=options.accumulation_steps, contrast=config.contrast_or_none, **shared,
    )  # fmt: skip
    eval_step = make_eval_step(config.model, config.loss, mesh, sentinels=stream.sentinels, **shared)
    judge = None
    if options.select_by:
        from deltalm_jax.training.judge import make_judge  # a decoder and metrics, which few runs need

        judge = make_judge(options.select_by, options.select_examples, config.model, stream, mesh)
    abstract = abstract_state(config.model, config.optimizer, mesh, config.contrast_or_none)
    devices = jax.devices()
    with (
        run_files(run_dir, jax.process_index() == 0, print) as files,
        Checkpoints(
            run_dir / "checkpoints", options.keep_checkpoints, options.keep_checkpoint_every, print,
            before_record=(files.keep, confirm),
        ) as checkpoints,
        contextlib.closing(Profiler(profile_steps, files.folder / "profile", run_dir / "profile")) as profiler,
        jax.set_mesh(mesh),
        watch.peers.telling(),  # innermost: closing the others may wait for other processes
    ):  # fmt: skip
        reached("start")
        run = _Run(
            config, run_dir, files, began, stop, stream, mesh, train_step,
            evaluate=Evaluator(stream, eval_step, mesh, config.model.vocab_size, options.eval_batches),
            judge=judge,
            check=IntegrityCheck(abstract, mesh),
            exchange=Exchange(),
            checkpoints=checkpoints,
            speed=throughput(config.model, config.step_shapes(), devices[0].device_kind, len(devices), compute_dtype),
            profiler=profiler,
            watch=watch,
        )  # fmt: skip
        run.exchange.require_same(about["identity"] | config.steering())
        place = _newest_place(run, about, allowed_changes, prepared, abstract)
        if jax.process_index() == 0:
            write_record(config, stream, run_dir)
        rewinds: collections.Counter[int] = collections.Counter()
        while isinstance(ended := _until_spike(run, place), LossSpike):
            spike, order = ended, place.order
            place = _newest_place(run, about, allowed_changes, prepared, abstract)
            rewinds[place.step] += 1
            if rewinds[place.step] > _MAX_REWINDS:
                raise NonFiniteError(f"{spike}, {rewinds[place.step]} times after step {place.step:,}")
            window = order.batch_of(place.step), order.batch_of(spike.step - 1) + 1
            place.order = order.without(*window)
            words = note_rewind(spike, place.step, window, place.order, run_dir)
            if jax.process_index() == 0:
                print(words, flush=True)
    if jax.process_index() == 0:
        print(ended, flush=True)
    return watch.stop_request.exit_code


def _newest_place(
    run: _Run, about: dict[str, Any], allowed_changes: Sequence[str], prepared: PreparedData, abstract: Any
) -> _Place:
    """The newest checkpoint that verifies, or the start of the run."""
    config, checkpoints = run.config, run.checkpoints
    run.watch.watchdog.phase("restore", LONG)
    record = newest_checkpoint(checkpoints)
    if record is not None:
        reached("restore", record["step"])
        step, saved = int(record["step"]), record["about"]
        changes = check_identity(saved["identity"], about["identity"], run.run_dir, allowed_changes)
        order, losses = place_in_data(record, config.train.skipped_data)
        state = checkpoints.restore(record, abstract)
        check_counters(state, record)
        history = saved.get("allowed_changes", []) + [{"step": step, **change} for change in changes]
        about = about | {"start": saved.get("start"), "allowed_changes": history}
        return _Place(state, step, order, losses, about, best_of(saved, config.train.select_by))
    order, best = DataOrder.of(config.train.skipped_data), best_of({}, config.train.select_by)
    if config.train.init_from == RANDOM:
        state = initial_state(config.model, config.optimizer, config.train.seed, run.mesh, config.contrast_or_none)
        return _Place(state, 0, order, (), about, best)
    state, start = start_from_model(config, prepared, run.mesh)
    return _Place(state, 0, order, (), about | {"start": start}, best)


def _until_spike(run: _Run, place: _Place) -> str | LossSpike:
    """All steps from a place on; returns the run's last words, or the spike at which it has to go back."""
    try:
        return _steps(run, place)
    except LossSpike as spike:
        _finish_save(run)
        # Without its trace, which keeps the state that the steps held: there may be no room for two.
        return spike.with_traceback(None)
    except (NonFiniteError, IntegrityError):  # on all processes alike: what they save together can be finished
        try:
            _finish_save(run)
        except CheckpointError as failure:
            print(f"WARNING: {failure}", flush=True)
        raise


def _finish_save(run: _Run) -> None:
    run.watch.watchdog.phase("finishing a save", LONG)
    run.checkpoints.wait()


def _steps(run: _Run, place: _Place) -> str:
    """All steps from a place on. Returns the run's last words; raises LossSpike where it has to go back."""
    config, options, start, stop = run.config, run.config.train, place.step, run.last_step
    stop_request, watchdog = run.watch.stop_request, run.watch.watchdog
    best = place.best
    if best and best.is_enough(options.patience):
        return f"nothing to do: {best}; none better in {best.since} (TrainConfig.patience)"
    if start < stop and stop_request.at_boundary():  # asked to while it was restored: do not compile first
        return _last_words(stop_request, start, start, options.steps, run.run_dir)
    batch_sizes = config.data.objective_batch_sizes
    rows = {name: process_rows(size, run.mesh) for name, size in batch_sizes.items()}
    guard = Guard(options.max_skipped_in_a_row, options.spike_factor, options.spike_window, place.recent_losses)
    reporter = Reporter(
        run.files.folder, start, stop,
        log_every=options.log_every, tensorboard=options.tensorboard, throughput=run.speed, guard=guard,
        speaks=jax.process_index() == 0,
    )  # fmt: skip
    state, saved, saved_at = place.state, start, time.monotonic()

    def make_batch(index: int) -> Any:
        reached("batch", index + 1)
        return put_batch(run.stream.batch(place.order.batch_of(index), rows), batch_sizes, run.mesh)

    with (
        contextlib.closing(reporter),
        Prefetcher(make_batch, start, stop, config.data.prefetch) as batches,
    ):
        _say_where(run, place, reporter)
        for step, batch in enumerate(batches, start + 1):
            watchdog.phase(f"step {step}", LONG if step == start + 1 else 1.0)  # the first step is compiled
            run.profiler.before(step)
            with jax.transfer_guard("disallow"):  # all that a step needs is on the devices already
                state, metrics = run.train_step(state, batch)
            # Reports the step before this one: the host never waits for the step it has just begun.
            reporter.step(step, metrics, batches.waited)
            if step == start + 1:
                jax.block_until_ready(metrics)
                reporter.say(f"first step done {time.monotonic() - run.began:.1f} s after the start of the run")
            if text := run.profiler.after(step, metrics):
                reporter.say(text)
            run.checkpoints.check()
            reached("step", step)

            stopping = stop_request.at_boundary() or step == stop
            evaluating = step == options.steps or _is_due(step, options.eval_every)
            scheduled = _is_due(step, options.checkpoint_every) or step == options.steps
            checking = _is_due(step, options.check_every)
            late = checking and _look_at_the_whole(run, reporter, state, step, saved_at)
            saving = scheduled or stopping or late
            if evaluating:
                watchdog.phase(f"validation after step {step}", LONG)
                reached("evaluate", step)
                epochs = {f"epochs/{t}": n for t, n in run.stream.epochs(place.order.batch_of(step)).items()}
                params = state.get("ema", state["params"])
                evaluation = run.evaluate(params)
                if run.judge is not None and best is not None:
                    value = value_of_first_process(run.judge(params, evaluation))
                    evaluation[f"select/{best.by}"] = value
                    best = best.after(step, value)
                    stopping |= best.is_enough(options.patience)
                    saving |= stopping or best.step == step
                reporter.flush(evaluation | epochs, by_group=step == options.steps)
                if best is not None:
                    reporter.say(f"{best.by} of what is held out: {evaluation[f'select/{best.by}']:.4g}; {best}")
            if saving:
                watchdog.phase(f"save of step {step}", LONG)
                reporter.flush({})
                if not checking:
                    run.check(state, step)
                data = {"skipped": place.order.as_json(), "next_batch": place.order.batch_of(step)}
                about = place.about | {"data": data, "recent_losses": list(guard.recent)} | as_record(best)
                ending = "the run finished" if step == stop else "the run was stopped" if stopping else ""
                run.checkpoints.save(
                    step, state, about, temporary=not scheduled, ending=ending, best=best.step if best else None
                )
                saved, saved_at = step, time.monotonic()
            if evaluating or saving:
                reporter.restart_clock()
            if stopping:
                watchdog.phase("close", LONG)
                reached("close", step)
                break
    words = _last_words(stop_request, start, saved, options.steps, run.run_dir)
    if best is not None and best.step:
        early = f"; stopped early, none better in {best.since} validations" if best.is_enough(options.patience) else ""
        words += f"\n{best}: {run.run_dir / 'checkpoints' / str(best.step)}{early}"
    return words


def _look_at_the_whole(run: _Run, reporter: Reporter, state: State, step: int, saved_at: float) -> bool:
    """Compares the state's copies, and the processes' times; returns whether a checkpoint is due by the clock."""
    run.check(state, step)
    told = run.exchange(*reporter.mean_times(), time.monotonic() - saved_at)
    reporter.add(run.exchange.metrics(told))
    if warning := run.exchange.warning(told):
        reporter.say(warning)
    reporter.restart_clock()
    minutes = run.config.train.checkpoint_minutes
    return minutes is not None and bool(told.save_seconds[0] >= 60 * minutes)  # process 0's clock, for all


def _say_where(run: _Run, place: _Place, reporter: Reporter) -> None:
    start, device, compute_dtype = place.step, jax.devices()[0], place.about["identity"]["compute_dtype"]
    reporter.say(
        f"{'resuming at' if start else 'starting from'} step {start:,} of {run.last_step:,} on {jax.device_count()} "
        f"{device.platform} device(s), {jax.process_count()} process(es), {compute_dtype}, "
        f"attention {resolve_attention(run.config.model, device, compute_dtype)}; {run.run_dir}"
    )
    steps = run.config.train.steps
    reporter.say(epochs_line(run.stream.epochs(steps), steps))
    if run.speed.reason:
        reporter.say(f"MFU is not reported: {run.speed.reason}")
    if text := run.profiler.unreachable(start, run.last_step):
        reporter.say(text)


def use_compilation_cache(folder: pathlib.Path) -> None:
    """Keeps compiled steps in `folder`, so that a restart is quick; a cache that the user has set up wins."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(absolute(folder)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _last_words(stop_request: StopRequest, start: int, saved: int, steps: int, run_dir: pathlib.Path) -> str:
    if stop_request.exit_code and stop_request.signal:
        name = stop_request.signal.name
        if saved == start:
            return f"{name}: stopped before step {start + 1:,}; nothing is lost"
        return f"{name}: stopped after step {saved:,}, checkpoint saved"
    if saved == start:
        return f"nothing to do: step {start:,} of {steps:,} is reached already. More: --gin.TrainConfig.steps=…"
    return f"done: step {saved:,} of {steps:,}; checkpoints and metrics in {run_dir}"
