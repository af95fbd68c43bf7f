"""TFDS builders `cc100` and `ccaligned`; importing this package registers both with `tfds.load` and `tfds.builder`.

Pretraining does not need them: Tasks and preparation read the published files directly. They are for those who want the
corpora as ordinary TensorFlow datasets.
"""

from tasks.datasets.cc100 import Cc100
from tasks.datasets.ccaligned import Ccaligned

__all__ = ["Cc100", "Ccaligned"]
