"""The download command: `python -m deltalm_jax.download --corpus=cc100 --languages=sw,ha --data_dir=corpora`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar

from deltalm_jax import redaction
from deltalm_jax.data.download_record import RECORD, DownloadRecord
from deltalm_jax.data.fetching import DownloadError, fetch, find_size, finish
from deltalm_jax.errors import UserError
from deltalm_jax.quiet import quiet_imports

if TYPE_CHECKING:
    from tasks.languages import Language

_ASK_ABOVE_BYTES = 1 << 30
_LINE_SECONDS = 5.0
_INTERRUPTED = 130
# The table's sizes are rounded to two digits.
_ROUNDING = 1.1

_DESCRIPTION = """
Fetch published files of a corpus into a folder that deltalm_jax.prepare reads. Says how much it is first; above 1 GiB it
waits for --yes. Run the same command again and it goes on where it stopped; what is there is left alone.
"""
_EXAMPLES = """
examples:
  python -m deltalm_jax.download --corpus=cc100 --languages=sw,ha --data_dir=corpora
  python -m deltalm_jax.download --corpus=ccaligned --languages=paper --data_dir=corpora --yes
  python -m deltalm_jax.download --corpus=opus --opus=Tatoeba/v2023-04-12 --languages=sw --data_dir=corpora
  python -m deltalm_jax.download --verify --data_dir=corpora

Size, sha256, URL and date of every file are recorded in DATA_DIR/CORPUS/downloads.json; --verify reads the files again and
compares. A file that is fetched again must have the recorded sha256. CC-Net is not published as files, and Wikipedia comes
through TFDS: docs/corpora.md.
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line flags; exits with code 2 where they cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m deltalm_jax.download",
        usage="%(prog)s --corpus=NAME --languages=CODES --data_dir=DIR [more]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--corpus", choices=("cc100", "ccaligned", "ccaligned_documents", "opus"), help="which corpus")
    parser.add_argument(
        "--languages", metavar="CODES",
        help='codes of tasks/languages.csv, e.g. sw,ha; "paper": the paper\'s 100 (or, of pairs, 77); "all"',
    )  # fmt: skip
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="folder of corpora; made if need be")
    parser.add_argument(
        "--opus", default="", metavar="NAMES", help="corpora of OPUS, e.g. Tatoeba/v2023-04-12,Books/v1"
    )
    parser.add_argument("--mirror", metavar="URL", help="another server with the same files (https)")
    parser.add_argument("--yes", action="store_true", help="fetch, however much it is")
    parser.add_argument("--verify", action="store_true", help="fetch nothing; compare what is there with its record")
    flags = parser.parse_args(arguments)
    if not flags.verify and not (flags.corpus and flags.languages):
        parser.error("--corpus and --languages are needed (or --verify)")
    if flags.corpus == "opus" and not flags.opus and not flags.verify:
        parser.error(
            "--opus=CORPUS/VERSION,… is needed: OPUS is many corpora, each with its own licence (opus.nlpl.eu)"
        )
    if flags.opus and flags.corpus != "opus":
        parser.error("--opus is for --corpus=opus")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. What cannot be fetched gives one message and exit code 2."""
    redaction.install()
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        return _verify(flags, console) if flags.verify else _download(flags, console)
    except (UserError, OSError) as error:
        console.print(f"error: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on where this one stopped", markup=False)
        return _INTERRUPTED


def _download(flags: argparse.Namespace, console: Console) -> int:
    with quiet_imports():
        # Imported late: `--help` should not wait for TensorFlow.
        from tasks.corpora.urls import SERVERS, TERMS, published

    rows = _languages(flags.corpus, flags.languages)
    opus = [name.strip() for name in flags.opus.split(",") if name.strip()]
    folder = Path(flags.data_dir) / flags.corpus
    record = DownloadRecord(folder)
    files = published(flags.corpus, rows, flags.mirror, opus)
    if absent := [row.code for row in rows if row.code not in {file.language for file in files}]:
        console.print(f"{flags.corpus} has no file of {', '.join(absent)}", markup=False)
    wanted: list[tuple[str, str, int]] = []  # name, url, most bytes
    total = there = 0
    for file in files:
        found = 0
        for name, url in zip(file.names, file.urls, strict=True):
            if (folder / name).exists():
                there += 1
                found += 1
                _check_present(record, folder, name, console)
                continue
            size = find_size(url) if file.about_bytes is None else file.about_bytes
            if size is not None:
                found += 1
                total += size
                wanted.append((name, url, size if file.about_bytes is None else int(size * _ROUNDING) + (1 << 20)))
        if not found:
            console.print(f"{file.language}: there is no {' or '.join(file.urls)}", markup=False)
    about = "about " if flags.corpus == "cc100" else ""
    console.print(
        f"{flags.corpus}: {len(wanted):,} files to fetch, {about}{total / 1e9:,.2f} GB, from "
        f"{flags.mirror or SERVERS[flags.corpus]}; {there:,} are in {folder}\n{TERMS[flags.corpus]}",
        markup=False,
    )
    if not wanted:
        if not there:
            raise DownloadError(f"{flags.corpus}: nothing of {flags.languages} is published there")
        return 0
    if total > _ASK_ABOVE_BYTES and not flags.yes:
        raise DownloadError("that is more than 1 GiB: add --yes to fetch it")
    with _progress(console, len(wanted)) as begin:
        for name, url, most in wanted:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            expected = record.files.get(name, {}).get("sha256")
            record.add(name, fetch(url, path, most, expected, begin(name)))
            finish(path)
    console.print(f"{len(wanted):,} files fetched into {folder}; recorded in {folder / RECORD}", markup=False)
    return 0


def _languages(corpus: str, asked: str) -> list[Language]:
    """Rows of the table for the flag's value."""
    with quiet_imports():
        from tasks.languages import Codes, load_languages

    table = load_languages()
    if asked == "all":
        return list(table.values())
    if asked == "paper":
        return [row for row in table.values() if (row.in_xlmr if corpus == "cc100" else row.in_77_inferred)]
    codes = Codes(table)
    found = {code.strip(): codes.find(code.strip()) for code in asked.split(",") if code.strip()}
    if unknown := [code for code, language in found.items() if language not in table]:
        raise DownloadError(f"unknown languages {', '.join(unknown)}: tasks/languages.csv has the codes")
    if not found:
        raise DownloadError("expected codes of languages, found none")
    return [table[language] for language in dict.fromkeys(found.values())]


