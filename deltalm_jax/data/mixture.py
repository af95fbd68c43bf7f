"""From the name of a seqio Mixture to the inputs of preparation: corpora as files, Tasks of one's own through seqio.

Imports seqio, TensorFlow and `tasks` inside functions only: worker processes of the preparation import this module, and
most of them never read a Task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import json
import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import xxhash

from deltalm_jax.data.blocks import UNITS, Digest, Input, TextSource
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.errors import UserError
from deltalm_jax.paths import absolute, as_path

if TYPE_CHECKING:
    from tasks.text import TextTask

# Beam gives a worker process several threads, and seqio refuses a second registration.
_REGISTERING = threading.Lock()


class MixtureError(UserError, ValueError):
    """A mixture that does not exist or cannot be prepared, or a module of one's own that cannot be imported."""


@dataclasses.dataclass(frozen=True)
class Registration:
    """What registers the Tasks of a preparation, in the process that starts it and in its workers.

    Attributes:
      vocabulary: of the ids.
      options: further arguments of `tasks.register`. Where `data_dir` has folders of the downstream tasks, those are
        registered too (`tasks.downstream`).
      task_module: module of one's own that registers more Tasks and Mixtures; the working directory is searched too.
    """

    vocabulary: Vocabulary
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task_module: str | None = None

    def register(self) -> None:
        """Registers the corpora's Tasks, and then imports `task_module`, whose Mixtures may hold them.

        Raises:
          CorpusError: from `tasks.register`.
          MixtureError: the module is not there or fails; names the line.
        """
        import tensorflow as tf

        import tasks

        with contextlib.suppress(RuntimeError):  # raised where TensorFlow has begun to work
            # It has no use for an accelerator here, and would take all its memory.
            tf.config.set_visible_devices([], "GPU")
        from tasks.corpora import CORPORA
        from tasks.downstream import FOLDERS, register_downstream

        folder = None if self.options.get("data_dir") is None else as_path(self.options["data_dir"])
        downstream = folder is not None and any((folder / name).is_dir() for name in FOLDERS)
        if downstream:
            register_downstream(self.options["data_dir"], self.vocabulary)
        if folder is None or not downstream or any((folder / name).is_dir() for name in CORPORA):
            tasks.register(vocabulary=self.vocabulary, **self.options)
        if self.task_module:
            _import(self.task_module)


@dataclasses.dataclass(frozen=True)
class TaskInput:
    """The text of a Task of one's own, read through seqio: a `TextSource`.

    Its examples have no file that could be digested; what identifies them is a digest of the texts themselves, in order.

    Attributes:
      task, objective, language, groups: as of `Input`.
      splits: "train", and "validation" if the Task has it.
      registration: registers the Task where it is not known yet.
    """

    task: str
    objective: str
    language: str
    groups: Mapping[str, str]
    splits: tuple[str, ...]
    registration: Registration

    @property
    def unit(self) -> str:
        """ "documents", "pairs" or "examples"."""
        return UNITS[self.objective]

    def parts(self, split: str) -> int:
        """One: seqio sources cannot be read from the middle."""
        return 1

    def read(self, split: str, part: int, counts: Counter[str], digest: Digest) -> Iterator[Any]:
        """Documents, pairs or examples of a split, from the Task's steps before chunking.

        Raises:
          CorpusError: from `TextTask.read_text`.
          MixtureError: it cannot be registered in this process.
        """
        for item in self._find().read_text(split, counts):
            digest.update(json.dumps(item, ensure_ascii=False).encode() + b"\n")
            yield item

    def origin(self, split: str, part: int) -> dict[str, Any]:
        """Its name and split."""
        return {"seqio_task": self.task, "split": split}

    def digest(self, split: str, part: int) -> str:
        """Reads the whole split."""
        digest = xxhash.xxh3_128()
        for _ in self.read(split, part, Counter(), digest):
            pass
        return digest.hexdigest()

    def identity(self, split: str, part: int) -> str | None:
        """None: what a source gives is not known before it is read."""
        return None

    def size(self, split: str) -> int:
        """0: not known."""
        return 0

    def part_size(self, split: str, part: int) -> int:
        """0: not known."""
        return 0

    def problem(self, split: str) -> str | None:
        """None: `inputs_of` has looked at it."""
        return None

    def where(self, split: str) -> str:
        """For messages."""
        return f"seqio task {self.task}, split {split}"

    def _find(self) -> TextTask:
        import seqio

        with _REGISTERING:
            if self.task not in seqio.TaskRegistry.names():
                self.registration.register()
            if self.task not in seqio.TaskRegistry.names():
                raise MixtureError(
                    f"task {self.task} is not registered in this worker process: name the module that registers it "
                    "(--task_module)"
                )
            return seqio.TaskRegistry.get(self.task)


