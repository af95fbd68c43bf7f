"""The whole way from prepared data on disk to batches, on one core: `python -m benchmarks.stream [--json] [--prepared=DIR]`.

100 tasks, half of the examples from each objective. Every figure comes from a process of its own on the same core: the
stream's; seqio's, from a Mixture of 100 Tasks of the same ids in memory, through T5's routine and `seqio.get_dataset`;
and Grain's, from the same shards, one record at a time or corrupted by the batch. Start-up is wall time from the start of
a process to its first batch. The peers take a minute or two: seqio fills a shuffle buffer for each Task first.

`--prepared` measures the stream alone, on prepared data of one's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.timing import Rate, machine, measure, show, use_one_core

TASKS = 100
LENGTH = 512
CHUNKS = 40_000
SMALL_BATCH, PAPER_BATCH = 256, 1024
DENSITIES = {"span_corruption": 0.15, "translation_span_corruption": 0.5}
EXPONENT = 0.3
_STARTS = 3


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--prepared", metavar="DIR", help="prepared data to read, instead of 100 tasks of random ids")
    parser.add_argument("--only", choices=list(_MEASUREMENTS), help=argparse.SUPPRESS)  # a process of its own
    parser.add_argument("--data", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    use_one_core()
    if flags.only:
        print(json.dumps(_MEASUREMENTS[flags.only](pathlib.Path(flags.data))), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        data = pathlib.Path(flags.prepared or pathlib.Path(scratch, "prepared"))
        if not flags.prepared:
            write_prepared_data(data)
        starts = [_apart("first batch", data) for _ in range(_STARTS)]
        peers = [] if flags.prepared else [name for name in _PEERS if _installed(name)]
        found = {name: _apart(name, data) for name in (_OURS, *peers)}
    ours = found.pop(_OURS)
    examples = f"{ours['length']} raw tokens, half and half, {ours['tasks']} tasks"
    result = {
        "benchmark": "stream",
        "examples_per_second": ours["batch_1024"]["examples_per_second"],
        "examples": f"{examples}, read from disk and corrupted, one core",
        "stream": {key: ours[key] for key in ("batch_256", "batch_1024")},
        "state": ours["state"],
        "seconds_to_first_batch": {
            "best": round(min(s["seconds"] for s in starts), 2),
            "median": round(statistics.median(s["seconds"] for s in starts), 2),
            "imported": starts[0]["imported"],
        },
        "peers": found,
        "machine": machine(),
    }
    rows = [(f"stream, {n} + {n} examples a batch", _rate(ours[f"batch_{n}"])) for n in (SMALL_BATCH, PAPER_BATCH)]
    rows += [(name, _rate(found[name]) if name in found else None) for name in _PEERS if not flags.prepared]
    show(result, f"Batches of {examples}", rows, flags.json)
    if not flags.json:
        first = result["seconds_to_first_batch"]
        print(f"first batch after {first['best']} s (median {first['median']} s) from the start of a process")
        for name, entry in found.items():
            if "seconds_to_first_batch" in entry:
                print(f"{name}: first batch after {entry['seconds_to_first_batch']} s")
        print(f"the stream's state: {result['state']}")
    return 0


def _rate(entry: dict[str, float]) -> Rate:
    return Rate(entry["examples_per_second"], entry["median"])


def _installed(name: str) -> bool:
    return "grain" not in name or importlib.util.find_spec("grain") is not None


def _apart(name: str, data: pathlib.Path) -> dict[str, Any]:
    """A measurement in a process of its own; `seconds` runs from before that process starts until its first batch."""
    command = [sys.executable, "-m", "benchmarks.stream", f"--only={name}", f"--data={data}"]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    entry = json.loads(done.stdout.splitlines()[-1])
    if "first_batch_at" in entry:
        entry["seconds"] = entry.pop("first_batch_at") - began
    return entry


def write_prepared_data(folder: pathlib.Path) -> None:
    """100 tasks of random ids: 50 of joined text, 50 of packed pairs; the largest has 40 times the chunks of the smallest."""
    import numpy as np

    from deltalm_jax.data.chunks import write_manifest
    from deltalm_jax.data.shards import encode_record, write_shard
    from deltalm_jax.data.vocabulary import Vocabulary

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    model = pathlib.Path(__file__).parents[1] / "tasks" / "sample" / "vocabulary.model"
    (folder / "vocabulary.model").write_bytes(model.read_bytes())
    vocabulary = Vocabulary.load(model)
    sizes = np.geomspace(1, 40, TASKS // 2)
    sizes = np.ceil(sizes / sizes.sum() * CHUNKS / 2).astype(int)
    tasks = {}
    for objective in DENSITIES:
        for number, count in enumerate(sizes.tolist()):
            name = f"{objective}_{number:02d}"
            chunks = rng.integers(4, vocabulary.num_pieces, (count, LENGTH), np.int32)
            lengths = np.full(count, LENGTH)
            if objective == "translation_span_corruption":
                lengths -= rng.integers(0, 8, count)  # what best fit leaves
            records = [encode_record(chunk[:length]) for chunk, length in zip(chunks, lengths, strict=True)]
            shard = write_shard(folder, f"{name}/train-00000-00000.array_record", records)
            tokens = int(lengths.sum())
            entry = {"tokens": tokens, "chunks": count, "padding": count * LENGTH - tokens, "dropped": {}}
            entry |= {"documents": count, "shards": [vars(shard)]}
            tasks[name] = {"objective": objective, "language": f"{number:02d}", "splits": {"train": entry}}
    lengths_by_objective = dict.fromkeys(DENSITIES, LENGTH)
    manifest = {"mixture": "benchmark", "chunk_lengths": lengths_by_objective, "vocabulary": vocabulary.describe()}
    write_manifest(folder, {**manifest, "tasks": tasks})


def _open_stream(data: pathlib.Path, batch_size: int) -> Any:
    from deltalm_jax.data.chunks import PreparedData
    from deltalm_jax.data.stream import Objective, Stream
    from deltalm_jax.objectives import make_objective

    objectives = {name: Objective(make_objective(name), batch_size, EXPONENT) for name in DENSITIES}
    return Stream(PreparedData.open(data), objectives, seed=0)


def _first_batch(data: pathlib.Path) -> dict[str, Any]:
    batch = _open_stream(data, PAPER_BATCH).batch(0)
    now = time.time()
    assert sum(len(group["inputs"]) for group in batch.values()) == 2 * PAPER_BATCH
    heavy = sorted({"jax", "tensorflow", "seqio", "apache_beam"} & set(sys.modules))
    return {"first_batch_at": now, "imported": heavy}


def _stream(data: pathlib.Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for batch_size in (SMALL_BATCH, PAPER_BATCH):
        stream, step = _open_stream(data, batch_size), 0

        def run(stream: Any = stream) -> int:
            nonlocal step
            batch = stream.batch(step)
            step += 1
            return sum(len(group["inputs"]) for group in batch.values())

        out[f"batch_{batch_size}"] = measure(run).entry()
        out["state"] = {"step": step}
    prepared = stream.prepared
    out["tasks"], out["length"] = len(prepared.tasks), max(prepared.chunk_lengths.values())
    return out


def _read_chunks(data: pathlib.Path) -> Iterator[tuple[str, str, Any, Any]]:
    """Name, objective, chunks and their lengths of each task, read whole."""
    import numpy as np

    from deltalm_jax.data.chunks import PreparedData

    prepared = PreparedData.open(data)
    for index, task in enumerate(prepared.tasks):
        count = task.chunks("train")
        tokens_NL, lengths_N = prepared.read("train", np.full(count, index), np.arange(count))
        yield task.name, task.objective, tokens_NL, lengths_N


def _seqio(data: pathlib.Path) -> dict[str, Any]:
    import os

    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    import functools

    import seqio
    import tensorflow as tf

    from benchmarks.t5_preprocessor import corrupt
    from deltalm_jax.data.sampling import sampling_rates

    vocab_size = 8104
    features = {
        name: seqio.Feature(seqio.PassThroughVocabulary(vocab_size), add_eos=False) for name in ("inputs", "targets")
    }

    def chunks_of(columns: Any, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(columns).map(lambda row: {"tokens": row["tokens"][: row["length"]]})

    def preprocess(density: float, dataset: tf.data.Dataset) -> tf.data.Dataset:
        @seqio.map_over_dataset(num_seeds=2)
        def corrupt_one(example: dict[str, tf.Tensor], seeds: tf.Tensor) -> dict[str, tf.Tensor]:
            return corrupt(example["tokens"], seeds, density, 3.0, vocab_size)

        return corrupt_one(dataset)

    sizes: dict[str, list[tuple[str, int]]] = {name: [] for name in DENSITIES}
    for name, objective, tokens_NL, lengths_N in _read_chunks(data):
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                functools.partial(chunks_of, {"tokens": tokens_NL, "length": lengths_N}), splits=["train"]
            ),
            preprocessors=[functools.partial(preprocess, DENSITIES[objective])],
            output_features=features,
        )
        sizes[objective].append((name, int(lengths_N.sum())))
    mixed = []
    for tasks in sizes.values():
        rates = sampling_rates([tokens for _, tokens in tasks], EXPONENT)
        mixed += [(name, float(rate)) for (name, _), rate in zip(tasks, rates, strict=True)]
    seqio.MixtureRegistry.add("benchmark", mixed)
    began = time.perf_counter()
    dataset = seqio.get_dataset(
        "benchmark",
        {"inputs": LENGTH, "targets": LENGTH},
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        num_epochs=-1,
        shuffle=True,
        seed=0,
    )
    iterator = dataset.batch(SMALL_BATCH, drop_remainder=True).as_numpy_iterator()
    next(iterator)
    waited = time.perf_counter() - began
    rate = measure(lambda: len(next(iterator)["encoder_input_tokens"]), windows=6, seconds=1.0)
    return {**rate.entry(), "seconds_to_first_batch": round(waited, 1)}


def _corrupt_alone(tokens_L: Any, density: float, seed: int, sentinel_start: int) -> tuple[Any, Any]:
    """Span corruption of one chunk with plain NumPy, as a preprocessing function of one example is written."""
    import numpy as np

    rng = np.random.default_rng(seed)
    length = len(tokens_L)
    noise = int(length * density)
    spans = noise // 3
    slots = np.sort(rng.permutation(length - noise)[:spans])
    cuts = np.sort(rng.permutation(noise - 1)[: spans - 1]) + 1
    edges = np.concatenate([[0], cuts, [noise]])
    begins, ends = slots + edges[:-1], slots + edges[1:]
    mask = np.zeros(length + 1, np.int8)
    mask[begins] += 1
    mask[ends] -= 1
    masked = np.cumsum(mask[:-1]).astype(bool)
    sentinels = np.arange(sentinel_start, sentinel_start + spans)
    kept = np.insert(tokens_L[~masked], slots, sentinels)
    targets = np.insert(tokens_L[masked], edges[:-1], sentinels)
    return kept, targets


def _grain(data: pathlib.Path, by_batch: bool) -> dict[str, Any]:
    import grain
    import numpy as np

    from deltalm_jax.data.chunks import PreparedData
    from deltalm_jax.data.sampling import sampling_rates
    from deltalm_jax.data.shards import decode_records
    from deltalm_jax.objectives import make_objective
    from deltalm_jax.objectives.hashing import hash_keys

    prepared = PreparedData.open(data)
    start, count = (int(prepared.manifest["vocabulary"][key]) for key in ("sentinel_start", "num_sentinels"))
    began = time.perf_counter()

    def pad(ids: Any, length: int) -> Any:
        return np.pad(ids.astype(np.int32), (0, length - len(ids)))

    def loader(name: str) -> Iterator[Any]:
        objective, density = make_objective(name), DENSITIES[name]
        shapes = objective.lengths(LENGTH)
        seeds = iter(range(10**12))

        def example(record: bytes) -> dict[str, Any]:
            tokens_BL, _ = decode_records([record], len(record) // 3)
            pair = _corrupt_alone(tokens_BL[0], density, next(seeds), start)
            return dict(zip(("inputs", "targets"), map(pad, pair, shapes), strict=True))

        def batch(records: Any) -> dict[str, Any]:
            tokens_BL, lengths_B = decode_records(list(records), LENGTH)
            keys_B = hash_keys(next(seeds), np.arange(len(lengths_B)))
            corrupted = objective.corrupt(tokens_BL, lengths_B, keys_B, start, count, LENGTH)
            return {"inputs": corrupted.inputs_BS, "targets": corrupted.targets_BT}

        tasks = [task for task in prepared.tasks if task.objective == name]
        sources = [
            grain.sources.ArrayRecordDataSource([str(data / s.file) for s in t.splits["train"].shards]) for t in tasks
        ]
        parts = [grain.MapDataset.source(s).seed(i).shuffle().repeat() for i, s in enumerate(sources)]
        rates = sampling_rates([task.tokens("train") for task in tasks], EXPONENT)
        mixed = grain.MapDataset.mix(parts, rates.tolist())
        if by_batch:
            return iter(mixed.batch(SMALL_BATCH, batch_fn=list).map(batch).to_iter_dataset())
        return iter(mixed.map(example).batch(SMALL_BATCH).to_iter_dataset())

    loaders = [loader(name) for name in DENSITIES]

    def run() -> int:
        return sum(len(next(loader)["inputs"]) for loader in loaders)

    run()
    waited = time.perf_counter() - began
    rate = measure(run, windows=6, seconds=1.0)
    return {**rate.entry(), "seconds_to_first_batch": round(waited, 1)}


_OURS = "stream"
_MEASUREMENTS: dict[str, Callable[[pathlib.Path], dict[str, Any]]] = {
    "first batch": _first_batch,
    _OURS: _stream,
    "seqio from ids, T5's routine": _seqio,
    "grain, one record at a time": lambda data: _grain(data, by_batch=False),
    "grain, records then this corruption by the batch": lambda data: _grain(data, by_batch=True),
}
_PEERS = [name for name in _MEASUREMENTS if name not in ("first batch", _OURS)]


if __name__ == "__main__":
    sys.exit(main())
