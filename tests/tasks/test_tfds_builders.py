"""The TFDS builders: built in a temporary folder, read back from TFRecord, compared with the files."""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

import tasks.datasets
from deltalm_jax.data.readers import CorpusError, read_cc100, read_ccaligned
from tasks.corpora import SAMPLE_DIR, find_files
from tasks.languages import load_languages


def build(name: str, data_dir: Path, manual_dir: Path, **options: object) -> tfds.core.DatasetBuilder:
    builder = tfds.builder(name, data_dir=data_dir, **options)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(manual_dir)))
    return builder


def rows(builder: tfds.core.DatasetBuilder, split: str) -> list[dict[str, str]]:
    examples = tfds.as_numpy(builder.as_dataset(split=split))
    return [{key: value.decode() for key, value in example.items()} for example in examples]


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    folder = tmp_path / "manual"
    (folder / "cc100").mkdir(parents=True)
    (folder / "ccaligned").mkdir()
    documents = "\n\n".join(f"Absatz {i}\nnoch einer\u2028mit Strich" for i in range(2000))
    (folder / "cc100/de.txt.xz").write_bytes(lzma.compress(documents.encode()))
    pairs = "".join(f"Satz {i}\tsentence {i}\t1.05\n" for i in range(2000))
    (folder / "ccaligned/de_DE-en_XX.tsv.xz").write_bytes(lzma.compress(pairs.encode()))
    return folder


def test_documents_of_a_manual_folder(corpora: Path, tmp_path: Path) -> None:
    builder = build("cc100/de", tmp_path / "data", corpora)
    assert builder.info.file_format == tfds.core.FileFormat.TFRECORD
    assert list((tmp_path / "data/cc100/de/1.0.0").glob("*train.tfrecord*"))
    train, validation = rows(builder, "train"), rows(builder, "validation")
    texts = sorted(row["text"] for row in train + validation)
    assert texts == sorted(f"Absatz {i}\nnoch einer\u2028mit Strich" for i in range(2000))
    assert 0 < len(validation) < 12  # a thousandth by hash
    assert {row["language"] for row in train} == {"de"}
    assert builder.info.splits["train"].num_examples == len(train)
    again = tfds.builder("cc100/de", data_dir=tmp_path / "data")
    assert again.info.metadata["origin"] == str(corpora / "cc100/de.txt.xz")
    assert again.info.homepage == "https://data.statmt.org/cc-100"


def test_pairs_of_a_manual_folder(corpora: Path, tmp_path: Path) -> None:
    builder = build("ccaligned/de", tmp_path / "data", corpora)
    made = rows(builder, "train") + rows(builder, "validation")
    expected = [{"english": f"sentence {i}", "other": f"Satz {i}", "language": "de"} for i in range(2000)]
    assert sorted(made, key=str) == sorted(expected, key=str)


def test_the_sample_where_there_is_no_folder(tmp_path: Path) -> None:
    builder = build("cc100/zh-Hans", tmp_path / "data", tmp_path / "nothing")
    assert builder.info.metadata["origin"] == "the shipped sample"
    for split, path in (("train", "cc100/zh-Hans.txt.xz"), ("validation", "cc100/validation/zh-Hans.txt.xz")):
        expected = sorted("\n".join(document) for document in read_cc100(SAMPLE_DIR / path))
        assert sorted(row["text"] for row in rows(builder, split)) == expected
    builder = build("ccaligned/zh-Hans", tmp_path / "data", tmp_path / "nothing")
    expected_pairs = sorted(read_ccaligned(SAMPLE_DIR / "ccaligned/en_XX-zh_CN.tsv.xz"))
    assert sorted((row["english"], row["other"]) for row in rows(builder, "train")) == expected_pairs


def test_a_folder_without_the_language(corpora: Path, tmp_path: Path) -> None:
    """With corpora of one's own there, the sample does not step in for a missing language."""
    with pytest.raises(CorpusError, match=r"'fr' \(French\).* Available: de\."):
        build("cc100/fr", tmp_path / "data", corpora)


