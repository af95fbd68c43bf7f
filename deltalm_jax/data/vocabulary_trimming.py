"""A SentencePiece model without the pieces that one's text never uses: a smaller table, and the same segmentation.

A unigram model takes the most probable segmentation of all that its pieces allow. Leaving out pieces that are in none of
these segmentations takes away losers only, so text that was looked at is cut as before, piece by piece. Text that was not may
need a piece that is gone, and is then spelled by shorter ones; its characters have to be among those of the text.

Half of a DeltaLM of base size is its table, and so is nearly half of its arithmetic, so whoever has a few languages and no
pod gains most here (Abdaoui et al. 2020, arXiv 2010.05609, do so for mBERT).
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable

import sentencepiece

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.data.vocabulary_extension import load_unigram

_NORMAL = 1  # SentencePiece's type of an ordinary piece
_SPACE = "\u2581"
_TEXTS_AT_A_TIME = 4096


def trim(model: bytes, texts: Iterable[str], min_count: int = 1) -> bytes:
    """A model with those of its pieces that texts use.

    Args:
      model: a unigram model, serialised.
      texts: all that it is to be used for, or a fair sample.
      min_count: pieces that occur less often go too, and what they spelled is spelled by others. Characters of the text,
        ASCII's printable ones and whatever is no ordinary piece (`<unk>`, `<s>`, bytes, symbols) stay.

    Returns:
      The smaller model, serialised; pieces keep their order and their scores.

    Raises:
      VocabularyTrainingError: the model is not of the unigram kind.
      ValueError: min_count is below 1.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, found {min_count}")
    proto = load_unigram(model, "trimmed")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    normalizer = sentencepiece.SentencePieceNormalizer(model_proto=model)
    counts: Counter[int] = Counter()
    characters = {_SPACE, *string.printable.strip()}
    for batch in _batches(texts):
        for text, ids in zip(batch, processor.encode(batch, out_type=int, num_threads=4), strict=True):
            counts.update(ids)
            characters.update(normalizer.normalize(text).replace(" ", _SPACE))
    kept = [
        piece
        for number, piece in enumerate(proto.pieces)
        if piece.type != _NORMAL or counts[number] >= min_count or piece.piece in characters
    ]
    kept = [type(piece).FromString(piece.SerializeToString()) for piece in kept]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    proto.trainer_spec.vocab_size = len(kept)
    del proto.self_test_data.samples[:]
    return bytes(proto.SerializeToString(deterministic=True))


def is_trimmed(old: Vocabulary, new: Vocabulary) -> bool:
    """Whether the pieces of `new` are some of those of `old`, in the same order and with the same scores."""
    rest = iter(old.pieces())
    return new.num_pieces < old.num_pieces and all(piece in rest for piece in new.pieces())


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _TEXTS_AT_A_TIME:
            yield batch
            batch = []
    if batch:
        yield batch
