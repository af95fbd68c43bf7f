"""What a pretrained encoder is worth at the start: the initialisations side by side, on the same batches.

    python -m benchmarks.warm_start --encoder=DIR --prepared_dir=DIR [--steps=200] [--gin_file=pretrain_small.gin] [--json]

Each is run as it is, and with the decoder's output scaled to a root mean square of 1. The encoder is one that `convert
--from=xlm_roberta` reads, of the sizes of the configuration; the data are prepared with its vocabulary. One example of each
objective is a batch, so that a CPU can do it: a comparison, no claim of quality. Held-out losses leave sentinels out.
Runs and models stay in --output (about 2.5 GB for each initialisation of a small model); further flags go to `train`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
from typing import Any

from benchmarks.commands import run_command
from deltalm_jax.model.warm_start import INITIALIZATIONS

BATCH = "{'span_corruption': 1, 'translation_span_corruption': 1}"


def run(initialize: str, rms: float | None, flags: argparse.Namespace) -> dict[str, Any]:
    """Converts and trains, or reads what was trained before; returns the losses in nats a target."""
    name = initialize if rms is None else f"{initialize}, output {rms:g}"
    start, run_dir = flags.output / "models" / name, flags.output / "runs" / name
    if not start.exists():
        vocabulary = flags.prepared_dir / "vocabulary.model"
        run_command(
            "convert", "--from=xlm_roberta", f"--input={flags.encoder}", f"--output={start}", f"--initialize={initialize}",
            f"--vocabulary={vocabulary}", *([] if rms is None else [f"--decoder_output_rms={rms}"]),
        )  # fmt: skip
    model = json.loads((start / "model.json").read_text())["model"]
    shape = [f"--gin.ModelConfig.{name}={model[name]}" for name in ("decoder", "num_decoder_layers")]
    options = {"steps": flags.steps, "init_from": start, "checkpoint_every": flags.steps, "eval_every": 0}
    run_command(
        "train", f"--gin_file={flags.gin_file}", f"--run_dir={run_dir}",
        f"--gin.DataConfig.prepared_dir={flags.prepared_dir}", f"--gin.DataConfig.objective_batch_sizes={BATCH}", *shape,
        *(f"--gin.TrainConfig.{name}={value}" for name, value in options.items()), *flags.more,
    )  # fmt: skip
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "initialize": name,
        "first": lines[0]["loss"],
        "last": lines[-1]["loss"],
        "last_20": statistics.fmean(line["loss"] for line in lines[-20:]),
        **{key: value for key, value in lines[-1].items() if key.startswith("eval/") and key.count("/") == 2},
    }


def main() -> None:
    """Prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--prepared_dir", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/warm_start"), metavar="DIR")
    parser.add_argument("--gin_file", default="pretrain_small.gin", metavar="FILE")
    parser.add_argument("--steps", type=int, default=200, metavar="N")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags, more = parser.parse_known_args()
    flags.more = more
    # A random decoder's output has a root mean square of 1 as it is.
    ways = [(i, None) for i in INITIALIZATIONS] + [(i, 1.0) for i in INITIALIZATIONS if i != "random"]
    results = [run(initialize, rms, flags) for initialize, rms in ways]
    if flags.json:
        print(json.dumps(results))
        return
    columns = (
        "first",
        "last",
        "last_20",
        "eval/span_corruption/text_loss",
        "eval/translation_span_corruption/text_loss",
    )
    print(f"{'initialisation':42}{'step 1':>9}{f'step {flags.steps}':>10}{'last 20':>9}{'held-out SC':>13}{'TSC':>9}")
    for result in results:
        widths = (9, 10, 9, 13, 9)
        print(
            f"{result['initialize']:42}" + "".join(f"{result[c]:{w}.3f}" for c, w in zip(columns, widths, strict=True))
        )


if __name__ == "__main__":
    main()
