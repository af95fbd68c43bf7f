"""How the files of a task are divided into parts, the pieces of work of the preparation.

Small files are put together, so that shards are full; large ones are divided where their format allows. The parts depend on
the files alone, so that nothing that is made of them depends on who works on them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalm_jax.data.readers.spans import Span, text_size
from deltalm_jax.paths import state_of

# What one worker works on at a time, bytes on disk: of plain text, what makes one shard of usual size; compressed, four.
PART_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class Piece:
    """A file of a part, or a piece of a large file that is the whole part.

    Attributes:
      path: the file.
      state: what tells its content from another; size first. See `paths.state_of`.
      span: the piece's text; None: all of it.
      number, count: the piece's place among those of the file.
    """

    path: Path
    state: tuple[Any, ...]
    span: Span | None = None
    number: int = 0
    count: int = 1

    @property
    def size(self) -> int:
        """Bytes on disk."""
        start, end = self.stored
        return end - start

    @property
    def stored(self) -> tuple[int, int]:
        """The bytes on disk, from and to, that stand for this piece when its text is identified.

        Those of all pieces make up the file. Which of them hold which text, only decompressing would tell.
        """
        size = int(self.state[0])
        return size * self.number // self.count, size * (self.number + 1) // self.count

    def describe(self) -> list[Any]:
        """For the manifest: name and size of the file, and which piece of how many where it is divided."""
        described: list[Any] = [self.path.name, int(self.state[0])]
        return described if self.span is None else [*described, f"piece {self.number + 1} of {self.count}"]

    def identity(self) -> str:
        """Equal for the same text, as far as that is known without reading."""
        span = self.span and [self.span.start, self.span.end]
        return json.dumps([str(self.path), list(self.state), span])


def divide(files: Sequence[Path], part_bytes: int, in_spans: bool) -> list[tuple[Piece, ...]]:
    """The parts of a task's files.

    Args:
      files: in the order in which they are read.
      part_bytes: files are read together as long as they come to no more, on disk; one of at least twice as much is
        divided into pieces of no more. So a part of plain text makes one shard, not one and a little one.
      in_spans: whether the reader can read a span of a file.

    Raises:
      CorpusError: a large .xz file is damaged.
      OSError: a file cannot be looked at.
    """
    parts: list[list[Piece]] = []
    room = 0  # in the last part
    for path in files:
        state = tuple(state_of(path))
        size = int(state[0])
        pieces = _spans(path, -(-size // part_bytes)) if in_spans and size >= 2 * part_bytes else []
        if pieces:
            parts += [[Piece(path, state, span, number, len(pieces))] for number, span in enumerate(pieces)]
            room = 0
            continue
        if size > room:
            parts.append([])
            room = part_bytes
        parts[-1].append(Piece(path, state))
        room -= size
    return [tuple(part) for part in parts]


def _spans(path: Path, count: int) -> list[Span]:
    """About `count` spans of equal size; none if the file cannot be divided."""
    found = text_size(path)
    if found is None:
        return []
    size, most = found
    count = min(count, most)
    if count < 2:
        return []
    starts = [size * number // count for number in range(count)]
    return [Span(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
