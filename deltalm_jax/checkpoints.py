"""A run's checkpoints looked at: `python -m deltalm_jax.checkpoints list runs/pretrain_base`."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from deltalm_jax import redaction
from deltalm_jax.errors import UserError
from deltalm_jax.paths import store_errors
from deltalm_jax.training.checkpoint_record import (
    RECORD,
    STATE,
    CheckpointError,
    StepRecords,
    files_below,
    printable,
    step_of,
)
from deltalm_jax.training.storage import check_readable, run_path, storage_of

_DESCRIPTION = """
Look at the checkpoints of a run, which may be going on: nothing is written.
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.checkpoints list runs/pretrain_base
  python -m deltalm_jax.checkpoints verify runs/pretrain_base --step=50000
  python -m deltalm_jax.checkpoints diff runs/pretrain_base 40000 50000
  python -m deltalm_jax.checkpoints diff runs/one 1000 1000 --other=runs/two

exit codes:
  0  all verified; no difference
  1  verify: a checkpoint is damaged; diff: the two differ
  2  there is no such run or step, or what was to be compared is damaged
"""
_DAMAGED = 1


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags."""
    options: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.checkpoints", description=_DESCRIPTION, epilog=_EXAMPLES, **options
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="list | verify | diff")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, **options)
        command.add_argument("run_dir", metavar="RUN_DIR", help="the run's directory, which may be gs://BUCKET/FOLDER")
        return command

    listing = add("list", "steps with size, date and state; what is damaged, unfinished or something else")
    listing.add_argument("--digests", action="store_true", help="read all files (default: compare names and sizes)")
    verifying = add("verify", "read all files of all steps and compare their digests with the records")
    verifying.add_argument("--step", type=int, metavar="N", help="only this one")
    differing = add(
        "diff", "configuration, tree and arrays of two steps; the largest relative change of an array first"
    )
    differing.add_argument("step_a", type=int, metavar="STEP_A")
    differing.add_argument("step_b", type=int, metavar="STEP_B")
    differing.add_argument("--other", metavar="RUN_DIR", help="the run of STEP_B, if it is another")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes of the user's give one message and exit code 2."""
    redaction.install()
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        run_dir, other = run_path(flags.run_dir), run_path(getattr(flags, "other", None) or flags.run_dir)
        with store_errors():
            match flags.what:
                case "list":
                    return _list(run_dir, flags.digests)
                case "verify":
                    return _verify(run_dir, flags.step)
                case _:
                    return _diff(run_dir, flags.step_a, other, flags.step_b)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _list(run_dir: pathlib.Path, digests: bool) -> int:
    records = StepRecords(_directory(run_dir), print)
    steps, kept = records.steps(), _kept_for_good(run_dir)
    if steps:
        print(
            f"{'step':>10} {'size':>10}  {'written (UTC)':20} {'kept':9} {'digests' if digests else 'names and sizes'}"
        )
    for step in steps:
        try:
            record, damage = records.verify(step, digests=digests), "verified"
        except CheckpointError as error:
            record, damage = None, f"DAMAGED: {error}"
        if not records.folder(step).exists():
            continue  # the run has retired it meanwhile
        if record:
            written, temporary = printable(record["written"]), record.get("temporary") is True
        else:
            written, temporary = "?", False
        how = "temporary" if temporary else "for good" if kept and step % kept == 0 else "newest"
        print(f"{step:10} {_size(records.folder(step)):>10}  {written:20} {how:9} {damage}")
    others = [entry for entry in storage_of(run_dir).entries(records.directory) if step_of(entry) not in steps]
    for entry in others:
        if entry.name.startswith(".deleting-"):
            what = "retired, and not yet deleted"
        elif step_of(entry) is not None and (not entry.is_dir() or not (entry / RECORD).exists()):
            what = "unfinished: being written just now, or left by a run that was killed"
        else:
            what = "no checkpoint"
        print(f"{printable(entry.name):>10}  {what}")
    if not steps and not others:
        print(f"{printable(run_dir)}: no checkpoint yet")
    return 0


