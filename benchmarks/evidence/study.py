"""The papers' comparisons at a laptop's size: variants of one pretraining, with several seeds, and what they are worth.

    python -m benchmarks.evidence.corpora --output=runs/evidence/corpora --languages=de,fr,ru,es
    python -m benchmarks.evidence.encoder --output=runs/evidence/encoder --layers=4
    python -m benchmarks.evidence.study [--seeds=0,1,2] [--only=interleaved,random] [--output=runs/evidence]

Every variant starts from the encoder in its way, is pretrained for --steps on one half of the pairs and all the text, and
fine-tuned for --finetune_steps on the other half, translating both ways at once; then it may translate held-out verses. All
variants of a seed see the same batches, where they have the same objectives. What was done before is not done again.

--output/results.json has every number of every run; the tables are their means and spreads. Where --compare names such a
file, each number that both have is compared, and a difference ends this with 1: a row run again shall say the same.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

from benchmarks.commands import PREFIX, run_command, train_as
from benchmarks.evidence.tables import print_tables
from benchmarks.evidence.variants import VARIANTS, Variant

OBJECTIVES = ("span_corruption", "translation_span_corruption")


def split_pairs(flags: argparse.Namespace) -> None:
    """The corpora with the even pairs for pretraining, and the odd ones as examples in both directions for fine-tuning."""
    pretraining, finetuning = flags.output / "data" / "pretraining", flags.output / "data" / "finetuning" / "examples"
    if finetuning.exists():
        return
    for code in ("en", *flags.languages):
        for name in (f"text/{code}.txt", f"text/validation/{code}.txt", f"parallel/validation/{code}-en.tsv"):
            (pretraining / name).parent.mkdir(parents=True, exist_ok=True)
            if (flags.corpora / name).exists():
                (pretraining / name).symlink_to((flags.corpora / name).resolve())
    (finetuning.with_name("new") / "validation").mkdir(parents=True, exist_ok=True)
    for code in flags.languages:
        rows = (flags.corpora / "parallel" / f"{code}-en.tsv").read_text(encoding="utf-8").splitlines()
        test = (flags.corpora / "test" / f"{code}-en.tsv").read_text(encoding="utf-8").splitlines()
        (pretraining / "parallel" / f"{code}-en.tsv").write_text("\n".join(rows[::2]) + "\n", encoding="utf-8")
        for place, chosen in (("", rows[1::2]), ("validation/", test)):
            for name, order in ((f"{code}-en", 1), (f"en-{code}", -1)):
                text = "".join("\t".join(row.split("\t")[::order]) + "\n" for row in chosen)
                (finetuning.with_name("new") / f"{place}{name}.tsv").write_text(text, encoding="utf-8")
    finetuning.with_name("new").rename(finetuning)


def vocabulary(flags: argparse.Namespace) -> pathlib.Path:
    """The encoder's vocabulary, with the pieces that the corpora use."""
    path = flags.output / "vocabulary.model"
    if not path.exists():
        run_command(
            "vocabulary", "trim", f"--vocabulary={flags.encoder / 'sentencepiece.bpe.model'}", "--sample_mb=1000",
            f"--data_dir={flags.output / 'data' / 'pretraining'}", f"--languages={','.join(['en', *flags.languages])}",
            f"--min_count={flags.min_count}", f"--output={path}",
        )  # fmt: skip
    return path


def start(flags: argparse.Namespace, variant: Variant, seed: int) -> pathlib.Path:
    """The variant's weights before any training."""
    folder = flags.output / "starts" / f"{variant.initialize}_{seed}"
    if not folder.exists():
        # Every decoder's output has a root mean square of 1, as a random one's has (docs/weights.md).
        scale = [] if variant.initialize == "random" else ["--decoder_output_rms=1"]
        run_command(
            "convert", "--from=xlm_roberta", f"--input={flags.encoder}", f"--vocabulary={vocabulary(flags)}", *scale,
            f"--initialize={variant.initialize}", f"--seed={seed}", f"--output={folder}",
        )  # fmt: skip
    return folder