def _check_present(record: DownloadRecord, folder: Path, name: str, console: Console) -> None:
    if name not in record.files:
        console.print(f"{folder / name} is there, and was not fetched by this command: left as it is", markup=False)
    elif problem := record.problem(name):
        raise DownloadError(f"{problem}. Remove the file to fetch it again")


def _verify(flags: argparse.Namespace, console: Console) -> int:
    folders = sorted(path.parent for path in Path(flags.data_dir).glob(f"{flags.corpus or '*'}/{RECORD}"))
    if not folders:
        raise DownloadError(f"{flags.data_dir}: expected folders with a {RECORD}, found none")
    checked = failed = 0
    for folder in folders:
        for _, problem in DownloadRecord(folder).verify():
            checked += 1
            if problem:
                failed += 1
                console.print(problem, markup=False)
    if failed:
        raise DownloadError(
            f"{failed:,} of {checked:,} files are not as they were fetched. Remove them to fetch them again"
        )
    console.print(f"{checked:,} files are as they were fetched", markup=False)
    return 0


@contextlib.contextmanager
def _progress(console: Console, count: int) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A bar of bytes for each file on a terminal, a line every few seconds elsewhere."""
    number, last = 0, time.monotonic()
    if console.is_terminal and console.file.isatty():  # FORCE_COLOR asks for colours, not for a bar
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with ProgressBar(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
            shown = bar.add_task("", total=None)

            def begin_bar(name: str) -> Callable[[int, int], None]:
                nonlocal number
                number += 1
                bar.reset(shown, description=f"{number}/{count} {name}", total=None)
                return lambda done, total: bar.update(shown, completed=done, total=total)

            yield begin_bar
        return

    def begin(name: str) -> Callable[[int, int], None]:
        nonlocal number
        number += 1

        def say(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_SECONDS:
                last = time.monotonic()
                console.print(f"{number}/{count} {name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", markup=False)

        return say

    yield begin


if __name__ == "__main__":
    sys.exit(main())
