"""TFDS builders of the corpora; importing this package registers them with `tfds.load` and `tfds.builder`.

`cc100`, `cc_net`, `ccaligned`, `ccaligned_documents` and `opus_pairs` (TFDS has an `opus` of its own, of nine small corpora);
Wikipedia is TFDS's own `wikipedia`. Pretraining does not need them: Tasks and preparation read the published files directly.
They are for those who want the corpora as ordinary TensorFlow datasets.
"""

from tasks.datasets.cc100 import Cc100
from tasks.datasets.cc_net import CcNet
from tasks.datasets.ccaligned import Ccaligned
from tasks.datasets.ccaligned_documents import CcalignedDocuments
from tasks.datasets.opus_pairs import OpusPairs

__all__ = ["Cc100", "CcNet", "Ccaligned", "CcalignedDocuments", "OpusPairs"]
