"""The preparation command: `python -m deltalm_jax.prepare --mixture=deltalm_pretrain --output=prepared/sample`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from deltalm_jax import redaction
from deltalm_jax.data.description import command as description
from deltalm_jax.data.filters.flags import PREFIX, parse_filters
from deltalm_jax.data.text_flags import SAMPLE, add_text_flags, inputs_of_flags, languages_of
from deltalm_jax.data.vocabulary import DEFAULT_NUM_SENTINELS
from deltalm_jax.errors import UserError
from deltalm_jax.objectives import OBJECTIVES, length_settings
from deltalm_jax.objectives.sequence_to_sequence import MIN_SIDE_LENGTH
from deltalm_jax.paths import is_remote
from deltalm_jax.quiet import quiet_imports

if TYPE_CHECKING:
    from deltalm_jax.data.blocks import TextSource
    from deltalm_jax.data.chunks import PreparedData, PreparedTask
    from deltalm_jax.data.preparation import Prepared, Progress

_SAMPLE_PIECES = 8_000
_LINE_SECONDS = 5.0
_INTERRUPTED = 130

_DESCRIPTION = """
Read, tokenise and cut the text of a mixture, once, into chunks that training reads: shards and a manifest in a folder.
The folder appears when it is complete. Run the same command again and nothing is done; a changed one is refused.
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.prepare --output=prepared/sample
  python -m deltalm_jax.prepare --data_dir=/corpora --vocabulary=sentencepiece.bpe.model --output=prepared/all
  python -m deltalm_jax.prepare --mixture=deltalm_span_corruption --data_dir=/corpora --languages=de,fr \\
      --vocabulary=sentencepiece.bpe.model --output=prepared/de_fr
  python -m deltalm_jax.prepare --task_module=my_tasks --mixture=my_mixture --vocabulary=sample --output=prepared/mine
  python -m deltalm_jax.prepare --describe=prepared/mine --html=mine.html

