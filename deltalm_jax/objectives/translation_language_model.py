"""Translation language modelling (XLM, InfoXLM): masked language modelling over concatenated translation pairs.

To fill a gap on one side, the model may look at the other. InfoXLM shows each pair in both orders; here the two sides of
each pair change places by the flip of a coin, anew whenever the chunk comes up, so that both orders occur over the epochs.
Chunks are those of translation span corruption, `<s> A </s> B </s> C </s> D </s> …` (`data.packing.pack_pairs`); one is
one sequence to the mask, to attention and to positions. InfoXLM has one pair a sequence; here it is as many as fit.

Shapes: B batch, L chunk, P pairs of a batch.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from deltalm_jax.objectives.hashing import hash_keys
from deltalm_jax.objectives.masked_language_model import MaskedLanguageModel
from deltalm_jax.objectives.translation_span_corruption import find_pairs

_SALT_ORDER = 7


@dataclasses.dataclass(frozen=True)
class TranslationLanguageModel(MaskedLanguageModel):
    """`MaskedLanguageModel` of translation pairs whose sides stand in either order."""

    chunks_of: ClassVar[str] = "translation_span_corruption"

    def arrange(
        self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray, numbers_B: np.ndarray
    ) -> np.ndarray:
        """The chunks with the sides of about half the pairs exchanged; a coin of the row's key and the pair's number.

        Raises:
          ValueError: a row is not made of pairs; names the row.
        """
        row_P, pair_P, edges_P3 = find_pairs(tokens_BL, lengths_B, numbers_B)
        coin_P = (hash_keys(keys_B[row_P], _SALT_ORDER, pair_P) & np.uint64(1)).astype(np.int64)
        begin_P, middle_P, end_P = edges_P3.T
        first_P, second_P = coin_P * (middle_P - begin_P), coin_P * (end_P - middle_P)
        # Where the sides are exchanged, the pair's first places are read as far ahead as its first side is long, and the
        # others as far back as its second; behind the pair, where they are. Noted as changes, then summed up.
        change_BL = np.zeros((len(lengths_B), tokens_BL.shape[1] + 1), np.int64)
        change_BL[row_P, begin_P] = first_P
        change_BL[row_P, begin_P + end_P - middle_P] -= first_P + second_P
        change_BL[row_P, end_P] += second_P
        places_BL = np.arange(tokens_BL.shape[1]) + np.cumsum(change_BL, axis=1)[:, :-1]
        return np.take_along_axis(tokens_BL, places_BL, axis=1)
