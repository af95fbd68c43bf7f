"""The vocabulary command: `python -m deltalm_jax.vocabulary train --data_dir=corpora --output=my.model`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece
import xxhash
from rich.console import Console
from rich.table import Table

from deltalm_jax import redaction
from deltalm_jax.data.fertility import Fit, changed_share, fit
from deltalm_jax.data.shards import write_atomically
from deltalm_jax.data.text_flags import add_text_flags, inputs_of_flags, languages_of
from deltalm_jax.data.text_sample import LanguageSample, sample_texts
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.data.vocabulary_extension import WEIGHT, extend, is_extension
from deltalm_jax.data.vocabulary_training import MODEL_TYPES, TrainerSettings, train
from deltalm_jax.data.vocabulary_trimming import trim
from deltalm_jax.errors import UserError
from deltalm_jax.quiet import quiet_imports

if TYPE_CHECKING:
    from deltalm_jax.data.blocks import TextSource

_INTERRUPTED = 130
_MB = 1_000_000

_DESCRIPTION = """
Make vocabularies, and see how they fit.

  train    a SentencePiece model, on text of a mixture with its languages balanced by temperature
  extend   new pieces, for new languages, behind those of an existing unigram model, whose ids stay as they are
  trim     only those pieces of a unigram model that one's text uses: a smaller table, and the same segmentation
  report   tokens a word and a character, bytes a token, unknown tokens by language; of one vocabulary, or two side by side
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.vocabulary train --data_dir=/corpora --num_pieces=64000 --output=mine.model
  python -m deltalm_jax.vocabulary extend --vocabulary=sentencepiece.bpe.model --data_dir=/corpora --languages=yo,tw \\
      --num_pieces=4000 --output=extended.model
  python -m deltalm_jax.vocabulary trim --vocabulary=sentencepiece.bpe.model --data_dir=/corpora --languages=de,fr \\
      --sample_mb=10000 --output=trimmed.model
  python -m deltalm_jax.vocabulary report --vocabulary=sentencepiece.bpe.model --other=extended.model --data_dir=/corpora
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags; exits with code 2 where they cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.vocabulary",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="train|extend|trim|report")
    text = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_text_flags(text)
    made = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_output_flags(made)

    training = commands.add_parser("train", parents=[text, made], allow_abbrev=False, help="make a new vocabulary")
    _add_trainer_flags(training)

    extending = commands.add_parser("extend", parents=[text, made], allow_abbrev=False, help="add pieces to one")
    extending.add_argument("--vocabulary", type=Path, required=True, metavar="FILE", help="the model to extend")
    extending.add_argument(
        "--num_pieces", type=int, default=4000, metavar="N", help="new pieces at most (default: %(default)s)"
    )
    extending.add_argument(
        "--weight", type=float, default=WEIGHT, metavar="W",
        help="of the new text in the mixture of both: larger shortens new text more and changes more of the old "
        "(default: %(default)s)",
    )  # fmt: skip

    trimming = commands.add_parser("trim", parents=[text, made], allow_abbrev=False, help="leave unused pieces out")
    trimming.add_argument("--vocabulary", type=Path, required=True, metavar="FILE", help="the model to trim")
    trimming.add_argument(
        "--min_count", type=int, default=1, metavar="N",
        help="pieces that occur less often go too; above 1, text that had them is cut anew (default: %(default)s)",
    )  # fmt: skip

    reporting = commands.add_parser("report", parents=[text], allow_abbrev=False, help="see how one fits")
    reporting.add_argument("--vocabulary", type=Path, required=True, metavar="FILE", help="SentencePiece model")
    reporting.add_argument("--other", type=Path, metavar="FILE", help="another, to compare")
    reporting.add_argument(
        "--sample_kb", type=int, default=200, metavar="N", help="kB of text of each language (default: %(default)s)"
    )
    reporting.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    flags = parser.parse_args(arguments)
    for name in ("read_mb", "sample_mb", "sample_kb", "min_count"):
        if getattr(flags, name, 1) < 1:
            parser.error(f"--{name} must be at least 1, found {getattr(flags, name)}")
    if flags.seed < 0:
        parser.error(f"--seed must not be negative, found {flags.seed}")
    if not 0 <= getattr(flags, "exponent", 0) <= 1:
        parser.error(f"--exponent must lie in [0, 1], found {flags.exponent}")
    return flags


