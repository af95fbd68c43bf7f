"""The generation command: `python -m deltalm_jax.generate --checkpoint=runs/finetune < in > out`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from deltalm_jax import redaction

_INTERRUPTED = 130

_DESCRIPTION = """
Let a model write: each line of the input is a source, and the same line of the output is what the model makes of it. Blank
lines stay blank. With --output, a run that was ended goes on where it was, if the same command is given again.
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.generate --checkpoint=runs/finetune < in.txt > out.txt
  python -m deltalm_jax.generate --checkpoint=runs/finetune --input=in.txt --output=out.jsonl --output_format=jsonl \\
      --num_return=5 --max_length_per_token=1.2 --max_length=10
  python -m deltalm_jax.generate --checkpoint=models/mine --source_prefix='__de__ ' --allowed_script=Latin < in.txt
  python -m deltalm_jax.generate --checkpoint=models/mine --temperature=0.8 --top_p=0.95 --seed=3 < in.txt

What the rules are, and what a result hangs on: docs/generation.md.
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags."""
    from deltalm_jax.decoding.flags import add_checkpoint_flag, add_search_flags
    from deltalm_jax.decoding.texts import FORMATS

    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.generate",
        usage="%(prog)s --checkpoint=PATH [--input=FILE] [--output=FILE] [more]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    path = pathlib.Path
    what = parser.add_argument_group("what")
    add_checkpoint_flag(what)
    what.add_argument("--input", type=path, metavar="FILE", help="UTF-8, a source on each line (default: stdin)")
    what.add_argument("--output", type=path, metavar="FILE", help="(default: stdout)")
    what.add_argument(
        "--output_format", choices=FORMATS, default="text",
        help="text: the best hypothesis; jsonl: an object on each line, with --num_return hypotheses and their scores",
    )  # fmt: skip
    what.add_argument("--num_return", type=int, default=1, metavar="N", help="hypotheses of each source (default: 1)")
    what.add_argument("--source_prefix", default="", metavar="TEXT", help="put before every source, as in fine-tuning")
    add_search_flags(parser)
    group = parser.add_argument_group("several processes, each with its own part of the batches")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help='process 0\'s address, or "auto" on TPU, SLURM and MPI'
    )
    group.add_argument("--num_processes", type=int, metavar="N", help="processes in all")
    group.add_argument("--process_id", type=int, metavar="I", help="this process's number, from 0")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes of the user's give one message and exit code 2."""
    redaction.install(steady=True)
    flags = vars(parse_arguments(sys.argv[1:] if arguments is None else arguments))
    from deltalm_jax.decoding.job import Job, run
    from deltalm_jax.errors import UserError
    from deltalm_jax.parallel.mesh import initialize_processes
    from deltalm_jax.training.faults import Stopped, StopRequest

    processes = [flags.pop(name) for name in ("coordinator", "num_processes", "process_id")]
    again = "the same command goes on" if flags["output"] else "nothing is kept"
    try:
        with StopRequest():
            job = Job(**flags)
            job.options()
            initialize_processes(*processes)
            run(job)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        print("nobody reads the output any more", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"{stopped}: stopped; {again}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; {again}", file=sys.stderr)
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
