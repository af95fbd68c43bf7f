"""`Vocabulary` as a `seqio.Vocabulary`, so that anyone's seqio client can use our Tasks.

Imports TensorFlow, TensorFlow Text and seqio; only seqio Tasks need it.

Both paths must give the same ids. TensorFlow Text's `SentencepieceTokenizer` carries its own copy of SentencePiece,
which breaks ties between equally good segmentations like sentencepiece up to 0.2.1 and unlike 0.2.2 and later; hence
the pin `sentencepiece<0.2.2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, UNK_ID, Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """seqio's view of a `Vocabulary`: pad 0, unk 1, bos 2, eos 3, `vocab_size` = all rows of the table.

    Sentinels and `<mask>` are ordinary ids of the table and not seqio "extra ids" (seqio would put those at the end and
    edit the SentencePiece model). Unlike seqio's own vocabularies, `decode` does not stop at the first `</s>`: in
    pretraining sequences `</s>` separates paragraphs and the two sides of a pair.
    """

    def __init__(self, vocabulary: Vocabulary):
        """Wraps `vocabulary`; the TensorFlow tokenizer is built on first use."""
        super().__init__(extra_ids=0)
        self.vocabulary = vocabulary

    @property
    def bos_id(self) -> int:
        """Id of `<s>`."""
        return BOS_ID

    @property
    def eos_id(self) -> int:
        """Id of `</s>`."""
        return EOS_ID

    @property
    def unk_id(self) -> int:
        """Id of `<unk>`."""
        return UNK_ID

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.vocabulary.encode(s)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` with the specials written out; see `Vocabulary.decode`."""
        if isinstance(ids, tf.Tensor):
            ids = ids.numpy()
        return self._decode([int(token) for token in ids])

    def _decode(self, ids: Iterable[int]) -> str:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        # The tokenizer is a TensorFlow resource; made inside a traced function it belongs to that function, so it is
        # built per call site here, which happens once per tf.data map.
        tokenizer = tf_text.SentencepieceTokenizer(model=self.vocabulary.model, out_type=tf.int32)
        return tokenizer.tokenize(s) + 1

    def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """`decode` for an int32 tensor `[L]` or `[B, L]`: a string tensor `[]` or `[B]`. Runs in Python."""
        return self._decode_tf(ids)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        # SentencePiece in TensorFlow knows nothing of <mask> and the sentinels, so the Python path does both.
        ids = tf.convert_to_tensor(ids)
        if ids.shape.rank == 1:
            text = tf.numpy_function(lambda row: self._decode(row).encode(), [ids], tf.string)
            return tf.ensure_shape(text, [])
        if isinstance(ids, tf.RaggedTensor):
            ids = ids.to_tensor()
        return tf.map_fn(self._decode_tf, ids, fn_output_signature=tf.TensorSpec([], tf.string))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SeqioVocabulary):
            return NotImplemented
        return self.vocabulary.fingerprint == other.vocabulary.fingerprint

    def __hash__(self) -> int:
        return hash(self.vocabulary.fingerprint)

    def __str__(self) -> str:
        return f"SeqioVocabulary({self.vocabulary.file_name}, size={self.vocabulary.size})"
