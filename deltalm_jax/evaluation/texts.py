"""What is to be decoded and scored: sources with their references, from files or from a seqio Task."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalm_jax.errors import UserError

if TYPE_CHECKING:
    from deltalm_jax.data.mixture import Registration

# Of a task that names none.
DEFAULT_METRICS = ("bleu", "chrf++")

_LINE_ENDS = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


class EvaluationError(UserError, ValueError):
    """Nothing can be scored with what was given; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Sources and what they are compared with.

    Attributes:
      name: of the Task, or of the files; for people.
      split: of the Task; "" for files.
      sources: one line each.
      references: for each source one or more strings.
      metrics: names of `deltalm_jax.evaluation.metrics.METRICS`.
      language: the Task's, "" for files; what is behind its last hyphen is the target's.
    """

    name: str
    split: str
    sources: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...]
    language: str = ""

    def first(self, count: int) -> EvaluationSet:
        """The first so many of them."""
        return dataclasses.replace(self, sources=self.sources[:count], references=self.references[:count])


def from_files(source: Path, references: Sequence[Path]) -> EvaluationSet:
    """Line-aligned files, UTF-8.

    Raises:
      EvaluationError: one cannot be read, has a line that is no UTF-8, or they have unequal numbers of lines.
    """
    columns = [_lines(path) for path in (source, *references)]
    for path, lines in zip(references, columns[1:], strict=True):
        if len(lines) != len(columns[0]):
            raise EvaluationError(
                f"expected as many references as sources, found {len(columns[0]):,} lines in {source} and {len(lines):,} in "
                f"{path}: they do not belong together, or one is cut short"
            )
    if not columns[0]:
        raise EvaluationError(f"{source}: expected a source on each line, found an empty file")
    sources, *others = columns
    return EvaluationSet(source.name, "", tuple(sources), tuple(zip(*others, strict=True)), DEFAULT_METRICS)


def from_task(name: str, split: str, registration: Registration) -> EvaluationSet:
    """A split of a registered Task of examples.

    Args:
      name: of the Task.
      split: usually "test" or "validation".
      registration: what registers it.

    Raises:
      EvaluationError: there is no such Task, it has no such split, or it is none of examples.
      CorpusError: its data are missing or damaged.
    """
    import seqio

    from tasks.text import TextTask

    registration.register()
    examples = [n for n in seqio.TaskRegistry.names() if getattr(seqio.TaskRegistry.get(n), "unit", "") == "examples"]
    if name not in examples:
        raise EvaluationError(
            f"--task={name}: expected a Task with sources and targets, found "
            + ("another kind of Task" if name in seqio.TaskRegistry.names() else "none of that name")
            + f". There are: {', '.join(sorted(examples)) or 'none in this --data_dir (docs/tasks.md)'}"
        )
    task = seqio.TaskRegistry.get(name)
    assert isinstance(task, TextTask)
    if split not in task.splits:
        raise EvaluationError(f"--split={split}: {name} has the splits {', '.join(task.splits)}")
    sources, references = [], []
    for example in task.text_dataset(split).as_numpy_iterator():
        sources.append(_LINE_ENDS.sub(" ", example["source"].decode()))
        references.append(tuple(reference.decode() for reference in _references(example)))
    if not sources:
        raise EvaluationError(f"{name}, split {split!r}: there are no examples in it")
    metrics = tuple(getattr(task, "metrics", ())) or DEFAULT_METRICS
    return EvaluationSet(name, split, tuple(sources), tuple(references), metrics, task.language)


def _references(example: dict[str, Any]) -> Sequence[bytes]:
    return list(example["references"]) if "references" in example else [example["target"]]


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error
    lines = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], 1):
        try:
            lines.append(line.decode().removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise EvaluationError(f"{path}, line {number}: no UTF-8 ({error.reason})") from error
    return lines
