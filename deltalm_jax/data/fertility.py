"""How a vocabulary fits texts: tokens a word and a character, bytes a token, unknowns, bytes spelled one by one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from deltalm_jax.data.vocabulary import UNK_ID, Vocabulary

# Scripts that put no space between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003134f]"
)
_LETTER = re.compile(r"[^\W\d_]")


@dataclasses.dataclass(frozen=True)
class Fit:
    """A vocabulary on some texts of a language.

    Attributes:
      texts, characters, utf8_bytes: of the texts as they stand.
      words: parts between white space; None where most letters are of scripts that put none between words.
      tokens: ids, specials not counted.
      unknown: ids of `<unk>` among them.
      byte_pieces: ids that spell one byte.
    """

    texts: int
    characters: int
    utf8_bytes: int
    words: int | None
    tokens: int
    unknown: int
    byte_pieces: int

    @property
    def tokens_per_word(self) -> float | None:
        """Fertility; None where words cannot be counted."""
        return self.tokens / self.words if self.words else None

    @property
    def tokens_per_character(self) -> float:
        """Tokens for each character of the text."""
        return self.tokens / max(self.characters, 1)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each token."""
        return self.utf8_bytes / max(self.tokens, 1)

    @property
    def unknown_share(self) -> float:
        """Share of `<unk>` among the tokens."""
        return self.unknown / max(self.tokens, 1)

    @property
    def byte_share(self) -> float:
        """Share of single bytes among the tokens."""
        return self.byte_pieces / max(self.tokens, 1)


def fit(vocabulary: Vocabulary, texts: Sequence[str]) -> Fit:
    """Encodes texts and counts."""
    spells_byte = {token for token, (_, is_byte) in enumerate(vocabulary.pieces(), start=1) if is_byte}
    tokens = unknown = byte_pieces = 0
    for ids in vocabulary.encode_batch(texts):
        tokens += len(ids)
        unknown += ids.count(UNK_ID)
        byte_pieces += sum(token in spells_byte for token in ids) if spells_byte else 0
    letters = unspaced = words = 0
    for text in texts:
        letters += len(_LETTER.findall(text))
        unspaced += len(_UNSPACED.findall(text))
        words += len(text.split())
    return Fit(
        texts=len(texts),
        characters=sum(map(len, texts)),
        utf8_bytes=sum(len(text.encode()) for text in texts),
        words=None if 2 * unspaced > letters else words,
        tokens=tokens,
        unknown=unknown,
        byte_pieces=byte_pieces,
    )


def changed_share(old: Vocabulary, new: Vocabulary, texts: Sequence[str]) -> float:
    """Share of the old vocabulary's tokens that stand in words which the new one segments otherwise.

    For an extension of `old`, whose ids of old pieces are the same. Words are parts between white space (of a text without
    any, the whole).
    """
    words = [word for text in texts for word in text.split()]
    changed = total = 0
    for before, after in zip(old.encode_batch(words), new.encode_batch(words), strict=True):
        total += len(before)
        changed += len(before) if before != after else 0
    return changed / max(total, 1)
