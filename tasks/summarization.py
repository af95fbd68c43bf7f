"""Summarisation: XGiga's headlines, supervised in French and zero-shot from English, and WikiLingua into English.

XGiga (Chi et al. 2020, XNLG) is made of Gigaword: the first sentence of an article, and its headline. Its text is tokenized
as by Moses, and stays so: to ROUGE over words, which are cut at everything that is no letter, it makes no difference. The
spaces that a segmenter has put into Chinese are removed.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deltalm_jax.data.readers import MAX_LINE_BYTES, CorpusError
from deltalm_jax.paths import as_path
from tasks.downstream_places import Examples, Place, Row, files, tfds_examples, tfds_folders
from tasks.downstream_readers import join_chinese, read_aligned, read_wiki_lingua, wiki_lingua_row
from tasks.downstream_source import SPLITS, DownstreamSource, Publication
from tasks.downstream_spec import DownstreamSpec
from tasks.sampling_by_hash import sample

XGIGA_LENGTHS = (128, 48)
WIKI_LINGUA_LENGTHS = (512, 256)
# Zero-shot is trained on so many English examples, in the paper's words; others who use the data take all 500,000.
ZERO_SHOT_EXAMPLES = 50_000
# GEM's names of the languages that WikiLingua has beside English.
WIKI_LINGUA = {
    "ar": "arabic", "cs": "czech", "de": "german", "es": "spanish", "fr": "french", "hi": "hindi", "id": "indonesian",
    "it": "italian", "ja": "japanese", "ko": "korean", "nl": "dutch", "pt": "portuguese", "ru": "russian", "th": "thai",
    "tr": "turkish", "vi": "vietnamese", "zh": "chinese",
}  # fmt: skip

_XGIGA_ROWS = {"train": 500_000, "validation": 5_000, "test": 5_000}
_XGIGA_FILE_NAMES = {"train": "train", "validation": "dev", "test": "test"}
_WIKI_LINGUA_FILE_NAMES = {"train": "train", "validation": "val", "test": "test"}


def xgiga(data_dir: str | Path) -> list[DownstreamSpec]:
    """The supervised task `xgiga_fr`, and three for zero-shot, by other names. Nothing is looked for yet.

    `xgiga_zero_shot_en` is what is trained on; `xgiga_zero_shot_fr` and `xgiga_zero_shot_zh` have no training split.
    """
    evaluated = ("validation", "test")
    return [
        _xgiga(data_dir, "xgiga_fr", "fr", SPLITS, ("rouge",)),
        _xgiga(data_dir, "xgiga_zero_shot_en", "en", SPLITS, ("rouge",), ZERO_SHOT_EXAMPLES),
        _xgiga(data_dir, "xgiga_zero_shot_fr", "fr", evaluated, ("rouge", "script_latin")),
        _xgiga(data_dir, "xgiga_zero_shot_zh", "zh", evaluated, ("rouge_characters", "script_han")),
    ]


def _xgiga(
    data_dir: str | Path,
    name: str,
    language: str,
    splits: Sequence[str],
    metrics: tuple[str, ...],
    train_examples: int | None = None,
) -> DownstreamSpec:
    folder = as_path(data_dir) / "xgiga"
    places = {}
    for split in splits:
        paths = [folder / f"{_XGIGA_FILE_NAMES[split]}.{side}.{language}" for side in "xy"]
        read = functools.partial(_read_xgiga, chinese=language == "zh", drop_empty=split == "train")
        if train_examples is not None and split == "train":
            read = functools.partial(_read_some, read=read, examples=train_examples)
        places[split] = [files(paths, read)]
    rows = dict(_XGIGA_ROWS) if train_examples is None else {**_XGIGA_ROWS, "train": train_examples}
    publication = Publication(
        title=f"XGiga, {language}",
        homepage="https://github.com/CZWin32768/XNLG",
        terms="made of the Gigaword corpora of the LDC (catalog.ldc.upenn.edu), which are licensed and paid for.",
        how=dict.fromkeys(
            SPLITS,
            f"Unpack xgiga.tar.gz, which is linked there, into {folder}: x is the first sentence, y the headline.",
        ),
        rows=rows,
    )
    return DownstreamSpec(
        name=name,
        source=DownstreamSource(name, places, publication),
        language=language,
        metrics=metrics,
        source_length=XGIGA_LENGTHS[0],
        target_length=XGIGA_LENGTHS[1],
    )


def _read_xgiga(paths: list[Path], counts: Counter[str], chinese: bool, drop_empty: bool) -> Iterator[Row]:
    for article, headline in read_aligned(paths, counts, drop_empty=drop_empty):
        yield Row(join_chinese(article), join_chinese(headline)) if chinese else Row(article, headline)


def _read_some(
    paths: list[Path], counts: Counter[str], read: Callable[[list[Path], Counter[str]], Iterator[Row]], examples: int
) -> Iterator[Row]:
    """About so many rows, by hash."""
    total = sum(1 for _ in read(paths, Counter()))
    pairs = ((row.source, row.target) for row in read(paths, counts))
    return (Row(*pair) for pair in sample(pairs, examples / max(total, 1), counts))


def wiki_lingua(data_dir: str | Path) -> list[DownstreamSpec]:
    """The tasks `wiki_lingua_es_en` …: an article in another language, a summary in English. Nothing is looked for yet."""
    return [_wiki_lingua(as_path(data_dir), code, name) for code, name in WIKI_LINGUA.items()]


def _wiki_lingua(data_dir: Path, code: str, english_name: str) -> DownstreamSpec:
    name = f"wiki_lingua_{code}_en"
    folder = data_dir / "wiki_lingua" / english_name
    places: dict[str, list[Place]] = {}
    for split in SPLITS:
        drop = split == "train"
        stem = _WIKI_LINGUA_FILE_NAMES[split]
        places[split] = [
            files(
                [folder / f"{stem}.src.{code}", folder / f"{stem}.tgt.en"],
                functools.partial(_read_aligned, drop_empty=drop),
            ),
            files([folder / f"{split}.jsonl"], functools.partial(_read_json, code=code, drop_empty=drop)),
            tfds_examples(
                tfds_folders(data_dir),
                f"gem/wiki_lingua_{english_name}_{code}",
                split,
                functools.partial(_read_tfds, code=code, drop_empty=drop),
            ),
        ]
    publication = Publication(
        title=f"WikiLingua in GEM's version, {english_name} to English",
        homepage="https://gem-benchmark.com/data_cards/wiki_lingua",
        terms="CC BY-NC-SA 3.0 (wikiHow).",
        how=dict.fromkeys(
            SPLITS,
            f"Unpack {english_name}.zip of GEM into {folder}, or write its examples there, a JSON object a line; or prepare "
            f"TFDS's gem/wiki_lingua_{english_name}_{code}. GEM's splits are meant, which share no article across languages.",
        ),
        rows={},
    )
    return DownstreamSpec(
        name=name,
        source=DownstreamSource(name, places, publication),
        language=f"{code}-en",
        metrics=("rouge", "script_latin"),
        source_length=WIKI_LINGUA_LENGTHS[0],
        target_length=WIKI_LINGUA_LENGTHS[1],
    )


def _read_aligned(paths: list[Path], counts: Counter[str], drop_empty: bool) -> Iterator[Row]:
    # A whole article is a line.
    rows = read_aligned(paths, counts, drop_empty=drop_empty, max_bytes=MAX_LINE_BYTES)
    return (Row(source, target) for source, target in rows)


def _read_json(paths: list[Path], counts: Counter[str], code: str, drop_empty: bool) -> Iterator[Row]:
    for source, references in read_wiki_lingua(paths[0], counts, code, drop_empty=drop_empty):
        yield Row(source, references[0], tuple(references))


def _read_tfds(examples: Examples, where: str, counts: Counter[str], code: str, drop_empty: bool) -> Iterator[Row]:
    for number, example in enumerate(examples()):
        here = f"{where}, example {number:,}"
        source, references = wiki_lingua_row(_plain(example, here), here, code)
        if source and references:
            yield Row(source, references[0], tuple(references))
        elif drop_empty:
            counts["empty"] += 1
        else:
            raise CorpusError(
                f"{here}: expected an article and a summary, found an empty one. Prepare the data set again."
            )


def _plain(value: Any, where: str) -> Any:
    """NumPy's bytes and vectors as strings and lists."""
    if isinstance(value, dict):
        return {name: _plain(part, where) for name, part in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise CorpusError(f"{where}: expected UTF-8, found {error.reason}. Prepare the data set again.") from error
    return [_plain(part, where) for part in value.tolist()]
