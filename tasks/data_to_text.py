"""WebNLG: text from RDF triples, in English and Russian (Gardent et al. 2017; release 3.0 of 2020).

In training, a text is an example; in validation and testing, a set of triples is one, with all its texts as references.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deltalm_jax.data.readers import CorpusError, clean
from deltalm_jax.paths import as_path
from tasks.downstream_places import Examples, Place, Read, Row, tfds_examples, tfds_folders
from tasks.downstream_readers import read_webnlg
from tasks.downstream_source import SPLITS, DownstreamSource, Publication
from tasks.downstream_spec import DownstreamSpec

LANGUAGES = ("en", "ru")
LENGTH = 256
# Name → how triples ("subject | property | object", each) become a source. A score belongs to one of these.
LINEARIZATIONS: dict[str, Callable[[Sequence[str]], str]] = {
    # In the order of the data: Aarhus_Airport | cityServed | "Aarhus, Denmark" && Aarhus_Airport | elevation | 25.0
    "plain": " && ".join,
    # The same with spaces for the underscores of names.
    "spaced": lambda triples: " && ".join(triples).replace("_", " "),
}
LINEARIZATION = "spaced"

_FOLDERS = {"train": "train", "validation": "dev", "test": "test"}
# Texts of the training split, sets of triples of the others (Castro Ferreira et al. 2020, WebNLG+).
_ROWS = {
    "en": {"train": 35_426, "validation": 1_667, "test": 1_779},
    "ru": {"train": 14_239, "validation": 790, "test": 1_102},
}


def webnlg(data_dir: str | Path, linearization: str = LINEARIZATION) -> list[DownstreamSpec]:
    """The tasks `webnlg_en` and `webnlg_ru`. Nothing is looked for yet.

    Args:
      data_dir: folder with `webnlg/`.
      linearization: a key of `LINEARIZATIONS`; part of the tasks' names if it is not the usual one (`webnlg_en_plain`).
    """
    return [_webnlg(as_path(data_dir), language, linearization) for language in LANGUAGES]


def _webnlg(data_dir: Path, language: str, linearization: str) -> DownstreamSpec:
    name = f"webnlg_{language}" + ("" if linearization == LINEARIZATION else f"_{linearization}")
    linearize = LINEARIZATIONS[linearization]
    folder = data_dir / "webnlg" / language
    places: dict[str, list[Place]] = {}
    for split in SPLITS:
        places[split] = [
            _xml_files(folder / _FOLDERS[split], language, split == "train", linearize),
            tfds_examples(
                tfds_folders(data_dir),
                f"gem/web_nlg_{language}",
                split,
                functools.partial(_read_tfds, linearize=linearize, train=split == "train"),
            ),
        ]
    publication = Publication(
        title=f"WebNLG, release 3.0, {language}",
        homepage="https://gitlab.com/shimorina/webnlg-dataset",
        terms="CC BY-NC-SA 4.0 as released; GEM's card also lists CC BY-SA 3.0 and GFDL.",
        how=dict.fromkeys(
            SPLITS,
            f"Copy release_v3.0/{language} of that repository to {folder}, of its test folder only the file of the task from "
            f"triples to text that has references; or prepare TFDS's gem/web_nlg_{language}.",
        ),
        rows=_ROWS[language],
    )
    return DownstreamSpec(
        name=name,
        source=DownstreamSource(name, places, publication),
        language=language,
        metrics=("bleu", "chrf++", "rouge", *(("script_cyrillic",) if language == "ru" else ())),
        source_length=LENGTH,
        target_length=LENGTH,
    )


def _xml_files(folder: Path, language: str, train: bool, linearize: Callable[[Sequence[str]], str]) -> Place:
    """All XML files in a folder and its subfolders, in the order of their paths."""

    def find() -> Read | None:
        paths = sorted(folder.rglob("*.xml")) if folder.is_dir() else []
        return (lambda counts: rows(paths, counts)) if paths else None

    def rows(paths: Sequence[Path], counts: Counter[str]) -> Iterator[Row]:
        for path in paths:
            for entry in read_webnlg(path, counts, language, lenient=train):
                yield from _rows(linearize([" | ".join(triple) for triple in entry.triples]), entry.texts, train)

    return Place((f"{folder}/**/*.xml",), find)


def _rows(source: str, texts: Sequence[str], train: bool) -> Iterator[Row]:
    """One row for each text, or one for all."""
    if train:
        yield from (Row(source, text) for text in texts)
    else:
        yield Row(source, texts[0], tuple(texts))


def _read_tfds(
    examples: Examples, where: str, counts: Counter[str], linearize: Callable[[Sequence[str]], str], train: bool
) -> Iterator[Row]:
    """GEM's examples: in training a row for each text, with no `references`; else all texts in `references`."""
    for number, example in enumerate(examples()):
        try:
            triples = [clean(bytes(triple).decode()) for triple in example["input"]]
            target = clean(bytes(example["target"]).decode())
            references = [clean(bytes(reference).decode()) for reference in example["references"]]
        except (KeyError, UnicodeDecodeError) as error:
            raise CorpusError(
                f"{where}, example {number:,}: expected input, target and references in UTF-8, found: {error!r}. Prepare the "
                "data set again."
            ) from error
        texts = [target] if train else [text for text in references if text] or [target]
        if triples and all(texts):
            yield from _rows(linearize(triples), texts, train)
        elif train:
            counts["empty"] += 1
        else:
            raise CorpusError(f"{where}, example {number:,}: expected triples and a text, found an empty one.")
