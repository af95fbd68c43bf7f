"""T5's span corruption as a tf.data transformation, written anew from the published algorithm.

The `t5` package itself cannot be installed beside current TensorFlow, so its functions `random_spans_noise_mask`,
`noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel` (`t5/data/preprocessors.py`; Raffel et al. 2020)
are stood in for by functions of the same operations for one example at a time: random segmentations by shuffling, span
starts by segment sums, sentinels by cumulative sums.

Shapes: L raw length, S inputs, T targets, K spans.
"""

from __future__ import annotations

import tensorflow as tf


def _segment_lengths(items: tf.Tensor, segments: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A random division of `items` into `segments` non-empty runs; int32 [segments]."""
    begins = tf.cast(tf.range(items - 1) < segments - 1, tf.int32)
    begins = tf.random.experimental.stateless_shuffle(begins, seed)
    segment_L = tf.cumsum(tf.pad(begins, [[1, 0]]))
    return tf.math.segment_sum(tf.ones_like(segment_L), segment_L)


def noise_mask(length: tf.Tensor, density: float, mean_span_length: float, seeds: tf.Tensor) -> tf.Tensor:
    """bool [length]: kept and masked runs in turn, kept first. `seeds`: int32 [2, 2]."""
    noise = tf.cast(tf.round(tf.cast(length, tf.float32) * density), tf.int32)
    noise = tf.clip_by_value(noise, 1, length - 1)
    spans = tf.maximum(tf.cast(tf.round(tf.cast(noise, tf.float32) / mean_span_length), tf.int32), 1)
    kept_K = _segment_lengths(length - noise, spans, seeds[0])
    noise_K = _segment_lengths(noise, spans, seeds[1])
    runs = tf.reshape(tf.stack([kept_K, noise_K], axis=1), [-1])
    starts = tf.cumsum(runs)[:-1]
    run_L = tf.cumsum(tf.math.unsorted_segment_sum(tf.ones_like(starts), starts, length))
    return tf.equal(run_L % 2, 1)


def replace_runs(tokens_L: tf.Tensor, mask_L: tf.Tensor, vocab_size: int) -> tf.Tensor:
    """Each masked run becomes one sentinel, counted down from the last id."""
    previous_L = tf.pad(mask_L[:-1], [[1, 0]])
    first_L = tf.logical_and(mask_L, tf.logical_not(previous_L))
    sentinels_L = vocab_size - tf.cumsum(tf.cast(first_L, tokens_L.dtype))
    tokens_L = tf.where(first_L, sentinels_L, tokens_L)
    return tf.boolean_mask(tokens_L, tf.logical_not(tf.logical_and(mask_L, previous_L)))


def corrupt(
    tokens_L: tf.Tensor, seeds: tf.Tensor, density: float, mean_span_length: float, vocab_size: int
) -> dict[str, tf.Tensor]:
    """Inputs and targets of one chunk, without end-of-sequence ids."""
    mask_L = noise_mask(tf.size(tokens_L), density, mean_span_length, seeds)
    return {
        "inputs": replace_runs(tokens_L, mask_L, vocab_size),
        "targets": replace_runs(tokens_L, tf.logical_not(mask_L), vocab_size),
    }
