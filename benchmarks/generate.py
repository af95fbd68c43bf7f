"""Target tokens per second of beam search, beside `generate` of Hugging Face's transformers with the same weights.

    python -m benchmarks.generate [--json] [--hidden_size=768 --num_encoder_layers=12 …]     (needs pip install -e '.[torch]')

The peer is what `python -m deltalm_jax.convert --to=huggingface_deltalm` makes of the model, run by PyTorch. Both decode the
same sources of mixed lengths, in the same batches (sorted by length, `--batch_size` each), by the same rule ("huggingface",
early_stopping=False), to the same hypotheses, which is checked; nothing but the sources of a batch goes in and nothing but
tokens comes out. They take turns in one process, with the same number of threads, so that a busy machine is busy for both
(but PyTorch's threads wait for one another far worse on one than XLA's do: `--threads=1` is the fairer there). Weights are
random: hypotheses run to `--max_length`, and no step is saved on either side.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np

from benchmarks.timing import machine
from deltalm_jax.conversion import convert
from deltalm_jax.conversion_request import Request
from deltalm_jax.data.vocabulary import EOS_ID, PAD_ID, from_fairseq_ids, to_fairseq_ids
from deltalm_jax.decoding import Batching, Generator, SearchOptions
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import init_params
from deltalm_jax.weights.model_folder import write_model

Tokens = list[tuple[int, ...]]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__.split("\n")[0])
    for name, default in {
        "hidden_size": 256,
        "num_heads": 4,
        "num_encoder_layers": 6,
        "num_decoder_layers": 3,
        "vocab_size": 8_104,
        "beam_size": 5,
        "batch_size": 32,
        "batches": 2,
        "max_length": 64,
        "longest_source": 64,
        "rounds": 3,
        "threads": os.cpu_count() or 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ours_alone", action="store_true", help="without the peer")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def make_model(flags: argparse.Namespace) -> tuple[ModelConfig, Any]:
    """A random model whose logits are as far apart as a trained one's."""
    config = ModelConfig(
        vocab_size=flags.vocab_size,
        hidden_size=flags.hidden_size,
        feed_forward_size=4 * flags.hidden_size,
        num_heads=flags.num_heads,
        num_encoder_layers=flags.num_encoder_layers,
        num_decoder_layers=flags.num_decoder_layers,
        max_length=max(flags.max_length, flags.longest_source) + 2,
    )
    params = jax.tree.map(np.array, init_params(config, jax.random.key(0)))
    random = np.random.default_rng(0)
    for side in ("encoder", "decoder"):
        for name, leaf in params[side]["layers"].items():
            if name.endswith("layer_norm"):
                leaf["bias"] += random.normal(0, 0.2, leaf["bias"].shape).astype(np.float32)
    params["token_embedding"] *= 3
    return config, params


def make_sources(flags: argparse.Namespace) -> list[np.ndarray]:
    """Sources of mixed lengths, shorter ones first."""
    random = np.random.default_rng(1)
    lengths = np.sort(random.integers(5, flags.longest_source + 1, flags.batch_size * flags.batches))
    return [np.append(random.integers(4, flags.vocab_size, n - 1), EOS_ID) for n in lengths]


def ours(flags: argparse.Namespace, config: ModelConfig, params: Any) -> Callable[[Sequence[np.ndarray]], Tokens]:
    """Decodes one batch, padded to the next multiple of 16."""
    options = SearchOptions(beam_size=flags.beam_size, rule="huggingface")
    lengths = range(16, config.max_length + 15, 16)
    # Of each length a batch of just so many rows, so that no batch is divided.
    generators = {
        length: Generator(
            (config, params),
            options,
            batching=Batching(lengths=(length,), tokens=flags.batch_size * length, shrink=False),
        )
        for length in lengths
    }

    def decode(batch: Sequence[np.ndarray]) -> Tokens:
        length = next(length for length in lengths if max(map(len, batch)) <= length)
        found = generators[length](batch, max_length=flags.max_length)
        return [hypotheses[0].tokens for hypotheses in found]

    return decode


