"""The evaluation command: `python -m deltalm_jax.evaluate --checkpoint=runs/finetune --source=dev.de --reference=dev.en`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deltalm_jax import redaction
from deltalm_jax.quiet import quiet_imports

if TYPE_CHECKING:
    from deltalm_jax.data.vocabulary import Vocabulary
    from deltalm_jax.evaluation.texts import EvaluationSet
    from deltalm_jax.saved_model import SavedModel

_INTERRUPTED = 130
SAMPLE = "sample"
_SPLIT = "test"
# Of an encoder: held-out documents and pairs of each language, so that corpora of any size take minutes.
_ENCODER_LIMIT = 1000

_DESCRIPTION = """
Score a model: it writes an output for each source, and these are compared with references. The sources are a Task's (its
split "test", or another), or two files of lines. In the output folder: outputs.jsonl, scores.json with the signatures that go
with published numbers, and index.html to read. A run that was ended goes on where it was, if the same command is given again.

An encoder alone writes nothing. It is measured on the held-out text of --data_dir: how often a masked piece is its first
choice, and how often a sentence's translation is the nearest of all, at every layer (docs/encoder.md).
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.evaluate --checkpoint=runs/finetune --source=dev.de --reference=dev.en
  python -m deltalm_jax.evaluate --checkpoint=runs/finetune --task=examples_de_en --data_dir=mine --split=validation
  python -m deltalm_jax.evaluate --checkpoint=runs/infoxlm_tiny --languages=de,fr,sw
  python -m deltalm_jax.evaluate --checkpoint=runs/xqg --task=xqg_zh --data_dir=/data --metrics=bleu_zh,rouge_characters

Metrics: docs/tasks.md. How it is decoded: docs/generation.md.
"""


_EXPECTED = "expected either --task, or --source and --reference"
# What belongs to texts that a model writes.
_OF_TEXTS = ("task", "source", "reference", "split", "task_module", "source_prefix", "metrics")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags; exits with code 2 where they cannot be."""
    from deltalm_jax.decoding.flags import add_checkpoint_flag, add_search_flags

    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.evaluate",
        usage="%(prog)s --checkpoint=PATH [--task=NAME | --source=FILE --reference=FILE] [more]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    path = pathlib.Path
    what = parser.add_argument_group("what")
    add_checkpoint_flag(what)
    what.add_argument("--task", metavar="NAME", help="a seqio Task with sources and targets (docs/tasks.md)")
    what.add_argument("--split", metavar="NAME", help=f"of the Task (default: {_SPLIT})")
    what.add_argument(
        "--data_dir",
        default=SAMPLE,
        metavar="DIR",
        help="folder of the Task's data, or of the encoder's, as for deltalm_jax.prepare",
    )
    what.add_argument("--task_module", metavar="MODULE", help="module of yours that registers Tasks; its code runs")
    what.add_argument("--source", type=path, metavar="FILE", help="in place of a Task: UTF-8, a source on each line")
    what.add_argument(
        "--reference", type=path, action="append", default=[], metavar="FILE",
        help="what its outputs are compared with, line by line; again for more references",
    )  # fmt: skip
    what.add_argument(
        "--source_prefix", metavar="TEXT", help="put before every source (default: the run's DataConfig.source_prefix)"
    )
    what.add_argument(
        "--encoder", action="store_true", help="measure a DeltaLM's encoder: retrieval, in place of a Task"
    )
    what.add_argument("--languages", metavar="CODES", help="of an encoder: such as de,fr (default: all in --data_dir)")
    what.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N examples; of an encoder's text, N chunks and N pairs of each language (default: "
        f"{_ENCODER_LIMIT:,})",
    )
    what.add_argument(
        "--metrics", metavar="NAMES", help="such as bleu,chrf++ (default: the Task's; of files: bleu,chrf++)"
    )
    what.add_argument(
        "--output",
        type=path,
        metavar="DIR",
        help="folder for what comes out (default: evaluation/NAME in the checkpoint's)",
    )
    add_search_flags(parser)
    flags = parser.parse_args(arguments)
    if flags.task is not None and flags.source is not None:
        parser.error(_EXPECTED)
    if (flags.source is None) != (not flags.reference):
        parser.error("--source and --reference go together")
    if (flags.encoder or flags.languages) and (flags.task or flags.source):
        parser.error(
            f"--{'encoder' if flags.encoder else 'languages'} measures an encoder: leave out --task and --source"
        )
    if flags.limit is not None and flags.limit < 1:
        parser.error(f"--limit must be at least 1, found {flags.limit}")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes of the user's give one message and exit code 2."""
    redaction.install(steady=True)
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    flags.again = "the same command goes on"
    from deltalm_jax.errors import UserError
    from deltalm_jax.training.faults import Stopped, StopRequest

    try:
        with StopRequest():
            _evaluate(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(f"{stopped}: stopped; {flags.again}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; {flags.again}", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _evaluate(flags: argparse.Namespace) -> None:
    from deltalm_jax.decoding.job import Job
    from deltalm_jax.evaluation.scoring import evaluate
    from deltalm_jax.evaluation.texts import EvaluationError, from_files
    from deltalm_jax.saved_model import open_model
    from deltalm_jax.training.storage import run_path

    saved = open_model(flags.checkpoint)
    if saved.vocabulary is None:
        raise EvaluationError(f"{flags.checkpoint}: its vocabulary is not known; convert it with --vocabulary=FILE")
    if saved.config.is_encoder or flags.encoder:
        _measure_encoder(flags, saved)
        return
    if flags.languages:
        raise EvaluationError("--languages is of what an encoder is measured on: add --encoder, or leave it out")
    if not flags.task and not flags.source:
        raise EvaluationError(f"{_EXPECTED}; or --encoder, to measure the encoder alone")
    texts = _task(flags, saved.vocabulary) if flags.task else from_files(flags.source, flags.reference)
    if flags.limit is not None:
        texts = texts.first(flags.limit)
    metrics = tuple(flags.metrics.split(",")) if flags.metrics else texts.metrics
    name = re.sub(r"[^\w.-]+", "_", "-".join(filter(None, (texts.name, texts.split))))
    checkpoint = run_path(flags.checkpoint)
    folder = _output(flags, name)
    chosen = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Job) if hasattr(flags, field.name)}
    chosen["source_prefix"] = _prefix(flags.source_prefix, checkpoint, texts)
    result = evaluate(texts, Job(**chosen), metrics, folder, saved)
    for metric, found in result["scores"].items():
        print(f"{metric} {found['score']:.2f}  {found['signature']}")
    print(f"{result['examples']:,} outputs in {folder}; open {folder / 'index.html'}")


