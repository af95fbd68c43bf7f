"""Runs as one page with their curves: `python -m deltalm_jax.report runs/pretrain_base`."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalm_jax import redaction
from deltalm_jax.data.shards import write_atomically
from deltalm_jax.errors import UserError
from deltalm_jax.run_report.names import names_of
from deltalm_jax.run_report.reading import ReportError, read_run
from deltalm_jax.training.storage import run_path

_DESCRIPTION = """
Write one HTML page on a run, or on several that are compared: losses, speed, data, configuration. It needs no network and
opens from a disk. A run may be going on; nothing is written to it.
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.report runs/pretrain_base
  python -m deltalm_jax.report runs/from_encoder runs/from_random --output=compared.html

exit codes:
  0  the page is written
  2  a folder is no run, or the page cannot be written
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags."""
    options: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.report", description=_DESCRIPTION, epilog=_EXAMPLES, **options
    )
    parser.add_argument(
        "run_dirs", nargs="+", metavar="RUN_DIR", help="a run's directory, which may be gs://BUCKET/FOLDER"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE.html", help="the page (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes of the user's give one message and exit code 2."""
    redaction.install()
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        as_html = _page()
        folders = [run_path(folder) for folder in flags.run_dirs]
        runs = [read_run(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]
        page = as_html(runs, f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC")
        try:
            write_atomically(flags.output, page)
        except OSError as error:
            raise ReportError(f"{flags.output} cannot be written: {error.strerror or error}") from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for run in runs:
        for note in run.notes:
            print(f"{run.name}: {note}", file=sys.stderr)
    print(flags.output)
    return 0


def _page() -> Any:
    """The function that makes the page, if what it draws with is installed."""
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise ReportError("the charts need plotly: pip install 'deltalm_jax[report]'") from error
    from deltalm_jax.run_report.page import as_html

    return as_html


if __name__ == "__main__":
    sys.exit(main())