def theirs(flags: argparse.Namespace, config: ModelConfig, params: Any) -> Callable[[Sequence[np.ndarray]], Tokens]:
    """The same by transformers, from an exported folder."""
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("HF_MODULES_CACHE", f"{place}/modules")
        import torch
        import transformers

        folder = pathlib.Path(place)
        (folder / "native").mkdir()
        write_model(folder / "native", config, params, None, {})
        convert(Request("native", folder / "native", folder / "exported", target="huggingface_deltalm"))
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "exported", trust_remote_code=True).eval()
    torch.set_num_threads(flags.threads)

    def decode(batch: Sequence[np.ndarray]) -> Tokens:
        tokens_BS = np.zeros((len(batch), max(map(len, batch))), np.int64)
        for row, source in zip(tokens_BS, batch, strict=True):
            row[: len(source)] = source
        source_BS = torch.tensor(to_fairseq_ids(tokens_BS))
        with torch.inference_mode():
            found = model.generate(
                source_BS,
                attention_mask=source_BS != 1,
                num_beams=flags.beam_size,
                max_new_tokens=flags.max_length,
                min_new_tokens=1,
                length_penalty=1.0,
                early_stopping=False,
                do_sample=False,
                suppress_tokens=[1],
            )
        rows = from_fairseq_ids(found[:, 1:].numpy())
        return [tuple(row[row != PAD_ID].tolist()) for row in rows]

    return decode


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """The figures."""
    config, params = make_model(flags)
    sources = make_sources(flags)
    batches = [sources[i : i + flags.batch_size] for i in range(0, len(sources), flags.batch_size)]
    decoders = {"ours": ours(flags, config, params)}
    if not flags.ours_alone:
        decoders["transformers"] = theirs(flags, config, params)

    began = time.perf_counter()
    found = {name: [decode(batch) for batch in batches] for name, decode in decoders.items()}  # not timed: compiles
    first = time.perf_counter() - began
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(flags.rounds):
        for name, decode in decoders.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            for batch in batches:
                decode(batch)
            seconds[name].append(time.perf_counter() - began)
            cpu_seconds[name].append(time.process_time() - began_cpu)

    flat = {name: [tokens for batch in parts for tokens in batch] for name, parts in found.items()}
    count = sum(map(len, flat["ours"]))
    result: dict[str, Any] = {
        "machine": machine(),
        "options": vars(flags),
        "target_tokens": count,
        "longest": max(map(len, flat["ours"])),
        "shortest": min(map(len, flat["ours"])),
        "first_seconds": round(first, 1),
    }
    for name, times in seconds.items():
        result[name] = {
            "tokens_per_second": round(count / min(times)),
            "median": round(count / statistics.median(times)),
            "cpu_seconds": round(min(cpu_seconds[name]), 2),
        }
    if "transformers" in flat:
        result["equal"] = f"{sum(map(tuple.__eq__, flat['ours'], flat['transformers']))} of {len(flat['ours'])}"
        result["times_as_fast"] = round(min(seconds["transformers"]) / min(seconds["ours"]), 2)
        result["times_as_fast_median"] = round(
            statistics.median(seconds["transformers"]) / statistics.median(seconds["ours"]), 2
        )
    return result


def main() -> None:
    flags = parse_arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    result = run(flags)
    if flags.json:
        print(json.dumps(result))
        return
    for name in ("ours", "transformers"):
        if name in result:
            print(
                f"{name:14}{result[name]['tokens_per_second']:>8,} target tokens/s, median {result[name]['median']:,}"
            )
    print(
        f"{result['target_tokens']:,} tokens in hypotheses of {result['shortest']} to {result['longest']}; "
        f"equal: {result.get('equal', 'not compared')}; times as fast: {result.get('times_as_fast', '-')} "
        f"(median {result.get('times_as_fast_median', '-')})"
    )
    about = result["machine"]
    print(f"{about['processor']}, {flags.threads} threads, load {about['load']}")


if __name__ == "__main__":
    main()
