"""What each id of a vocabulary stands for in text: how many characters and bytes, and whether it spells a byte.

With it, the text behind millions of ids is measured without decoding any of them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from deltalm_jax.data.vocabulary import EOS_ID, Vocabulary

_SPACE = "\u2581"  # SentencePiece writes spaces so
_ASCII_END, _LEADING_BYTE = 0x80, 0xC0


@dataclasses.dataclass(frozen=True)
class PieceTable:
    """Per id of a vocabulary (V = its size):

    Attributes:
      characters_V: characters of its text, spaces included; 0 for unknowns and specials. Of a byte that is spelled by
        itself, 1 where a character begins with it and 0 where it goes on. int64.
      bytes_V: UTF-8 bytes of its text. int64.
      is_byte_V: it spells one byte (SentencePiece's byte fallback).
    """

    characters_V: np.ndarray
    bytes_V: np.ndarray
    is_byte_V: np.ndarray

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> PieceTable:
        """The table of a vocabulary."""
        characters_V = np.zeros(vocabulary.size, np.int64)
        bytes_V, is_byte_V = characters_V.copy(), np.zeros(vocabulary.size, bool)
        for token, (piece, is_byte) in enumerate(vocabulary.pieces(), start=1):
            if token <= EOS_ID:
                continue
            if is_byte:
                value = int(piece[3:5], 16)  # <0xE2>
                is_byte_V[token], bytes_V[token] = True, 1
                characters_V[token] = value < _ASCII_END or value >= _LEADING_BYTE
            else:
                text = piece.replace(_SPACE, " ")
                characters_V[token], bytes_V[token] = len(text), len(text.encode())
        return cls(characters_V, bytes_V, is_byte_V)