def inputs_of(name: str, registration: Registration, any_vocabulary: bool = False) -> list[TextSource]:
    """The inputs of a registered seqio Mixture (its sub-mixtures included) or Task, sorted by task name.

    Args:
      name: of the Mixture or Task.
      registration: what has registered it.
      any_vocabulary: take Tasks whatever their vocabulary is: for those who only want the text.

    Raises:
      MixtureError: nothing of that name is registered; or a Task that does not know its text, or has another vocabulary or
        corpora from another folder than `registration` says.
      CorpusError: a Task of one's own without training text in the fields that are needed.
    """
    import seqio

    from tasks.corpora import SAMPLE_DIR
    from tasks.pretraining import corpus_of
    from tasks.text import TextTask

    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        mixtures = sorted(seqio.MixtureRegistry.names())
        raise MixtureError(
            f"unknown mixture or task {name!r}. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + f"Mixtures of this data: {', '.join(mixtures)}; or one task, such as cc100_de."
            + ("" if registration.task_module else " Your own are found in the module that --task_module names.")
        )
    found = seqio.get_mixture_or_task(name)
    inputs: list[TextSource] = []
    for task in sorted(found.tasks if isinstance(found, seqio.Mixture) else [found], key=lambda task: task.name):
        if not isinstance(task, TextTask):
            raise MixtureError(
                f"task {task.name}, over {type(task.source).__name__}, is a plain seqio Task, which gives "
                f"{' and '.join(task.output_features)}; preparation needs its text. Register it with tasks.add_task, and "
                "preprocessors that give documents, pairs or examples (docs/own_data.md); or train it through seqio."
            )
        if not any_vocabulary:
            _check_vocabulary(task, registration.vocabulary)
        if corpus := corpus_of(task):
            files, reader = corpus.files, corpus.corpus.read
            folder = registration.options.get("data_dir") or SAMPLE_DIR
            if not absolute(files.train[0]).is_relative_to(absolute(as_path(folder))):
                raise MixtureError(
                    f"task {task.name} reads {files.train[0]}, which is not in {folder}: {registration.task_module} "
                    "registers another folder's corpora. Leave tasks.register out of it, or name that folder with --data_dir."
                )
            inputs.append(
                Input(task.name, task.objective, task.language, reader, files.train, files.validation, task.groups)
            )
            continue
        splits = tuple(split for split in ("train", "validation") if split == "train" or split in task.splits)
        for split in splits:
            task.text_dataset(split)  # raises where there is no such text
        inputs.append(TaskInput(task.name, task.objective, task.language, task.groups, splits, registration))
    return inputs


def _check_vocabulary(task: TextTask, wanted: Vocabulary) -> None:
    if task.vocabulary.fingerprint == wanted.fingerprint:
        return

    def shown(vocabulary: Vocabulary) -> str:
        first, count = vocabulary.sentinel_start, vocabulary.num_sentinels
        return (
            f"{vocabulary.file_name}, {vocabulary.num_pieces:,} pieces, {count} sentinels from {first}, "
            f"{vocabulary.fingerprint[:12]}…"
        )

    raise MixtureError(
        f"task {task.name} is registered with another vocabulary ({shown(task.vocabulary)}) than the preparation's "
        f"({shown(wanted)}). Give both the same: --vocabulary here, vocabulary=… of tasks.add_task there."
    )


def _import(module: str) -> None:
    """Imports a module of the user's; what goes wrong in there becomes one message that names its line."""
    with contextlib.suppress(OSError):
        # As `python -m` has it; a console script has not, and neither has a worker.
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise MixtureError(
                f"task module {module!r}: there is no module {error.name!r} in {os.getcwd()} or on Python's path"
            ) from error
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if os.path.splitext(f.filename)[0].endswith(module.replace(".", os.sep))]
        line = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        raise MixtureError(f"task module {module!r} fails: {type(error).__name__}: {error}{line}") from error