def _add_text_flags(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("text (as in deltalm_jax.prepare)")
    add_text_flags(text)
    text.add_argument(
        "--read_mb", type=int, default=1000, metavar="N",
        help="MB of text that are read of a task at most, spread over its parts (default: %(default)s)",
    )  # fmt: skip
    text.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample (default: %(default)s)")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    made = parser.add_argument_group("what is made")
    made.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.model",
        help="the model to write; FILE.json tells how it was made",
    )
    made.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    made.add_argument(
        "--sample_mb", type=int, default=100, metavar="N", help="MB of text to train on, in all (default: %(default)s)"
    )
    made.add_argument(
        "--exponent", type=float, default=0.3, metavar="X",
        help="a language's part of it is proportional to (its bytes) ** X (default: %(default)s)",
    )  # fmt: skip
    made.add_argument(
        "--character_coverage", type=float, default=TrainerSettings.character_coverage, metavar="X",
        help="share of the text's characters that get a piece of their own (default: %(default)s)",
    )  # fmt: skip
    made.add_argument("--user_symbols", metavar="A,B", help="pieces that are always one piece, separated by commas")
    made.add_argument(
        "--num_threads", type=int, default=TrainerSettings.num_threads, metavar="N",
        help="of the trainer; the model depends on it (default: %(default)s, on every machine)",
    )  # fmt: skip


