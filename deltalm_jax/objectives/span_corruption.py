"""Span corruption as the DeltaLM group's later, public loader does it (GanLM / torchscale `mlm_loader.py`).

Differences from T5's routine: counts are floored, not rounded; a span may start the chunk but the last token is
always kept; sentinels ascend; no end-of-sequence or closing sentinel is added. Raw length is at most the chunk
length, so a 512-token chunk becomes 461 inputs and 101 targets at 15 %. T5's sizing is an option
(`SpanCorruption.sizing`): its counts, its raw lengths and its `</s>`, but not its mask, which never masks the first
token, always masks the last, and so masks the end of short chunks more than their beginning.

Shapes: B batch, L raw length, S inputs (source), T targets, K most spans of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from deltalm_jax.data.packing import MIN_CHUNK_LENGTH
from deltalm_jax.data.vocabulary import EOS_ID
from deltalm_jax.objectives.hashing import hash_keys, random_words

SIZINGS = ("raw", "t5")
_SALT_LENGTHS, _SALT_SLOTS = 1, 2
# The low bits of a draw hold its column: draws of a row are distinct, and sorting them sorts columns along.
_COLUMN_BITS = 16
_NO_COLUMN = 2**_COLUMN_BITS - 1
# Rows corrupted together: more and the intermediate arrays leave the cache, fewer and calls into NumPy dominate.
_ROWS_AT_A_TIME = 64


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """A corrupted batch: `inputs_BS` and `targets_BT`, int32, padded at the end with 0."""

    inputs_BS: np.ndarray
    targets_BT: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spans:
    """What is masked: span c of row b is `lengths_BK[b, c]` tokens from `starts_BK[b, c]` on.

    Spans ascend and at least one kept token stands between two of them. Row b has `counts_B[b]` spans; what follows in
    the arrays has length 0 and starts behind the row's last token.
    """

    starts_BK: np.ndarray
    lengths_BK: np.ndarray
    counts_B: np.ndarray


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """Replaces random spans by sentinels (inputs) and asks for the spans, each after its sentinel (targets).

    Attributes:
      noise_density: share of tokens masked, in (0, 1).
      mean_span_length: mean length of a span, tokens, at least 1.
      sizing: "raw": counts are floored and nothing is appended, as in the group's loader; chunks are as long as asked.
        "t5": counts are rounded (half to even), `</s>` closes inputs and targets, and chunks are as long as fills the
        inputs (`raw_length`).
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0
    sizing: str = "raw"

    packed: ClassVar[bool] = False
    """Whether a row may hold several examples, which the model keeps apart. A chunk of text is one."""
    chunks_of: ClassVar[str] = "span_corruption"
    """The objective whose prepared chunks it takes: its own, or those of another."""
    kind: ClassVar[str] = "sequence_to_sequence"
    """What the model does with a row: "sequence_to_sequence": from `inputs`, predict `targets`; "masked_language_model":
    predict at each place of `inputs` the id that `targets` has there, where it has one; "contrast": tell `targets` from
    other rows' by how like `inputs` it is."""
    uses_mask: ClassVar[bool] = False
    """Whether `corrupt` needs `mask_id`, the id of `<mask>`."""

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise ValueError(f"noise_density must lie strictly between 0 and 1, found {self.noise_density}")
        if self.mean_span_length < 1:
            raise ValueError(f"mean_span_length must be at least 1, found {self.mean_span_length}")
        if self.sizing not in SIZINGS:
            raise ValueError(f"sizing must be one of {', '.join(SIZINGS)}, found {self.sizing!r}")

    def describe(self) -> str:
        """In a few words, for people."""
        sizing = ", T5's sizing" if self.sizing == "t5" else ""
        return f"{100 * self.noise_density:g} % masked, spans of {self.mean_span_length:g}{sizing}"

    def counts(self, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masked tokens n and spans k of sequences of the given raw lengths.

        n = floor(L * noise_density) held within [1, L - 1]; k = max(floor(n / mean_span_length), 1); with T5's sizing
        round in place of floor. A span needs a kept token after it (`draw_spans`), so k is also at most L - n; that binds
        only for densities so high that the group's loader would fail.
        """
        lengths_B = np.asarray(lengths_B, np.int64)
        # Before the floor, a small term keeps products such as 0.15 * 20 = 3.0000000000000004 / 2.9999999999999996 on
        # the right side. T5 rounds the products as they are, and `rint` takes halves to even as Python and TensorFlow do.
        whole = np.rint if self.sizing == "t5" else lambda x: np.floor(x + 1e-9)
        noise_B = np.clip(whole(lengths_B * self.noise_density), 1, lengths_B - 1).astype(np.int64)
        spans_B = np.maximum(whole(noise_B / self.mean_span_length).astype(np.int64), 1)
        return noise_B, np.minimum(spans_B, lengths_B - noise_B)

    def lengths(self, chunk_length: int) -> tuple[int, int]:
        """Static shapes: the longest inputs and targets that any raw length up to `chunk_length` can give."""
        most = self._most(chunk_length)
        return most[0] + self._closing, most[1] + self._closing

    def max_sentinels(self, chunk_length: int) -> int:
        """The most sentinels a chunk of up to `chunk_length` tokens can need."""
        return self._most(chunk_length)[2]

    def raw_length(self, length: int) -> int:
        """How many tokens a full chunk has, before corruption.

        Args:
          length: with "raw" sizing the chunk's own, which is returned; with "t5" the inputs' after corruption.

        Returns:
          With "t5", the longest chunk whose inputs, `</s>` included, fit into `length`: 568 for 512 at 15 % and spans of
          3. As in T5's helper, one less at a density of exactly 0.5 if the targets would be longer than the inputs.
        """
        if self.sizing == "raw":
            return length
        fits, too_long = self._shortest - 1, self._shortest
        while self.lengths(too_long)[0] <= length:
            fits, too_long = too_long, 2 * too_long
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            fits, too_long = (middle, too_long) if self.lengths(middle)[0] <= length else (fits, middle)
        if fits < self._shortest:
            raise ValueError(f"no chunk has inputs of at most {length} tokens, `</s>` included")
        return fits - 1 if self.noise_density == 0.5 and self.lengths(fits)[1] > length else fits

    def draw_spans(self, lengths_B: np.ndarray, keys_B: np.ndarray) -> Spans:
        """Draws the spans of sequences of the given lengths.

        The n masked tokens are cut into k spans at k - 1 distinct places, all choices alike (a uniform random
        composition of n); the spans go before k distinct ones of the L - n kept tokens, again all choices alike. So two
        spans never touch, the first token may be masked and the last never is.

        How often a position is masked follows. Kept token j (from 0) stands at position j + X, X the total length of the
        spans before it. Their number R is hypergeometric: of the L - n slots k are chosen, R of them among the first
        j + 1. Given R = r, X is the sum of the first r of k parts: X = x with probability
        C(x - 1, r - 1) C(n - x - 1, k - r - 1) / C(n - 1, k - 1). Position i is kept with the sum over j of
        P(j + X = i). That is symmetric but for the last position, and at 512 tokens flat but for the
        first and last dozen or so, which are masked less (the first 0.4 to 0.7 times as often, the last never).

        Args:
          lengths_B: lengths, each at least 2.
          keys_B: uint64, one random key a row.
        """
        noise_B, spans_B = self.counts(lengths_B)
        slots_BK = random_subsets(hash_keys(keys_B, _SALT_SLOTS), spans_B, lengths_B - noise_B)
        cuts_BK = random_subsets(hash_keys(keys_B, _SALT_LENGTHS), spans_B - 1, noise_B - 1) + 1
        edges_BK = np.concatenate([np.zeros_like(noise_B)[:, None], cuts_BK, noise_B[:, None]], axis=1)
        # A span is preceded by the kept tokens before its slot and by the masked tokens of the spans before it.
        return Spans(slots_BK + edges_BK[:, :-1], np.diff(edges_BK, axis=1), spans_B)

    def spans(self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray) -> Spans:
        """What is masked in each of a batch of chunks: here, spans of the whole chunk, whatever its tokens are.

        Args:
          tokens_BL: the chunks.
          lengths_B: raw lengths, each at least 2.
          keys_B: uint64, one random key a row.
        """
        return self.draw_spans(lengths_B, keys_B)

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
          its span), each closed by `</s>` with T5's sizing; int32, padded with 0 to `lengths(chunk_length)`.

        Raises:
          ValueError: a row is longer than `chunk_length`, could need more sentinels than there are, or is no chunk of
            this objective.
        """
        chunk_length = chunk_length or tokens_BL.shape[1]
        inputs_length, targets_length = self.lengths(chunk_length)
        lengths_B = np.asarray(lengths_B, np.int64)
        keys_B = np.asarray(keys_B, np.uint64)
        check_lengths(lengths_B, chunk_length)
        if (needed := self.max_sentinels(chunk_length)) > num_sentinels:
            raise ValueError(
                f"{chunk_length} tokens at noise density {self.noise_density} and mean span length "
                f"{self.mean_span_length} need {needed} sentinels, but the vocabulary has {num_sentinels}: "
                "lower the density or the chunk length, raise the mean span length, or reserve more sentinels"
            )
        inputs_BS = np.zeros((len(lengths_B), inputs_length), np.int32)
        targets_BT = np.zeros((len(lengths_B), targets_length), np.int32)
        for rows in usable_rows(lengths_B):
            tokens, lengths = tokens_BL[rows], lengths_B[rows]
            spans = self.spans(tokens, lengths, keys_B[rows])
            if (found := int(spans.counts_B.max())) > num_sentinels:
                raise ValueError(f"a chunk has {found} spans, more than any chunk of {chunk_length} tokens should")
            inputs_BS[rows] = _inputs(tokens, lengths, spans, sentinel_start, inputs_length, self._closing)
            targets_BT[rows] = _targets(tokens, spans, sentinel_start, targets_length, self._closing)
        return Corrupted(inputs_BS, targets_BT)

    @property
    def _closing(self) -> int:
        """How many `</s>` are appended."""
        return int(self.sizing == "t5")

    @property
    def _shortest(self) -> int:
        """The shortest chunk that can be corrupted."""
        return MIN_CHUNK_LENGTH

    def _most(self, chunk_length: int) -> tuple[int, int, int]:
        """The most inputs and targets, without `</s>`, and sentinels that chunks of up to this length can give."""
        if chunk_length < self._shortest:
            raise ValueError(f"chunk_length must be at least {self._shortest}, found {chunk_length}")
        raw = np.arange(self._shortest, chunk_length + 1)
        noise, spans = self.counts(raw)
        return int((raw - noise + spans).max()), int((noise + spans).max()), int(spans.max())


def check_lengths(lengths_B: np.ndarray, chunk_length: int) -> None:
    """Raises ValueError where a row is longer than `chunk_length`, or that is more than can be corrupted."""
    if chunk_length > _NO_COLUMN:
        raise ValueError(f"chunks of at most {_NO_COLUMN:,} tokens can be corrupted, found {chunk_length:,}")
    if (too_long_B := lengths_B > chunk_length).any():
        row = int(too_long_B.argmax())
        raise ValueError(f"row {row}: a chunk of {lengths_B[row]} tokens is longer than chunk_length {chunk_length}")


def usable_rows(lengths_B: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of the rows that are long enough to be corrupted, as many at a time as are best done together."""
    usable = np.flatnonzero(lengths_B >= MIN_CHUNK_LENGTH)
    for begin in range(0, len(usable), _ROWS_AT_A_TIME):
        yield usable[begin : begin + _ROWS_AT_A_TIME]


def random_subsets(keys_B: np.ndarray, chosen_B: np.ndarray, among_B: np.ndarray) -> np.ndarray:
    """Uniformly random subsets, ascending: row b holds `chosen_B[b]` of 0 … `among_B[b]` - 1.

    The columns of the smallest of as many random words. Words have 48 random bits, so that ties, which the lower column
    wins, do not count.

    Returns:
      int64 [B, most chosen]; what follows a row's chosen columns is `among_B[b]`.
    """
    among_B1, chosen_B1 = among_B[:, None], chosen_B[:, None]
    width, most = int(among_B.max()), int(chosen_B.max())
    draws_BL = random_words(keys_B, width)
    draws_BL &= np.uint64(2**64 - 2**_COLUMN_BITS)
    draws_BL |= np.arange(width, dtype=np.uint64)
    draws_BL[np.arange(width) >= among_B1] = np.uint64(2**64 - 1)
    draws_BL.sort(axis=1)
    columns_BK = draws_BL[:, :most].astype(np.uint16)  # the low bits
    columns_BK[np.arange(most) >= chosen_B1] = _NO_COLUMN
    columns_BK.sort(axis=1)
    return np.minimum(columns_BK, among_B1)


def _inputs(
    tokens_BL: np.ndarray, lengths_B: np.ndarray, spans: Spans, sentinel_start: int, length: int, closing: int
) -> np.ndarray:
    """Kept tokens in order, each span replaced by its sentinel; int32 [B, `length`], padded with 0."""
    before_BK = np.cumsum(spans.lengths_BK, axis=1) - spans.lengths_BK
    # Sentinel c stands behind the kept tokens before its span and behind c sentinels; then reading jumps over the span.
    place_BK = spans.starts_BK - before_BK + np.arange(before_BK.shape[1])
    size_B = lengths_B - spans.lengths_BK.sum(axis=1) + spans.counts_B
    return _gather(tokens_BL, place_BK, 1, spans.lengths_BK, size_B, sentinel_start, length, closing)


def _targets(tokens_BL: np.ndarray, spans: Spans, sentinel_start: int, length: int, closing: int) -> np.ndarray:
    """Each sentinel and the span it stands for; int32 [B, `length`], padded with 0."""
    ends_BK = spans.starts_BK + spans.lengths_BK
    before_BK = np.cumsum(spans.lengths_BK, axis=1) - spans.lengths_BK
    place_BK = before_BK + np.arange(before_BK.shape[1])
    # At a sentinel, reading jumps from the last token of a span to the one before the next span.
    jump_BK = spans.starts_BK - np.pad(ends_BK, ((0, 0), (1, 0)))[:, :-1]
    jump_BK[:, 0] -= 1
    size_B = spans.lengths_BK.sum(axis=1) + spans.counts_B
    return _gather(tokens_BL, place_BK, 0, jump_BK, size_B, sentinel_start, length, closing)


def _gather(
    tokens_BL: np.ndarray,
    place_BK: np.ndarray,
    offset: int,
    jump_BK: np.ndarray,
    size_B: np.ndarray,
    sentinel_start: int,
    length: int,
    closing: int,
) -> np.ndarray:
    """Reads each row's tokens from left to right, one place after the other but for the jumps, and puts in sentinels.

    Args:
      tokens_BL: the tokens.
      place_BK: where in the result each sentinel goes; from a row's size on, it is of no account.
      offset: the step from place_BK + offset - 1 to place_BK + offset is `jump_BK` instead of 1.
      jump_BK: see there.
      size_B: tokens and sentinels of each row, `</s>` not counted.
      sentinel_start, length, closing: first sentinel, columns of the result, how many `</s>`.
    """
    if (longest := int(size_B.max()) + closing) > length:
        raise ValueError(f"a corrupted chunk has {longest} tokens where {length} are the most that one should have")
    batch, width = tokens_BL.shape
    row_B1, column_T = np.arange(batch)[:, None], np.arange(length)
    # Two columns more take what lies behind the end.
    place_BK = np.minimum(place_BK, length)
    step_BT = np.ones((batch, length + 2), np.intp)
    step_BT[:, 0] = 0
    step_BT[row_B1, place_BK + offset] = jump_BK
    step_BT[:, 0] += row_B1[:, 0] * width
    np.cumsum(step_BT, axis=1, out=step_BT)
    # Places read before the first token or behind the last are those of sentinels and of padding.
    out_BT = tokens_BL.reshape(-1).take(step_BT, mode="wrap").astype(np.int32, copy=False)
    out_BT[row_B1, place_BK] = sentinel_start + np.arange(place_BK.shape[1], dtype=np.int32)
    out_BT = out_BT[:, :length]
    out_BT[column_T >= size_B[:, None]] = 0
    if closing:
        out_BT[row_B1[:, 0], size_B] = EOS_ID
    return out_BT
