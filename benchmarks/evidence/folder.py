"""The data folder: documents to files of text and pairs, with nothing of the held-out documents left in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.evidence.cleaning import key
from benchmarks.evidence.documents import TEST, TRAIN, VALIDATION, Document, Pair
from benchmarks.evidence.sources import ENGLISH

_PAIRS_OF = {TRAIN: "parallel", VALIDATION: f"parallel/{VALIDATION}", TEST: "test"}
_TEXT_OF = {TRAIN: "text", VALIDATION: f"text/{VALIDATION}"}


class HeldOut:
    """What has been said in held-out documents, by language; English also beside any other language."""

    def __init__(self, documents: Iterable[Document], splits: Sequence[str]):
        """The sayings of those of `documents` that are in one of `splits`."""
        self._said: dict[str, set[str]] = {}
        for document in documents:
            if document.split in splits:
                for pair in (*document.text, *document.pairs):
                    self._said.setdefault(document.language, set()).add(key(pair.text))
                    if pair.english:
                        self._said.setdefault(ENGLISH, set()).add(key(pair.english))

    def has(self, language: str, pair: Pair) -> bool:
        """Whether one of the sides has been said there, but for case and punctuation."""
        english = self._said.get(ENGLISH, set())
        return key(pair.text) in self._said.get(language, set()) or (
            pair.english != "" and key(pair.english) in english
        )


def write_folder(documents: Sequence[Document], output: Path) -> dict[str, dict[str, int]]:
    """Writes `text/`, `parallel/` (each with `validation/`) and `test/`, as `tasks.corpora` reads them.

    From training is dropped what occurs in validation or test, from validation what occurs in test, on either side. Pairs,
    and strings of text, are written once a file. Files depend on the documents alone: not on their order, not on time.

    Returns:
      Language → counts: documents, text_bytes, pairs, validation_documents, validation_pairs, test_pairs, dropped (pairs
      of training and of validation that occur in what is held out from them).
    """
    ordered = sorted(documents, key=lambda document: (document.language, document.name))
    held_out = {
        TRAIN: HeldOut(ordered, (VALIDATION, TEST)),
        VALIDATION: HeldOut(ordered, (TEST,)),
        TEST: HeldOut(ordered, ()),
    }
    counts: dict[str, dict[str, int]] = {}
    for language in sorted({document.language for document in ordered}):
        own = [document for document in ordered if document.language == language]
        counts[language] = _write_language(language, own, held_out, output)
    return counts


def _write_language(
    language: str, documents: Sequence[Document], held_out: dict[str, HeldOut], output: Path
) -> dict[str, int]:
    texts = {split: _texts(documents, split, held_out[split]) for split in _TEXT_OF}
    pairs = {split: _pairs(documents, split, held_out[split]) for split in _PAIRS_OF}
    for split, found in texts.items():
        if found and (texts[TRAIN] or split == TRAIN):  # a validation file without its training file is refused
            _write(output / _TEXT_OF[split] / f"{language}.txt", "\n\n".join(found))
    for split, (lines, _) in pairs.items():
        if lines and (pairs[TRAIN][0] or split != VALIDATION):
            _write(output / _PAIRS_OF[split] / f"{language}-{ENGLISH}.tsv", "\n".join(lines))
    return {
        "documents": len(texts[TRAIN]),
        "text_bytes": sum(len(text.encode()) for text in texts[TRAIN]),
        "pairs": len(pairs[TRAIN][0]),
        "validation_documents": len(texts[VALIDATION]),
        "validation_pairs": len(pairs[VALIDATION][0]),
        "test_pairs": len(pairs[TEST][0]),
        "dropped": sum(dropped for _, dropped in pairs.values()),
    }


def _texts(documents: Sequence[Document], split: str, held_out: HeldOut) -> list[str]:
    """Documents as they stand in a file, a few of their strings a line."""
    seen: set[str] = set()
    written = []
    for document in documents:
        if document.split != split:
            continue
        said = []
        for pair in document.text:
            if pair.text not in seen and not held_out.has(document.language, pair):
                seen.add(pair.text)
                said.append(pair.text)
        lines = [" ".join(said[at : at + document.per_line]) for at in range(0, len(said), document.per_line)]
        if lines:
            written.append("\n".join(lines))
    return written


def _pairs(documents: Sequence[Document], split: str, held_out: HeldOut) -> tuple[list[str], int]:
    """Lines of two columns, each once; and how many were dropped for being held out."""
    found: dict[str, None] = {}
    dropped = set()
    for document in documents:
        for pair in document.pairs if document.split == split else ():
            if held_out.has(document.language, pair):
                dropped.add(pair)
            else:
                found["\t".join(pair)] = None
    return list(found), len(dropped)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
