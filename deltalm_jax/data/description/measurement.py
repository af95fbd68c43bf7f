"""What the ids of some chunks tell: unknowns, bytes, characters, lengths.

Shapes: B chunks, L raw length, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from deltalm_jax.data.piece_table import PieceTable
from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of whole numbers: `counts[i]` of them lie in `edges[i]` … `edges[i + 1] - 1`."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray, edges: Sequence[int]) -> Histogram:
        """Counts values into the bins between edges; the edges enclose all values.

        Raises:
          ValueError: a value lies outside.
        """
        values = np.asarray(values, np.int64)
        if values.size and not (edges[0] <= values.min() and values.max() < edges[-1]):
            raise ValueError(f"values from {values.min()} to {values.max()} in bins from {edges[0]} to {edges[-1]}")
        places = np.searchsorted(np.asarray(edges), values, side="right") - 1
        counts = np.bincount(places, minlength=len(edges) - 1)
        return cls(tuple(map(int, edges)), tuple(map(int, counts)))


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What the ids of some chunks tell.

    Attributes:
      chunks, tokens: how many were looked at; specials included.
      unknown: ids of `<unk>`.
      byte_pieces: ids that spell a byte.
      text_tokens: ids that stand for text: neither specials nor unknown.
      characters, utf8_bytes: of the text they stand for, as SentencePiece normalised it, spaces included.
    """

    chunks: int
    tokens: int
    unknown: int
    byte_pieces: int
    text_tokens: int
    characters: int
    utf8_bytes: int


def measure(tokens_BL: np.ndarray, table: PieceTable) -> Sampled:
    """Counts unknowns, bytes, characters of some chunks, padded with 0."""
    ids = tokens_BL[tokens_BL != PAD_ID]
    return Sampled(
        chunks=len(tokens_BL),
        tokens=len(ids),
        unknown=int((ids == UNK_ID).sum()),
        byte_pieces=int(table.is_byte_V[ids].sum()),
        text_tokens=int((table.bytes_V[ids] > 0).sum()),
        characters=int(table.characters_V[ids].sum()),
        utf8_bytes=int(table.bytes_V[ids].sum()),
    )


def segment_lengths(tokens_BL: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """Ids of the paragraphs (or sides of pairs) that lie whole in a chunk, `</s>` not counted; int64 [segments].

    A segment begins behind `<s>` or `</s>` and ends at `</s>`. What a chunk begins with without `<s>` is the rest of a
    paragraph, or may be; it is left out, and so is what its end cuts off.
    """
    found = []
    for tokens_L, length in zip(tokens_BL, lengths_B, strict=True):
        tokens_L = tokens_L[:length]
        edges = np.flatnonzero((tokens_L == BOS_ID) | (tokens_L == EOS_ID))
        closed = tokens_L[edges[1:]] == EOS_ID
        found.append((np.diff(edges) - 1)[closed])
    return np.concatenate(found) if found else np.zeros(0, np.int64)
