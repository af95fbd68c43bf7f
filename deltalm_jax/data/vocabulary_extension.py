"""New pieces for an existing SentencePiece model: its own keep their ids and scores, new ones are appended.

A unigram model gives each piece a log probability and takes the most probable segmentation. Text of new languages has a
unigram model of its own, and text of both kinds comes from the mixture (1 - w) · old + w · new. So a piece that only the
new model has gets log w + (its score there); what the old one has keeps its score. With a small w, old text falls apart
as before, but where several old pieces together are less probable than one new one.

Which pieces: those that save most. In the new text a piece occurs with probability p, and the old model spells it in k
pieces, so it saves p (k - 1) pieces for every piece of the new model; the `num_pieces` largest are taken. Characters that
the old model does not know come first, since without them text is lost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece

from deltalm_jax.data.vocabulary import UNK_ID, Vocabulary
from deltalm_jax.data.vocabulary_training import TrainerSettings, VocabularyTrainingError, check_symbols, train

# The weight w of the new text's model in the mixture; docs/vocabulary.md compares some.
WEIGHT = 0.01
_SPACE = "\u2581"
_NORMAL = 1  # SentencePiece's type of an ordinary piece
_USER_DEFINED = 4


@dataclasses.dataclass(frozen=True)
class Extension:
    """A model with more pieces.

    Attributes:
      model: serialised.
      new_pieces: the pieces appended, in order; the first has the SentencePiece id that was the old model's size.
      new_characters: those of them that are characters which the old model does not know.
    """

    model: bytes
    new_pieces: tuple[str, ...]
    new_characters: tuple[str, ...]


def extend(
    model: bytes,
    texts: Iterable[str],
    num_pieces: int,
    *,
    weight: float = WEIGHT,
    user_symbols: tuple[str, ...] = (),
    character_coverage: float = 0.9995,
    num_threads: int = 4,
) -> Extension:
    """Appends pieces for new text to a unigram model.

    Args:
      model: the old model, serialised.
      texts: of the new languages. They are normalised as the old model does.
      num_pieces: new pieces at most, beside the symbols.
      weight: of the new text's model in the mixture, between 0 and 1: larger shortens new text more, and changes more of
        the old.
      user_symbols: further new pieces, which are always one piece.
      character_coverage, num_threads: of the training on the new text, as in `TrainerSettings`.

    Raises:
      VocabularyTrainingError: the model is not of the unigram kind, a symbol is there already, the trainer refuses.
    """
    if num_pieces < 1:
        raise VocabularyTrainingError(f"num_pieces must be at least 1, found {num_pieces}")
    if not 0 < weight < 1:
        raise VocabularyTrainingError(f"weight must lie strictly between 0 and 1, found {weight}")
    check_symbols(user_symbols)
    old = load_unigram(model, "extended")
    spec = old.trainer_spec
    there = {piece.piece for piece in old.pieces}
    if doubled := there & set(user_symbols):
        raise VocabularyTrainingError(f"user symbol {min(doubled)!r}: the model has such a piece already")
    found = _new_scores(model, spec, texts, num_pieces, character_coverage, num_threads)
    missing = {piece: score for piece, score in found.items() if piece not in there and piece not in user_symbols}
    spelled = dict(zip(missing, spell(model, list(missing)), strict=True))
    characters = {piece for piece, ids in spelled.items() if len(piece) == 1 and UNK_ID - 1 in ids}
    saved = {piece: math.exp(score) * (len(spelled[piece]) - 1) for piece, score in missing.items()}
    chosen = sorted(missing, key=lambda piece: (piece not in characters, -saved[piece], -missing[piece], piece))[
        :num_pieces
    ]
    for symbol in user_symbols:
        old.pieces.add(piece=symbol, score=0.0, type=_USER_DEFINED)
    for piece in chosen:
        old.pieces.add(piece=piece, score=missing[piece] + math.log(weight), type=_NORMAL)
    old.trainer_spec.vocab_size = len(old.pieces)
    old.trainer_spec.user_defined_symbols.extend(user_symbols)
    del old.self_test_data.samples[:]  # examples of segmentations, some of which are others now
    return Extension(
        old.SerializeToString(deterministic=True),
        (*user_symbols, *chosen),
        tuple(piece for piece in chosen if piece in characters),
    )


def load_unigram(model: bytes, done: str) -> Any:
    """A unigram model as SentencePiece's protocol buffer; `done` is what it shall be, "extended", for the message.

    Raises:
      VocabularyTrainingError: it is of another kind.
    """
    # protobuf is needed here only, and loading its classes takes longer than reading a vocabulary.
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    # Models that were converted say nothing of their kind, and the field's default is unigram, but a merge's score is -rank.
    spec = proto.trainer_spec
    ordinary = [piece.score for piece in proto.pieces if piece.type == _NORMAL]
    if spec.model_type != spec.UNIGRAM or all(score == int(score) for score in ordinary):
        raise VocabularyTrainingError(
            f"only unigram models can be {done}; this one's pieces have ranks (BPE) or no probabilities: train a new "
            "vocabulary, or take a unigram one"
        )
    return proto


def spell(model: bytes, pieces: Sequence[str]) -> list[list[int]]:
    """SentencePiece ids that spell each piece in a model; as it stands, without the space that begins a text."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    return processor.encode([piece.replace(_SPACE, " ") for piece in pieces], out_type=int, num_threads=1)


def is_extension(old: Vocabulary, new: Vocabulary) -> bool:
    """Whether `new` has all pieces of `old` with the same ids, and more."""
    return old.num_pieces < new.num_pieces and new.pieces()[: old.num_pieces] == old.pieces()


def _new_scores(
    model: bytes, spec: object, texts: Iterable[str], num_pieces: int, character_coverage: float, num_threads: int
) -> dict[str, float]:
    """Pieces and scores of a model of the new text alone: all characters, and twice as many more, since the old model may
    have half of them already."""
    normalizer = sentencepiece.SentencePieceNormalizer(model_proto=model)
    normalised = [normalizer.normalize(text) for text in texts]
    characters = len(set().union(*normalised))
    settings = TrainerSettings(
        num_pieces=2 * num_pieces + characters + 3,
        character_coverage=character_coverage,
        byte_fallback=False,
        normalization="identity",
        split_digits=bool(getattr(spec, "split_digits", False)),
        num_threads=num_threads,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=train(normalised, settings, exactly=False))
    ordinary = range(3, trained.get_piece_size())
    return {trained.id_to_piece(i): trained.get_score(i) for i in ordinary if trained.id_to_piece(i) != _SPACE}
