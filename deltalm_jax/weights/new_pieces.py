"""A token table moved to a vocabulary with more pieces, or fewer: rows keep their meaning, new pieces start from old ones.

`python -m deltalm_jax.vocabulary extend` appends pieces, and `trim` leaves pieces out, so that those behind, `<mask>` and the
sentinels get other ids. Their rows move along. A new piece starts as the mean of the rows of the old pieces that spell it,
which is what the model saw in its place so far.

Legend: V rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from deltalm_jax.data.vocabulary import PAD_ID, UNK_ID, Vocabulary
from deltalm_jax.data.vocabulary_extension import spell
from deltalm_jax.model.warm_start import with_new_rows, with_zeros


def move_rows(table_VD: np.ndarray, old: Vocabulary, new: Vocabulary, key: jax.Array) -> tuple[np.ndarray, str]:
    """The table of `new`, an extension of `old` or a part of it.

    Args:
      table_VD: rows by the ids of `old`; those of `<mask>` and of the sentinels may be missing at its end.
      old, new: the vocabularies; sentinel i of the one becomes sentinel i of the other.
      key: of rows without a meaning so far, drawn as `with_new_rows` draws: pieces of characters that the old model does
        not know, sentinels beyond the old ones, filler.

    Returns:
      float32 rows: up to the last piece, up to `<mask>` or all `new.size`, as far as the old table went; and a sentence on
      what was done.
    """
    return _moved(np.asarray(table_VD), old, new, lambda rows_VD, size: np.array(with_new_rows(rows_VD, size, key)))


def move_bias(bias_V: np.ndarray, old: Vocabulary, new: Vocabulary) -> np.ndarray:
    """The output layer's bias for each token, moved as the table; 0 where the table's rows are drawn."""
    moved, _ = _moved(
        np.asarray(bias_V)[:, None], old, new, lambda bias_V1, size: with_zeros(bias_V1[:, 0], size)[:, None]
    )
    return moved[:, 0]


def _moved(
    table_VD: np.ndarray, old: Vocabulary, new: Vocabulary, lengthen: Callable[[np.ndarray, int], np.ndarray]
) -> tuple[np.ndarray, str]:
    """`lengthen` gives rows without a meaning so far: (the first rows, size) → as many as `size`."""
    last, rows = new.num_pieces + 1, len(table_VD)
    has_mask, has_sentinels = rows > old.mask_id, rows > old.sentinel_start
    size = new.size if has_sentinels else last + has_mask
    row_of = {piece: row for row, (piece, _) in enumerate(old.pieces(), start=1)}
    there = [row_of[piece] for piece, _ in new.pieces() if piece in row_of]  # before the new ones, in their order
    out = lengthen(table_VD[[PAD_ID, *there]], size)
    drawn = 0
    pieces = [piece for piece, _ in new.pieces()[len(there) :]]
    for row, ids in enumerate(spell(old.model, pieces), start=1 + len(there)):
        known = [piece + 1 for piece in ids if piece + 1 != UNK_ID]
        if known:
            out[row] = np.mean(table_VD[known], axis=0)
        drawn += not known
    if has_mask:
        out[new.mask_id] = table_VD[old.mask_id]
    if has_sentinels:
        count = min(old.num_sentinels, new.num_sentinels, rows - old.sentinel_start)
        out[new.sentinel_start : new.sentinel_start + count] = table_VD[old.sentinel_start : old.sentinel_start + count]
    unknown = f", {drawn} of unknown characters drawn" if drawn else ""
    what = f"{len(pieces)} new pieces start as the mean of the old ones that spell them{unknown}"
    if not pieces:
        what = f"{old.num_pieces - new.num_pieces:,} pieces left out"
    return out, f"{what}; <mask> and sentinels moved from {old.mask_id:,} to {new.mask_id:,}"
