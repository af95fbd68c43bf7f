"""Preparation, from corpora to shards: `python -m benchmarks.prepare [--data_dir=DIR --vocabulary=FILE] [--json]`.

Prepares a mixture with the local runner, in a process of its own, and says what that took: MB of text and tokens per second
and core (of processor time, so a busy machine does not blur it), memory of the largest process, disk. Beside it, the bound
that no preparation can beat: a plain loop that reads nothing and writes nothing, and only hands the same text to
SentencePiece, on one core. And where the time goes, one stage after the other over the same text.

Without a folder, the shipped sample is prepared with its own vocabulary; starting Beam then takes longer than the work.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from typing import Any

from benchmarks.timing import machine

_POLL_SECONDS = 0.5


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__)
    parser.add_argument("--data_dir", help="folder of the corpora (default: the shipped sample)")
    parser.add_argument("--vocabulary", help="SentencePiece model (default: the sample's)")
    parser.add_argument("--mixture", default="deltalm_pretrain")
    parser.add_argument("--languages", help="only these, e.g. de,sw,zh-Hans")
    parser.add_argument("--num_workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--output", help="keep the prepared data there (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--only", choices=["prepare", "stages"], help=argparse.SUPPRESS)  # a process of its own
    flags = parser.parse_args()
    if flags.only:
        print(json.dumps(_prepare(flags) if flags.only == "prepare" else _stages(flags)), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        output = flags.output or str(pathlib.Path(scratch, "prepared"))
        prepared, stages = _apart("prepare", output), _apart("stages", output)
    result = {"benchmark": "prepare", **_rates(prepared, stages), "machine": machine()}
    if flags.json:
        print(json.dumps(result))
    else:
        _print(result)
    return 0


def _apart(name: str, output: str) -> dict[str, Any]:
    """A measurement in a process of its own."""
    own = [argument for argument in sys.argv[1:] if not argument.startswith("--output")]
    command = [sys.executable, "-m", "benchmarks.prepare", *own, f"--output={output}", f"--only={name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _inputs(flags: argparse.Namespace) -> tuple[list[Any], Any]:
    from deltalm_jax.data.mixture import Registration, inputs_of
    from deltalm_jax.data.vocabulary import Vocabulary
    from tasks.corpora import SAMPLE_DIR

    vocabulary = Vocabulary.load(flags.vocabulary or SAMPLE_DIR / "vocabulary.model")
    languages = flags.languages.split(",") if flags.languages else None
    registration = Registration(vocabulary, {"data_dir": flags.data_dir, "languages": languages})
    registration.register()
    return inputs_of(flags.mixture, registration), vocabulary


def _prepare(flags: argparse.Namespace) -> dict[str, Any]:
    """Prepares, and watches time, memory and disk."""
    from deltalm_jax.data.preparation import prepare

    inputs, vocabulary = _inputs(flags)
    partial = pathlib.Path(flags.output + ".partial")
    most_disk, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most_disk
        while not done.wait(_POLL_SECONDS):
            used = 0
            for path in partial.rglob("*"):
                try:
                    used += path.stat().st_blocks * 512
                except FileNotFoundError:
                    continue
            most_disk = max(most_disk, used)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before, began = _processor_seconds(), time.perf_counter()
    data = prepare(
        inputs, vocabulary, flags.output, mixture=flags.mixture, num_workers=flags.num_workers, overwrite=True
    ).data
    seconds, processor = time.perf_counter() - began, _processor_seconds() - before
    done.set()
    splits = [split for task in data.tasks for split in task.splits.values()]
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if flags.num_workers > 1 else 0
    return {
        "workers": flags.num_workers,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "largest_worker_mib": workers // 1024,
        "this_process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "most_disk_mb_while_working": round(most_disk / 1e6, 1),
        "tokens": sum(split.tokens for split in splits),
        "shard_bytes": sum(shard.bytes for split in splits for shard in split.shards),
        "shards": sum(len(split.shards) for split in splits),
        "digest": data.manifest["digest"],
    }


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _stages(flags: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of each stage, over all blocks, in this process; and of SentencePiece alone."""
    from deltalm_jax.data.blocks import Digest, encode_block, read_blocks
    from deltalm_jax.data.preparation import BLOCK_BYTES
    from deltalm_jax.data.shards import write_shard

    inputs, vocabulary = _inputs(flags)
    processor = vocabulary._processor
    spent: Counter[str] = Counter()
    text_bytes = 0

    def timed(name: str, began: float) -> None:
        spent[name] += time.process_time() - began

    with tempfile.TemporaryDirectory() as scratch:
        for source in inputs:
            for split in source.splits:
                for part in range(source.parts(split)):
                    blocks = read_blocks(source, split, part, 0.001, BLOCK_BYTES, Counter(), Digest())
                    while True:
                        began = time.process_time()
                        block = next(blocks, None)
                        timed("read, clean and hash", began)
                        if block is None:
                            break
                        items = block[2]
                        texts = [text for item in items for text in item]
                        text_bytes += sum(len(text.encode()) for text in texts)
                        began = time.process_time()
                        processor.encode(texts, out_type=int, num_threads=1)
                        timed("SentencePiece", began)
                        began = time.process_time()
                        records, _ = encode_block(items, source.unit, vocabulary, 512)
                        timed("tokenise, cut or pack", began)
                        began = time.process_time()
                        write_shard(scratch, "task/shard", records)
                        timed("write", began)
    return {"text_bytes": text_bytes, "stages": {name: round(seconds, 2) for name, seconds in spent.items()}}


