"""Readers of corpora: path → documents or pairs, in bounded memory.

Plain functions without TensorFlow, seqio or Beam: the TFDS builders, the seqio Tasks and the preparation all use these,
so there is one meaning of "the corpus" and no second copy on disk.
"""

from deltalm_jax.data.readers.cc100 import MAX_DOCUMENT_BYTES, read_cc100
from deltalm_jax.data.readers.ccaligned import ENGLISH, pair_codes, read_ccaligned
from deltalm_jax.data.readers.files import MAX_LINE_BYTES, CorpusError, clean

__all__ = [
    "ENGLISH",
    "MAX_DOCUMENT_BYTES",
    "MAX_LINE_BYTES",
    "CorpusError",
    "clean",
    "pair_codes",
    "read_cc100",
    "read_ccaligned",
]
