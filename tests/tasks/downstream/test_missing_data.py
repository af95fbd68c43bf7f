"""What is said when data are missing or damaged, and when."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
import seqio
import tensorflow as tf

from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import CorpusError
from tasks.downstream import register_downstream
from tasks.downstream_places import Row
from tests.tasks.downstream.reading import error_of, examples, in_memory


def test_missing_data_is_one_error_that_says_everything(
    tmp_path: Path, vocabulary: Vocabulary, registries: None
) -> None:
    names = register_downstream(tmp_path, vocabulary)
    for name in (name for name in names if name in seqio.TaskRegistry.names()):
        task = seqio.TaskRegistry.get(name)
        for split in task.splits:
            with pytest.raises(CorpusError) as caught:
                task.get_dataset(sequence_length={"inputs": 8, "targets": 8}, split=split)
            message = str(caught.value)
            assert message.startswith(f"task {name}, split {split!r}: expected ")
            for place in task.source.places[split]:
                for looked_at in place.looked_at:
                    assert looked_at in message
            for part in (
                task.source.publication.homepage,
                task.source.publication.terms,
                task.source.publication.how[split],
            ):
                assert part
                assert part in message
    assert "about 135,000 rows of XQG" in str(error_of("xqg_zh", "train"))
    assert "about 5,000 rows of XGiga" in str(error_of("xgiga_fr", "test"))


def test_damage_in_a_test_split_comes_at_the_opening(registered: list[str], data_dir: Path) -> None:
    path = data_dir / "xgiga/test.y.fr"
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with (data_dir / "xgiga/test.x.fr").open("a", encoding="utf-8") as file:
        file.write("encore .\n")
    assert str(error_of("xgiga_fr", "test")).startswith(f"{path}, line 3: expected UTF-8")
    path.write_bytes(b"")
    assert "found an empty file" in str(error_of("xgiga_fr", "test"))
    path.write_text("une nouvelle école\n", encoding="utf-8")
    assert "found 3 lines in" in str(error_of("xgiga_fr", "test"))
    path.unlink()
    assert "files that belong together" in str(error_of("xgiga_fr", "test"))
    (data_dir / "webnlg/en/test/set.xml").write_text("<benchmark>", encoding="utf-8")
    assert "set.xml, line 1" in str(error_of("webnlg_en", "test"))
    path = data_dir / "webnlg/ru/test/set.xml"
    path.write_text(path.read_text(encoding="utf-8").replace('lang="ru"', 'lang="en"'), encoding="utf-8")
    assert "an entry without a text in 'ru'" in str(error_of("webnlg_ru", "test"))
    (data_dir / "xqg/test.q.zh.lc.gz").write_bytes(b"")
    assert "are the same text twice" in str(error_of("xqg_zh", "test"))


def test_damage_within_training_text_comes_with_its_message(registered: list[str], data_dir: Path) -> None:
    path = data_dir / "xgiga/train.y.fr"
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n\xff\n")
    with pytest.raises(tf.errors.OpError, match=r"train\.y\.fr, line 2: expected UTF-8"):
        examples("xgiga_fr", "train")
    path.write_bytes(b"\xff\n")
    assert "train.y.fr, line 1: expected UTF-8" in str(error_of("xgiga_fr", "train"))


def test_training_text_can_be_read_again_and_again(registered: list[str]) -> None:
    dataset = seqio.TaskRegistry.get("xqg_zh").get_dataset(sequence_length=None, split="train", shuffle=False)
    first, second = ([example["source"] for example in dataset.as_numpy_iterator()] for _ in range(2))
    assert first == second
    assert len(first) == 3
    repeated = seqio.TaskRegistry.get("xqg_zh").get_dataset(
        sequence_length=None, split="train", shuffle=False, num_epochs=3
    )
    assert len(list(repeated)) == 9


def test_empty_lines_in_training_are_left_out_and_no_row_at_all_is_an_error(
    data_dir: Path, vocabulary: Vocabulary
) -> None:
    for part in "qae":
        with (data_dir / f"xqg/train.{part}.zh.lc").open("a", encoding="utf-8") as file:
            file.write("\n" if part == "a" else "x\n")
    register_downstream(data_dir, vocabulary)
    assert len(examples("xqg_zh", "train")) == 3
    for part in "qae":
        (data_dir / f"xqg/train.{part}.zh.lc").write_text("\n\n", encoding="utf-8")
    assert "xqg_zh, train: expected examples, found none (left out: empty: 2)" in str(error_of("xqg_zh", "train"))


def test_row_counts_are_checked_with_a_tolerance(caplog: pytest.LogCaptureFixture) -> None:
    for number, warned in ((1000, False), (971, False), (1029, False), (969, True), (1031, True)):
        caplog.clear()
        source = in_memory(test=[Row("a", "b")] * number)
        with caplog.at_level(logging.WARNING, logger="absl"):
            assert len(list(source.read("test", Counter()))) == number
        assert (f"a title has 1,000 rows, found {number:,}" in caplog.text) == warned


def test_text_that_is_missing_is_told_in_full_by_the_preparation(
    tmp_path: Path, vocabulary: Vocabulary, registries: None
) -> None:
    register_downstream(tmp_path, vocabulary)
    with pytest.raises(CorpusError) as caught:
        next(seqio.TaskRegistry.get("xqg_zh").read_text("test", Counter()))
    assert str(error_of("xqg_zh", "test")) in str(caught.value)
