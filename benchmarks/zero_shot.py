"""A direction that the last training does not show: what does --allowed_script do for the language of the outputs?

    python -m benchmarks.zero_shot --corpora=DIR [--source=de --targets=ru,hi] [--output=runs/zero_shot] [--json]

A tiny model (the sizes of pretrain_tiny.gin, a vocabulary of its own) learns to write: it translates between English and
--source and --targets, both ways. Then it is trained from --source to English only, and asked for the targets again, with
and without the mask. Counted are outputs most of whose letters are of the target's script. What was done before is not done
again. DIR is as for benchmarks.finetuning; further flags go to `evaluate`. No claim of quality: a tiny model.
"""

from __future__ import annotations

import argparse
import json
import pathlib

from benchmarks.commands import PREFIX, run_command
from benchmarks.finetuning import examples

SCRIPTS = {"ru": "Cyrillic", "uk": "Cyrillic", "bg": "Cyrillic", "hi": "Devanagari", "ar": "Arabic", "el": "Greek"}
_PIECES = 8000
# Of pretrain_tiny.gin, for the file that finetune_examples.gin includes is of base size.
TINY = (
    f"ModelConfig.vocab_size={_PIECES + 104}", "ModelConfig.hidden_size=128", "ModelConfig.feed_forward_size=512",
    "ModelConfig.num_heads=4", "ModelConfig.num_encoder_layers=4", "ModelConfig.num_decoder_layers=2",
    "ModelConfig.max_length=128", "ModelConfig.scan_layers=False",
)  # fmt: skip


def train(
    flags: argparse.Namespace, name: str, start: str, steps: int, mixture: str, data: pathlib.Path
) -> pathlib.Path:
    """A run on translations."""
    vocabulary, run_dir = flags.output / "vocabulary.model", flags.output / name
    if not vocabulary.exists():
        run_command(
            "vocabulary", "train", f"--data_dir={flags.corpora}", f"--languages={','.join(['en', *flags.languages])}",
            f"--num_pieces={_PIECES}", "--sample_mb=20", f"--output={vocabulary}",
        )  # fmt: skip
    bindings = (
        *TINY, f"DataConfig.data_dir={data}", f"DataConfig.vocabulary={vocabulary}", f"DataConfig.mixture={mixture!r}",
        f"DataConfig.prepared_dir={flags.output / f'prepared_{mixture}'}", "DataConfig.prepare_limit_mb=1000.0",
        "DataConfig.source_length=128", "DataConfig.target_length=128", f"DataConfig.source_prefix={PREFIX!r}",
        "DataConfig.objective_batch_sizes={'sequence_to_sequence': 16}", f"TrainConfig.init_from={start!r}",
        f"TrainConfig.steps={steps}", f"TrainConfig.eval_every={max(1, steps // 4)}", "TrainConfig.keep_checkpoints=1",
        "OptimizerConfig.schedule='linear'", "OptimizerConfig.learning_rate=1e-3", f"OptimizerConfig.decay_steps={steps}",
        f"OptimizerConfig.warmup_steps={steps // 10}",
    )  # fmt: skip
    run_command(
        "train",
        "--gin_file=finetune_examples.gin",
        f"--run_dir={run_dir}",
        *(f"--gin.{binding}" for binding in bindings),
    )
    return run_dir


def shares(flags: argparse.Namespace, run_dir: pathlib.Path, target: str) -> dict[str, dict[str, float]]:
    """{how it was decoded: {metric: score}} of English dev sentences, translated into a language."""
    script, dev = SCRIPTS[target], flags.corpora / "translation"
    found = {}
    for name, constraint in (("free", ()), ("mask", (f"--allowed_script={script}",))):
        output = run_dir / "evaluation" / f"en-{target}_{name}"
        if not (output / "scores.json").exists():
            run_command(
                "evaluate", f"--checkpoint={run_dir}", f"--source={dev / f'dev.en-{target}.en'}",
                f"--reference={dev / f'dev.en-{target}.{target}'}", f"--limit={flags.dev_lines}", f"--output={output}",
                f"--source_prefix={PREFIX.format(target=target)}", "--max_length=20", "--max_length_per_token=1.5",
                f"--metrics=script_{script.lower()},chrf++", *flags.decoding, *constraint,
            )  # fmt: skip
        told = json.loads((output / "scores.json").read_bytes())["scores"]
        found[name] = {metric: score["score"] for metric, score in told.items()}
    return found


def main() -> None:
    """Prints a table in Markdown, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--source", default="de", metavar="CODE")
    parser.add_argument("--targets", default="ru,hi", metavar="CODES", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--pairs", type=int, default=40_000, metavar="N", help="of each language, at most")
    parser.add_argument("--first_steps", type=int, default=1200, metavar="N", help="of all directions")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of the one direction")
    parser.add_argument("--dev_lines", type=int, default=100, metavar="N")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/zero_shot"), metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags, flags.decoding = parser.parse_known_args()
    targets = flags.targets.split(",")
    flags.languages = [flags.source, *targets]
    data = examples(flags)
    first = train(flags, "all_directions", "random", flags.first_steps, "deltalm_sequence_to_sequence", data)
    last = train(flags, "one_direction", str(first), flags.steps, f"examples_{flags.source}_en", data)
    found = {name: {t: shares(flags, run, t) for t in targets} for name, run in (("before", first), ("after", last))}
    if flags.json:
        print(json.dumps(found))
        return
    print(
        f"| outputs in the right script, % / chrF++ | {' | '.join(f'en-{t}, free | with the mask' for t in targets)} |"
    )
    print("|---" * (1 + 2 * len(targets)) + "|")
    for name, unseen in found.items():
        cells = []
        for told in (told for ways in unseen.values() for told in ways.values()):
            share = next(score for metric, score in told.items() if metric.startswith("script_"))
            cells.append(f"{share:.0f} / {told['chrf++']:.1f}")
        print(f"| {name} training from {flags.source} to English only | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
