"""The training command: `python -m deltalm_jax.train --gin_file=pretrain_tiny.gin`."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from deltalm_jax import redaction
from deltalm_jax.errors import UserError
from deltalm_jax.training.faults import EXIT_INTERRUPTED, Stopped, StopRequest, end_now

# A run whose processes end one after another, started again: its address may still be taken for so long.
_FREE_SECONDS = 60.0
# A process that fails before it has joined the others waits so long for them, to tell them.
_TELL_SECONDS = 60.0

_DESCRIPTION = """
Pretrain a DeltaLM, or go on pretraining it: run the same command again and the run goes on from its newest checkpoint.
Prepared data is made first where there is none and the corpora are small.
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.train --gin_file=pretrain_tiny.gin
  python -m deltalm_jax.train --gin_file=pretrain_tiny.gin --gin.TrainConfig.steps=100 --run_dir=runs/short
  python -m deltalm_jax.train --gin_file=pretrain_tiny.gin --profile_steps=10,15
  python -m deltalm_jax.train --gin_file=pretrain_base.gin --dry_run
  python -m deltalm_jax.train --gin_file=pretrain_base.gin --gin.DataConfig.data_dir=/corpora \\
      --gin.DataConfig.vocabulary=sentencepiece.bpe.model

--dry_run shows every value that can be set, and where each came from. What they mean: docs/training.md.
Ctrl-C and SIGTERM save at the next step and end the run with the exit codes 130 and 75; a run that hangs, or of whose
processes one is lost, ends with the exit code 70. The same command goes on from the newest checkpoint.
"""


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Command-line flags, and the `--gin.Class.field=value` bindings without their prefix."""
    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.train",
        usage="%(prog)s --gin_file=FILE [--gin.Class.field=VALUE …] [--run_dir=DIR] [--dry_run] [more]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE",
        help="configuration: the name of a shipped file or a path; repeat to add files, later ones win",
    )  # fmt: skip
    what.add_argument(
        "--gin.Class.field", metavar="VALUE", help="one value, e.g. --gin.TrainConfig.steps=40; wins over files"
    )
    what.add_argument(
        "--allow_import", action="append", default=[], metavar="MODULE",
        help="a module of yours that the configuration may name (importing it runs its code)",
    )  # fmt: skip
    what.add_argument(
        "--allow_config_change", action="append", default=[], metavar="NAME",
        help="go on with a run though this field, such as OptimizerConfig.learning_rate, or its data changed; on record",
    )  # fmt: skip
    where = parser.add_argument_group("where to, and what to see")
    where.add_argument(
        "--run_dir", metavar="DIR",
        help="checkpoints and metrics go here, a folder or gs://BUCKET/FOLDER (default: runs/<gin name>)",
    )  # fmt: skip
    where.add_argument("--dry_run", action="store_true", help="print what the run would be, with examples, and stop")
    where.add_argument(
        "--profile_steps", type=_steps, metavar="FIRST,LAST",
        help="record a profiler trace of these steps in RUN_DIR/profile (TensorBoard's profile plugin, Perfetto)",
    )  # fmt: skip
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help='process 0\'s address, or "auto" on TPU, SLURM and MPI'
    )
    group.add_argument("--num_processes", type=int, metavar="N", help="processes in all")
    group.add_argument("--process_id", type=int, metavar="I", help="this process's number, from 0")
    bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return parser.parse_args([a for a in arguments if not a.startswith("--gin.")]), bindings