def _verify(run_dir: pathlib.Path, step: int | None) -> int:
    records = StepRecords(_directory(run_dir), print)
    steps = records.steps()
    if step is not None and step not in steps:
        raise CheckpointError(f"{printable(run_dir)}: there is no checkpoint of step {step}{_known(steps)}")
    if not steps:
        raise CheckpointError(f"{printable(run_dir)}: there is no checkpoint yet")
    code = 0
    for number in steps if step is None else [step]:
        try:
            files = records.verify(number)["files"]
        except CheckpointError as error:
            if not records.folder(number).exists():
                print(f"step {number}: the run has retired it meanwhile")
                continue
            print(f"step {number}: DAMAGED: {error}")
            code = _DAMAGED
        else:
            print(f"step {number}: verified, {len(files)} files, {_size(records.folder(number))}")
    return code


def _diff(run_a: pathlib.Path, step_a: int, run_b: pathlib.Path, step_b: int) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: an accelerator may be busy with the run
    directories = _directory(run_a), _directory(run_b)
    from deltalm_jax.training.checkpoint_diff import compare
    from deltalm_jax.training.saved_steps import SavedSteps

    sides = []
    for directory, step in zip(directories, (step_a, step_b), strict=True):
        saved = SavedSteps(directory, print)
        if step not in saved.steps():
            raise CheckpointError(
                f"{printable(directory)}: there is no checkpoint of step {step}{_known(saved.steps())}"
            )
        sides.append((saved, saved.verify(step)))
    difference = compare(*sides)
    print(f"a: {printable(directories[0] / str(step_a))}\nb: {printable(directories[1] / str(step_b))}")
    for title, entries in (("configuration", difference.identity), ("tree", difference.tree)):
        print(f"{title}: {'the same' if not entries else ''}".rstrip())
        for name, (ours, theirs) in entries.items():
            print(f"  {printable(name)}: {printable(ours)} in a, {printable(theirs)} in b")
    leaves = difference.leaves
    together = len(leaves) + difference.equal
    if leaves:
        print(f"arrays: {difference.equal} of {together} are equal bit for bit; |b - a| / |a| of the others:")
    else:
        print(f"arrays: {'all ' if not difference.tree else ''}{together} are equal bit for bit")
    for leaf in leaves:
        values = f"   {printable(leaf.values[0])} in a, {printable(leaf.values[1])} in b" if leaf.values else ""
        print(f"  {leaf.relative:10.3g}  {printable(leaf.name)}{values}")
    return 1 if difference.identity or difference.tree or leaves else 0


def _directory(run_dir: pathlib.Path) -> pathlib.Path:
    """`RUN_DIR/checkpoints`, if it is there."""
    check_readable(run_dir)
    directory = run_dir / "checkpoints"
    if directory.is_dir():
        return directory
    if not run_dir.is_dir():
        found = "is a file: name a run's directory" if run_dir.is_file() else "there is no such folder"
        raise CheckpointError(f"{printable(run_dir)}: {found}")
    hint = f": name the run's directory, {printable(run_dir.parent)}" if run_dir.name == "checkpoints" else ""
    raise CheckpointError(f"{printable(run_dir)} is no run: it has no folder checkpoints{hint}")


def _known(steps: list[int]) -> str:
    return f"; there are {', '.join(map(str, steps))}" if steps else ""


def _kept_for_good(run_dir: pathlib.Path) -> int | None:
    """The run's `TrainConfig.keep_checkpoint_every`, from its record of its configuration."""
    try:
        every = json.loads((run_dir / "config.json").read_text("utf-8"))["values"]["TrainConfig.keep_checkpoint_every"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return every if type(every) is int and every > 0 else None


def _size(folder: pathlib.Path) -> str:
    """Bytes of a step's files that are there, as text."""
    try:
        size = sum(size or 0 for size in files_below(folder, STATE).values()) + (folder / RECORD).stat().st_size
    except OSError:
        return "?"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


if __name__ == "__main__":
    sys.exit(main())
