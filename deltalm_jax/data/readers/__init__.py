"""Readers of corpora: path → documents, pairs or examples, in bounded memory.

Plain functions without TensorFlow, seqio or Beam: the TFDS builders, the seqio Tasks and the preparation all use these,
so there is one meaning of "the corpus" and no second copy on disk. (`read_wikipedia` imports TensorFlow when it is called.)
"""

from deltalm_jax.data.readers.cc100 import read_cc100
from deltalm_jax.data.readers.cc_net import read_cc_net
from deltalm_jax.data.readers.ccaligned import ENGLISH, pair_codes, read_ccaligned, read_ccaligned_documents
from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.examples import read_examples
from deltalm_jax.data.readers.files import MAX_DOCUMENT_BYTES, MAX_LINE_BYTES, clean
from deltalm_jax.data.readers.opus import read_opus
from deltalm_jax.data.readers.parallel import read_parallel
from deltalm_jax.data.readers.wikipedia import read_wikipedia

__all__ = [
    "ENGLISH",
    "MAX_DOCUMENT_BYTES",
    "MAX_LINE_BYTES",
    "CorpusError",
    "clean",
    "pair_codes",
    "read_cc100",
    "read_cc_net",
    "read_ccaligned",
    "read_ccaligned_documents",
    "read_examples",
    "read_opus",
    "read_parallel",
    "read_wikipedia",
]
