"""What the data is: corpora, their readers, TFDS builders, and the seqio Tasks and Mixtures over them.

`import tasks` registers the Tasks and Mixtures of pretraining for the shipped sample; `tasks.register(data_dir=…)` does
so for a folder of one's own, in place of those; `tasks.add_task(…)` adds a Task over any other seqio source. This imports
seqio and TensorFlow; `deltalm_jax.data.readers` and `tasks.corpora` use neither themselves.
"""

from __future__ import annotations

import warnings

from tasks.corpora import CorpusError
from tasks.pretraining import add_task, register

try:
    register()
except (CorpusError, OSError) as error:
    # An installation without the sample's files, or the sample being rebuilt: one's own data can still be registered.
    warnings.warn(f"The shipped sample is not complete, so no seqio Task is registered yet: {error}", stacklevel=1)

__all__ = ["CorpusError", "add_task", "register"]