DIR holds any of the folders cc100, cc_net, wikipedia, ccaligned, ccaligned_documents and opus, with published files under
their names, and of text of your own text/CODE.txt, parallel/CODE-en.tsv and the like: docs/corpora.md. Held-out text in
a subfolder "validation" of these under the same name is used as it is; elsewhere documents are held out by hash of their
text and pairs by hash of their English side.
The same rule holds for Tasks of your own without a split "validation"; docs/own_data.md has an example of such a module.
DIR of --data_dir and --output may be URLs of an object store (gs://bucket/folder). What a run has finished when it is
ended is kept in OUTPUT.partial, and the same command goes on with it. For text of terabytes, see docs/scale.md.
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags; exits with code 2 where they cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.prepare",
        usage="%(prog)s --output=DIR [--data_dir=DIR --vocabulary=FILE] [more]\n       %(prog)s --describe=DIR [more]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    add_text_flags(what)
    what.add_argument(
        "--vocabulary", metavar="FILE", help='SentencePiece model (default: "sample", for the sample only)'
    )
    what.add_argument("--output", metavar="DIR", help="folder to make")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--chunk_length", type=_chunk_length, default=512, metavar="N",
        help="ids in a chunk, before corruption (default: %(default)s, the paper's); or one for each objective, as "
        "span_corruption=568,translation_span_corruption=766 (the dry run of a training shows its own: raw tokens)",
    )  # fmt: skip
    of_examples = parser.add_argument_group("of examples, for sequence_to_sequence")
    of_examples.add_argument(
        "--source_length", type=int, default=256, metavar="N",
        help="ids of a chunk's sources, </s> included; longer ones are cut (default: %(default)s)",
    )  # fmt: skip
    of_examples.add_argument(
        "--target_length", type=int, default=256, metavar="N",
        help="ids of its targets; examples with longer ones are left out (default: %(default)s)",
    )  # fmt: skip
    of_examples.add_argument(
        "--no_packing", dest="packing", action="store_false", help="give every example a chunk of its own"
    )
    of_examples.add_argument(
        "--source_prefix", default="", metavar="TEXT",
        help='text put before every source; {target} in it is what is behind the last hyphen of its name: "__{target}__ "',
    )  # fmt: skip
    how.add_argument(
        "--validation_fraction", type=float, default=0.001, metavar="X",
        help="share of texts held out where there is no validation file (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--filter.NAME", metavar="VALUE",
        help="leave text out, e.g. --filter.paragraph_min_letter_share=0.5 (default: nothing; docs/filters.md has all)",
    )  # fmt: skip
    how.add_argument(
        "--sentinel_start", type=int, metavar="ID", help="id of the first sentinel (default: after <mask>)"
    )
    how.add_argument(
        "--num_sentinels", type=int, default=DEFAULT_NUM_SENTINELS, metavar="N",
        help="sentinels after <mask> (default: %(default)s, the released model's)",
    )  # fmt: skip
    how.add_argument(
        "--overwrite",
        action="store_true",
        help="replace prepared data that are at --output, or finished work of another kind beside it",
    )
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--num_workers", type=int, metavar="N",
        help="processes on this machine (default: one for small corpora and for Tasks of your own, else one per core)",
    )  # fmt: skip
    where.add_argument(
        "--runner", default="local", metavar="NAME",
        help="local, or another Apache Beam runner (DaskRunner, DataflowRunner, FlinkRunner, …) whose workers see the same "
        "files (docs/scale.md)",
    )  # fmt: skip
    where.add_argument(
        "--beam_options", default="", metavar="FLAGS", help='for that runner, e.g. "--project=p --region=r"'
    )
    description.add_flags(parser)
    flags = parser.parse_args([a for a in arguments if not a.startswith(PREFIX)])
    flags.filters = [a for a in arguments if a.startswith(PREFIX)]
    if flags.describe is not None:
        description.check_flags(flags, parser)
        return flags
    if flags.output is None:
        parser.error("--output is needed: the folder to make (or --describe=DIR, to look at one)")
    if flags.vocabulary is None:
        if flags.data_dir != SAMPLE:
            parser.error("--vocabulary is needed for your own --data_dir, e.g. XLM-R's sentencepiece.bpe.model")
        flags.vocabulary = SAMPLE
    for name in ("source_length", "target_length"):
        if getattr(flags, name) < MIN_SIDE_LENGTH:
            parser.error(f"--{name} must be at least {MIN_SIDE_LENGTH}, found {getattr(flags, name)}")
    if flags.task_module and (flags.task_module.endswith(".py") or "/" in flags.task_module):
        parser.error(
            f'--task_module takes the name of a module ("my_tasks" for my_tasks.py), found {flags.task_module}'
        )
    if flags.num_workers is not None and flags.num_workers < 1:
        parser.error(f"--num_workers must be at least 1, found {flags.num_workers}")
    if flags.beam_options and flags.runner == "local":
        parser.error("--beam_options are for another --runner; the local one takes --num_workers")
    return flags


