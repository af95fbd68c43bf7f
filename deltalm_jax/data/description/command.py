"""`python -m deltalm_jax.prepare --describe DIR`: its flags, and what they do."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.description import page, text
from deltalm_jax.data.description.numbers import SAMPLE_CHUNKS, describe
from deltalm_jax.data.shards import write_atomically
from deltalm_jax.data.stream import Objective
from deltalm_jax.objectives import length_settings, make_objective

# Those of `configs/pretrain_base.gin`.
_WIDTH = 140  # of text that goes into a file
STEPS, BATCH_SIZE, SAMPLING_EXPONENT = 600_000, 1024, 0.3


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--describe` and what goes with it."""
    group = parser.add_argument_group("look at what was prepared")
    group.add_argument(
        "--describe", metavar="DIR",
        help="prepare nothing; show what DIR holds: languages, rates, epochs, lengths, padding, unknowns, what was dropped, "
        "examples",
    )  # fmt: skip
    group.add_argument("--html", type=Path, metavar="FILE", help="with --describe: write it as one HTML page, too")
    group.add_argument("--json", type=Path, metavar="FILE", help="with --describe: write the numbers as JSON, too")
    group.add_argument(
        "--steps", type=int, default=STEPS, metavar="N",
        help="with --describe: steps of the training that epochs speak of (default: %(default)s, the paper's)",
    )  # fmt: skip
    group.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, metavar="N",
        help="with --describe: examples of each objective in its batches (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--sampling_exponent", type=float, default=SAMPLING_EXPONENT, metavar="X",
        help="with --describe: languages are drawn in proportion to (tokens) ** X (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max_epochs", type=float, metavar="X",
        help="with --describe: DataConfig.max_epochs, how often a task's chunks may come up (default: no limit)",
    )  # fmt: skip
    group.add_argument(
        "--sample_chunks", type=int, default=SAMPLE_CHUNKS, metavar="N",
        help="with --describe: chunks of each task that are read (default: %(default)s)",
    )  # fmt: skip


def check_flags(flags: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Ends the program, with its usage, where the numbers cannot be."""
    for name in ("steps", "batch_size", "sample_chunks"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name} must be at least 1, found {getattr(flags, name)}")
    if flags.max_epochs is not None and not flags.max_epochs > 0:
        parser.error(f"--max_epochs must be above 0, found {flags.max_epochs}")
    if not 0 <= flags.sampling_exponent <= 1:
        parser.error(f"--sampling_exponent must lie in [0, 1], found {flags.sampling_exponent}")


def run(flags: argparse.Namespace) -> None:
    """Describes prepared data: on the terminal, and in the files asked for.

    Raises:
      PreparedDataError: they are not there, damaged, or cannot be trained on with these flags.
      OSError: a file cannot be written.
    """
    data = PreparedData.open(flags.describe)
    examples = data.manifest.get("settings", {}).get("examples", {})
    masked = {name: length for name, length in data.chunk_lengths.items() if name != "sequence_to_sequence"}
    sizing = length_settings(masked)[1] if masked else "raw"

    def settings(name: str) -> dict[str, Any]:
        if name in masked:
            return {"sizing": sizing}
        return {key: examples[key] for key in ("source_length", "target_length")}

    objectives = {
        name: Objective(
            make_objective(name, **settings(name)),
            flags.batch_size,
            flags.sampling_exponent,
            flags.max_epochs,
            flags.steps,
        )
        for name in data.chunk_lengths
    }
    description = describe(data, objectives, flags.steps, sample_chunks=flags.sample_chunks)
    console = Console(highlight=False)
    text.show(description, console if console.is_terminal else Console(highlight=False, width=_WIDTH))
    if flags.html:
        write_atomically(flags.html, page.as_html(description))
    if flags.json:
        content = json.dumps(dataclasses.asdict(description), indent=1, ensure_ascii=False)
        write_atomically(flags.json, content + "\n")