def _add_trainer_flags(parser: argparse.ArgumentParser) -> None:
    defaults = TrainerSettings()
    trainer = parser.add_argument_group("trainer")
    trainer.add_argument(
        "--num_pieces", type=int, default=defaults.num_pieces, metavar="N", help="pieces in all (default: %(default)s)"
    )
    trainer.add_argument(
        "--model_type", choices=MODEL_TYPES, default=defaults.model_type, help="(default: %(default)s, as XLM-R's)"
    )
    trainer.add_argument(
        "--byte_fallback", action=argparse.BooleanOptionalAction, default=defaults.byte_fallback,
        help="spell characters without a piece in bytes, so that nothing is unknown (default: yes)",
    )  # fmt: skip
    trainer.add_argument(
        "--split_digits", action=argparse.BooleanOptionalAction, default=defaults.split_digits,
        help="every digit is a piece (default: no)",
    )  # fmt: skip
    trainer.add_argument(
        "--split_by_unicode_script", action=argparse.BooleanOptionalAction, default=defaults.split_by_unicode_script,
        help="no piece has letters of two scripts (default: yes)",
    )  # fmt: skip
    trainer.add_argument(
        "--max_piece_length", type=int, default=defaults.max_piece_length, metavar="N",
        help="characters in a piece (default: %(default)s)",
    )  # fmt: skip
    trainer.add_argument(
        "--normalization", default=defaults.normalization, metavar="RULE",
        help="SentencePiece's name of a rule (default: %(default)s, as XLM-R's)",
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Mistakes of the user's give one message and exit code 2."""
    redaction.install()
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        {"train": _train, "extend": _extend, "trim": _trim, "report": _report}[flags.command](flags, console)
    except (UserError, OSError) as error:
        console.print(f"error: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written", markup=False)
        return _INTERRUPTED
    return 0


def _train(flags: argparse.Namespace, console: Console) -> None:
    _check_output(flags)
    names = [field.name for field in dataclasses.fields(TrainerSettings) if field.name != "user_symbols"]
    settings = TrainerSettings(**{name: getattr(flags, name) for name in names}, user_symbols=_symbols(flags))
    samples = _sample(flags, console, flags.sample_mb * _MB, flags.exponent)
    began = time.monotonic()
    model = train((text for sample in samples for text in sample.texts), settings)
    _write(flags, model, samples, {"trainer": dataclasses.asdict(settings)})
    console.print(f"{flags.output}: trained in {time.monotonic() - began:,.0f} s")
    _show_samples(samples)


def _extend(flags: argparse.Namespace, console: Console) -> None:
    _check_output(flags)
    old = Vocabulary.load(flags.vocabulary)
    samples = _sample(flags, console, flags.sample_mb * _MB, flags.exponent)
    if codes := languages_of(flags):  # not English, which comes along with pairs
        samples = [sample for sample in samples if sample.language in codes]
    texts = [text for sample in samples for text in sample.texts]
    extension = extend(
        old.model, texts, flags.num_pieces, weight=flags.weight, user_symbols=_symbols(flags),
        character_coverage=flags.character_coverage, num_threads=flags.num_threads,
    )  # fmt: skip
    facts = {
        "extends": old.describe(),
        "settings": {"num_pieces": flags.num_pieces, "weight": flags.weight, "user_symbols": _symbols(flags),
                     "character_coverage": flags.character_coverage, "num_threads": flags.num_threads},
        "new_pieces": len(extension.new_pieces),
        "new_characters": list(extension.new_characters),
    }  # fmt: skip
    _write(flags, extension.model, samples, facts)
    new = Vocabulary.load(flags.output)
    _show_samples(samples)
    before, after = fit(old, texts).tokens, fit(new, texts).tokens
    console.print(
        f"{flags.output}: {len(extension.new_pieces):,} new pieces, {len(extension.new_characters):,} of them "
        f"new characters; the text it was trained on takes {before:,} tokens with the old pieces and {after:,} now. <mask> "
        f"is {new.mask_id:,} and was {old.mask_id:,}: models move along with "
        f"`deltalm_jax.convert --vocabulary={flags.output}`",
        markup=False,
    )


def _trim(flags: argparse.Namespace, console: Console) -> None:
    _check_output(flags)
    old = Vocabulary.load(flags.vocabulary)
    samples = _sample(flags, console, flags.sample_mb * _MB, flags.exponent)
    texts = [text for sample in samples for text in sample.texts]
    model = trim(old.model, texts, flags.min_count)
    _write(flags, model, samples, {"trims": old.describe(), "settings": {"min_count": flags.min_count}})
    new = Vocabulary.load(flags.output)
    _show_samples(samples)
    before, after = fit(old, texts).tokens, fit(new, texts).tokens
    console.print(
        f"{flags.output}: {new.num_pieces:,} of {old.num_pieces:,} pieces; the text that was looked at takes {before:,} "
        f"tokens with all of them and {after:,} now; models move along: `deltalm_jax.convert --vocabulary={flags.output}`",
        markup=False,
    )


def _report(flags: argparse.Namespace, console: Console) -> None:
    vocabularies = [Vocabulary.load(path) for path in (flags.vocabulary, flags.other) if path is not None]
    inputs = _inputs(flags)
    codes = {source.language for source in inputs} | {"en" for source in inputs if source.unit == "pairs"}
    samples = _sample(flags, console, flags.sample_kb * 1000 * len(codes), 0.0, inputs)
    fits = {sample.language: [fit(vocabulary, sample.texts) for vocabulary in vocabularies] for sample in samples}
    changed: dict[str, float] = {}
    if len(vocabularies) == 2 and is_extension(*vocabularies):
        changed = {sample.language: changed_share(vocabularies[0], vocabularies[1], sample.texts) for sample in samples}
    Console(highlight=False, soft_wrap=True).print(_comparison(vocabularies, fits, changed))
    if flags.json:
        content = {
            "vocabularies": [vocabulary.describe() for vocabulary in vocabularies],
            "languages": {code: [dataclasses.asdict(one) for one in both] for code, both in fits.items()},
            "changed": changed,
        }
        write_atomically(flags.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _symbols(flags: argparse.Namespace) -> tuple[str, ...]:
    return tuple(flags.user_symbols.split(",")) if flags.user_symbols else ()


def _check_output(flags: argparse.Namespace) -> None:
    if flags.output.suffix != ".model":
        raise UserError(f"--output={flags.output}: give it the ending .model; the report goes beside it, as .json")
    if flags.output.exists() and not flags.overwrite:
        raise UserError(f"{flags.output}: exists already: choose another --output, or --overwrite it")
    if not flags.output.parent.is_dir():
        raise UserError(f"{flags.output}: there is no folder {flags.output.parent}")


def _inputs(flags: argparse.Namespace) -> list[TextSource]:
    with quiet_imports():
        from tasks.corpora import SAMPLE_DIR
    # Tasks need a vocabulary to be registered; only their text is read here.
    return inputs_of_flags(flags, Vocabulary.load(SAMPLE_DIR / "vocabulary.model"), any_vocabulary=True)


def _sample(
    flags: argparse.Namespace,
    console: Console,
    total_bytes: int,
    exponent: float,
    inputs: Sequence[TextSource] | None = None,
) -> list[LanguageSample]:
    inputs = _inputs(flags) if inputs is None else inputs
    console.print(f"{flags.mixture}: reading {len(inputs)} tasks", markup=False)
    samples = sample_texts(inputs, total_bytes, exponent, read_limit=flags.read_mb * _MB, seed=flags.seed)
    taken, read = sum(s.text_bytes for s in samples), sum(s.bytes_read for s in samples)
    cut = [sample.language for sample in samples if not sample.in_full]
    told = f"not to the end: {', '.join(cut)}" if cut else "all of it"
    console.print(
        f"{taken / _MB:,.1f} MB of {len(samples)} languages out of {read / _MB:,.1f} MB that were read ({told})",
        markup=False,
    )
    return samples


def _write(flags: argparse.Namespace, model: bytes, samples: Sequence[LanguageSample], facts: dict[str, Any]) -> None:
    """Writes the report and then the model, each whole or not at all."""
    texts = xxhash.xxh3_128()
    for sample in samples:
        for text in sample.texts:
            texts.update(text.encode() + b"\n")
    total = sum(sample.text_bytes for sample in samples)
    temporary = flags.output.with_suffix(".json")
    content = {
        "command": flags.command,
        **facts,
        "text": {
            name: getattr(flags, name) for name in ("mixture", "data_dir", "languages", "task_module", "read_mb", "seed")
        }
        | {"sample_mb": flags.sample_mb, "exponent": flags.exponent, "xxh3": texts.hexdigest()},
        "sample": {
            sample.language: {
                "texts": len(sample.texts), "bytes": sample.text_bytes, "share": sample.text_bytes / max(total, 1),
                "bytes_read": sample.bytes_read, "read_in_full": sample.in_full, "complete": sample.complete,
                "budget": sample.budget,
            }
            for sample in samples
        },
        "sentencepiece": sentencepiece.__version__,
    }  # fmt: skip
    write_atomically(flags.output, model)
    content["vocabulary"] = Vocabulary.load(flags.output).describe()
    write_atomically(temporary, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _show_samples(samples: Sequence[LanguageSample]) -> None:
    total = max(sum(sample.text_bytes for sample in samples), 1)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "read, MB", "", "sample, MB", "", "share", "texts"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for sample in sorted(samples, key=lambda sample: -sample.text_bytes):
        whole = "to the end" if sample.in_full else "from the beginning"
        taken = "all of it" if sample.complete else ""
        table.add_row(
            sample.language, f"{sample.bytes_read / _MB:,.2f}", whole, f"{sample.text_bytes / _MB:,.2f}", taken,
            f"{100 * sample.text_bytes / total:.1f} %", f"{len(sample.texts):,}",
        )  # fmt: skip
    Console(highlight=False, soft_wrap=True).print(table)


def _comparison(vocabularies: Sequence[Vocabulary], fits: dict[str, list[Fit]], changed: dict[str, float]) -> Table:
    """Of each language a row for each vocabulary."""
    titles = [f"{i}: {v.file_name}, {v.num_pieces:,} pieces" for i, v in enumerate(vocabularies, start=1)]
    table = Table(box=None, pad_edge=False, header_style="dim", title="\n".join(titles), title_justify="left")
    table.add_column("", no_wrap=True)
    several = len(vocabularies) > 1
    columns = ["tokens/word", "tokens/character", "bytes/token", "unknown", "byte pieces"]
    for column in [*([""] if several else []), *columns, *(["changed"] if changed else [])]:
        table.add_column(column, justify="right", no_wrap=True)
    for code, both in fits.items():
        for number, one in enumerate(both, start=1):
            cells = [
                "–" if one.tokens_per_word is None else f"{one.tokens_per_word:.2f}",
                f"{one.tokens_per_character:.3f}",
                f"{one.bytes_per_token:.2f}",
                f"{one.unknown_share:.2%}",
                f"{one.byte_share:.2%}",
                *([f"{changed[code]:.2%}" if number == 2 else ""] if changed else []),
            ]
            table.add_row("" if number > 1 else code, *([str(number)] if several else []), *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
