"""Masked language modelling as XLM-R and InfoXLM are trained: some positions are hidden, and the model says what stood there.

The rules are fairseq's. Of n tokens 15 % are picked, rounded up or down at random so that the mean is exact; of those
80 % become `<mask>`, 10 % some piece of the vocabulary, 10 % stay as they are. Every position can be picked, `<s>` and
`</s>` too. A short chunk may have none picked (6 tokens: one time in ten), and then adds nothing to the loss.

Chunks are those of span corruption, so nothing is prepared anew.

Shapes: B batch, L chunk, W the most positions picked in a row.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from deltalm_jax.data.vocabulary import EOS_ID
from deltalm_jax.objectives.hashing import hash_keys
from deltalm_jax.objectives.span_corruption import Corrupted, check_lengths, random_subsets, usable_rows

FIRST_PIECE = EOS_ID + 1
_SALT_ROUNDING, _SALT_PICKED, _SALT_TREATMENT = 4, 5, 6
# Of ten picked positions, so many become `<mask>`, and one more a random piece.
_TENTHS_MASKED = 8


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel:
    """Hides random positions of a chunk (inputs) and asks for what stood there (targets, in the same places).

    Has the methods of `SpanCorruption`.

    Attributes:
      noise_density: share of positions picked, in (0, 1).
    """

    noise_density: float = 0.15

    packed: ClassVar[bool] = False
    chunks_of: ClassVar[str] = "span_corruption"
    kind: ClassVar[str] = "masked_language_model"
    uses_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_density(self.noise_density)

    def describe(self) -> str:
        """In a few words, for people."""
        return f"{100 * self.noise_density:g} % of positions picked, 80 % of them masked"

    def raw_length(self, length: int) -> int:
        """How many tokens a full chunk has: as many as the inputs."""
        return length

    def lengths(self, chunk_length: int) -> tuple[int, int]:
        """Static shapes of inputs and targets."""
        return chunk_length, chunk_length

    def max_sentinels(self, chunk_length: int) -> int:
        """None are needed."""
        return 0

    def most_targets(self, chunk_length: int) -> int:
        """The most positions that can be picked in a chunk of up to `chunk_length` tokens (512 at 15 %: 77)."""
        whole, rest = _split(np.array(chunk_length), self.noise_density)
        return int(whole + (rest > 0))

    def arrange(
        self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray, numbers_B: np.ndarray
    ) -> np.ndarray:
        """The chunks in the order in which the model shall see them: here, as they are.

        Args:
          tokens_BL: the chunks.
          lengths_B: their lengths, each at least 2.
          keys_B: uint64, one random key a row.
          numbers_B: by which number an error names each row.
        """
        return tokens_BL

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
        """Masks a batch of chunks; a row's result depends on that row alone.

        Args:
          tokens_BL: int [B, L], row b holds `lengths_B[b]` tokens, then anything.
          lengths_B: their lengths. A row of length 0 or 1 gives padding alone.
          keys_B: uint64, one random key a row.
          sentinel_start, num_sentinels: not used.
          chunk_length: width of the result (default L).
          mask_id: id of `<mask>`, the first behind the pieces.

        Returns:
          `inputs_BS`, the masked chunks, and `targets_BT`, the original id at each picked position and 0 elsewhere;
          int32 [B, chunk_length], padded with 0.

        Raises:
          ValueError: a row is longer than `chunk_length` or is no chunk of this objective; names the row. Or there is no
            piece below `mask_id`.
        """
        chunk_length = chunk_length or tokens_BL.shape[1]
        lengths_B, keys_B = np.asarray(lengths_B, np.int64), np.asarray(keys_B, np.uint64)
        check_lengths(lengths_B, chunk_length)
        inputs_BS = np.zeros((len(lengths_B), chunk_length), np.int32)
        targets_BT = np.zeros_like(inputs_BS)
        width = min(chunk_length, tokens_BL.shape[1])
        for rows in usable_rows(lengths_B):
            lengths, keys = lengths_B[rows], keys_B[rows]
            tokens = self.arrange(tokens_BL[rows, :width], lengths, keys, rows)
            inputs_BS[rows, :width], targets_BT[rows, :width] = mask_tokens(
                tokens, lengths, keys, self.noise_density, mask_id
            )
        return Corrupted(inputs_BS, targets_BT)


def check_density(noise_density: float) -> None:
    """Raises ValueError where it is no share of positions."""
    if not 0 < noise_density < 1:
        raise ValueError(f"noise_density must lie strictly between 0 and 1, found {noise_density}")


def mask_tokens(
    tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray, noise_density: float, mask_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Masks sequences: floor(p n + u) of n positions are picked, u uniform in [0, 1), all choices of so many alike.

    What becomes of a picked position is a function of the row's key and the position, so neither the rest of the batch
    nor the width matters.

    Args:
      tokens_BL: int, row b holds `lengths_B[b]` tokens, then anything.
      lengths_B: lengths, each at least 1.
      keys_B: uint64, one random key a row.
      noise_density: p.
      mask_id: id of `<mask>`. Random pieces are uniform over all ids from the first piece to the one below it, so one in
        so many is the original by chance.

    Returns:
      int32 [B, L] each: the masked tokens, 0 from a row's length on; and the original id at each picked position, 0
      elsewhere.
    """
    if mask_id <= FIRST_PIECE:
        raise ValueError(f"mask_id must be above the first piece, {FIRST_PIECE}, found {mask_id}")
    masked_BL = np.where(np.arange(tokens_BL.shape[1]) < lengths_B[:, None], tokens_BL, 0).astype(np.int32)
    originals_BL = np.zeros_like(masked_BL)

    whole_B, rest_B = _split(lengths_B, noise_density)
    uniform_B = (hash_keys(keys_B, _SALT_ROUNDING) >> np.uint64(11)) * 2.0**-53
    columns_BW = random_subsets(hash_keys(keys_B, _SALT_PICKED), whole_B + (uniform_B < rest_B), lengths_B)
    row_N, place_N = np.nonzero(columns_BW < lengths_B[:, None])
    column_N = columns_BW[row_N, place_N]
    picked = row_N, column_N
    originals_BL[picked] = masked_BL[picked]

    # One word a position: its remainder by ten says what becomes of it, and its quotient which piece.
    word_N = hash_keys(keys_B[row_N], _SALT_TREATMENT, column_N)
    tenth_N = word_N % np.uint64(10)
    piece_N = FIRST_PIECE + (word_N // np.uint64(10) % np.uint64(mask_id - FIRST_PIECE)).astype(np.int32)
    masked_BL[picked] = np.select(
        [tenth_N < _TENTHS_MASKED, tenth_N == _TENTHS_MASKED], [np.int32(mask_id), piece_N], masked_BL[picked]
    )
    return masked_BL, originals_BL


def _split(lengths: np.ndarray, noise_density: float) -> tuple[np.ndarray, np.ndarray]:
    """The whole number in length * density, int64, and what is left, in [0, 1).

    A rest so small that it can only be rounding is none: of 100 tokens at 7 %, 7.000000000000001 in floats, 7 are the most.
    """
    product = np.asarray(lengths) * noise_density
    whole = np.floor(product)
    rest = product - whole
    return whole.astype(np.int64), np.where(rest < 1e-9, 0.0, rest)