def _chunk_length(value: str) -> int | dict[str, int]:
    """The flag's value: one number, or OBJECTIVE=NUMBER for each objective."""
    try:
        if "=" not in value:
            return int(value)
        items = [item.split("=") for item in value.split(",")]
        lengths = {name.strip(): int(length) for name, length in items}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, or span_corruption=N,translation_span_corruption=N; found {value!r}"
        ) from None
    prepared = [name for name, objective in OBJECTIVES.items() if objective.chunks_of == name]
    if unknown := set(lengths) - set(prepared):
        raise argparse.ArgumentTypeError(
            f"unknown objective {min(unknown)!r}; those that chunks are made for: {', '.join(prepared)}"
        )
    if len(lengths) < len(items):
        raise argparse.ArgumentTypeError(f"an objective is named twice in {value!r}")
    return lengths


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes and damaged files give one message and exit code 2."""
    redaction.install()
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if flags.describe is not None:
            description.run(flags)
        else:
            _prepare(flags, console)
    except (UserError, OSError) as error:
        console.print(f"error: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        kept = f"; what was finished is kept beside {flags.output}: the same command goes on" if flags.output else ""
        console.print(f"interrupted{kept}", markup=False)
        return _INTERRUPTED
    return 0


def _prepare(flags: argparse.Namespace, console: Console) -> None:
    with quiet_imports():
        # Imported late: `--help` should not wait for TensorFlow.
        from deltalm_jax.data.blocks import ExampleSettings
        from deltalm_jax.data.preparation import prepare
        from deltalm_jax.data.vocabulary import Vocabulary
        from tasks.corpora import SAMPLE_DIR

    filters = parse_filters(flags.filters)
    model = SAMPLE_DIR / "vocabulary.model" if flags.vocabulary == SAMPLE else flags.vocabulary
    vocabulary = Vocabulary.load(model, sentinel_start=flags.sentinel_start, num_sentinels=flags.num_sentinels)
    inputs = inputs_of_flags(flags, vocabulary)
    size = _size(inputs, flags.data_dir)
    console.print(f"{flags.mixture}: {len(inputs)} tasks, {size}, vocabulary of {vocabulary.size:,} ids", markup=False)
    begin = time.monotonic()
    with _progress(console) as on_progress:
        prepared = prepare(
            inputs,
            vocabulary,
            flags.output,
            mixture=flags.mixture,
            languages=languages_of(flags),
            chunk_length=flags.chunk_length,
            examples=ExampleSettings(flags.source_length, flags.target_length, flags.packing, flags.source_prefix),
            validation_fraction=flags.validation_fraction,
            filters=filters,
            runner=flags.runner,
            num_workers=flags.num_workers,
            beam_options=shlex.split(flags.beam_options),
            overwrite=flags.overwrite,
            on_progress=on_progress,
        )
    show(prepared, time.monotonic() - begin, Console(highlight=False, soft_wrap=True))


def _size(inputs: Sequence[TextSource], data_dir: str) -> str:
    """How much text there is to read, as far as that is known."""
    from deltalm_jax.data.blocks import Input

    own = [source for source in inputs if not isinstance(source, Input)]
    files = sum(source.size(split) for source in inputs for split in source.splits if not source.problem(split))
    parts = [f"{files / 1e6:,.1f} MB of files in {data_dir}"] if len(own) < len(inputs) else []
    return " and ".join(parts + ([f"{len(own)} read through seqio"] if own else []))


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A progress bar over parts of the text on a terminal, a line every few seconds elsewhere."""

    def details(progress: Progress) -> str:
        return f"{progress.shards_written:,} shards written"

    if console.is_terminal and console.file.isatty():  # FORCE_COLOR asks for colours, not for a bar
        columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("parts; {task.description}"))
        with ProgressBar(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
            shown = bar.add_task("", total=None)
            yield lambda p: bar.update(shown, total=p.parts, completed=p.parts_finished, description=details(p))
        return

    last, said = time.monotonic(), ""

    def say(progress: Progress) -> None:
        nonlocal last, said
        line = f"finished {progress.parts_finished:,} of {progress.parts:,} parts; {details(progress)}"
        if line != said and time.monotonic() - last >= _LINE_SECONDS:
            last, said = time.monotonic(), line
            console.print(line, markup=False)

    yield say


def show(prepared: Prepared, seconds: float, console: Console) -> None:
    """Prints what was made: totals by objective, the largest and smallest languages, where it is, what is next."""
    from deltalm_jax.data.blocks import UNITS
    from deltalm_jax.data.filters.report import filter_table

    data = prepared.data
    if not prepared.made:
        console.print("prepared before, from the same files with the same settings: nothing to do")
    objectives = list(dict.fromkeys(task.objective for task in data.tasks))
    for objective in objectives:
        tasks = [task for task in data.tasks if task.objective == objective]
        table = Table(title=objective)
        for column in ("", "tasks", UNITS[objective], "tokens", "chunks", "padding", "dropped"):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        for split in ("train", "validation"):
            parts = [task.splits[split] for task in tasks if split in task.splits]
            tokens, padding = sum(p.tokens for p in parts), sum(p.padding for p in parts)
            sums = len(parts), sum(p.units for p in parts), tokens, sum(p.chunks for p in parts)
            dropped = sum(sum(p.dropped.values()) for p in parts)
            share = f"{100 * padding / max(tokens + padding, 1):.1f} %"
            table.add_row(split, *(f"{n:,}" for n in sums), share, f"{dropped:,}")
        console.print(table)
    if data.manifest.get("settings", {}).get("filters"):
        console.print(filter_table(data.tasks))
    for objective in objectives:
        console.print(_extremes([t for t in data.tasks if t.objective == objective]), markup=False)
    if without := data.manifest["without_validation"]:
        more = f" and {len(without) - 8} more" if len(without) > 8 else ""
        console.print(f"without validation text: {', '.join(without[:8])}{more}", markup=False)
    size = sum(shard.bytes for task in data.tasks for split in task.splits.values() for shard in split.shards)
    took = f" in {seconds:,.0f} s" if prepared.made else ""
    made_with = ", ".join(f"{name} {version}" for name, version in data.manifest["versions"].items())
    console.print(f"made with {made_with}", markup=False)
    console.print(f"{size / 1e6:,.1f} MB in {data.folder}{took}", markup=False)
    if is_remote(data.folder):
        console.print(
            "training reads files: copy the folder to a disk, or mount it, and name that place in the next command",
            markup=False,
        )
    console.print(f"next: {_next_command(data)}", markup=False)


def _extremes(tasks: Sequence[PreparedTask], count: int = 3) -> str:
    """The largest and the smallest tasks of one objective, by training tokens."""
    ranked = sorted(tasks, key=lambda task: -task.tokens("train"))
    name = ranked[0].objective

    languages = [task.language for task in ranked]

    def listed(part: Sequence[PreparedTask]) -> str:
        # Several Tasks of one language are told apart by their names.
        names = [task.language if languages.count(task.language) == 1 else task.name for task in part]
        return ", ".join(f"{shown} {task.tokens('train'):,}" for shown, task in zip(names, part, strict=True))

    if len(ranked) <= 2 * count:
        return f"{name}: {listed(ranked)} tokens"
    return f"{name}: largest {listed(ranked[:count])}; smallest {listed(ranked[-count:])} tokens"


def _next_command(data: PreparedData) -> str:
    """The training command for these data, on one line so that it can be copied."""
    sample = data.manifest["vocabulary"]["num_pieces"] == _SAMPLE_PIECES
    examples = data.manifest.get("settings", {}).get("examples")
    if examples and set(data.chunk_lengths) == {"sequence_to_sequence"}:
        flags = ["--gin_file=finetune_examples.gin", f"--gin.DataConfig.prepared_dir={data.folder}"]
        flags += [f"--gin.DataConfig.mixture={data.manifest['mixture']}"]
        flags += [f"--gin.DataConfig.{name}={value!r}" for name, value in examples.items()]
        flags += [f"--gin.ModelConfig.vocab_size={data.vocabulary_size}", "--gin.TrainConfig.init_from=MODEL_OR_RUN"]
        return shlex.join(["python", "-m", "deltalm_jax.train", *flags])
    gin_file, length, size, batch_size = (
        ("pretrain_tiny.gin", 128, 8_104, 32) if sample else ("pretrain_base.gin", 512, 250_104, 2_048)
    )
    flags = [f"--gin_file={gin_file}", f"--gin.DataConfig.prepared_dir={data.folder}"]
    if (mixture := data.manifest["mixture"]) != "deltalm_pretrain":
        flags.append(f"--gin.DataConfig.mixture={mixture}")
    if len(objectives := {task.objective for task in data.tasks}) == 1:
        flags.append(f"--gin.DataConfig.objective_batch_sizes={dict.fromkeys(objectives, batch_size)}")
    wanted, sizing = length_settings(data.chunk_lengths)
    if sizing != "raw":
        flags.append(f"--gin.DataConfig.sizing={sizing!r}")
    if wanted not in (None, length):
        flags.append(f"--gin.DataConfig.chunk_length={wanted}")
    if wanted is not None and wanted > length:
        flags.append(f"--gin.ModelConfig.max_length={wanted}")
    if (sentinels := data.manifest["vocabulary"]["num_sentinels"]) != DEFAULT_NUM_SENTINELS:
        flags.append(f"--gin.DataConfig.num_sentinels={sentinels}")
    if data.vocabulary_size != size:
        flags.append(f"--gin.ModelConfig.vocab_size={data.vocabulary_size}")
    return shlex.join(["python", "-m", "deltalm_jax.train", *flags])


if __name__ == "__main__":
    sys.exit(main())
