"""What cross-lingual contrast adds to an encoder: translations found among others, with the objective and without it.

    python -m benchmarks.contrast [--steps=400 --seeds=0,1,2] [--output=runs/contrast] [--json]

Trains infoxlm_tiny.gin on the shipped sample, and the same without contrast: as many steps, on the same batches of the other
two objectives. Then looks, as `evaluate` does, how often the nearest of the held-out sentences of a language is the
translation: mean over languages and both directions, by hidden state, cosine of the mean over positions and of the first one.
Runs that are there already are not made again. Further flags go to all trainings.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
from typing import Any

from benchmarks.commands import run_command

OTHERS = ("masked_language_model", "translation_language_model")
WITHOUT = (
    f"DataConfig.objective_batch_sizes={dict.fromkeys(OTHERS, 16)}",
    f"DataConfig.sampling_exponents={dict.fromkeys(OTHERS, 0.3)}",
    "ModelConfig.sentence_layer=0",
    "LossConfig.objective_weights={}",
)
WAYS = {"mean": "mean of positions", "first": "first position"}


def scores(flags: argparse.Namespace, name: str, seed: int, *bindings: str) -> dict[str, list[float]]:
    """A trained encoder's accuracies, by way of comparing, of each hidden state."""
    run_dir = flags.output / f"{name}_{seed}"
    output = run_dir / "evaluation"
    if not (output / "scores.json").exists():
        plan = (
            f"TrainConfig.steps={flags.steps}", f"OptimizerConfig.decay_steps={flags.steps}",
            f"OptimizerConfig.warmup_steps={flags.steps // 10}", f"TrainConfig.eval_every={flags.steps}",
            f"TrainConfig.seed={seed}", f"DataConfig.prepared_dir={flags.output / 'prepared'}",
        )  # fmt: skip
        run_command(
            "train", "--gin_file=infoxlm_tiny.gin", f"--run_dir={run_dir}",
            *(f"--gin.{binding}" for binding in (*plan, *bindings)), *flags.more,
        )  # fmt: skip
        run_command("evaluate", f"--checkpoint={run_dir}", f"--output={output}")
    average = json.loads((output / "scores.json").read_bytes())["retrieval"]["average"]
    directions = {way: (average[way]["from_english"], average[way]["to_english"]) for way in WAYS}
    return {way: [statistics.mean(both) for both in zip(*two, strict=True)] for way, two in directions.items()}


def main() -> None:
    """Prints a table in Markdown, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, metavar="N")
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/contrast"), metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags, flags.more = parser.parse_known_args()
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    results: dict[str, Any] = {
        name: [scores(flags, name, seed, *bindings) for seed in seeds]
        for name, bindings in (("with_contrast", ()), ("without", WITHOUT))
    }
    if flags.json:
        print(json.dumps(results))
        return
    layers = range(len(results["without"][0]["mean"]))
    print(f"| translations found, %, mean ± deviation of {len(seeds)} seeds | {' | '.join(map(str, layers))} |")
    print("|---" * (len(layers) + 1) + "|")
    for way, shown in WAYS.items():
        for name, found in results.items():
            cells = []
            for layer in layers:
                values = [100 * seed[way][layer] for seed in found]
                cells.append(
                    f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"
                )
            print(f"| {shown}, {name.replace('_', ' ')} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
