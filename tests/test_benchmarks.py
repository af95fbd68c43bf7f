"""The benchmarks' stand-ins do what they stand for, so that the figures beside ours are of the same work."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import accelerator, stream, t5_preprocessor
from benchmarks.timing import measure
from tests.support.masks import START, rebuild

VOCABULARY = START + 200


@pytest.mark.parametrize(
    ("length", "density", "noise", "spans"), [(568, 0.15, 85, 28), (512, 0.5, 256, 85), (20, 0.15, 3, 1)]
)
def test_t5s_routine(length, density, noise, spans):
    """Published counts; first token kept and last masked; sentinels from the last id down; and the inverse."""
    tokens = np.random.default_rng(0).integers(4, START, length).astype(np.int32)
    seen = set()
    for seed in range(20):
        seeds = tf.constant([[seed, 1], [seed, 2]])
        mask = t5_preprocessor.noise_mask(tf.constant(length), density, 3.0, seeds).numpy()
        assert (mask.sum(), (np.diff(mask.astype(int)) == 1).sum(), mask[0], mask[-1]) == (noise, spans, False, True)
        made = t5_preprocessor.corrupt(tf.constant(tokens), seeds, density, 3.0, VOCABULARY)
        inputs, targets = made["inputs"].numpy(), made["targets"].numpy()
        assert (len(inputs), len(targets)) == (length - noise + spans, noise + spans)
        assert [t for t in targets.tolist() if t >= START] == list(range(VOCABULARY - 1, VOCABULARY - 1 - spans, -1))
        assert rebuild(inputs, targets)[0] == tokens.tolist()
        seen.add(mask.tobytes())
    assert len(seen) == (20 if length > 20 else 1), "short text: always the last three tokens"


def test_one_example_with_plain_numpy():
    tokens = np.random.default_rng(0).integers(4, START, 512)
    inputs, targets = stream._corrupt_alone(tokens, 0.15, 3, START)
    assert (len(inputs), len(targets)) == (461, 101)
    assert rebuild(inputs, targets)[0] == tokens.tolist()


def test_the_streams_benchmark_reads_100_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "CHUNKS", 600)
    stream.write_prepared_data(tmp_path / "data")
    opened = stream._open_stream(tmp_path / "data", 16)
    assert len(opened.prepared.tasks) == 100
    assert opened.prepared.verify() == 101
    assert {name: group["inputs"].shape for name, group in opened.batch(0).items()} == {
        "span_corruption": (16, 461),
        "translation_span_corruption": (16, 341),
    }
    assert all(rate > 0 for rates in opened.rates().values() for rate in rates.values())


def test_rates_are_of_what_was_done():
    done = []
    rate = measure(lambda: done.append(7) or 7, windows=3, seconds=0.01)
    assert 0 < rate.median <= rate.best


def test_the_accelerators_benchmark_measures_a_step():
    """On a CPU, whose peak nobody states: no utilisation."""
    sizes = {"hidden_size": 8, "feed_forward_size": 8, "num_heads": 1, "num_encoder_layers": 1, "num_decoder_layers": 1}
    narrow = [f"ModelConfig.{name}={size}" for name, size in sizes.items()]
    config = accelerator.configuration("pretrain_tiny.gin", narrow, 2, "span_corruption", "xla")
    line = accelerator.measure(config, steps=1)
    assert line["rows"] == {"span_corruption": 2}
    assert (line["attention"], line["mfu"]) == ("xla", None)
    tokens = 2 * sum(config.data.shapes()["span_corruption"])
    assert line["tokens_per_second"] == pytest.approx(tokens / line["step_seconds"])
    assert line["loss"] == pytest.approx(np.log(8104), rel=0.1)
    assert accelerator.told(line).startswith("| 2 | xla | ")
