"""The corpora of pretraining: which files they are, what is in them, and what of it is held out.

A data folder looks like this; each corpus may be there or not, and the published files keep their names:

    DATA_DIR/cc100/de.txt.xz                        CC100 (https://data.statmt.org/cc-100)
    DATA_DIR/ccaligned/de_DE-en_XX.tsv.xz           CCAligned, sentence-aligned (https://www.statmt.org/cc-aligned)
    DATA_DIR/cc100/validation/de.txt.xz             optional: held-out text in a file of the same name
    DATA_DIR/ccaligned/validation/de_DE-en_XX.tsv.xz

Where a language has no validation file, documents are held out by hash of their text and pairs by hash of their English
side, so a sentence is held out in all languages or in none. Files of one's own work alike: any language code may stand
in the name. Without a folder (`None`) the shipped sample, `tasks/sample/`, is used, which has this very layout.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deltalm_jax.data.blocks import is_held_out
from deltalm_jax.data.readers import ENGLISH, CorpusError, pair_codes, read_cc100, read_ccaligned
from tasks.languages import Language, load_languages

SAMPLE_DIR = Path(__file__).parent / "sample"
SPLITS = ("train", "validation")
HELD_OUT_FRACTION = 0.001

Document = list[str]
Pair = tuple[str, str]
Item = TypeVar("Item")

_DOCUMENT_NAME = re.compile(r"^([A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*)\.txt(\.xz|\.gz)?$")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One corpus: its format, and where it comes from.

    Attributes:
      name: folder name, and the first part of its task names.
      title: its name in messages.
      objective: what it is pretrained with, "span_corruption" or "translation_span_corruption".
      unit: what its reader gives, "documents" (lists of paragraphs) or "pairs" (English, other).
      homepage: who publishes it.
      examples: file names as published.
      read: its reader, `(path, counts) -> iterator`.
    """

    name: str
    title: str
    objective: str
    unit: str
    homepage: str
    examples: tuple[str, ...]
    read: Callable[[Path, Counter[str] | None], Iterator[Any]]

    def text_of(self, item: Any) -> str:
        """What decides whether an item is held out: a document's whole text, the English side of a pair."""
        return "\n".join(item) if self.unit == "documents" else item[0]


CC100 = Corpus(
    name="cc100",
    title="CC100",
    objective="span_corruption",
    unit="documents",
    homepage="https://data.statmt.org/cc-100",
    examples=("de.txt.xz", "zh-Hans.txt.xz"),
    read=read_cc100,
)
CCALIGNED = Corpus(
    name="ccaligned",
    title="CCAligned (sentence-aligned)",
    objective="translation_span_corruption",
    unit="pairs",
    homepage="https://www.statmt.org/cc-aligned",
    examples=("de_DE-en_XX.tsv.xz", "en_XX-zh_CN.tsv.xz"),
    read=read_ccaligned,
)
CORPORA: dict[str, Corpus] = {CC100.name: CC100, CCALIGNED.name: CCALIGNED}


@dataclasses.dataclass(frozen=True)
class CorpusFiles:
    """The files of one language in one corpus; `validation` is empty where text is held out by hash."""

    language: str
    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()


def find_files(
    data_dir: str | Path | None, corpus_name: str, languages: Sequence[str] | None = None
) -> dict[str, CorpusFiles]:
    """The files of a corpus by language code, sorted by code.

    Args:
      data_dir: a folder as described above; None for the shipped sample.
      corpus_name: a key of `CORPORA`.
      languages: only these; default: all there are.

    Raises:
      CorpusError: there is no such folder or no such file in it, two files for one language, a language asked for
        that is not there, or a validation file without its training file.
    """
    if corpus_name not in CORPORA:
        raise CorpusError(f"Unknown corpus {corpus_name!r}: expected one of {', '.join(CORPORA)}.")
    corpus = CORPORA[corpus_name]
    folder = Path(SAMPLE_DIR if data_dir is None else data_dir) / corpus.name
    table = load_languages()
    train = _files_by_language(folder, corpus, table)
    if not train:
        state = "there is no such folder" if not folder.is_dir() else "no file in it has such a name"
        raise CorpusError(
            f"{corpus.title}: expected files such as {', '.join(corpus.examples)} (also .gz or plain) in "
            f"{folder.absolute()}, but {state}. They are published at {corpus.homepage}; keep their names. "
            "To try things out, leave the data folder out: a small sample comes with the project."
        )
    validation = _files_by_language(folder / "validation", corpus, table)
    if orphans := sorted(set(validation) - set(train)):
        raise CorpusError(f"{folder / 'validation'}: no training file in {folder} for {', '.join(orphans)}.")
    if languages is not None:
        _check_languages(languages, train, table, f"{corpus.title} in {folder.absolute()}")
    chosen = sorted(train if languages is None else set(languages))
    held_out = {code: (path,) for code, path in validation.items()}
    return {code: CorpusFiles(code, (train[code],), held_out.get(code, ())) for code in chosen}


