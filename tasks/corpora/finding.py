"""The files of a corpus in a folder, by language."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deltalm_jax.data.readers import CorpusError
from deltalm_jax.paths import as_path
from tasks.corpora.corpus import CORPORA, SAMPLE_DIR, Corpus
from tasks.corpora.layout import VALIDATION
from tasks.languages import Codes, Language, load_languages

# What may stand after a name for the same text in another form.
_FORM = re.compile(r"(\.txt\.zip|\.tmx)?(\.xz|\.gz)?$")


# Bytes of text for a byte of a file, about.
_TEXT_BYTES = {".xz": 4.0, ".gz": 3.0, ".zip": 3.0}


@dataclasses.dataclass(frozen=True)
class CorpusFiles:
    """The files of one language in one corpus; `validation` is empty where text is held out by hash."""

    language: str
    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()

    def text_bytes(self) -> float:
        """About how much training text there is, by the sizes of the files."""
        return sum(path.stat().st_size * _TEXT_BYTES.get(path.suffix, 1.0) for path in self.train)


def find_files(
    data_dir: str | Path | None, corpus_name: str, languages: Sequence[str] | None = None
) -> dict[str, CorpusFiles]:
    """The files of a corpus by language code, sorted by code.

    Args:
      data_dir: a folder as `tasks.corpora` describes it; None for the shipped sample.
      corpus_name: a key of `CORPORA`.
      languages: only these; default: all there are.

    Raises:
      CorpusError: there is no such folder or no such file in it, two files for one language where a corpus has one, the
        same text twice in different packing, a language asked for that is not there, or a validation file without its
        training file.
    """
    if corpus_name not in CORPORA:
        raise CorpusError(f"Unknown corpus {corpus_name!r}: expected one of {', '.join(CORPORA)}.")
    corpus = CORPORA[corpus_name]
    folder = as_path(SAMPLE_DIR if data_dir is None else data_dir) / corpus.name
    codes = Codes(load_languages())
    train = files_by_language(folder, corpus, codes)
    if not train:
        state = "there is no such folder" if not folder.is_dir() else "no file in it has such a name"
        raise CorpusError(
            f"{corpus.title}: expected files such as {', '.join(corpus.examples)} in {folder.absolute()}, but {state}. "
            f"See {corpus.homepage}; published files keep their names. "
            "To try things out, leave the data folder out: a small sample comes with the project."
        )
    validation = files_by_language(folder / VALIDATION, corpus, codes)
    if orphans := sorted(set(validation) - set(train)):
        raise CorpusError(f"{folder / VALIDATION}: no training file in {folder} for {', '.join(orphans)}.")
    if languages is not None:
        _check_languages(languages, train, codes.table, f"{corpus.title} in {folder.absolute()}")
    chosen = sorted(train if languages is None else set(languages))
    return {code: CorpusFiles(code, train[code], validation.get(code, ())) for code in chosen}


def files_by_language(folder: Path, corpus: Corpus, codes: Codes) -> dict[str, tuple[Path, ...]]:
    """All files of a corpus in a folder; none where there is no folder.

    Raises:
      CorpusError: as `find_files`.
    """
    files: dict[str, dict[Path, None]] = {}  # in order; the English side of several texts comes up several times
    for language, path in corpus.layout(folder, codes) if folder.is_dir() else ():
        found = files.setdefault(language, {})
        if corpus.one_file and found:
            raise CorpusError(
                f"{folder}: two files for the language {language!r}: {min(found).name} and {path.name}. Keep one of them."
            )
        found[path] = None
    for found in files.values():
        forms: dict[str, Path] = {}
        for path in found:
            other = forms.setdefault(_FORM.sub("", str(path)), path)
            if other != path:
                raise CorpusError(f"{other} and {path} are the same text twice. Keep one of them.")
    return {language: tuple(found) for language, found in files.items()}


def _check_languages(
    languages: Sequence[str], available: Iterable[str], table: Mapping[str, Language], where: str
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


def _nearest(code: str, available: Iterable[str], table: Mapping[str, Language]) -> list[str]:
    """Available codes that look like `code`, or whose English name does ("german" → de)."""
    by_key: dict[str, str] = {}
    for candidate in available:
        by_key[candidate.lower()] = candidate
        if candidate in table:
            by_key[table[candidate].name.lower()] = candidate
            by_key[table[candidate].ccaligned_code.lower()] = candidate
            by_key |= dict.fromkeys(table[candidate].aliases, candidate)
    found = difflib.get_close_matches(code.lower(), sorted(by_key), n=6, cutoff=0.6)
    found += [key for key in sorted(by_key) if key.startswith((code.lower() + "-", code.lower() + "_"))]
    return list(dict.fromkeys(by_key[key] for key in found))[:3]
