"""What a run leaves on record of itself: its identity in every checkpoint, its configuration and its data in the open."""

from __future__ import annotations

import json
import pathlib
import platform
from importlib.metadata import version
from typing import Any

from deltalm_jax.data.chunks import VOCABULARY_MODEL, PreparedData
from deltalm_jax.data.shards import write_atomically
from deltalm_jax.data.stream import Stream
from deltalm_jax.redaction import redact_record
from deltalm_jax.training.config import Config


def describe(config: Config, prepared: PreparedData, compute_dtype: str) -> dict[str, Any]:
    """What a checkpoint's record says of its run: identity (must not change on resume), vocabulary, versions.

    Without secrets: a checkpoint may be given away.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    identity = config.identity() | {
        "data": prepared.manifest["digest"],
        "vocabulary": prepared.manifest["vocabulary"]["fingerprint"],
        "compute_dtype": compute_dtype,
    }
    return {
        "identity": redact_record(identity),
        "vocabulary": prepared.manifest["vocabulary"],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }


def write_record(config: Config, stream: Stream, run_dir: pathlib.Path) -> None:
    """Writes `config.json` (every value and where it came from), `data.json` (each task's share and epochs), and
    `vocabulary.model`, so that a run is a whole model.

    In `data.json`, `rate` is the task's share of its objective's examples, and `epochs` how often each of its chunks will
    have been seen, by all objectives that take them, after `TrainConfig.steps` steps. Secrets are left out of `config.json`.
    """
    content = redact_record({"values": config.values(), "origins": config.origins})
    write_atomically(run_dir / "config.json", json.dumps(content, indent=1) + "\n")
    write_atomically(run_dir / VOCABULARY_MODEL, (stream.prepared.folder / VOCABULARY_MODEL).read_bytes())
    epochs = stream.epochs(config.train.steps)
    tasks = {
        task if stream.prepared_for(objective) == objective else f"{objective}/{task}": {
            "objective": objective,
            "rate": rate,
            "epochs": epochs[task],
        }
        for objective, rates in stream.rates().items()
        for task, rate in rates.items()
    }
    write_atomically(run_dir / "data.json", json.dumps(tasks, indent=1) + "\n")


def epochs_line(epochs: dict[str, float], steps: int) -> str:
    """One line on how often the largest and the smallest tasks will be seen, from `Stream.epochs(steps)`."""
    ranked = sorted(epochs.items(), key=lambda item: item[1])
    shown = ranked if len(ranked) <= 4 else [*ranked[:2], *ranked[-2:]]
    return f"epochs in {steps:,} steps, fewest and most: " + ", ".join(f"{task} {n:.3g}" for task, n in shown)
