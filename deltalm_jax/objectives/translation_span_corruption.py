"""Translation span corruption: span corruption over concatenated translation pairs.

A chunk is `<s> A </s> B </s> A' </s> B' </s> …` (`data.packing.pack_pairs`). DeltaLM's figure masks spans in both
languages with sentinels running on across the boundary: one sequence to the mask, the same draw as for monolingual
text, at 50 %. 512 raw tokens become 341 inputs and 341 targets with 85 sentinels.

mT6 calls that translation *pair* span corruption; its own task of the shorter name masks one side only. That is
`mask_sides = "one"`: of each pair, one side is masked and the other kept whole.

Shapes: B batch, L raw length, P pairs of a batch, K most spans of a row.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from deltalm_jax.data.packing import MIN_CHUNK_LENGTH_OF_PAIRS, max_side_length
from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID
from deltalm_jax.objectives.hashing import hash_keys
from deltalm_jax.objectives.span_corruption import SpanCorruption, Spans

MASK_SIDES = ("both", "one")
_SALT_PAIR = 3


@dataclasses.dataclass(frozen=True)
class TranslationSpanCorruption(SpanCorruption):
    """`SpanCorruption` of translation pairs, with the paper's noise density for them.

    Attributes:
      mask_sides: "both": spans are drawn over the whole chunk. "one": of each pair a fair coin chooses one side, which is
        masked like a chunk of its own (its text and the `</s>` that closes it; so spans do not cross sides and every
        `</s>` stays), and the other side is kept. The coin falls anew for each pair, as it would if every pair were an
        example, so a chunk of many pairs shows both directions.
    """

    noise_density: float = 0.5
    mask_sides: str = "both"

    chunks_of: ClassVar[str] = "translation_span_corruption"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_sides not in MASK_SIDES:
            raise ValueError(f"mask_sides must be one of {', '.join(MASK_SIDES)}, found {self.mask_sides!r}")

    def spans(self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray) -> Spans:
        """What is masked in each of a batch of chunks.

        Raises:
          ValueError: `mask_sides` is "one" and a row is not made of pairs.
        """
        if self.mask_sides == "both":
            return self.draw_spans(lengths_B, keys_B)
        row_P, pair_P, edges_P3 = find_pairs(tokens_BL, lengths_B)
        # One key a pair: its lowest bit is the coin, and the mask is drawn from further hashes of it.
        key_P = hash_keys(keys_B[row_P], _SALT_PAIR, pair_P)
        second_P = (key_P & np.uint64(1)).astype(np.int64)
        begin_P = edges_P3[np.arange(len(row_P)), second_P]
        length_P = edges_P3[np.arange(len(row_P)), second_P + 1] - begin_P

        counts_P = self.counts(length_P)[1]
        first_span_P = np.cumsum(counts_P) - counts_P
        first_span_P -= first_span_P[np.searchsorted(row_P, row_P)]  # counted from the beginning of the row
        counts_B = np.bincount(row_P, counts_P, minlength=len(lengths_B)).astype(np.int64)
        starts_BK = np.repeat(lengths_B[:, None], int(counts_B.max()), axis=1)
        lengths_BK = np.zeros_like(starts_BK)
        # Sides of similar lengths together: the draws of a group are as wide as its longest side.
        magnitude_P = np.frexp(length_P)[1]
        for magnitude in np.unique(magnitude_P):
            group = np.flatnonzero(magnitude_P == magnitude)
            drawn = self.draw_spans(length_P[group], key_P[group])
            side, span = np.nonzero(drawn.lengths_BK)
            where = row_P[group[side]], first_span_P[group[side]] + span
            starts_BK[where] = begin_P[group[side]] + drawn.starts_BK[side, span]
            lengths_BK[where] = drawn.lengths_BK[side, span]
        return Spans(starts_BK, lengths_BK, counts_B)

    @property
    def _shortest(self) -> int:
        return super()._shortest if self.mask_sides == "both" else MIN_CHUNK_LENGTH_OF_PAIRS

    def _most(self, chunk_length: int) -> tuple[int, int, int]:
        return super()._most(chunk_length) if self.mask_sides == "both" else _most_of_pairs(self, chunk_length)


def find_pairs(
    tokens_BL: np.ndarray, lengths_B: np.ndarray, numbers_B: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a batch of chunks, in order.

    Args:
      tokens_BL: the chunks.
      lengths_B: their lengths, each at least 1.
      numbers_B: by which number an error shall name each row, if by any.

    Returns:
      Per pair, its row; its number in the row; and where its first side begins, its second side begins, and it ends.

    Raises:
      ValueError: a row is not `<s>` and pairs of sides, each of at least one id and closed by `</s>`.
    """
    real_BL = np.arange(tokens_BL.shape[1]) < lengths_B[:, None]
    row_N, end_N = np.nonzero((tokens_BL == EOS_ID) & real_BL)
    sides_B = np.bincount(row_N, minlength=len(lengths_B))
    begin_N = np.concatenate([[0], end_N[:-1]]) + 1
    begin_N[np.searchsorted(row_N, np.flatnonzero(sides_B))] = 1  # behind `<s>`
    closed_B = tokens_BL[np.arange(len(lengths_B)), lengths_B - 1] == EOS_ID
    empty_B = np.bincount(row_N, end_N <= begin_N, len(lengths_B)) > 0
    whole_B = (tokens_BL[:, 0] == BOS_ID) & closed_B & (sides_B % 2 == 0) & ~empty_B
    if not whole_B.all():
        row = int(np.argmin(whole_B))
        where, which = ("", "mask_sides 'one'") if numbers_B is None else (f"row {numbers_B[row]}: ", "this objective")
        raise ValueError(
            f"{where}expected <s> and pairs of texts, each closed by </s>, found a chunk of {lengths_B[row]} ids with "
            f"{sides_B[row]} </s>: {which} is for chunks of translation pairs"
        )
    row_P = row_N[::2]
    pair_P = np.arange(len(row_P)) - np.searchsorted(row_P, row_P)
    return row_P, pair_P, np.stack([begin_N[::2], begin_N[1::2], end_N[1::2] + 1], axis=1)


@functools.lru_cache(maxsize=64)
def _most_of_pairs(corruption: TranslationSpanCorruption, chunk_length: int) -> tuple[int, int, int]:
    """The most inputs, targets and sentinels, over all ways to fill a chunk with pairs and to choose sides.

    An unbounded knapsack, exact: a pair of s ids gives at most best(s), over the divisions into a masked and a kept
    side; chunks of t ids behind `<s>` give at most the maximum over s of best(s) plus that of t - s ids.
    """
    if chunk_length < corruption._shortest:
        raise ValueError(f"chunk_length must be at least {corruption._shortest} for pairs, found {chunk_length}")
    longest = max_side_length(chunk_length) + 1  # with its `</s>`
    masked = np.arange(2, longest + 1)
    noise, spans = corruption.counts(masked)
    best = np.full((chunk_length, 3), -1)
    for size in range(4, min(2 * longest, chunk_length - 1) + 1):
        possible = (size - masked >= 2) & (size - masked <= longest)
        values = np.stack([size - noise + spans, noise + spans, spans], axis=1)[possible]
        best[size] = values.max(axis=0)
    most = np.full((chunk_length, 3), -chunk_length)
    most[0] = 0
    for total in range(4, chunk_length):
        most[total] = (best[4 : total + 1] + most[total - 4 :: -1][: total - 3]).max(axis=0)
    inputs, targets, sentinels = most[4:].max(axis=0)
    return int(inputs) + 1, int(targets), int(sentinels)
