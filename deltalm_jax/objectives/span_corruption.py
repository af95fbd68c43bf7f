"""Span corruption as the DeltaLM group's later, public loader does it (GanLM / torchscale `mlm_loader.py`).

Differences from T5's routine: counts are floored, not rounded; a span may start the chunk but the last token is
always kept; sentinels ascend; no end-of-sequence or closing sentinel is added. Raw length is at most the chunk
length, so a 512-token chunk becomes 461 inputs and 101 targets at 15 %.

Shapes: B batch, L raw length, S inputs (source), T targets, K at most L (kept or masked tokens).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from deltalm_jax.objectives.hashing import hash_keys

_SALT_LENGTHS, _SALT_SLOTS = 1, 2


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """A corrupted batch: `inputs_BS` and `targets_BT`, int32, padded at the end with 0."""

    inputs_BS: np.ndarray
    targets_BT: np.ndarray


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """Replaces random spans by sentinels (inputs) and asks for the spans, each after its sentinel (targets).

    Attributes:
      noise_density: share of tokens masked, in (0, 1).
      mean_span_length: mean length of a span, tokens, at least 1.
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise ValueError(f"noise_density must lie strictly between 0 and 1, found {self.noise_density}")
        if self.mean_span_length < 1:
            raise ValueError(f"mean_span_length must be at least 1, found {self.mean_span_length}")

    def counts(self, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masked tokens n and spans k of chunks of the given raw lengths.

        n = floor(L * noise_density) held within [1, L - 1]; k = max(floor(n / mean_span_length), 1). A span needs
        a kept token after it (see `corrupt`), so k is also at most L - n; that binds only for densities so high
        that the group's loader would fail.
        """
        lengths_B = np.asarray(lengths_B, np.int64)
        # The small term keeps products such as 0.15 * 20 = 3.0000000000000004 / 2.9999999999999996 on the right side.
        noise_B = np.clip(np.floor(lengths_B * self.noise_density + 1e-9), 1, lengths_B - 1).astype(np.int64)
        spans_B = np.maximum(np.floor(noise_B / self.mean_span_length + 1e-9).astype(np.int64), 1)
        return noise_B, np.minimum(spans_B, lengths_B - noise_B)

    def lengths(self, chunk_length: int) -> tuple[int, int]:
        """Static shapes: the longest inputs and targets that any raw length up to `chunk_length` can give."""
        raw = np.arange(2, chunk_length + 1)
        if not raw.size:
            raise ValueError(f"chunk_length must be at least 2, found {chunk_length}")
        noise, spans = self.counts(raw)
        return int((raw - noise + spans).max()), int((noise + spans).max())

    def max_sentinels(self, chunk_length: int) -> int:
        """The most sentinels a chunk of up to `chunk_length` tokens can need."""
        return int(self.counts(np.arange(2, chunk_length + 1))[1].max())

    def mask(self, lengths_B: np.ndarray, keys_B: np.ndarray, width: int) -> np.ndarray:
        """Draws the noise mask of each row.

        The n masked tokens are cut into k spans at k - 1 distinct places (a uniform random composition); the
        spans go before k distinct ones of the L - n kept tokens. So two spans never touch, the first token may be
        masked and the last never is.

        Args:
          lengths_B: raw lengths, each in [2, width].
          keys_B: uint64, one random key a row.
          width: number of columns L of the result.

        Returns:
          bool [B, L], true where a token is masked.
        """
        noise_B, spans_B = self.counts(lengths_B)
        kept_B = lengths_B - noise_B
        # Kept tokens that a span goes before: k of the L - n.
        slot_BK = _choose(hash_keys(keys_B, _SALT_SLOTS), spans_B, kept_B)
        # Masked tokens that begin a span: the first, and k - 1 of the n - 1 others.
        begins_BK = _choose(hash_keys(keys_B, _SALT_LENGTHS), spans_B - 1, noise_B - 1)
        begins_BK = np.concatenate([np.ones((len(noise_B), 1), bool), begins_BK], axis=1)
        span_of_noise_BK = np.cumsum(begins_BK, axis=1) - 1
        # Masked token j of span c is preceded by j masked tokens and by the slot_c kept tokens before its slot.
        rows, columns = np.nonzero(slot_BK)
        slots_BC = np.zeros((len(noise_B), int(spans_B.max())), np.int64)
        slots_BC[rows, _ordinal(rows, len(noise_B))] = columns
        noise_index_BK = np.arange(begins_BK.shape[1])[None, :]
        row, j = np.nonzero(noise_index_BK < noise_B[:, None])
        mask_BL = np.zeros((len(noise_B), width), bool)
        mask_BL[row, slots_BC[row, span_of_noise_BK[row, j]] + j] = True
        return mask_BL

    def corrupt(
        self,
        tokens_BL: np.ndarray,
        lengths_B: np.ndarray,
        keys_B: np.ndarray,
        sentinel_start: int,
        num_sentinels: int,
        chunk_length: int | None = None,
    ) -> Corrupted:
        """Corrupts a batch of chunks; a row's result depends on that row alone.

        Args:
          tokens_BL: int [B, L], row b holds `lengths_B[b]` tokens, then anything.
          lengths_B: raw lengths. A row of length 0 or 1 cannot be corrupted: all its outputs are 0 (padding).
          keys_B: uint64, one random key a row.
          sentinel_start: id of the first sentinel; they ascend from there.
          num_sentinels: how many sentinels the vocabulary has.
          chunk_length: the raw length that fixes the output shapes (default L).

        Returns:
          `inputs_BS` (kept tokens, each span replaced by its sentinel) and `targets_BT` (each sentinel followed by
          its span), int32, padded with 0 to `lengths(chunk_length)`.

        Raises:
          ValueError: a row is longer than `chunk_length`, or could need more sentinels than there are.
        """
        chunk_length = chunk_length or tokens_BL.shape[1]
        inputs_length, targets_length = self.lengths(chunk_length)
        lengths_B = np.asarray(lengths_B, np.int64)
        if lengths_B.size and lengths_B.max() > chunk_length:
            raise ValueError(f"a chunk of {lengths_B.max()} tokens is longer than chunk_length {chunk_length}")
        if (needed := self.max_sentinels(chunk_length)) > num_sentinels:
            raise ValueError(
                f"{chunk_length} tokens at noise density {self.noise_density} and mean span length "
                f"{self.mean_span_length} need {needed} sentinels, but the vocabulary has {num_sentinels}: "
                "lower the density or the chunk length, raise the mean span length, or reserve more sentinels"
            )
        usable = lengths_B >= 2
        inputs_BS = np.zeros((len(lengths_B), inputs_length), np.int32)
        targets_BT = np.zeros((len(lengths_B), targets_length), np.int32)
        if usable.any():
            mask_BL = self.mask(lengths_B[usable], np.asarray(keys_B, np.uint64)[usable], tokens_BL.shape[1])
            inputs_BS[usable], targets_BT[usable] = _apply_mask(
                tokens_BL[usable], lengths_B[usable], mask_BL, sentinel_start, inputs_length, targets_length
            )
        return Corrupted(inputs_BS, targets_BT)


def _choose(keys_B: np.ndarray, chosen_B: np.ndarray, among_B: np.ndarray) -> np.ndarray:
    """Uniformly random subsets: row b marks `chosen_B[b]` of its first `among_B[b]` columns. bool [B, max among]."""
    width = max(int(among_B.max()), 1)
    column_K = np.arange(width, dtype=np.uint64)
    draws_BK = hash_keys(keys_B[:, None], column_K[None, :])
    # The column in the low bits makes the draws of a row distinct; columns out of reach sort last.
    bits = np.uint64(max(int(width - 1).bit_length(), 1))
    draws_BK = (draws_BK >> bits << bits) | column_K
    outside_BK = column_K >= among_B[:, None].astype(np.uint64)
    draws_BK[outside_BK] = np.uint64(2**64 - 1)
    sorted_BK = np.sort(draws_BK, axis=1)
    threshold_B = sorted_BK[np.arange(len(keys_B)), np.clip(chosen_B - 1, 0, width - 1)]
    return (draws_BK <= threshold_B[:, None]) & (chosen_B > 0)[:, None] & ~outside_BK


def _ordinal(rows_N: np.ndarray, num_rows: int) -> np.ndarray:
    """For ascending row numbers (as from np.nonzero): each entry's place within its row."""
    per_row = np.bincount(rows_N, minlength=num_rows)
    return np.arange(len(rows_N)) - np.repeat(np.cumsum(per_row) - per_row, per_row)


def _apply_mask(
    tokens_BL: np.ndarray,
    lengths_B: np.ndarray,
    mask_BL: np.ndarray,
    sentinel_start: int,
    inputs_length: int,
    targets_length: int,
) -> tuple[np.ndarray, np.ndarray]:
    batch = len(lengths_B)
    real_BL = np.arange(tokens_BL.shape[1])[None, :] < lengths_B[:, None]
    starts_BL = mask_BL & ~np.pad(mask_BL, ((0, 0), (1, 0)))[:, :-1]
    sentinel_BL = sentinel_start + np.cumsum(starts_BL, axis=1) - 1

    inputs_BS = np.zeros((batch, inputs_length), np.int32)
    rows, columns = np.nonzero(real_BL & (~mask_BL | starts_BL))
    values = np.where(starts_BL[rows, columns], sentinel_BL[rows, columns], tokens_BL[rows, columns])
    inputs_BS[rows, _ordinal(rows, batch)] = values

    targets_BT = np.zeros((batch, targets_length), np.int32)
    rows, columns = np.nonzero(mask_BL)
    # A masked token stands behind all masked tokens before it and one sentinel for each span begun so far.
    spans_begun = sentinel_BL[rows, columns] - sentinel_start + 1
    place = _ordinal(rows, batch) + spans_begun
    targets_BT[rows, place] = tokens_BL[rows, columns]
    begins = starts_BL[rows, columns]
    targets_BT[rows[begins], place[begins] - 1] = sentinel_BL[rows[begins], columns[begins]]
    return inputs_BS, targets_BT
