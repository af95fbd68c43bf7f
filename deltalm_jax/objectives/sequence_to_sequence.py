"""Sequence to sequence: the target follows from the source, and nothing is masked. The objective of fine-tuning.

A chunk holds one example or several, all sources first:

    A </s> B </s> C </s>  a </s> b </s> c </s>

As many `</s>` close sources as targets, so the middle one tells where the sources end, and nothing need be stored for it.
The model keeps the examples of a row apart (`model/packed.py`).

Shapes: B batch, L chunk, S inputs (sources), T targets.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from deltalm_jax.data.vocabulary import EOS_ID
from deltalm_jax.objectives.span_corruption import Corrupted

MIN_SIDE_LENGTH = 2  # a piece and `</s>`


@dataclasses.dataclass(frozen=True)
class SequenceToSequence:
    """Takes a chunk apart into sources and targets. Has the methods of `SpanCorruption`, and draws nothing.

    Attributes:
      source_length: tokens of a row's sources in all, `</s>` included.
      target_length: the same for its targets.
    """

    source_length: int = 256
    target_length: int = 256

    packed: ClassVar[bool] = True
    chunks_of: ClassVar[str] = "sequence_to_sequence"
    kind: ClassVar[str] = "sequence_to_sequence"
    uses_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("source_length", "target_length"):
            if getattr(self, name) < MIN_SIDE_LENGTH:
                raise ValueError(
                    f"{name} must be at least {MIN_SIDE_LENGTH}, a piece and </s>, found {getattr(self, name)}"
                )

    def describe(self) -> str:
        """In a few words, for people."""
        return "sources and targets, nothing masked"

    def raw_length(self, length: int) -> int:
        """Tokens of a full chunk. `length`, which other objectives go by, is of no account."""
        return self.source_length + self.target_length

    def lengths(self, chunk_length: int) -> tuple[int, int]:
        """Static shapes of inputs and targets."""
        return self.source_length, self.target_length

    def max_sentinels(self, chunk_length: int) -> int:
        """None are needed."""
        return 0

    def corrupt(
        self,
        tokens_BL: np.ndarray,
        lengths_B: np.ndarray,
        keys_B: np.ndarray,
        sentinel_start: int,
        num_sentinels: int,
        chunk_length: int | None = None,
    ) -> Corrupted:
        """Inputs and targets of chunks; the same whatever the keys are.

        Args:
          tokens_BL: int32, chunks as `data.packing.pack_examples` makes them, padded with 0.
          lengths_B: their lengths.
          keys_B, sentinel_start, num_sentinels, chunk_length: not used.

        Returns:
          int32 [B, S] and [B, T], padded with 0.

        Raises:
          ValueError: a chunk is no such chunk, or its sides are longer than these; names the row.
        """
        real_BL = np.arange(tokens_BL.shape[1]) < np.asarray(lengths_B)[:, None]
        closed_BL = np.cumsum((tokens_BL == EOS_ID) & real_BL, axis=1)
        total_B = closed_BL[:, -1]
        # Behind the middle `</s>`: the first place by which half of them have come.
        split_B = (closed_BL >= total_B[:, None] // 2).argmax(axis=1) + 1
        targets_B = lengths_B - split_B
        last_B = tokens_BL[np.arange(len(tokens_BL)), np.maximum(lengths_B, 1) - 1]
        wrong_B = (total_B % 2 == 1) | (total_B == 0) | (last_B != EOS_ID)
        wrong_B |= (split_B > self.source_length) | (targets_B > self.target_length)
        if wrong_B.any():
            row = int(wrong_B.argmax())
            raise ValueError(
                f"row {row} is no chunk of examples for {self.source_length} source and {self.target_length} target tokens: "
                f"{lengths_B[row]} tokens, {total_B[row]} of them </s>, sources of {split_B[row]}"
            )
        return Corrupted(
            _part(tokens_BL, np.zeros_like(split_B), split_B, self.source_length),
            _part(tokens_BL, split_B, targets_B, self.target_length),
        )


def _part(tokens_BL: np.ndarray, begin_B: np.ndarray, length_B: np.ndarray, width: int) -> np.ndarray:
    """int32 [B, width]: so many tokens of each row from a place on, then padding."""
    columns_W = np.arange(width)
    places_BW = np.minimum(begin_B[:, None] + columns_W, tokens_BL.shape[1] - 1)
    tokens_BW = np.take_along_axis(tokens_BL, places_BW, axis=1)
    return np.where(columns_W < length_B[:, None], tokens_BW, 0).astype(np.int32)
