"""The Beam pipeline of preparation, and how errors travel from its workers to the person who started it.

There is one stage, a part of the text is an element, and nothing comes out of it: results are files (`prepare_part`). So
it runs on any runner, and nothing of the text passes through a shuffle. Looking for duplicates takes pipelines before it,
of the same kind (`filtering.passes`).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam

from deltalm_jax.data.prepare_part import PartKey, Plan, check_driver, prepare_part
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.errors import UserError

_MESSAGE = re.compile(r"<preparation-error ([A-Za-z0-9+/=]*)>")


class WorkerError(Exception):
    """A failure with a message for the user, in a form that survives Beam's string traces between processes.

    Beam makes new exceptions of the same class from a changed message, so marking it is not the constructor's work.
    """


def _mark(message: str) -> str:
    return f"<preparation-error {base64.b64encode(message.encode()).decode()}>"


def find_message(error: BaseException | None) -> str | None:
    """The message of a `WorkerError` somewhere inside what Beam raised; None if there is none."""
    while error is not None:
        if match := _MESSAGE.search(str(error)):
            return base64.b64decode(match[1]).decode()
        error = error.__cause__ or error.__context__
    return None


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C lies behind what Beam raised: it makes a RuntimeError of it where a stage runs in this process."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns failures of files and of their content into a `WorkerError`; errors of the program pass through."""
    try:
        yield
    except (OSError, ValueError, UserError) as error:
        raise WorkerError(_mark(f"{what}: {error}")) from error


class _Prepare(beam.DoFn):
    """Does a part (the values of a `PartKey`); gives nothing."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.vocabulary: Vocabulary | None = None

    def process(self, element: tuple[int, str, int, str | None]) -> None:
        key = PartKey(*element)
        with _explained(f"task {self.plan.inputs[key.index].task}"):
            # Here and not in `setup`, whose errors some runners only log.
            self.vocabulary = self.vocabulary or self.plan.load_vocabulary()
            prepare_part(self.plan, self.vocabulary, key)


class _Call(beam.DoFn):
    """Calls a function with each element; what it does is in files."""

    def __init__(self, function: Callable[[Any], None], driver: int | None):
        self.function, self.driver = function, driver

    def process(self, element: Any) -> None:
        check_driver(self.driver)
        with _explained("filters"):
            self.function(element)


def build_calls(
    pipeline: beam.Pipeline, function: Callable[[Any], None], elements: Sequence[Any], driver: int | None
) -> None:
    """Adds calls of a function, one for each element, to a pipeline; `driver` as of `Plan`."""
    calls = beam.ParDo(_Call(function, driver))
    _ = pipeline | "Elements" >> beam.Create(list(elements)) | "Spread" >> beam.Reshuffle() | "Call" >> calls


def build(pipeline: beam.Pipeline, plan: Plan, keys: Sequence[PartKey]) -> None:
    """Adds the stage to a pipeline."""

    def size(key: PartKey) -> int:
        return plan.inputs[key.index].part_size(key.split, key.part)

    # Large ones first: they are what the last worker waits for.
    elements = [dataclasses.astuple(key) for key in sorted(keys, key=size, reverse=True)]
    _ = (
        pipeline
        | "Parts" >> beam.Create(elements)
        | "Spread" >> beam.Reshuffle()
        | "Prepare" >> beam.ParDo(_Prepare(plan))
    )
