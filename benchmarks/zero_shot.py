"""A translation direction that a model has never seen: what does --allowed_script do for the script of its outputs?

    python -m benchmarks.zero_shot --corpora=DIR [--source=de --targets=ru,hi] [--output=runs/zero_shot] [--json]

Pretrains a tiny DeltaLM (pretrain_tiny.gin, a vocabulary of its own) on the corpora's text in English, --source and
--targets; fine-tunes it on pairs from --source to English, and on nothing else; and asks it to translate English into each
target, with and without the mask. Counted are outputs most of whose letters are of the target's script. What was done before
is not done again. DIR is as for benchmarks.finetuning; further flags go to `evaluate`. No claim of quality: a tiny model.
"""

from __future__ import annotations

import argparse
import json
import pathlib

from benchmarks.commands import run_command
from deltalm_jax.data.readers import read_ccaligned
from tasks.corpora import find_files

SCRIPTS = {"ru": "Cyrillic", "uk": "Cyrillic", "bg": "Cyrillic", "hi": "Devanagari", "ar": "Arabic", "el": "Greek"}
PREFIX = "__{target}__ "
_PIECES = 8000
# Of pretrain_tiny.gin, for the file that finetune_examples.gin includes is of base size.
TINY = (
    f"ModelConfig.vocab_size={_PIECES + 104}", "ModelConfig.hidden_size=128", "ModelConfig.feed_forward_size=512",
    "ModelConfig.num_heads=4", "ModelConfig.num_encoder_layers=4", "ModelConfig.num_decoder_layers=2",
    "ModelConfig.max_length=128", "ModelConfig.scan_layers=False",
)  # fmt: skip


def pretrained(flags: argparse.Namespace) -> pathlib.Path:
    """A run on the corpora."""
    vocabulary, run_dir = flags.output / "vocabulary.model", flags.output / "pretrained"
    languages = ["en", flags.source, *flags.targets]
    if not vocabulary.exists():
        run_command(
            "vocabulary", "train", f"--data_dir={flags.corpora}", f"--languages={','.join(languages)}",
            f"--num_pieces={_PIECES}", "--sample_mb=20", f"--output={vocabulary}",
        )  # fmt: skip
    _train(
        "pretrain_tiny.gin", run_dir, flags.pretrain_steps, f"DataConfig.data_dir={flags.corpora}",
        f"DataConfig.languages={languages}", f"DataConfig.vocabulary={vocabulary}",
        f"DataConfig.prepared_dir={flags.output / 'prepared'}",
    )  # fmt: skip
    return run_dir


def finetuned(flags: argparse.Namespace, start: pathlib.Path) -> pathlib.Path:
    """The same, trained on one direction; as in finetune_zero_shot.gin, only layers of the encoder change."""
    data, run_dir = flags.output / "data", flags.output / "finetuned"
    (data / "examples" / "validation").mkdir(parents=True, exist_ok=True)
    pairs = [
        pair
        for path in find_files(flags.corpora, "ccaligned", [flags.source])[flags.source].train
        for pair in read_ccaligned(path)
    ]
    held_out = 200
    for place, rows in (("", pairs[held_out:]), ("validation/", pairs[:held_out])):
        text = "".join(f"{source}\t{english}\n" for english, source in rows)
        (data / "examples" / f"{place}{flags.source}-en.tsv").write_text(text, encoding="utf-8")
    _train(
        "finetune_examples.gin", run_dir, flags.steps, *TINY, f"DataConfig.data_dir={data}",
        f"DataConfig.vocabulary={flags.output / 'vocabulary.model'}",
        f"DataConfig.prepared_dir={flags.output / 'prepared_pairs'}", f"OptimizerConfig.warmup_steps={flags.steps // 10}",
        "DataConfig.source_length=128", "DataConfig.target_length=128", f"DataConfig.source_prefix={PREFIX!r}",
        "DataConfig.objective_batch_sizes={'sequence_to_sequence': 16}", f"TrainConfig.init_from={str(start)!r}",
        "OptimizerConfig.schedule='linear'", "OptimizerConfig.learning_rate=1e-3",
        "OptimizerConfig.learning_rate_factors={'^encoder/layers/': 1.0, '': 0.0}",
    )  # fmt: skip
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


def _train(gin_file: str, run_dir: pathlib.Path, steps: int, *bindings: str) -> None:
    plan = (
        f"TrainConfig.steps={steps}", f"OptimizerConfig.decay_steps={steps}", f"TrainConfig.eval_every={max(1, steps // 4)}",
        "TrainConfig.keep_checkpoints=1", "DataConfig.prepare_limit_mb=1000.0",
    )  # fmt: skip
    run_command(
        "train",
        f"--gin_file={gin_file}",
        f"--run_dir={run_dir}",
        *(f"--gin.{binding}" for binding in (*plan, *bindings)),
    )


def main() -> None:
    """Prints a table in Markdown, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--source", default="de", metavar="CODE")
    parser.add_argument("--targets", default="ru,hi", metavar="CODES", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--pretrain_steps", type=int, default=2400, metavar="N")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of fine-tuning")
    parser.add_argument("--dev_lines", type=int, default=100, metavar="N")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/zero_shot"), metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags, flags.decoding = parser.parse_known_args()
    flags.targets = flags.targets.split(",")
    run_dir = finetuned(flags, pretrained(flags))
    unseen = {target: shares(flags, run_dir, target) for target in flags.targets}
    if flags.json:
        print(json.dumps(unseen))
        return
    print("| direction never seen | decoded | outputs in the right script, % | chrF++ |\n|---|---|---|---|")
    for target, ways in unseen.items():
        for way, told in ways.items():
            share = next(score for metric, score in told.items() if metric.startswith("script_"))
            print(f"| en-{target} | {way} | {share:.1f} | {told['chrf++']:.1f} |")


if __name__ == "__main__":
    main()
