"""What every extraction gives: documents of one language, with the English of what has one."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

TRAIN, VALIDATION, TEST = "train", "validation", "test"


class SourceError(ValueError):
    """A package that cannot be had, or does not hold what is expected of it."""


class Pair(NamedTuple):
    """A text and its English; `english` is "" where that is not known, and in English documents."""

    text: str
    english: str


@dataclasses.dataclass(frozen=True)
class Document:
    """A document that is for training, for validation or for testing as a whole.

    Attributes:
      language: code.
      name: of the document, the same in every language.
      split: `TRAIN`, `VALIDATION` or `TEST`.
      text: what the document says, in order: paragraphs, verses, strings.
      pairs: what of it is a pair; () in English documents.
      per_line: how many of `text` come into one line of a text file.
    """

    language: str
    name: str
    split: str
    text: tuple[Pair, ...]
    pairs: tuple[Pair, ...] = ()
    per_line: int = 1
