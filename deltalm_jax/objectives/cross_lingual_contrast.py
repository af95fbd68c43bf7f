"""InfoXLM's cross-lingual contrast, with its mixture of two pairs: which text is the translation of this one?

From a chunk of translation pairs two are drawn, c and d. One side of the row is `<s> c1 </s> d1 </s>`, the other
`<s> c2 </s> d2 </s>`; the model brings their representations together and holds those of other rows apart. Which sentence
comes first on either side, and which side is which, is drawn too (eight ways), so that order gives nothing away. Both sides
are masked like text for masked language modelling, each by itself.

Differences from InfoXLM:

- Its sides are of one language each. In prepared chunks, a hash has drawn which language stands first in each pair, and
  which is which is not recorded. So a side may hold c in English and d in another language, and then the other side the
  reverse. Each side is still the translation of the other.
- Its c and d follow each other in a file. Here both come from one chunk, any two of it alike; a chunk of a single pair
  gives that pair alone.

Chunks are those of translation span corruption. A row uses two pairs of a chunk, and others when the chunk comes up again.

Shapes: B batch, L chunk, P pairs of a batch, W width of a side; 2 the two sentences of a side.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from deltalm_jax.data.packing import MIN_CHUNK_LENGTH_OF_PAIRS, max_side_length
from deltalm_jax.data.vocabulary import BOS_ID
from deltalm_jax.objectives.hashing import hash_keys, random_words
from deltalm_jax.objectives.masked_language_model import check_density, mask_tokens
from deltalm_jax.objectives.span_corruption import Corrupted, check_lengths, usable_rows
from deltalm_jax.objectives.translation_span_corruption import find_pairs

MIN_SIDE_LENGTH = 5  # `<s>` and two sentences of a piece and `</s>`
_SMALLEST_PAIR = MIN_CHUNK_LENGTH_OF_PAIRS - 1
_SALT_PAIRS, _SALT_SIDE = 8, 9


@dataclasses.dataclass(frozen=True)
class CrossLingualContrast:
    """Makes of a chunk of translation pairs two sides that are translations of each other, both masked.

    Has the methods of `SpanCorruption`.

    Attributes:
      noise_density: share of each side's positions picked, in (0, 1), see `MaskedLanguageModel`.
      side_length: longest side, `<s>` included; None: as long as two sentences of a chunk can be (512: 508, where the
        usual is a fraction of it). What is longer is cut: a sentence of at most half the room stays whole, and `</s>`
        closes each.
    """

    noise_density: float = 0.15
    side_length: int | None = None

    packed: ClassVar[bool] = False
    chunks_of: ClassVar[str] = "translation_span_corruption"
    kind: ClassVar[str] = "contrast"
    uses_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_density(self.noise_density)
        if self.side_length is not None and self.side_length < MIN_SIDE_LENGTH:
            raise ValueError(
                f"side_length must be at least {MIN_SIDE_LENGTH}, <s> and two sentences of a piece and </s>, "
                f"found {self.side_length}"
            )

    def describe(self) -> str:
        """In a few words, for people."""
        return f"two pairs, {100 * self.noise_density:g} % of positions of both sides picked, 80 % of them masked"

    def raw_length(self, length: int) -> int:
        """How many tokens a full chunk has: `length`."""
        return length

    def lengths(self, chunk_length: int) -> tuple[int, int]:
        """Static shapes of the two sides, equal: the longest that they can be.

        Of two pairs, the other side takes at least 4 tokens; of a single one, a side is as long as packing allows.
        """
        if chunk_length < MIN_CHUNK_LENGTH_OF_PAIRS:
            raise ValueError(
                f"chunk_length must be at least {MIN_CHUNK_LENGTH_OF_PAIRS} for pairs, found {chunk_length}"
            )
        longest = max(chunk_length - _SMALLEST_PAIR, max_side_length(chunk_length) + 2)
        width = min(longest, self.side_length or longest)
        return width, width

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
        *,
        mask_id: int,
    ) -> Corrupted:
        """Two masked sides of each chunk; a row's result depends on that row alone.

        Args:
          tokens_BL: int [B, L], row b holds `lengths_B[b]` tokens, then anything.
          lengths_B: their lengths. A row of length 0 or 1 gives padding alone.
          keys_B: uint64, one random key a row.
          sentinel_start, num_sentinels: not used.
          chunk_length: the length of chunks that fixes the output shapes (default L).
          mask_id: id of `<mask>`, the first behind the pieces.

        Returns:
          One side as `inputs_BS` and the other as `targets_BT`, int32, padded with 0 to `lengths(chunk_length)`.

        Raises:
          ValueError: a row is longer than `chunk_length`, is not made of pairs, or is one pair, with a side that is longer
            than these shapes because packing makes none so long; names the row. Or there is no piece below `mask_id`.
        """
        chunk_length = chunk_length or tokens_BL.shape[1]
        width, _ = self.lengths(chunk_length)
        lengths_B, keys_B = np.asarray(lengths_B, np.int64), np.asarray(keys_B, np.uint64)
        check_lengths(lengths_B, chunk_length)
        inputs_BS = np.zeros((len(lengths_B), width), np.int32)
        targets_BT = np.zeros_like(inputs_BS)
        for rows in usable_rows(lengths_B):
            tokens, keys = tokens_BL[rows], keys_B[rows]
            sides = self._draw_sides(tokens, lengths_B[rows], keys, rows)
            for side, (out, (begin_B2, length_B2)) in enumerate(zip((inputs_BS, targets_BT), sides, strict=True)):
                if self.side_length is not None:
                    kept_B2 = _cut(length_B2, width - 1)
                elif (too_long_B := length_B2.sum(axis=1) >= width).any():
                    row = int(too_long_B.argmax())
                    raise ValueError(
                        f"row {rows[row]}: a side of {length_B2[row].sum() + 1} tokens is longer than {width}, the most "
                        f"that a chunk packed for chunk_length {chunk_length} can give"
                    )
                else:
                    kept_B2 = length_B2
                text_BW = _join(tokens, begin_B2, length_B2, kept_B2, width)
                size_B = 1 + kept_B2.sum(axis=1)
                out[rows], _ = mask_tokens(
                    text_BW, size_B, hash_keys(keys, _SALT_SIDE, side), self.noise_density, mask_id
                )
        return Corrupted(inputs_BS, targets_BT)

    def _draw_sides(
        self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray, numbers_B: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each of the two sides, where its two sentences begin in their chunks and how long they are; [B, 2] each.

        The second pair of a chunk of one is one of no length.
        """
        row_P, _, edges_P3 = find_pairs(tokens_BL, lengths_B, numbers_B)
        batch_B = np.arange(len(lengths_B))
        pairs_B = np.bincount(row_P, minlength=len(lengths_B))
        words_B3 = random_words(hash_keys(keys_B, _SALT_PAIRS), 3)
        # An ordered choice of two: any pair, then any of the others, counted on from it around the end.
        c_B = (words_B3[:, 0] % pairs_B.astype(np.uint64)).astype(np.int64)
        others_B = np.maximum(pairs_B - 1, 1)
        d_B = (c_B + 1 + (words_B3[:, 1] % others_B.astype(np.uint64)).astype(np.int64)) % pairs_B
        edges_B23 = edges_P3[np.searchsorted(row_P, batch_B)[:, None] + np.stack([c_B, d_B], axis=1)]
        begin_B22, length_B22 = edges_B23[..., :2], np.diff(edges_B23, axis=2)
        length_B22[pairs_B == 1, 1] = 0

        mode_B = (words_B3[:, 2] >> np.uint64(61)).astype(np.int64)
        sides = []
        for side in (0, 1):
            language_B = side ^ (mode_B >> 2)  # bit 2 exchanges the sides
            # Bit 0 exchanges the sentences of the one side, bit 1 those of the other, wherever these have come.
            order_B2 = np.arange(2) ^ (mode_B >> language_B & 1)[:, None]
            where = batch_B[:, None], order_B2, language_B[:, None]
            sides.append((begin_B22[where], length_B22[where]))
        return sides


