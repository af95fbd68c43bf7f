"""The numbers of a run: a line a step in `metrics.jsonl`, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import pathlib
import time
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import register_writer_factory

from deltalm_jax.data.shards import write_atomically
from deltalm_jax.training.flops import Throughput
from deltalm_jax.training.steady_file import LogError, SteadyFile

METRICS = "metrics.jsonl"


def metrics_line(step: int, metrics: Any, seconds: float, waited: float, throughput: Throughput) -> dict[str, Any]:
    """One line of `metrics.jsonl`.

    Args:
      step: updates done.
      metrics: from the train step, on the host.
      seconds: the step took.
      waited: seconds of them spent waiting for the batch.
      throughput: what utilisation is measured by.

    Returns:
      Losses in nats per target, rates per second, shares between 0 and 1, `batch_digest` in hexadecimal. `mfu` and its
      like (`Throughput.utilisation`) are None where the devices' peak is not known, and `mfu_reason` then says so.
    """
    groups = [name.removeprefix("input_tokens/") for name in metrics if name.startswith("input_tokens/")]
    real = {n: (float(metrics[f"input_tokens/{n}"]), float(metrics[f"target_tokens/{n}"])) for n in groups}
    tokens = float(metrics["input_tokens"]) + float(metrics["target_tokens"])
    line: dict[str, Any] = {"step": step, "loss": float(metrics["loss"])}
    line |= {name: float(value) for name, value in metrics.items() if name.startswith(("loss/", "nll/", "accuracy/"))}
    line |= {
        "learning_rate": float(metrics["learning_rate"]),
        "grad_norm": float(metrics["grad_norm"]),
        "tokens_per_second": tokens / seconds,
        "target_tokens_per_second": float(metrics["target_tokens"]) / seconds,
        "padding_share": float(metrics["padding_share"]),
        "data_wait_fraction": min(waited / seconds, 1.0),
        "step_seconds": seconds,
        **throughput.utilisation(real, seconds),
    }
    line |= {name: int(metrics[name]) for name in ("skipped", "skipped_in_a_row")}
    if throughput.reason:
        line["mfu_reason"] = throughput.reason
    line["batch_digest"] = "".join(f"{int(word):08x}" for word in metrics["batch_digest"])
    return line


class MetricsFile:
    """Appends lines to `metrics.jsonl`; on resume, first cuts it back to the step resumed from.

    Args:
      path: the file.
      resume_step: lines of later steps are dropped (they will be written again, with equal values).

    Raises:
      LogError: the file cannot be written now. Later that is no error: see `SteadyFile`.
    """

    def __init__(self, path: pathlib.Path, resume_step: int):
        kept = []
        try:
            for line in path.read_bytes().split(b"\n") if path.exists() else ():
                try:
                    if json.loads(line)["step"] <= resume_step:
                        kept.append(line + b"\n")
                except (ValueError, KeyError, TypeError):  # a kill can leave half a line at the end
                    continue
            write_atomically(path, b"".join(kept).decode("utf-8"))
        except OSError as error:
            raise LogError(f"{path}: cannot be written: {error.strerror or error}") from error
        self._file = SteadyFile(path)

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line. Numbers that JSON has no word for (nan, inf) become strings."""
        plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(plain).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _SteadyFiles:
    """How tensorboardX is to open files."""

    PREFIX = "steady"

    def open(self, path: str) -> SteadyFile:
        return SteadyFile(pathlib.Path(path.removeprefix(f"{self.PREFIX}:")))


register_writer_factory(_SteadyFiles.PREFIX, _SteadyFiles())


class TensorBoardFile:
    """The same lines for TensorBoard: each number is a scalar of its own name.

    Args:
      folder: where the event file goes.
      resume_step: TensorBoard will pass over what earlier files in the folder say of later steps.

    Raises:
      LogError: the file cannot be made now. Later that is no error: see `SteadyFile`.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # By itself the writer names its file by the second, and would add to one of the same second. What is built round
            # it (`SummaryWriter`) passes each event through a pipe and two threads: that took longer than all of this.
            self._writer = EventsWriter(f"{_SteadyFiles.PREFIX}:{folder}/events", f".from-{resume_step}")
        except OSError as error:
            if isinstance(error, LogError):
                raise
            raise LogError(f"{folder}: cannot be made for TensorBoard: {error.strerror or error}") from error
        if resume_step:
            self._write(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._writer.flush()

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line; what is no number (digests, reasons) is left out."""
        # All in one event: one for each took a third of the loop's own time.
        values = [Summary.Value(tag=name, simple_value=v) for name, v in line.items() if isinstance(v, float)]
        self._write(Event(step=line["step"], summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
