"""From token ids of documents, sentence pairs and examples to chunks: sequences of at most `chunk_length` ids.

Three layouts, one for each objective (docs/design.md; InfoXLM's data tool builds its MLM and TLM blocks as the first two):

  documents   <s> paragraph </s> paragraph </s> <s> paragraph </s> …     joined, cut at exactly chunk_length ids
  pairs       <s> A </s> B </s> A </s> B </s> …                          whole pairs, placed by best fit
  examples    A </s> B </s> … a </s> b </s> …                            all sources, then their targets in the same order

A chunk of the first two is one sequence for the model: positions run on through it and nothing is masked between its parts.
The examples of the last are kept apart (`model/packed.py`).
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID

# Corruption masks at least one id and keeps at least one, so a shorter chunk holds nothing to learn from.
MIN_CHUNK_LENGTH = 2
# <s> + two sides of one id, each closed by </s>.
MIN_CHUNK_LENGTH_OF_PAIRS = 5
_SMALLEST_PAIR = 4
_SMALLEST_SIDE = 2


def max_side_length(chunk_length: int) -> int:
    """The longest side, in ids, with which any pair fits into one chunk beside `<s>` and two `</s>` (512 -> 254)."""
    return (chunk_length - 3) // 2


def join_and_cut(
    documents: Iterable[Sequence[Sequence[int]]], chunk_length: int, counts: Counter[str] | None = None
) -> list[np.ndarray]:
    """Joins documents and cuts the stream of ids every `chunk_length` ids, wherever that falls.

    Args:
      documents: each a sequence of paragraphs, each a sequence of ids without special ids. A document is written as
        `<s>` and its paragraphs, each closed by `</s>`. Paragraphs without ids and documents without such paragraphs
        leave no trace.
      chunk_length: ids in a chunk, at least 2.
      counts: where given, `counts["rest_too_short"]` grows by the ids of a rest that had to be left out (0 or 1).

    Returns:
      int32 arrays: all of `chunk_length` ids but the last, which may be shorter, never below `MIN_CHUNK_LENGTH`:
      a single id cannot be corrupted, so a rest of one id is left out and counted.

    Raises:
      ValueError: chunk_length below 2.
    """
    if chunk_length < MIN_CHUNK_LENGTH:
        raise ValueError(f"chunk_length must be at least {MIN_CHUNK_LENGTH}, found {chunk_length}")
    stream: list[int] = []
    for document in documents:
        begun = False
        for paragraph in document:
            if not len(paragraph):
                continue
            if not begun:
                stream.append(BOS_ID)
                begun = True
            stream.extend(paragraph)
            stream.append(EOS_ID)
    ids = np.array(stream, np.int32)
    chunks = [ids[start : start + chunk_length] for start in range(0, len(ids), chunk_length)]
    if chunks and len(chunks[-1]) < MIN_CHUNK_LENGTH:
        rest = chunks.pop()
        if counts is not None:
            counts["rest_too_short"] += len(rest)
    return chunks


def pack_pairs(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    chunk_length: int,
    max_side: int | None = None,
    open_chunks: int = 64,
    counts: Counter[str] | None = None,
) -> list[np.ndarray]:
    """Packs sentence pairs into chunks; a pair is never divided.

    Each pair goes into the open chunk that it fills up best (the least room left). Where it fits into none, a new
    chunk is opened; if `open_chunks` of them are open already, the fullest is closed first. The result depends only on
    the sequence of pairs.

    Args:
      pairs: the two sides of each pair, in the order in which they shall stand, ids without special ids.
      chunk_length: longest chunk, ids, at least 5.
      max_side: longest side, ids; what goes beyond is cut off. Default: `max_side_length(chunk_length)`.
      open_chunks: chunks that may be open at once. More lowers padding a little and widens the distance over which
        pairs are reordered.
      counts: where given, grows by "side_truncated" (sides cut) and "empty_side" (pairs left out because a side has
        no ids).

    Returns:
      int32 arrays `<s> A </s> B </s> A </s> B </s> …` of at most `chunk_length` ids, in the order in which they were
      closed.

    Raises:
      ValueError: a chunk length, side length or number of open chunks with which nothing can be packed.
    """
    if chunk_length < MIN_CHUNK_LENGTH_OF_PAIRS:
        raise ValueError(f"chunk_length must be at least {MIN_CHUNK_LENGTH_OF_PAIRS} for pairs, found {chunk_length}")
    longest = max_side_length(chunk_length)
    max_side = longest if max_side is None else max_side
    if not 1 <= max_side <= longest:
        raise ValueError(f"max_side must lie in 1..{longest} for chunk_length {chunk_length}, found {max_side}")
    if open_chunks < 1:
        raise ValueError(f"open_chunks must be at least 1, found {open_chunks}")
    counts = Counter() if counts is None else counts
    return [np.array(chunk, np.int32) for chunk in _best_fit(pairs, chunk_length, max_side, open_chunks, counts)]


def _best_fit(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    chunk_length: int,
    max_side: int,
    open_chunks: int,
    counts: Counter[str],
) -> Iterator[list[int]]:
    """Yields chunks as they are closed; those still open at the end follow in the order of their opening."""
    # (room left, running number) of every open chunk, sorted: the best fit is the first entry with enough room. The
    # running number makes ties fall to the older chunk and keeps the order well defined.
    rooms: list[tuple[int, int]] = []
    contents: dict[int, list[int]] = {}
    opened = 0
    for first, second in pairs:
        if not len(first) or not len(second):
            counts["empty_side"] += 1
            continue
        if len(first) > max_side:
            first = first[:max_side]
            counts["side_truncated"] += 1
        if len(second) > max_side:
            second = second[:max_side]
            counts["side_truncated"] += 1
        size = len(first) + len(second) + 2
        at = bisect.bisect_left(rooms, (size, -1))
        if at < len(rooms):
            room, number = rooms.pop(at)
            chunk = contents[number]
        else:
            if len(rooms) == open_chunks:
                yield contents.pop(rooms.pop(0)[1])
            room, number = chunk_length - 1, opened
            opened += 1
            chunk = contents[number] = [BOS_ID]
        chunk.extend(first)
        chunk.append(EOS_ID)
        chunk.extend(second)
        chunk.append(EOS_ID)
        if room - size < _SMALLEST_PAIR:
            yield contents.pop(number)
        else:
            bisect.insort(rooms, (room - size, number))
    for number in sorted(contents):
        yield contents[number]


def pack_examples(
    examples: Iterable[tuple[Sequence[int], Sequence[int]]],
    source_length: int,
    target_length: int,
    open_chunks: int = 64,
    counts: Counter[str] | None = None,
) -> list[np.ndarray]:
    """Packs examples into chunks; of every example both sides lie in one.

    Each goes into the open chunk with the least room left among those where both sides fit, the oldest of equals. Where it
    fits into none, a new one is opened; if `open_chunks` are open already, the one with the least room is closed first.

    Args:
      examples: source and target of each, ids without special ids.
      source_length: most ids of a chunk's sources, each with its `</s>`; longer sources are cut.
      target_length: the same for targets. An example with a longer target is left out: cut short, it would teach the model
        to stop in the middle.
      open_chunks: chunks that may be open at once; 0: every example has a chunk of its own.
      counts: where given, grows by "source_truncated", "long_target" and "empty_side".

    Returns:
      int32 arrays, in the order in which they were closed; those still open at the end in the order of their opening.
    """
    counts = Counter() if counts is None else counts
    closed: list[_Examples] = []
    waiting: list[_Examples] = []
    for source, target in examples:
        if not len(source) or not len(target):
            counts["empty_side"] += 1
            continue
        if len(target) >= target_length:
            counts["long_target"] += 1
            continue
        if len(source) >= source_length:
            source = source[: source_length - 1]
            counts["source_truncated"] += 1
        fitting = [chunk for chunk in waiting if chunk.fits(source, target)]
        if fitting:
            chunk = min(fitting, key=_Examples.room)
        else:
            chunk = _Examples(source_length, target_length)
            if len(waiting) >= max(open_chunks, 1):
                fullest = min(waiting, key=_Examples.room)
                waiting.remove(fullest)
                closed.append(fullest)
            waiting.append(chunk)
        chunk.add(source, target)
        if not open_chunks or min(chunk.source_room, chunk.target_room) < _SMALLEST_SIDE:
            waiting.remove(chunk)
            closed.append(chunk)
    return [np.array([*chunk.sources, *chunk.targets], np.int32) for chunk in (*closed, *waiting)]


class _Examples:
    """A chunk of examples that is being filled."""

    def __init__(self, source_length: int, target_length: int):
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.source_room, self.target_room = source_length, target_length

    def room(self) -> int:
        """Ids that both sides could take."""
        return self.source_room + self.target_room

    def fits(self, source: Sequence[int], target: Sequence[int]) -> bool:
        """Whether there is room for both, each with its `</s>`."""
        return len(source) < self.source_room and len(target) < self.target_room

    def add(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Puts an example in."""
        self.sources += [*source, EOS_ID]
        self.targets += [*target, EOS_ID]
        self.source_room -= len(source) + 1
        self.target_room -= len(target) + 1
