"""The project's own commands, as benchmarks start them."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

# What tags a source with the language to translate to.
PREFIX = "__{target}__ "
_SHAPE = (
    "vocab_size", "hidden_size", "feed_forward_size", "num_heads", "num_encoder_layers", "num_decoder_layers", "max_length",
    "norm_placement", "embedding_layer_norm", "decoder",
)  # fmt: skip


def run_command(name: str, *flags: str) -> None:
    """Runs `python -m deltalm_jax.NAME`, which speaks on stderr; ends this process with its exit code if that is not 0."""
    done = subprocess.run([sys.executable, "-m", f"deltalm_jax.{name}", *flags], stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def train_as(
    model: pathlib.Path,
    gin_file: str,
    run_dir: pathlib.Path,
    steps: int,
    bindings: Sequence[str],
    more: Sequence[str] = (),
) -> None:
    """A run of `steps` steps with the sizes and the vocabulary of a converted model, its learning rate planned for them.

    Args:
      model: a folder of `convert`.
      gin_file: what else the run is.
      run_dir: the run; what was done of it is not done again. An eighth of it lies between two validations.
      steps: of the run; a tenth of them is the warm-up.
      bindings: "Class.field=value", after those.
      more: flags.
    """
    sizes = json.loads((model / "model.json").read_bytes())["model"]
    every = max(1, steps // 8)
    plan = {
        "TrainConfig.steps": steps, "OptimizerConfig.decay_steps": steps, "OptimizerConfig.warmup_steps": steps // 10,
        "TrainConfig.eval_every": every, "TrainConfig.checkpoint_every": every, "TrainConfig.keep_checkpoints": 1,
        "DataConfig.vocabulary": str(model / "vocabulary.model"), "DataConfig.prepare_limit_mb": 1000.0,
    } | {f"ModelConfig.{name}": sizes[name] for name in _SHAPE}  # fmt: skip
    every_binding = (*(f"{name}={value!r}" for name, value in plan.items()), *bindings)
    run_command(
        "train", f"--gin_file={gin_file}", f"--run_dir={run_dir}", *(f"--gin.{b}" for b in every_binding), *more
    )
