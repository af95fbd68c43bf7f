"""What pretraining is worth downstream: translation learned from three starts, on the same batches, with the same budget.

    python -m benchmarks.finetuning --corpora=DIR --encoder=DIR [--vocabulary=trimmed.model] [--languages=de,fr,ru,hi] \\
        [--pretrain_steps=400 --steps=400] [--output=runs/finetuning] [--json]

    random       nothing
    warm start   the encoder alone: a decoder interleaved from its layers
    pretrained   the same, and then `--pretrain_steps` of span corruption and translation span corruption on the corpora

Each is fine-tuned on ccaligned's pairs in both directions at once, with a tag for the language to translate to, and then
translates `translation/dev.en-XX`.

DIR has `cc100/`, `ccaligned/` and `translation/`, with line-aligned dev.en-XX.en and dev.en-XX.XX; the encoder is one that
`convert --from=xlm_roberta` reads. What was done before is not done again; runs stay in --output. Further flags go to all
trainings. A comparison of starts, no claim of quality: budgets are as small as the machine.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from benchmarks.commands import PREFIX, run_command, train_as
from deltalm_jax.data.readers import read_ccaligned
from tasks.corpora import find_files


def examples(flags: argparse.Namespace) -> pathlib.Path:
    """A data folder with the pairs in both directions, `validation/` being the dev sets."""
    folder = flags.output / "data"
    (folder / "examples" / "validation").mkdir(parents=True, exist_ok=True)
    for code, files in find_files(flags.corpora, "ccaligned", flags.languages).items():
        pairs: list[Any] = []
        for path in files.train:
            for pair in read_ccaligned(path):
                if len(pairs) == flags.pairs:
                    break
                pairs.append(pair)
        dev = [
            (flags.corpora / "translation" / f"dev.en-{code}.{side}").read_text(encoding="utf-8").splitlines()
            for side in ("en", code)
        ]
        for place, rows in (("", pairs), ("validation/", list(zip(*dev, strict=True)))):
            for name, order in ((f"en-{code}", 1), (f"{code}-en", -1)):
                text = "".join("\t".join(pair[::order]) + "\n" for pair in rows)
                (folder / "examples" / f"{place}{name}.tsv").write_text(text, encoding="utf-8")
    return folder


def starts(flags: argparse.Namespace) -> dict[str, str]:
    """Name of each start → what `TrainConfig.init_from` is told."""
    warm, pretrained = flags.output / "warm_start", flags.output / "pretrained"
    if not warm.exists():
        vocabulary = [f"--vocabulary={flags.vocabulary}"] if flags.vocabulary else []
        run_command("convert", "--from=xlm_roberta", f"--input={flags.encoder}", f"--output={warm}", *vocabulary)
    sizes = dict.fromkeys(("span_corruption", "translation_span_corruption"), flags.batch_size)
    bindings = (
        f"DataConfig.data_dir={flags.corpora}", f"DataConfig.languages={['en', *flags.languages]}",
        "DataConfig.chunk_length=128",
        f"DataConfig.objective_batch_sizes={sizes}", f"DataConfig.prepared_dir={flags.output / 'prepared_pretraining'}",
        f"TrainConfig.init_from={str(warm)!r}", f"OptimizerConfig.learning_rate={flags.learning_rate}",
    )  # fmt: skip
    train_as(warm, "pretrain_small.gin", pretrained, flags.pretrain_steps, bindings, flags.more)
    return {"random": "random", "warm start": str(warm), "pretrained": str(pretrained)}


def finetune(
    flags: argparse.Namespace,
    name: str,
    start: str,
    data: pathlib.Path,
    steps: int,
) -> pathlib.Path:
    """A run from one start."""
    run_dir = flags.output / f"finetuned_{name.replace(' ', '_')}"
    bindings = (
        f"DataConfig.data_dir={data}", "DataConfig.source_length=128", "DataConfig.target_length=128",
        f"DataConfig.source_prefix={PREFIX!r}", f"DataConfig.prepared_dir={flags.output / 'prepared_pairs'}",
        f"DataConfig.objective_batch_sizes={{'sequence_to_sequence': {flags.batch_size}}}",
        f"TrainConfig.init_from={start!r}", "OptimizerConfig.schedule='linear'",
        f"OptimizerConfig.learning_rate={flags.learning_rate}",
    )  # fmt: skip
    train_as(flags.output / "warm_start", "finetune_examples.gin", run_dir, steps, bindings, flags.more)
    return run_dir


def scores(flags: argparse.Namespace, run_dir: pathlib.Path, data: pathlib.Path) -> dict[str, Any]:
    """{direction: BLEU and chrF++} of the dev sets, and the curve of the validation loss."""
    found: dict[str, Any] = {"curve": {}, "directions": {}}
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        if "eval/sequence_to_sequence/loss" in line:
            found["curve"][line["step"]] = line["eval/sequence_to_sequence/loss"]
    for code in flags.languages:
        for direction in (f"{code}-en", f"en-{code}"):
            output = run_dir / "evaluation" / direction
            if not (output / "scores.json").exists():
                run_command(
                    "evaluate", f"--checkpoint={run_dir}", f"--task=examples_{direction.replace('-', '_')}",
                    "--split=validation", f"--data_dir={data}", f"--beam_size={flags.beam_size}", "--max_length=20",
                    "--max_length_per_token=1.5", f"--output={output}",
                    *([f"--limit={flags.dev_lines}"] if flags.dev_lines else []),
                )  # fmt: skip
            told = json.loads((output / "scores.json").read_bytes())["scores"]
            found["directions"][direction] = {metric: score["score"] for metric, score in told.items()}
            found["signatures"] = {metric: score["signature"] for metric, score in told.items()}
    return found


def main() -> None:
    """Prints tables in Markdown, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--encoder", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument(
        "--vocabulary", type=pathlib.Path, metavar="FILE", help="the encoder's, trimmed; default: its own"
    )
    parser.add_argument("--languages", default="de,fr,ru,hi", metavar="CODES")
    parser.add_argument("--pairs", type=int, default=40_000, metavar="N", help="of each language, at most")
    parser.add_argument("--pretrain_steps", type=int, default=400, metavar="N")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="of fine-tuning")
    parser.add_argument(
        "--batch_size", type=int, default=16, metavar="N", help="rows of each objective, 128 tokens a side"
    )
    parser.add_argument("--learning_rate", type=float, default=5e-4, metavar="X")
    parser.add_argument("--dev_lines", type=int, metavar="N", help="of each direction (default: all)")
    parser.add_argument("--beam_size", type=int, default=5, metavar="K")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/finetuning"), metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags, flags.more = parser.parse_known_args()
    flags.languages = flags.languages.split(",")
    data = examples(flags)
    results: dict[str, Any] = {}
    sources = starts(flags)
    # All trainings first: what a weak model writes may be long, and take longer than its training.
    run_dirs = {name: finetune(flags, name, start, data, flags.steps) for name, start in sources.items()}
    for name, run_dir in run_dirs.items():
        results[name] = scores(flags, run_dir, data)
    if flags.json:
        print(json.dumps({"starts": results}))
        return
    directions = list(next(iter(results.values()))["directions"])
    print(f"| BLEU / chrF++ | {' | '.join(directions)} | mean |")
    print("|---" * (len(directions) + 2) + "|")
    for name, found in results.items():
        cells = [(d["bleu"], d["chrf++"]) for d in found["directions"].values()]
        cells.append((sum(c[0] for c in cells) / len(cells), sum(c[1] for c in cells) / len(cells)))
        print(f"| {name} | {' | '.join(f'{bleu:.1f} / {chrf:.1f}' for bleu, chrf in cells)} |")
    steps = list(next(iter(results.values()))["curve"])
    print(f"\n| validation loss after step | {' | '.join(map(str, steps))} |")
    print("|---" * (len(steps) + 1) + "|")
    for name, found in results.items():
        print(f"| {name} | {' | '.join(f'{loss:.3f}' for loss in found['curve'].values())} |")
    print("\n" + "; ".join(f"{metric}: {s}" for metric, s in next(iter(results.values()))["signatures"].items()))


if __name__ == "__main__":
    main()