def _steps(text: str) -> tuple[int, int]:
    try:
        first, last = (int(part) for part in text.split(","))
    except ValueError:
        first = last = 0
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"expected two steps such as 10,15, the first from 1, found {text!r}")
    return first, last


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes of the user's give one message and exit code 2."""
    redaction.install(steady=True)
    arguments = sys.argv[1:] if arguments is None else arguments
    flags, bindings = parse_arguments(arguments)
    to_go_on = f"to go on:\n  {shlex.join(['python', '-m', 'deltalm_jax.train', *arguments])}"
    try:
        with StopRequest() as stop_request:
            return _run(flags, bindings, stop_request, to_go_on)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(f"{stopped}: stopped before the first step; nothing is lost", flush=True)
        print(to_go_on, flush=True)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was saved before is kept, nothing after it", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(flags: argparse.Namespace, bindings: list[str], stop_request: StopRequest, to_go_on: str) -> int:
    # Imported late: `--help` should not wait for jax.
    import jax

    from deltalm_jax.parallel.mesh import check_process_flags
    from deltalm_jax.training.gin_files import load
    from deltalm_jax.training.loop import train
    from deltalm_jax.training.ownership import owned
    from deltalm_jax.training.prepared import open_or_prepare
    from deltalm_jax.training.storage import RunDirectoryInUseError, run_path
    from deltalm_jax.training.watch import watching

    check_process_flags(flags.coordinator, flags.num_processes, flags.process_id)
    with contextlib.ExitStack() as stack:
        numbered = flags.coordinator != "auto"  # else the process learns its number when it joins
        try:
            config = load(flags.gin_file, bindings, flags.allow_import)
            if flags.dry_run:
                from deltalm_jax.training.dry_run import dry_run

                dry_run(config)
                return 0
            run_dir = run_path(flags.run_dir or pathlib.Path("runs", config.name))
            if numbered:
                confirm = stack.enter_context(owned(run_dir, flags.process_id))
            prepared = open_or_prepare(config, alone=flags.coordinator is None, run=stop_request.run)
        except UserError as error:
            if flags.coordinator is not None and not flags.dry_run and not isinstance(error, RunDirectoryInUseError):
                _join_to_tell(flags, stop_request, error)
            raise
        _join(flags, stop_request)
        watch = stack.enter_context(watching(stop_request, config.train.hang_limit))
        if not numbered:
            confirm = stack.enter_context(owned(run_dir, jax.process_index()))
        code = train(config, prepared, run_dir, flags.profile_steps, flags.allow_config_change, watch, confirm)
        if code and jax.process_index() == 0:
            print(to_go_on, flush=True)
    return code


def _join(flags: argparse.Namespace, stop_request: StopRequest) -> None:
    """Joins the processes of the run; says who is missing if they do not all come."""
    from deltalm_jax.parallel.mesh import JOIN_SECONDS, initialize_processes
    from deltalm_jax.training.coordination import answers

    def late() -> str:
        address, of = flags.coordinator, f"of {flags.num_processes}"
        if address == "auto":
            missing = "at least one is missing"
        elif flags.process_id == 0 or answers(address):
            missing = f"process 0 is there ({address}), so at least one other {of} is missing"
        else:
            missing = f"process 0 is missing: nothing answers at {address}"
        return f"error: the processes of the run have not come together in {JOIN_SECONDS} s: {missing}"

    if flags.coordinator is None:
        initialize_processes(None, flags.num_processes, flags.process_id)
        return
    if flags.process_id == 0:
        _wait_until_free(flags.coordinator)
    with stop_request.ends_at_once("stopped before the first step; nothing is lost", JOIN_SECONDS, late):
        initialize_processes(flags.coordinator, flags.num_processes, flags.process_id)


def _wait_until_free(address: str) -> None:
    """Waits for the end of a run that process 0 still coordinates at this address, such as the one before this start.

    Two coordinators can listen at one address on Linux; the processes of both runs would then be mixed up, and end.
    """
    from deltalm_jax.parallel.mesh import MeshError
    from deltalm_jax.training.coordination import answers

    deadline = time.monotonic() + _FREE_SECONDS
    while answers(address):
        if time.monotonic() > deadline:
            raise MeshError(
                f"--coordinator={address}: something listens there already. If it is another run, choose another port for "
                "this one"
            )
        time.sleep(1.0)


def _join_to_tell(flags: argparse.Namespace, stop_request: StopRequest, error: UserError) -> NoReturn:
    """Ends the process, after telling the others of the run, which otherwise would wait for it."""
    from deltalm_jax.parallel.mesh import initialize_processes
    from deltalm_jax.training.coordination import Coordination, answers
    from deltalm_jax.training.peers import Peers

    print(f"error: {error}", file=sys.stderr, flush=True)
    with (
        contextlib.suppress(Exception),  # there is nobody to tell
        stop_request.ends_at_once("stopped", _TELL_SECONDS, lambda: "", error.exit_code),
    ):
        if flags.process_id == 0 and answers(flags.coordinator):
            end_now(error.exit_code)  # another run's coordinator
        initialize_processes(flags.coordinator, flags.num_processes, flags.process_id)
        with Peers(Coordination.of_this_run()) as peers:
            peers.tell(f"{peers.name()} has failed: {error}")
            end_now(error.exit_code)
    end_now(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
