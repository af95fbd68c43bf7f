"""The whole chain on the shipped sample: an encoder, a DeltaLM that starts from it, and the same DeltaLM from nothing.

    python -m benchmarks.chain [--encoder_steps=400 --steps=400] [--output=runs/chain]        (or: make chain)

    infoxlm_tiny.gin     masked and translation language modelling and contrast: an encoder
    pretrain_tiny.gin    a DeltaLM whose decoder is interleaved from that encoder
    pretrain_tiny.gin    a DeltaLM from random weights, for as many steps on the same batches

and prints the validation losses of the latter two side by side; exits with 1 if the encoder did not help. Runs that are there
already go on where they were. Further flags go to all three trainings.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from benchmarks.commands import run_command

OBJECTIVES = ("span_corruption", "translation_span_corruption")


def train(flags: argparse.Namespace, gin_file: str, name: str, steps: int, *bindings: str) -> pathlib.Path:
    """A run of so many steps, with its learning rate planned for them."""
    run_dir = flags.output / name
    plan = (
        f"TrainConfig.steps={steps}", f"OptimizerConfig.decay_steps={steps}", f"OptimizerConfig.warmup_steps={steps // 10}",
        f"TrainConfig.eval_every={max(1, steps // 4)}", f"DataConfig.prepared_dir={flags.output / 'prepared'}",
    )  # fmt: skip
    run_command(
        "train",
        f"--gin_file={gin_file}",
        f"--run_dir={run_dir}",
        *(f"--gin.{b}" for b in (*plan, *bindings)),
        *flags.more,
    )
    return run_dir


def validation(run_dir: pathlib.Path) -> dict[int, list[float]]:
    """By step, the loss of each objective on text, in nats."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    names = [f"eval/{objective}/text_loss" for objective in OBJECTIVES]
    return {line["step"]: [line[name] for name in names] for line in lines if names[0] in line}


def main() -> int:
    """Trains what is missing and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder_steps", type=int, default=400, metavar="N")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="of each DeltaLM")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/chain"), metavar="DIR")
    flags, flags.more = parser.parse_known_args()
    encoder = train(flags, "infoxlm_tiny.gin", "encoder", flags.encoder_steps)
    started = train(flags, "pretrain_tiny.gin", "from_encoder", flags.steps, f"TrainConfig.init_from={str(encoder)!r}")
    random = train(flags, "pretrain_tiny.gin", "from_random", flags.steps)
    losses = {"from the encoder": validation(started), "from random": validation(random)}
    steps = list(losses["from random"])
    print(f"| nats per piece of held-out text after step | {' | '.join(map(str, steps))} |")
    print("|---" * (len(steps) + 1) + "|")
    for index, objective in enumerate(OBJECTIVES):
        for name, found in losses.items():
            print(f"| {objective}, {name} | {' | '.join(f'{found[step][index]:.3f}' for step in steps)} |")
    pairs = zip(losses["from the encoder"][steps[-1]], losses["from random"][steps[-1]], strict=True)
    if all(ours < theirs for ours, theirs in pairs):
        return 0
    print("starting from the encoder did not lower both losses", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
