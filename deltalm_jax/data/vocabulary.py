"""The vocabulary: one SentencePiece model plus the ids DeltaLM needs around it.

Id layout (`P` pieces in the SentencePiece model, its own specials included):

    0                      <pad>
    1 … P                  SentencePiece id + 1, so 1 = <unk>, 2 = <s>, 3 = </s>, 4 = first real piece
    P + 1                  <mask>
    sentinel_start …       sentinels, ascending (default: right after <mask>)
    … size - 1             rows without a meaning, up to the next multiple of 8

XLM-R and InfoXLM (fairseq, Hugging Face) order the first four ids `<s> <pad> </s> <unk>`; every id from 4 on, `<mask>`
included, is the same as here. Only those four rows are permuted when weights are imported or exported. Padding is 0
because seqio, and T5 tools in general, take 0 for padding and treat a real token 0 as missing.

This module imports neither TensorFlow nor seqio: a training process needs only `sentencepiece`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sentencepiece

from deltalm_jax.errors import UserError
from deltalm_jax.paths import as_path

if TYPE_CHECKING:
    from deltalm_jax.data.seqio_vocabulary import SeqioVocabulary

PAD_ID = 0
UNK_ID = 1
BOS_ID = 2
EOS_ID = 3

# Our id of fairseq's <s>, <pad>, </s>, <unk>, and fairseq's id of our <pad>, <unk>, <s>, </s>.
FROM_FAIRSEQ = (2, 0, 3, 1)
TO_FAIRSEQ = (1, 3, 0, 2)

# The released DeltaLM table has 250,104 rows = round_up(250,002 + 100, 8).
DEFAULT_NUM_SENTINELS = 100
SIZE_MULTIPLE = 8

_WORD_START = "\u2581"  # SentencePiece's mark for "a space stood here"


def padded_size(rows: int) -> int:
    """Rows of a table that holds so many: the next multiple of 8."""
    return -(-rows // SIZE_MULTIPLE) * SIZE_MULTIPLE


def from_fairseq_ids(ids: np.ndarray) -> np.ndarray:
    """Our ids for ids of fairseq's and Hugging Face's XLM-R and DeltaLM; int array of any shape."""
    return _permuted(ids, FROM_FAIRSEQ)


def to_fairseq_ids(ids: np.ndarray) -> np.ndarray:
    """The inverse of `from_fairseq_ids`."""
    return _permuted(ids, TO_FAIRSEQ)


def _permuted(ids: np.ndarray, first: tuple[int, ...]) -> np.ndarray:
    ids = np.asarray(ids)
    return np.where(ids < len(first), np.take(np.array(first, ids.dtype), np.minimum(ids, len(first) - 1)), ids)


class VocabularyError(UserError, ValueError):
    """A file that is no usable SentencePiece model, or a layout that does not fit it."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Text to model ids and back. Immutable, picklable and hashable; make one with `Vocabulary.load`.

    Attributes:
      file_name: name of the model file, without its folder (two copies of one model are equal).
      model: the serialised SentencePiece model. Kept, rather than a path, so that a pickled vocabulary works on
        another machine.
      num_pieces: pieces in the SentencePiece model, `<unk>`, `<s>` and `</s>` included.
      sentinel_start: id of the first sentinel.
      num_sentinels: how many sentinels there are; sentinel `i` has id `sentinel_start + i`.
    """

    file_name: str = dataclasses.field(compare=False)
    model: bytes = dataclasses.field(repr=False)
    num_pieces: int
    sentinel_start: int
    num_sentinels: int

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        sentinel_start: int | None = None,
        num_sentinels: int = DEFAULT_NUM_SENTINELS,
    ) -> Vocabulary:
        """Reads a SentencePiece model.

        Args:
          path: the `.model` file. Its own ids must be `<unk>` 0, `<s>` 1, `</s>` 2 and no `<pad>` (SentencePiece's
            defaults, and XLM-R's `sentencepiece.bpe.model`).
          sentinel_start: id of the first sentinel; default: the id after `<mask>`. 250,004 is the other reading of the
            released checkpoint's last rows.
          num_sentinels: number of sentinels, at least 1.

        Raises:
          FileNotFoundError: there is no such file.
          VocabularyError: the file is no SentencePiece model, its special pieces have other ids, `num_sentinels < 1`,
            or the sentinels would overlap the pieces or `<mask>`.
        """
        path = as_path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"Vocabulary {path}: expected a SentencePiece model file, found "
                f"{'a folder' if path.is_dir() else 'nothing'}. Give the path of the .model file, for example XLM-R's "
                "sentencepiece.bpe.model."
            )
        model = path.read_bytes()
        processor = _processor(model, str(path))
        num_pieces = processor.get_piece_size()
        _check_special_pieces(processor, path)
        mask_id = num_pieces + 1
        if num_sentinels < 1:
            raise VocabularyError(f"Vocabulary {path}: num_sentinels must be at least 1, found {num_sentinels}.")
        if sentinel_start is None:
            sentinel_start = mask_id + 1
        if sentinel_start <= mask_id:
            raise VocabularyError(
                f"Vocabulary {path}: sentinel_start {sentinel_start} overlaps the pieces (ids 1 to {num_pieces}) or "
                f"<mask> ({mask_id}). Use {mask_id + 1} or more, or leave it out."
            )
        vocabulary = cls(path.name, model, num_pieces, sentinel_start, num_sentinels)
        vocabulary.__dict__["_processor"] = processor  # building another takes a second
        return vocabulary

    @property
    def mask_id(self) -> int:
        """Id of `<mask>`: the first id after the pieces (XLM-R: 250,001)."""
        return self.num_pieces + 1

    @property
    def size(self) -> int:
        """Rows of the embedding table: the sentinels' end rounded up to a multiple of 8 (XLM-R: 250,104)."""
        return padded_size(self.sentinel_start + self.num_sentinels)

    @functools.cached_property
    def model_sha256(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return hashlib.sha256(self.model).hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the model file's digest and the layout: equal exactly when all ids mean the same."""
        layout = [self.model_sha256, self.num_pieces, self.mask_id, self.sentinel_start, self.num_sentinels, self.size]
        return hashlib.sha256(json.dumps(layout).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without any special: `"</s>"` written in a text is spelled out like any other characters."""
        return [piece + 1 for piece in self._processor.encode(text, out_type=int)]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` for many texts: one call into SentencePiece, on one thread by default (workers are processes)."""
        encoded = self._processor.encode(list(texts), out_type=int, num_threads=threads)
        return [[piece + 1 for piece in pieces] for pieces in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Text with the specials written out, for people: `<s>Hello <mask_0>!</s>`.

        `<unk>`, `<s>`, `</s>`, `<mask>` and sentinel `i` as `<mask_i>` appear where they stand; padding is left out;
        rows without a meaning appear as `<unused_ID>`. A space between a special and a piece is kept.

        Raises:
          ValueError: an id is negative or at least `size`.
        """
        parts: list[str] = []
        run: list[int] = []

        def close_run() -> None:
            if run:
                starts_word = self._processor.id_to_piece(run[0]).startswith(_WORD_START)
                parts.append((" " if starts_word and parts else "") + self._processor.decode(run))
                run.clear()

        for position, token in enumerate(ids):
            token = int(token)
            if not 0 <= token < self.size:
                raise ValueError(
                    f"Cannot decode id {token} at position {position}: ids of this vocabulary ({self.file_name}) are "
                    f"0 to {self.size - 1}."
                )
            if EOS_ID < token <= self.num_pieces:
                run.append(token - 1)
            elif token != PAD_ID:
                close_run()
                parts.append(self._special(token))
        close_run()
        return "".join(parts)

    def pieces(self) -> list[tuple[str, bool]]:
        """The SentencePiece model's pieces in the order of their ids (the first has id 1), and whether each spells a byte.

        A space is written as in the model, `▁`.
        """
        processor = self._processor
        return [(processor.id_to_piece(i), processor.is_byte(i)) for i in range(self.num_pieces)]

    def describe(self) -> dict[str, Any]:
        """What a manifest or a checkpoint record says of the vocabulary; plain JSON values."""
        return {
            "file": self.file_name,
            "sha256": self.model_sha256,
            "sentencepiece_version": sentencepiece.__version__,
            "num_pieces": self.num_pieces,
            "mask_id": self.mask_id,
            "sentinel_start": self.sentinel_start,
            "num_sentinels": self.num_sentinels,
            "size": self.size,
            "fingerprint": self.fingerprint,
        }

    def as_seqio(self) -> SeqioVocabulary:
        """The same vocabulary for seqio Tasks. Imports TensorFlow and seqio, which nothing else here does."""
        from deltalm_jax.data.seqio_vocabulary import SeqioVocabulary

        return SeqioVocabulary(self)

    def _special(self, token: int) -> str:
        names = {UNK_ID: "<unk>", BOS_ID: "<s>", EOS_ID: "</s>", self.mask_id: "<mask>"}
        sentinel = token - self.sentinel_start
        if 0 <= sentinel < self.num_sentinels:
            return f"<mask_{sentinel}>"
        return names.get(token, f"<unused_{token}>")

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        # Built on first use and left out of pickles: the C++ object is large and its pickle would hold the model twice.
        return _processor(self.model, self.file_name)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _processor(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        # An empty string "loads" without an error and fails much later.
        if not model or not processor.LoadFromSerializedProto(model):
            raise RuntimeError("the file is empty")
    except RuntimeError as error:
        raise VocabularyError(
            f"Vocabulary {name}: expected a SentencePiece model, found {len(model):,} bytes that are none ({error}). "
            "Vocabulary text files (.vocab, dict.txt) and Hugging Face's tokenizer.json do not work here."
        ) from error
    return processor


def _check_special_pieces(processor: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    found = {
        "unk": processor.unk_id(),
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
        "pad": processor.pad_id(),
    }
    expected = {"unk": UNK_ID - 1, "bos": BOS_ID - 1, "eos": EOS_ID - 1, "pad": -1}
    if found != expected:
        raise VocabularyError(
            f"Vocabulary {path}: expected the SentencePiece ids {expected} (-1: absent), found {found}. Train the "
            "model with --unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1, which are SentencePiece's defaults."
        )