def _measure_encoder(flags: argparse.Namespace, saved: SavedModel) -> None:
    from rich.console import Console

    from deltalm_jax.evaluation.encoder_report import PAGE, evaluate_encoder, show
    from deltalm_jax.evaluation.held_out import read_held_out
    from deltalm_jax.evaluation.texts import EvaluationError

    if given := [name for name in _OF_TEXTS if getattr(flags, name)] + _search_flags(flags):
        raise EvaluationError(
            f"{flags.checkpoint}: an encoder alone writes no texts, found --{' and --'.join(given)}. Leave that out to "
            "measure the encoder itself; for texts, start a DeltaLM from it (TrainConfig.init_from) and evaluate that"
            if saved.config.is_encoder
            else f"--encoder measures the encoder alone: leave out --{' and --'.join(given)}"
        )
    flags.again = "nothing is kept"
    folder, limit = _output(flags, "encoder"), flags.limit or _ENCODER_LIMIT
    languages = tuple(filter(None, flags.languages.split(","))) if flags.languages else ()
    with quiet_imports():  # the package `tasks` imports seqio
        import tasks.corpora  # noqa: F401
    held_out = read_held_out(None if flags.data_dir == SAMPLE else flags.data_dir, languages, limit)
    where = "the shipped sample" if flags.data_dir == SAMPLE else flags.data_dir
    show(evaluate_encoder(saved, held_out, where, folder, limit), Console())
    print(f"scores of every language and layer in {folder}; open {folder / PAGE}")


def _search_flags(flags: argparse.Namespace) -> list[str]:
    """Flags on how to decode that are not as they are by default."""
    from deltalm_jax.decoding.job import Job

    return [
        field.name
        for field in dataclasses.fields(Job)
        if field.default is not dataclasses.MISSING
        and field.name not in (*_OF_TEXTS, "output")
        and getattr(flags, field.name, field.default) not in (field.default, None)
    ]


def _output(flags: argparse.Namespace, name: str) -> pathlib.Path:
    """The folder for what comes out."""
    from deltalm_jax.evaluation.texts import EvaluationError
    from deltalm_jax.paths import is_remote
    from deltalm_jax.training.storage import run_path

    checkpoint = run_path(flags.checkpoint)
    if flags.output is None and is_remote(checkpoint):
        raise EvaluationError("--output is needed: outputs are written to a folder of this machine")
    output: pathlib.Path = flags.output or checkpoint / "evaluation" / name
    return output


def _task(flags: argparse.Namespace, vocabulary: Vocabulary) -> EvaluationSet:
    with quiet_imports():
        from deltalm_jax.data.mixture import Registration
        from deltalm_jax.evaluation.texts import from_task

        data_dir = None if flags.data_dir == SAMPLE else flags.data_dir
        return from_task(
            flags.task, flags.split or _SPLIT, Registration(vocabulary, {"data_dir": data_dir}, flags.task_module)
        )


def _prefix(prefix: str | None, checkpoint: pathlib.Path, texts: EvaluationSet) -> str:
    """What stands before every source: as said, or as the run was trained with."""
    from deltalm_jax.data.blocks import ExampleSettings

    if prefix is None:
        values: dict[str, Any] = {}
        for folder in (checkpoint, checkpoint.parent.parent):  # a run's directory, or one of its checkpoints
            if (folder / "config.json").is_file():
                values = json.loads((folder / "config.json").read_bytes()).get("values", {})
                break
        prefix = values.get("DataConfig.source_prefix", "")
    if "{target}" in prefix and not texts.language:
        from deltalm_jax.evaluation.texts import EvaluationError

        raise EvaluationError(
            f"the run was trained with DataConfig.source_prefix={prefix!r}, and files do not say what their target is: give "
            "--source_prefix as it is to be"
        )
    return ExampleSettings(source_prefix=prefix).prefix(texts.language)


if __name__ == "__main__":
    sys.exit(main())
