"""Tokens that may be generated: those of a script, or those that a text is made of. Legend: V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import regex

from deltalm_jax.data.vocabulary import EOS_ID, Vocabulary
from deltalm_jax.decoding.arguments import GenerationError


def script_mask(vocabulary: Vocabulary, vocab_size: int, scripts: Sequence[str]) -> np.ndarray:
    """bool [V]: `</s>`, and pieces all of whose letters are of these scripts.

    Characters that Unicode counts to no one script (digits, punctuation, spaces, most combining marks) are allowed
    anywhere. Pieces that spell a byte are not: bytes can be put together to any letter.

    Args:
      vocabulary: of the model.
      vocab_size: rows of its token table.
      scripts: Unicode's names or codes: "Latin", "Cyrl".

    Raises:
      GenerationError: Unicode has no such script, or the vocabulary no letter of it.
    """
    pieces = vocabulary.pieces()
    for script in scripts:
        try:
            letter = regex.compile(rf"[\p{{Script={script}}}&&\p{{L}}]", regex.V1)
        except regex.error as error:
            raise GenerationError(
                f"{script!r} is no script of Unicode's; expected a name such as Latin, Cyrillic, Han, Devanagari"
            ) from error
        if not any(letter.search(piece) for piece, is_byte in pieces[EOS_ID:] if not is_byte):
            raise GenerationError(
                f"the vocabulary {vocabulary.file_name} has no piece with a letter of script {script}"
            )
    classes = "".join(rf"\p{{Script={script}}}" for script in (*scripts, "Common", "Inherited"))
    fits = regex.compile(f"[{classes}]+")
    allowed_V = np.zeros(vocab_size, bool)
    allowed_V[EOS_ID] = True
    for number, (piece, is_byte) in enumerate(pieces[EOS_ID:]):
        allowed_V[EOS_ID + 1 + number] = not is_byte and fits.fullmatch(piece) is not None
    return allowed_V


def text_mask(vocabulary: Vocabulary, vocab_size: int, texts: Iterable[str]) -> np.ndarray:
    """bool [V]: `</s>`, and the tokens that these texts consist of."""
    allowed_V = np.zeros(vocab_size, bool)
    allowed_V[EOS_ID] = True
    for text in texts:
        allowed_V[vocabulary.encode(text)] = True
    return allowed_V


def meaningful_mask(vocabulary: Vocabulary, vocab_size: int) -> np.ndarray:
    """bool [V]: the tokens that `Vocabulary.decode` can write: no filler at the end of the table."""
    ids_V = np.arange(vocab_size)
    sentinels_V = (ids_V >= vocabulary.sentinel_start) & (ids_V < vocabulary.sentinel_start + vocabulary.num_sentinels)
    return (ids_V <= vocabulary.mask_id) | sentinels_V