def published_files(data_dir: str | Path, corpus_name: str, languages: Sequence[str] = ()) -> dict[str, CorpusFiles]:
    """The files of the paper's languages in a corpus, whether they are there or not; sorted by language code.

    DeltaLM's monolingual text is of XLM-R's 100 languages, its parallel text of 77 (`Language.in_77_inferred`: which ones
    was never said). Other codings (`.gz`, plain) of a published file, and held-out text, are taken where they lie in the
    folder.

    Args:
      data_dir: a folder as described above; need not exist yet.
      corpus_name: "cc100" or "ccaligned".
      languages: codes of the table to add.

    Raises:
      CorpusError: a language of which the corpus has no published file; or two files for one language.
    """
    corpus, table = CORPORA[corpus_name], load_languages()
    of_documents = corpus.unit == "documents"
    chosen = {row.code for row in table.values() if (row.in_xlmr if of_documents else row.in_77_inferred)} | set(
        languages
    )
    folder = Path(data_dir) / corpus.name
    train, held_out = (_files_by_language(path, corpus, table) for path in (folder, folder / "validation"))
    files = {}
    for code in sorted(chosen):
        row = table.get(code)
        name = row and (row.cc100_file if of_documents else row.ccaligned_file)
        if not name and code in languages:
            raise CorpusError(f"{corpus.title} publishes no file of {code!r} (tasks/languages.csv).")
        if name:
            validation = (held_out[code],) if code in held_out else ()
            files[code] = CorpusFiles(code, (train.get(code, folder / name),), validation)
    return files


def published_size(corpus_name: str, language: str) -> float:
    """How much text a published file of `published_files` has, by the publications: GiB of CC100, pairs of CCAligned.

    Raises:
      KeyError: no such language.
    """
    row = load_languages()[language]
    if corpus_name == CCALIGNED.name:
        return float(row.ccaligned_pairs or 0)
    if row.xlmr_size_gib:
        return row.xlmr_size_gib
    # A language that XLM-R did not have. Text is 3.7 times its compressed size (English: 300.8 GiB in 82G).
    number, unit = row.cc100_xz_size[:-1], row.cc100_xz_size[-1:]
    return 3.7 * float(number) * {"G": 1.0, "M": 2**-10, "K": 2**-20}[unit]


def read_split(
    corpus: Corpus,
    files: CorpusFiles,
    split: str,
    counts: Counter[str] | None = None,
    held_out_fraction: float = HELD_OUT_FRACTION,
) -> Iterator[Any]:
    """Documents or pairs of one split, streamed; the two splits together are everything, and share nothing.

    Args:
      corpus: what the file is.
      files: from `find_files`.
      split: "train" or "validation".
      counts: reasons for dropped lines, as the readers count them.
      held_out_fraction: share held out by hash where there are no validation files.

    Raises:
      ValueError: another split.
      CorpusError: from the reader.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r} of {corpus.name}: expected {' or '.join(SPLITS)}.")
    wanted = split == "validation"
    for path in files.validation if wanted and files.validation else files.train:
        for item in corpus.read(path, counts):
            if files.validation or is_held_out(corpus.text_of(item), held_out_fraction) == wanted:
                yield item


def require_items(items: Iterable[Item], corpus: Corpus, path: Path, counts: Counter[str]) -> Iterator[Item]:
    """Passes items on; an error if there is none, for consumers that must not take an empty file for a small one.

    Raises:
      CorpusError: no document or pair at all; names the file and what was dropped.
    """
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        dropped = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items())) or "nothing"
        hint = ""
        if counts["columns"]:
            hint = " CCAligned's document files have 5 columns; the files of its folder sentence-aligned are needed."
        raise CorpusError(
            f"{path}: expected {corpus.unit} in the format of {corpus.title}, found none "
            f"(dropped lines: {dropped}).{hint} Remove the file, or leave the language out."
        )


def task_name(corpus_name: str, language: str) -> str:
    """Name of the seqio Task: `cc100_zh_Hans` (seqio allows no '-')."""
    return f"{corpus_name}_{language}".replace("-", "_")


def _files_by_language(folder: Path, corpus: Corpus, table: dict[str, Language]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        language = _language_of(path, corpus, table)
        if language is None:
            continue
        if language in files:
            raise CorpusError(
                f"{folder}: two files for the language {language!r}: {files[language].name} and {path.name}. "
                "Keep one of them."
            )
        files[language] = path
    return files


def _language_of(path: Path, corpus: Corpus, table: dict[str, Language]) -> str | None:
    """Language code of a corpus file; None for other files (a README, say)."""
    if corpus is CC100:
        match = _DOCUMENT_NAME.match(path.name)
        return match[1] if match and path.is_file() else None
    if not re.search(r"\.tsv(\.xz|\.gz)?$", path.name):
        return None
    code = next(code for code in pair_codes(path) if code != ENGLISH)
    for language in table.values():
        if language.ccaligned_code == code:
            return language.code
    # Not a published name. `eu_ES` can only be Basque, for which nothing is published; `az_IR` is not `az_AZ`.
    base = code.split("_")[0]
    return base if base not in table or not table[base].ccaligned_file else code


def _check_languages(
    languages: Sequence[str], available: dict[str, Path], table: dict[str, Language], where: str
) -> None:
    missing = [code for code in dict.fromkeys(languages) if code not in available]
    if not languages or missing:
        problems = []
        for code in missing:
            known = f"{code!r} ({table[code].name})" if code in table else f"{code!r} (not a code of the table)"
            near = _nearest(code, available, table)
            problems.append(known + (f", did you mean {' or '.join(near)}?" if near else ""))
        asked = "; ".join(problems) or "an empty list of languages"
        raise CorpusError(f"{where}: no file for {asked} Available: {', '.join(sorted(available))}.")


def _nearest(code: str, available: Iterable[str], table: dict[str, Language]) -> list[str]:
    """Available codes that look like `code`, or whose English name does ("german" → de)."""
    by_key: dict[str, str] = {}
    for candidate in available:
        by_key[candidate.lower()] = candidate
        if candidate in table:
            by_key[table[candidate].name.lower()] = candidate
            by_key[table[candidate].ccaligned_code.lower()] = candidate
    found = difflib.get_close_matches(code.lower(), sorted(by_key), n=6, cutoff=0.6)
    found += [key for key in sorted(by_key) if key.startswith((code.lower() + "-", code.lower() + "_"))]
    return list(dict.fromkeys(by_key[key] for key in found))[:3]
