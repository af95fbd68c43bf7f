"""Tasks that know their text: seqio Tasks whose first steps give documents, pairs or examples, and whose last make ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from deltalm_jax.data.blocks import UNITS
from deltalm_jax.data.readers import MAX_LINE_BYTES, clean
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import CorpusError

FIELDS = {"documents": ("text",), "pairs": ("english", "other"), "examples": ("source", "target")}

_GRAPH_NODE = re.compile(r"\{\{[^}]*\}\}\s*")


class TextTask(seqio.Task):
    """A seqio Task that also gives its text, which `deltalm_jax.prepare` reads.

    Made by `tasks.add_task` and its like; the attributes are described there.

    Attributes:
      objective: a key of `deltalm_jax.data.blocks.UNITS`.
      language: language code.
      groups: groups of languages it belongs to, by kind of group.
      vocabulary: of its `inputs` and `targets`.
      text_preprocessors: its steps before the text is cut into chunks.
    """

    def __init__(
        self,
        *,
        objective: str,
        language: str,
        groups: Mapping[str, str],
        vocabulary: Vocabulary,
        text_preprocessors: Sequence[Callable[..., tf.data.Dataset]],
        **seqio_arguments: Any,
    ):
        """`seqio_arguments` are those of `seqio.Task`."""
        super().__init__(**seqio_arguments)
        self.objective = objective
        self.language = language
        self.groups = dict(groups)
        self.vocabulary = vocabulary
        self.text_preprocessors = tuple(text_preprocessors)

    @property
    def unit(self) -> str:
        """ "documents", "pairs" or "examples"."""
        return UNITS[self.objective]

    def text_dataset(self, split: str) -> tf.data.Dataset:
        """The examples before they are cut into chunks: one epoch, in the source's order, seeded alike every time.

        Raises:
          CorpusError: no such split, a source that cannot be read, or examples without the fields of the unit.
        """
        if split not in self.splits:
            raise CorpusError(
                f"task {self.name}: expected its source to have the split {split!r}, found {', '.join(self.splits)}."
            )
        text = seqio.Task(self.name, self.source, output_features={}, preprocessors=self.text_preprocessors)
        try:
            dataset = text.get_dataset(split=split, shuffle=False, seed=0, num_epochs=1, try_in_mem_cache=False)
        except CorpusError:
            raise
        except (tf.errors.OpError, OSError, ValueError) as error:
            raise CorpusError(f"task {self.name}: its split {split!r} cannot be read: {_first_line(error)}") from error
        spec = dataset.element_spec
        wanted = {name: tf.TensorSpec([], tf.string) for name in FIELDS[self.unit]}
        if not isinstance(spec, dict) or any(
            not wanted[name].is_compatible_with(spec.get(name, tf.TensorSpec([0]))) for name in wanted
        ):
            raise CorpusError(
                f"task {self.name}: expected examples of {self.unit} with {_listed(wanted)} before they are cut into "
                f"chunks, found {_listed(spec)}. Its preprocessors have to give text: token ids, inputs and targets are "
                "made from it here."
            )
        return dataset

    def read_text(self, split: str, counts: Counter[str]) -> Iterator[Any]:
        """Documents (lists of paragraphs), pairs (English, other) or examples (source, target) of a split.

        Dropped ones are counted by reason.

        Raises:
          CorpusError: see `text_dataset`; or reading fails on the way.
        """
        names = FIELDS[self.unit]
        try:
            for example in self.text_dataset(split).as_numpy_iterator():
                if (item := to_item(tuple(example[name] for name in names), self.unit, counts)) is not None:
                    yield item
        except tf.errors.OpError as error:
            raise CorpusError(f"reading the split {split!r} failed: {_first_line(error)}") from error


def to_item(texts: Sequence[bytes], unit: str, counts: Counter[str]) -> Any | None:
    """A document, a pair or an example from the strings of an example, under the rules of `deltalm_jax.data.readers`.

    Args:
      texts: one string of paragraphs separated by line feeds, or the two sides of a pair or an example. UTF-8.
      unit: "documents", "pairs" or "examples".
      counts: grows by reason: "invalid_utf8" (texts), "long_line" and "empty" (paragraphs or pairs left out).

    Returns:
      A list of paragraphs or a tuple of the sides; None where nothing is left.
    """
    try:
        decoded = [text.decode() for text in texts]
    except UnicodeDecodeError:
        counts["invalid_utf8"] += 1
        return None
    if unit != "documents":
        sides = tuple(clean(text) for text in decoded)
        reason = "empty" if not all(sides) else "long_line" if max(map(_size, sides)) > MAX_LINE_BYTES else None
        if reason:
            counts[reason] += 1
        return None if reason else sides
    paragraphs = []
    for paragraph in map(clean, decoded[0].split("\n")):
        if _size(paragraph) > MAX_LINE_BYTES:
            counts["long_line"] += 1
        elif paragraph:
            paragraphs.append(paragraph)
    if not paragraphs:
        counts["empty"] += 1
    return paragraphs or None


def _size(text: str) -> int:
    return len(text.encode())


def _listed(spec: Any) -> str:
    """Fields of examples and their types, for messages."""
    if not isinstance(spec, dict):
        return f"no fields but {spec}"
    return ", ".join(f"{name!r} ({getattr(s, 'dtype', s)} {list(getattr(s, 'shape', []))})" for name, s in spec.items())


def _first_line(error: BaseException) -> str:
    """What went wrong, without TensorFlow's names of nodes and the traces it puts into messages."""
    return next((line for line in _GRAPH_NODE.sub("", str(error)).splitlines() if line.strip()), type(error).__name__)