def _cut(length_B2: np.ndarray, room: int) -> np.ndarray:
    """How much of two sentences stays where there is so much room for both: half of it each, and what the other leaves."""
    first_B, second_B = length_B2.T
    first_B = np.minimum(first_B, np.maximum(room // 2, room - second_B))
    return np.stack([first_B, np.minimum(second_B, room - first_B)], axis=1)


def _join(
    tokens_BL: np.ndarray, begin_B2: np.ndarray, length_B2: np.ndarray, kept_B2: np.ndarray, width: int
) -> np.ndarray:
    """`<s>` and two sentences of each row, int [B, `width`], then anything.

    Of a sentence stay its first tokens and the last, the `</s>` that closes it.
    """
    column_W = np.arange(width) - 1
    in_second_BW = column_W >= kept_B2[:, :1]
    begin_BW, length_BW, kept_BW = (np.where(in_second_BW, x[:, 1:], x[:, :1]) for x in (begin_B2, length_B2, kept_B2))
    offset_BW = column_W - np.where(in_second_BW, kept_B2[:, :1], 0)
    offset_BW = np.where(offset_BW == kept_BW - 1, length_BW - 1, offset_BW)
    places_BW = np.clip(begin_BW + offset_BW, 0, tokens_BL.shape[1] - 1)
    text_BW = np.take_along_axis(tokens_BL, places_BW, axis=1)
    text_BW[:, 0] = BOS_ID
    return text_BW
