"""Training of a SentencePiece model with the ids that `Vocabulary` needs."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable

import sentencepiece

from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, UNK_ID
from deltalm_jax.errors import UserError

MODEL_TYPES = ("unigram", "bpe")
# Names that the ids around the pieces have; a symbol of this name would be taken for one of them.
_RESERVED = ("<unk>", "<s>", "</s>", "<pad>", "<mask>")
_SPACE = "\u2581"
_MAX_TEXT_BYTES = 1 << 20


class VocabularyTrainingError(UserError, ValueError):
    """Settings or text that no vocabulary comes from."""


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """How a vocabulary is trained. The defaults are SentencePiece's, but for byte fallback and the size.

    Attributes:
      num_pieces: pieces of the model, its `<unk>`, `<s>` and `</s>` (and 256 bytes) included.
      model_type: "unigram" (XLM-R's) or "bpe".
      character_coverage: share of the text's characters that get a piece of their own; the rarest are left out.
      byte_fallback: characters without a piece are spelled in bytes, so that nothing is unknown.
      split_digits: every digit is a piece of its own.
      split_by_unicode_script: no piece has letters of two scripts.
      max_piece_length: characters in a piece.
      normalization: SentencePiece's rule, "nmt_nfkc" (XLM-R's), "nfkc", "nmt_nfkc_cf", "nfkc_cf" or "identity".
      user_symbols: pieces that are always one piece wherever they stand in a text.
      num_threads: a sum over texts is taken in so many parts, so the model depends on it; not on the machine.
    """

    num_pieces: int = 64_000
    model_type: str = "unigram"
    character_coverage: float = 0.9995
    byte_fallback: bool = True
    split_digits: bool = False
    split_by_unicode_script: bool = True
    max_piece_length: int = 16
    normalization: str = "nmt_nfkc"
    user_symbols: tuple[str, ...] = ()
    num_threads: int = 4

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise VocabularyTrainingError(
                f"model_type must be one of {', '.join(MODEL_TYPES)}, found {self.model_type!r}"
            )
        if not 0 < self.character_coverage <= 1:
            raise VocabularyTrainingError(f"character_coverage must lie in (0, 1], found {self.character_coverage}")
        least = 3 + 256 * self.byte_fallback + len(self.user_symbols)
        for name, value, lowest in (
            ("num_pieces", self.num_pieces, least + 1),
            ("max_piece_length", self.max_piece_length, 1),
            ("num_threads", self.num_threads, 1),
        ):
            if value < lowest:
                raise VocabularyTrainingError(f"{name} must be at least {lowest}, found {value}")
        check_symbols(self.user_symbols)


def check_symbols(symbols: tuple[str, ...]) -> None:
    """Raises VocabularyTrainingError for symbols that are empty, doubled, hold white space or have a special's name."""
    for symbol in symbols:
        if not symbol or _SPACE in symbol or any(character.isspace() for character in symbol):
            raise VocabularyTrainingError(f"user symbol {symbol!r}: must be one word, without white space")
        if symbol in _RESERVED:
            raise VocabularyTrainingError(f"user symbol {symbol!r}: it is there already")
        if symbols.count(symbol) > 1:
            raise VocabularyTrainingError(f"user symbol {symbol!r} is named twice")


def train(texts: Iterable[str], settings: TrainerSettings, exactly: bool = True) -> bytes:
    """A serialised SentencePiece model; a function of the texts, their order and the settings.

    Args:
      texts: to learn from.
      settings: of the trainer.
      exactly: too little text for so many pieces is an error; else (unigram only) there are fewer pieces then.

    Raises:
      VocabularyTrainingError: the trainer refuses: too many pieces for so little text, an unknown normalisation.
    """
    model = io.BytesIO()
    try:
        # An iterator and a writer instead of file names: those would be stored in the model and change its digest.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=settings.model_type,
            vocab_size=settings.num_pieces,
            character_coverage=settings.character_coverage,
            byte_fallback=settings.byte_fallback,
            split_digits=settings.split_digits,
            split_by_unicode_script=settings.split_by_unicode_script,
            max_sentencepiece_length=settings.max_piece_length,
            normalization_rule_name=settings.normalization,
            user_defined_symbols=list(settings.user_symbols),
            num_threads=settings.num_threads,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            max_sentence_length=_MAX_TEXT_BYTES,
            hard_vocab_limit=exactly,
            unk_id=UNK_ID - 1,
            bos_id=BOS_ID - 1,
            eos_id=EOS_ID - 1,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise VocabularyTrainingError(
            f"SentencePiece cannot train {settings.num_pieces:,} pieces ({settings.model_type}) on this text: {error}. Give "
            "it more text, or ask for fewer pieces."
        ) from error
    return model.getvalue()