def _rates(prepared: dict[str, Any], stages: dict[str, Any]) -> dict[str, Any]:
    text, tokens, processor = stages["text_bytes"], prepared["tokens"], prepared["processor_seconds"]
    bound = stages["stages"]["SentencePiece"]
    return {
        "mb_of_text_per_second_and_core": round(text / 1e6 / processor, 2),
        "tokens_per_second_and_core": round(tokens / processor),
        "sentencepiece_alone": {
            "mb_of_text_per_second": round(text / 1e6 / bound, 2),
            "tokens_per_second": round(tokens / bound),
        },
        "mb_of_text": round(text / 1e6, 1),
        "bytes_of_text_per_token": round(text / tokens, 2),
        "bytes_on_disk_per_token": round(prepared["shard_bytes"] / tokens, 3),
        "prepared": prepared,
        "processor_seconds_by_stage": stages["stages"],
    }


def _print(result: dict[str, Any]) -> None:
    prepared, bound = result["prepared"], result["sentencepiece_alone"]
    print(
        f"{result['mb_of_text']:,.1f} MB of text, {prepared['tokens']:,} tokens, {prepared['workers']} worker(s): "
        f"{prepared['seconds']:,.1f} s, {prepared['processor_seconds']:,.1f} s of processor time"
    )
    print(
        f"a second of a core: {result['mb_of_text_per_second_and_core']:.2f} MB of text, "
        f"{result['tokens_per_second_and_core']:,} tokens; SentencePiece alone {bound['mb_of_text_per_second']:.2f} MB, "
        f"{bound['tokens_per_second']:,} tokens"
    )
    print(
        f"a token: {result['bytes_of_text_per_token']:.2f} bytes of text, {result['bytes_on_disk_per_token']:.3f} on disk "
        f"({prepared['shards']:,} shards; at most {prepared['most_disk_mb_while_working']:,.1f} MB while working)"
    )
    print(
        f"memory: largest worker {prepared['largest_worker_mib']:,} MiB, driver {prepared['this_process_mib']:,} MiB "
        "(with TensorFlow, which registers the tasks)"
    )
    shares = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in result["processor_seconds_by_stage"].items())
    print(f"stages alone: {shares}")


if __name__ == "__main__":
    sys.exit(main())
