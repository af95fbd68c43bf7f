"""Wikipedia as TFDS stores it: written by TFDS itself, read shard by shard."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from deltalm_jax.data.readers import CorpusError, read_wikipedia, wikipedia

ARTICLES = [(f"Titel {i}", f"Absatz {i}\n\nZweiter\u2028Absatz\n== Teil ==\n\n") for i in range(40)] + [("Leer", " \n")]


class ToyWikipedia(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The features of TFDS's builder, and its names of files and folders."""

    name = "wikipedia"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="20230601.de")]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "title": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": ((title, {"title": title, "text": text}) for title, text in ARTICLES)}

    def _generate_examples(self) -> None:
        raise NotImplementedError


ToyWikipedia.name = "wikipedia"


@pytest.fixture(params=["tfrecord", "array_record"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    wikipedia._description.cache_clear()
    ToyWikipedia(data_dir=str(tmp_path), file_format=request.param).download_and_prepare()
    (path,) = (tmp_path / "wikipedia/20230601.de/1.0.0").glob(f"wikipedia-train.{request.param}-*")
    return path


def test_articles_are_documents(shard: Path) -> None:
    counts: Counter[str] = Counter()
    documents = list(read_wikipedia(shard, counts))
    expected = [[line for line in text.split("\n") if line] for _, text in ARTICLES[:-1]]
    assert sorted(documents) == sorted(expected)
    assert documents != expected  # TFDS shuffles; the order is the file's, always the same
    assert documents == list(read_wikipedia(shard))
    assert counts == {"no_text": 1}


def test_a_damaged_shard_is_an_error_that_names_it(shard: Path) -> None:
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-3], b"", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        shard.write_bytes(damaged)
        with pytest.raises(CorpusError, match=rf"{shard.name}: "):
            list(read_wikipedia(shard))


def test_fewer_articles_than_the_description_says(shard: Path) -> None:
    """A TFRecord file cut between two records is a sound file; only the description tells."""
    info = shard.parent / "dataset_info.json"
    content = json.loads(info.read_text())
    content["splits"][0]["shardLengths"] = [str(len(ARTICLES) + 2)]
    info.write_text(json.dumps(content))
    with pytest.raises(
        CorpusError, match=rf"{shard.name}: expected 43 articles, as .*dataset_info\.json says, found 41"
    ):
        list(read_wikipedia(shard))


def test_a_folder_without_its_description(shard: Path) -> None:
    (shard.parent / "features.json").unlink()
    with pytest.raises(CorpusError, match=r"1\.0\.0: expected a data set of TFDS's"):
        list(read_wikipedia(shard))
    shard.unlink()
    with pytest.raises(CorpusError, match="expected a shard of 1, found no such file"):
        list(read_wikipedia(shard))
    with pytest.raises(CorpusError, match=r"wiki\.txt: expected a shard of TFDS's"):
        list(read_wikipedia(shard.parent / "wiki.txt"))