def test_parquet_is_refused(corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TFDS loses examples in the Parquet format"):
        build("cc100/de", tmp_path / "data", corpora, file_format="parquet")


def test_a_language_of_ones_own(corpora: Path, tmp_path: Path) -> None:
    (corpora / "cc100/nah.txt").write_text("Nochi tlacah\n\nquitlacatiah")
    config = tasks.datasets.cc100.Cc100.BUILDER_CONFIGS[0].__class__(name="nah")
    builder = tasks.datasets.Cc100(config=config, data_dir=tmp_path / "data")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(corpora)))
    assert sorted(row["text"] for row in rows(builder, "train")) == ["Nochi tlacah", "quitlacatiah"]
    # Neither document is held out; TFDS knows no empty splits.
    assert list(builder.info.splits) == ["train"]


@pytest.mark.slow  # TFDS imports every builder that it has
def test_configurations_and_descriptions() -> None:
    cc100, ccaligned = tasks.datasets.Cc100.builder_configs, tasks.datasets.Ccaligned.builder_configs
    assert set(find_files(None, "cc100")) <= set(cc100)
    assert set(find_files(None, "ccaligned")) <= set(ccaligned)
    assert "en" in cc100
    assert "en" not in ccaligned
    assert "my_zaw" in cc100
    assert "my_zaw" not in ccaligned
    assert cc100["ga"].description == "Text in Irish"
    # All 116 published files, and what the sample has besides.
    assert {row.code for row in load_languages().values() if row.cc100_file} <= set(cc100)
    assert {"cc100", "ccaligned", "cc_net", "ccaligned_documents", "opus_pairs"} <= set(tfds.list_builders())
    # TFDS's own data set of that name stays.
    assert tfds.builder_cls("opus").__module__.startswith("tensorflow_datasets")


def test_corpora_that_the_sample_lacks(corpora: Path, tmp_path: Path) -> None:
    for name, instruction in (
        ("cc_net/de", "run its program"),
        ("ccaligned_documents/eo", "document-aligned files"),
        ("opus_pairs/sw", "Moses archives"),
    ):
        with pytest.raises(CorpusError, match=rf"expected the folder \w+ in TFDS's manual directory, .*{instruction}"):
            build(name, tmp_path / "data", corpora)


def test_cc_net_opus_and_document_pairs(corpora: Path, tmp_path: Path) -> None:
    (corpora / "cc_net/2019-09").mkdir(parents=True)
    texts = [f"eins {i}\nzwei" for i in range(60)]
    for number, part in enumerate((texts[:30], texts[30:])):
        lines = "".join(json.dumps({"raw_content": text}) + "\n" for text in part)
        (corpora / f"cc_net/2019-09/de_tail_000{number}.json.gz").write_bytes(gzip.compress(lines.encode()))
    builder = build("cc_net/de", tmp_path / "data", corpora)
    assert sorted(row["text"] for row in rows(builder, "train")) == sorted(texts)
    assert "de_tail_0000.json.gz, " in builder.info.metadata["origin"]

    (corpora / "opus/Books").mkdir(parents=True)
    with zipfile.ZipFile(corpora / "opus/Books/en-sw.txt.zip", "w") as archive:
        archive.writestr("Books.en-sw.en", "one\ntwo\n")
        archive.writestr("Books.en-sw.sw", "moja\nmbili\n")
    expected = [{"english": e, "other": o, "language": "sw"} for e, o in (("one", "moja"), ("two", "mbili"))]
    assert sorted(rows(build("opus_pairs/sw", tmp_path / "data", corpora), "train"), key=str) == expected

    (corpora / "ccaligned_documents").mkdir()
    row = "a.org\thttp://a.org/en\tone|two\thttp://a.org/eo\tunu|du\n"
    (corpora / "ccaligned_documents/en_XX-eo_XX.tsv").write_text(row)
    made = rows(build("ccaligned_documents/eo", tmp_path / "data", corpora), "train")
    assert sorted((r["english"], r["other"], r["language"]) for r in made) == [
        ("one", "unu", "eo"),
        ("two", "du", "eo"),
    ]
