"""seqio preprocessors: documents or pairs → chunks → `inputs` and `targets`; examples → `inputs` and `targets`.

The former call the code of the preparation and of the training stream, for a group of examples at a time.

Shapes: N chunks of a group, L longest chunk, S inputs, T targets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from deltalm_jax.data.blocks import encode_block
from deltalm_jax.data.shards import decode_records
from deltalm_jax.data.vocabulary import EOS_ID, Vocabulary
from deltalm_jax.objectives import SpanCorruption
from deltalm_jax.objectives.hashing import hash_keys, string_key
from tasks.exiting import call, ending
from tasks.text import FIELDS, to_item

# What is joined or packed at a time, some 15 chunks; with `repeat`, a smaller corpus follows on itself.
_DOCUMENTS_AT_A_TIME = 16
_PAIRS_AT_A_TIME = 128


def cut_into_chunks(
    dataset: tf.data.Dataset, *, vocabulary: Vocabulary, unit: str, chunk_length: int
) -> tf.data.Dataset:
    """Groups of chunks: documents are joined and cut, pairs are packed (`deltalm_jax.data.packing`).

    Args:
      dataset: `{"text"}` (a document, paragraphs separated by line feeds) or `{"english", "other"}`, strings.
      vocabulary: of the ids.
      unit: "documents" or "pairs".
      chunk_length: ids in a full chunk.

    Returns:
      `{"tokens": int32 [N, L], "lengths": int32 [N]}`, tokens padded with 0; N varies and may be 0.
    """
    names, size = FIELDS[unit], _DOCUMENTS_AT_A_TIME if unit == "documents" else _PAIRS_AT_A_TIME

    @call()
    def chunks(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        read = (to_item(texts, unit, Counter()) for texts in zip(*columns, strict=True))
        items = [] if ending() else [item for item in read if item is not None]
        records, _ = encode_block(items, unit, vocabulary, chunk_length)
        return decode_records(records, chunk_length)

    def chunk_group(group: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        tokens_NL, lengths_N = tf.numpy_function(chunks, [group[name] for name in names], (tf.int32, tf.int32))
        return {
            "tokens": tf.ensure_shape(tokens_NL, [None, chunk_length]),
            "lengths": tf.ensure_shape(lengths_N, [None]),
        }

    return dataset.batch(size).map(chunk_group)


def encode_examples(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None,
    *,
    name: str,
    vocabulary: Vocabulary,
    source_length: int,
    target_length: int,
) -> tf.data.Dataset:
    """Adds `inputs` [S] and `targets` [T], int32, each closed by `</s>`, which is never what is cut off.

    `inputs_cut` and `targets_cut` say how many ids of the text had to be left out.

    Args:
      dataset: examples with `source` and `target`.
      sequence_length: seqio's, by feature; None where nothing limits the lengths but those of the task.
      name: of the Task, for messages.
      vocabulary: of the ids.
      source_length, target_length: most ids, `</s>` included.

    Raises:
      ValueError: `sequence_length` leaves no room for text.
    """
    asked = sequence_length or {}
    lengths = {
        "inputs": min(source_length, asked.get("inputs") or source_length),
        "targets": min(target_length, asked.get("targets") or target_length),
    }
    if short := {feature: length for feature, length in lengths.items() if length < 2}:
        raise ValueError(f"task {name}: expected a sequence_length with room for text and </s>, found {short}.")
    encoder = vocabulary.as_seqio()

    def add_ids(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        added = {}
        for feature, field in (("inputs", "source"), ("targets", "target")):
            ids = encoder.encode_tf(example[field])
            kept = ids[: lengths[feature] - 1]
            added[feature] = tf.concat([kept, [EOS_ID]], axis=0)
            added[f"{feature}_cut"] = tf.size(ids) - tf.size(kept)
        return {**example, **added}

    return dataset.map(add_ids, num_parallel_calls=tf.data.AUTOTUNE)


def without_long_targets(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The examples of `encode_examples` whose target was not cut and whose sides have ids, as the preparation takes them."""
    return dataset.filter(
        lambda example: (
            (example["targets_cut"] == 0) & (tf.size(example["inputs"]) > 1) & (tf.size(example["targets"]) > 1)
        )
    )


def corrupt(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None,
    *,
    name: str,
    corruption: SpanCorruption,
    vocabulary: Vocabulary,
    chunk_length: int,
) -> tf.data.Dataset:
    """Examples from groups of chunks: `{"inputs", "targets"}`, int32 [S] and [T], without padding.

    The mask of a chunk is drawn from seqio's seed for the group, the chunk's place in it, the Task's name and the
    chunk's ids. seqio's seeds are the same for all Tasks and all shards; name and ids keep those from sharing masks.

    Args:
      dataset: from `cut_into_chunks`.
      sequence_length: seqio's, by feature; None where nothing limits the lengths.
      name: the Task's name.
      corruption: the objective.
      vocabulary: for the sentinels.
      chunk_length: ids in a full chunk, before corruption.

    Raises:
      ValueError: the vocabulary has too few sentinels; or `sequence_length` is below what the objective can give: seqio
        would trim, and cut off sentinels.
    """
    if (needed := corruption.max_sentinels(chunk_length)) > vocabulary.num_sentinels:
        raise ValueError(
            f"Task {name}: chunks of {chunk_length} tokens need {needed} sentinels, but the vocabulary has "
            f"{vocabulary.num_sentinels}: give register() one with more (Vocabulary.load(…, num_sentinels={needed}))"
        )
    bounds = dict(zip(("inputs", "targets"), corruption.lengths(chunk_length), strict=True))
    for feature, bound in bounds.items():
        limit = (sequence_length or {}).get(feature)
        if limit is not None and limit < bound:
            raise ValueError(
                f"Task {name}: sequence_length[{feature!r}] is {limit}, but chunks of up to {chunk_length} "
                f"tokens give {feature} of up to {bound}. Ask for at least {bounds}, or register the "
                "tasks with a smaller chunk_length; trimming would cut off sentinels."
            )
    name_key = string_key(name)

    @call()
    def corrupt_rows(tokens_NL: np.ndarray, lengths_N: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = (int(part) % 2**64 for part in seed)
        ids_N = np.array([string_key(row.tobytes()) for row in tokens_NL], np.uint64)
        keys_N = hash_keys(first, second, np.asarray(name_key), np.arange(len(ids_N)), ids_N)
        sentinels = vocabulary.sentinel_start, vocabulary.num_sentinels
        corrupted = corruption.corrupt(tokens_NL, lengths_N, keys_N, *sentinels, chunk_length)
        return corrupted.inputs_BS, corrupted.targets_BT

    @seqio.map_over_dataset(num_seeds=1, num_parallel_calls=None)
    def corrupt_group(group: dict[str, tf.Tensor], seed: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        arguments = [group["tokens"], group["lengths"], tf.stack(seed)]
        padded = tf.numpy_function(corrupt_rows, arguments, (tf.int32, tf.int32))
        return {key: tf.ensure_shape(ids, [None, bounds[key]]) for key, ids in zip(bounds, padded, strict=True)}

    def without_padding(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        # 0 is padding and nothing else, and stands at the end.
        return {key: ids[: tf.math.count_nonzero(ids, dtype=tf.int32)] for key, ids in example.items()}

    return corrupt_group(dataset).unbatch().map(without_padding)
