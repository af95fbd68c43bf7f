"""What the TFDS builders share: where the files are, splits, and languages as configurations."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from absl import logging

from tasks.corpora import (
    SAMPLE_CORPORA,
    SPLITS,
    Corpus,
    CorpusError,
    CorpusFiles,
    find_files,
    read_split,
    require_items,
)
from tasks.languages import Language


@dataclasses.dataclass
class LanguageConfig(tfds.core.BuilderConfig):
    """One language; for one that is not in the table, pass `config=LanguageConfig(name=CODE)` to the builder."""


def configs(languages: list[Language], text: str) -> list[LanguageConfig]:
    """A configuration per language, named by its code; `text` says what of the language, "text in" for example."""
    return [LanguageConfig(name=language.code, description=f"{text} {language.name}") for language in languages]


class CorpusBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Reads one language of a corpus from the folder given as TFDS's `manual_dir`.

    Without such a folder, what the shipped sample has of a corpus is built. Nothing is downloaded. What was read is recorded
    in the dataset's metadata, `builder.info.metadata["origin"]`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    CORPUS: ClassVar[Corpus]
    CITATION: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    FEATURES: ClassVar[tuple[str, ...]]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in (*self.FEATURES, "language")}),
            homepage=self.CORPUS.homepage,
            citation=self.CITATION,
            metadata=tfds.core.MetadataDict({}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self.info.file_format == tfds.core.FileFormat.PARQUET:
            # TFDS 4.9.10 drops rows from Parquet shards of over 100 examples without an error.
            raise ValueError(f"{self.name}: TFDS loses examples in the Parquet format; use tfrecord or array_record.")
        folder = self._data_folder(dl_manager)
        language = self.builder_config.name
        files = find_files(folder, self.CORPUS.name, [language])[language]
        self.info.metadata["origin"] = "the shipped sample" if folder is None else _listed(files.train)
        # TFDS refuses a split without examples, and a small language may have no held-out text.
        splits = [s for s in SPLITS if s == "train" or next(read_split(self.CORPUS, files, s), None) is not None]
        return {split: self._generate_examples(files, split) for split in splits}

    def _data_folder(self, dl_manager: tfds.download.DownloadManager) -> Path | None:
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError:  # it does not exist, or is empty
            folder = None
        if folder is not None and (folder / self.CORPUS.name).is_dir():
            return folder
        if self.CORPUS not in SAMPLE_CORPORA:
            raise CorpusError(
                f"{self.name}: expected the folder {self.CORPUS.name} in TFDS's manual directory, found "
                f"{f'none in {folder}' if folder else 'no such directory, or an empty one'}. "
                f"{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        logging.warning(
            "%s: no folder %s in the manual directory %s; building from the shipped sample.",
            self.name,
            self.CORPUS.name,
            folder or "(which does not exist or is empty)",
        )
        return None

    def _generate_examples(self, files: CorpusFiles, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        counts: Counter[str] = Counter()
        items = read_split(self.CORPUS, files, split, counts)
        if split == "train":
            items = require_items(items, self.CORPUS, files.train[0], counts)
        for number, item in enumerate(items):
            texts = ("\n".join(item),) if self.CORPUS.unit == "documents" else item
            yield number, {**dict(zip(self.FEATURES, texts, strict=True)), "language": files.language}
        if counts:
            logging.info("%s/%s, %s: dropped lines: %s", self.name, files.language, split, dict(counts))


def _listed(paths: tuple[Path, ...]) -> str:
    shown = ", ".join(map(str, paths[:4]))
    return f"{shown} and {len(paths) - 4:,} more" if len(paths) > 4 else shown
