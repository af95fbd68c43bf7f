"""seqio sources that Python reads: a split is one shard, and seqio deals out its examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import seqio
import tensorflow as tf

from tasks.exiting import call, ending

# Items handed from Python to TensorFlow at once: each hand-over takes Python's lock, for which 200 Tasks compete.
_ITEMS_AT_A_TIME = 64


class OneShardSource(seqio.DataSource):
    """A source of which a subclass says what a split's examples are: `dataset_of`."""

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """False: a split is one shard."""
        return False

    def dataset_of(self, split: str) -> tf.data.Dataset:
        """The examples of one of `splits`, in the order of its files."""
        raise NotImplementedError

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """The examples in file order (`shuffle` is left to the Task's buffer).

        Raises:
          CorpusError: as `dataset_of`.
          ValueError: an unknown split, or a shard of several (seqio asks for none where a source has one shard).
        """
        if split not in self.splits:
            raise ValueError(f"Unknown split {split!r} of {self}: expected {' or '.join(self.splits)}.")
        if shard_info is not None and shard_info.num_shards > 1:
            raise ValueError(f"{self} has one shard; let the Task deal out the examples.")
        return self.dataset_of(split)


def dataset_from(
    items: Callable[[], Iterator[Any]], names: Sequence[str], columns: Callable[[list[Any]], Sequence[list[str]]]
) -> tf.data.Dataset:
    """Examples of strings from what Python reads.

    Args:
      items: begins reading, once an epoch.
      names: of an example's strings.
      columns: some items → for each name one string of each item.
    """

    def batches() -> Iterator[dict[str, list[str]]]:
        rest = items()
        while not ending():
            with call():
                batch = list(itertools.islice(rest, _ITEMS_AT_A_TIME))
            if not batch:
                return
            yield dict(zip(names, columns(batch), strict=True))

    signature = {name: tf.TensorSpec([None], tf.string) for name in names}
    return tf.data.Dataset.from_generator(batches, output_signature=signature).unbatch()