def pretrain(flags: argparse.Namespace, name: str, variant: Variant, seed: int) -> pathlib.Path:
    """The pretrained run, or the start where the variant has no pretraining."""
    model = start(flags, variant, seed)
    if variant.pretraining is None:
        return model
    run_dir = flags.output / "pretrained" / f"{name}_{seed}"
    objectives = variant.pretraining.get("objective_batch_sizes", OBJECTIVES)
    settings: dict[str, Any] = {
        "data_dir": str(flags.output / "data" / "pretraining"),
        "languages": ["en", *flags.languages],
        "chunk_length": 128,
        "prepared_dir": str(flags.output / "prepared" / "pretraining"),
        **variant.pretraining,
        "objective_batch_sizes": dict.fromkeys(objectives, flags.rows // len(objectives)),
    }
    bindings = (
        *(f"DataConfig.{key}={value!r}" for key, value in settings.items()), f"TrainConfig.init_from={str(model)!r}",
        f"TrainConfig.seed={seed}", f"OptimizerConfig.learning_rate={flags.learning_rate}", "TrainConfig.eval_batches=8",
        "ModelConfig.scan_layers=False",
    )  # fmt: skip
    train_as(model, "pretrain_small.gin", run_dir, flags.steps, bindings)
    return run_dir


def finetune(flags: argparse.Namespace, name: str, seed: int, from_dir: pathlib.Path) -> pathlib.Path:
    """The run that is fine-tuned from a pretrained one, or from a start."""
    run_dir = flags.output / "finetuned" / f"{name}_{seed}"
    bindings = (
        f"DataConfig.data_dir={str(flags.output / 'data' / 'finetuning')!r}", f"TrainConfig.seed={seed}",
        "DataConfig.source_length=128", "DataConfig.target_length=128", f"DataConfig.source_prefix={PREFIX!r}",
        f"DataConfig.prepared_dir={str(flags.output / 'prepared' / 'finetuning')!r}", "ModelConfig.scan_layers=False",
        f"DataConfig.objective_batch_sizes={{'sequence_to_sequence': {flags.rows}}}", "TrainConfig.eval_batches=8",
        f"TrainConfig.init_from={str(from_dir)!r}", "OptimizerConfig.schedule='linear'",
        f"OptimizerConfig.learning_rate={flags.learning_rate}",
    )  # fmt: skip
    train_as(start(flags, VARIANTS[name], seed), "finetune_examples.gin", run_dir, flags.finetune_steps, bindings)
    return run_dir


def translate(flags: argparse.Namespace, run_dir: pathlib.Path) -> dict[str, dict[str, float]]:
    """{direction: {metric: score}} of the first held-out verses, decoded greedily."""
    scores = {}
    for code in flags.languages if flags.verses else ():
        for direction in (f"{code}-en", f"en-{code}"):
            output = run_dir / "evaluation" / direction
            if not (output / "scores.json").exists():
                run_command(
                    "evaluate", f"--checkpoint={run_dir}", f"--task=examples_{direction.replace('-', '_')}",
                    "--split=validation", f"--data_dir={flags.output / 'data' / 'finetuning'}", f"--limit={flags.verses}",
                    "--beam_size=1", "--max_length=10", "--max_length_per_token=1.3", f"--output={output}",
                )  # fmt: skip
            found = json.loads((output / "scores.json").read_bytes())["scores"]
            scores[direction] = {metric: score["score"] for metric, score in found.items()}
    return scores


def numbers(run_dir: pathlib.Path, names: dict[str, str]) -> dict[str, dict[str, float]]:
    """{what: {step: nats}} of the validations of a run."""
    curves: dict[str, dict[str, float]] = {}
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        for key, what in names.items():
            if key in line:
                curves.setdefault(what, {})[str(line["step"])] = line[key]
    return curves


def measure(flags: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """A row of results: one variant with one seed."""
    variant = VARIANTS[name]
    from_dir = pretrain(flags, name, variant, seed)
    finetuned = finetune(flags, name, seed, from_dir)
    row: dict[str, Any] = {"pretraining": {}, "step_seconds": None}
    if variant.pretraining is not None:
        row["pretraining"] = numbers(from_dir, {f"eval/{objective}/text_loss": objective for objective in OBJECTIVES})
        lines = map(json.loads, (from_dir / "metrics.jsonl").read_text().splitlines())
        seconds = sorted(line["step_seconds"] for line in lines)
        row["step_seconds"] = seconds[len(seconds) // 2]
    row["finetuning"] = numbers(finetuned, {"eval/sequence_to_sequence/loss": "loss"})
    row["scores"] = translate(flags, finetuned)
    return row


def differences(found: Any, published: Any, place: str = "") -> list[str]:
    """What both have and is not equal, times left out."""
    if isinstance(found, dict) and isinstance(published, dict):
        both = [key for key in found if key in published and key != "step_seconds"]
        return [line for key in both for line in differences(found[key], published[key], f"{place}/{key}")]
    return [] if found == published else [f"{place}: {published} before, {found} now"]


def main() -> int:
    """Runs what is missing, writes results.json, prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/evidence"), metavar="DIR")
    parser.add_argument("--corpora", type=pathlib.Path, metavar="DIR", help="default: --output/corpora")
    parser.add_argument("--encoder", type=pathlib.Path, metavar="DIR", help="default: --output/encoder")
    parser.add_argument("--languages", default="de,ru", metavar="CODES")
    parser.add_argument("--min_count", type=int, default=10, metavar="N", help="of a piece in the corpora, to be kept")
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N")
    parser.add_argument("--only", default=",".join(VARIANTS), metavar="NAMES", help="variants (default: all)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of pretraining")
    parser.add_argument("--finetune_steps", type=int, default=60, metavar="N")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="of a batch, 128 tokens each")
    parser.add_argument("--learning_rate", type=float, default=5e-4, metavar="X")
    parser.add_argument(
        "--verses", type=int, default=0, metavar="N", help="translated in each direction (default: none)"
    )
    parser.add_argument("--compare", type=pathlib.Path, metavar="FILE", help="results of before")
    flags = parser.parse_args()
    flags.corpora = flags.corpora or flags.output / "corpora"
    flags.encoder = flags.encoder or flags.output / "encoder"
    flags.languages = flags.languages.split(",")
    if unknown := set(flags.only.split(",")) - set(VARIANTS):
        parser.error(f"unknown variants {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    split_pairs(flags)
    settings = ("languages", "min_count", "steps", "finetune_steps", "rows", "learning_rate", "verses")
    results: dict[str, Any] = {"settings": {name: getattr(flags, name) for name in settings}, "runs": {}}
    for seed in map(int, flags.seeds.split(",")):
        for name in flags.only.split(","):
            results["runs"].setdefault(name, {})[str(seed)] = measure(flags, name, seed)
            (flags.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_tables(results)
    if flags.compare:
        lines = differences(results, json.loads(flags.compare.read_bytes()))
        print("\n".join(lines) or f"equal to {flags.compare}, number by number", file=sys.stderr)
        return 1 if lines else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
