"""Runs a Beam pipeline elsewhere: on a cluster that a Beam runner knows how to reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

# Beam does not know this one by its short name.
_DASK = "DaskRunner"
_DASK_MODULE = "apache_beam.runners.dask.dask_runner.DaskRunner"


def run_elsewhere(build: Callable[[beam.Pipeline], None], runner: str, beam_options: Sequence[str]) -> None:
    """Builds a pipeline and runs it to its end.

    Args:
      build: adds the stages.
      runner: name of the runner, as Beam takes it; or "DaskRunner".
      beam_options: its flags, as on a command line.

    Raises:
      Exception: whatever the runner raises.
    """
    options = PipelineOptions(pipeline_flags(runner, beam_options))
    pipeline = beam.Pipeline(runner=_DASK_MODULE if runner == _DASK else runner, options=options)
    build(pipeline)
    result = pipeline.run()
    try:
        result.wait_until_finish()
    finally:
        if client := getattr(result, "client", None):  # Dask's runner leaves its connection open
            client.close()


def pipeline_flags(runner: str, beam_options: Sequence[str]) -> list[str]:
    """The runner's flags, with what has to be said for our pipeline and was not.

    Dask's runner puts 128 elements into one task unless it is told otherwise; here an element is a minute's work.
    """
    flags = list(beam_options)
    if runner in (_DASK, _DASK_MODULE) and not any(f.startswith(("--dask_npart", "--dask_partition")) for f in flags):
        flags.append("--dask_partition_size=1")
    return flags
