"""Wikipedia as TFDS's builder `wikipedia` prepares it: shards of examples with a `title` and a `text`."""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.files import in_parts, to_paragraphs
from deltalm_jax.paths import as_path

SHARD_NAME = re.compile(r"^wikipedia-train\.(?P<format>tfrecord|array_record)-(?P<number>\d{5})-of-(?P<total>\d{5})$")
_RECORDS_AT_A_TIME = 256


def read_wikipedia(path: str | Path, counts: Counter[str] | None = None) -> Iterator[list[str]]:
    """Articles of a shard, each a non-empty list of paragraphs: the lines of `text`. Titles are not part of it.

    Imports TensorFlow and TFDS, when it is called; nothing is downloaded.

    Args:
      path: `wikipedia-train.tfrecord-00000-of-00016` or the like in ArrayRecord, in the folder that TFDS made.
      counts: as of `to_paragraphs`; also "no_text" (articles without any), "invalid_utf8" (articles), "long_document".

    Raises:
      CorpusError: the shard, or the folder's description of it, is missing, damaged, or holds fewer records than it says.
    """
    path = as_path(path)
    counts = Counter() if counts is None else counts
    match = SHARD_NAME.match(path.name)
    if not match:
        raise CorpusError(f"{path}: expected a shard of TFDS's, such as wikipedia-train.tfrecord-00000-of-00016.")
    if not path.is_file():
        raise CorpusError(f"{path}: expected a shard of {int(match['total'])}, found no such file.")
    decode, expected = _description(path.parent, int(match["number"]))
    found = 0
    for record in (_tfrecords if match["format"] == "tfrecord" else _array_records)(path):
        found += 1
        try:
            text = decode(record).decode()
        except UnicodeDecodeError:
            counts["invalid_utf8"] += 1
            continue
        if not text.strip():
            counts["no_text"] += 1
            continue
        yield from in_parts(to_paragraphs(text.split("\n"), counts), counts)
    if found != expected:
        raise CorpusError(
            f"{path}: expected {expected:,} articles, as {path.parent / 'dataset_info.json'} says, found {found:,}. "
            "Build the data set again."
        )


@functools.lru_cache(maxsize=8)
def _description(folder: Path, shard: int) -> tuple[Callable[[bytes], bytes], int]:
    """How a record is decoded, and how many there are in a shard."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    with contextlib.suppress(RuntimeError):  # raised where TensorFlow has begun to work
        # It has no use for an accelerator here, and would take all its memory.
        tf.config.set_visible_devices([], "GPU")
    try:
        info = tfds.builder_from_directory(str(folder)).info
        lengths = info.splits["train"].shard_lengths
        features = info.features
        if lengths is None or shard >= len(lengths) or "text" not in features:
            raise ValueError(f"train has the shards {lengths}, and an example {list(features)}")
    except (OSError, KeyError, ValueError, AttributeError, tf.errors.OpError) as error:
        raise CorpusError(
            f"{folder}: expected a data set of TFDS's (features.json, dataset_info.json, shards of the split train), "
            f"found: {error}"
        ) from error
    return (lambda record: features.deserialize_example_np(record)["text"]), lengths[shard]


def _tfrecords(path: Path) -> Iterator[bytes]:
    import tensorflow as tf

    try:
        yield from tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    except tf.errors.OpError as error:  # it says the offset
        raise CorpusError(
            f"{path}: {error.message.splitlines()[0]}. The file is damaged; build the data set again."
        ) from error


def _array_records(path: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        for begin in range(0, count, _RECORDS_AT_A_TIME):
            yield from reader.read(list(range(begin, min(begin + _RECORDS_AT_A_TIME, count))))
    except (ValueError, IndexError, RuntimeError) as error:
        raise CorpusError(
            f"{path}: {str(error).splitlines()[0]}. The file is damaged; build the data set again."
        ) from error
