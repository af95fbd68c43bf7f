"""WMT-10: which files are whose, what is selected of them, and that no test set is ever read the wrong way round."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
import xxhash

from deltalm_jax.data.vocabulary import Vocabulary
from tasks import translation
from tasks.corpora import CorpusError
from tasks.downstream import DownstreamTask, register_downstream
from tasks.downstream_places import Row
from tasks.sampling_by_hash import sample
from tasks.translation import WMT10, fitting, wmt10, wmt10_rates

TRAIN_CS = [
    ("Vlak do Brna dnes přijel pozdě.", "The train to Brno arrived late today."),
    ("V noci napadl první sníh.", "The first snow fell during the night."),
    ("Ne.", "No."),
    ("Sešli jsme se u starého mlýna.", "We met at the old mill."),
]


def rows(data_dir: Path, name: str, split: str) -> tuple[list[Row], Counter[str]]:
    (spec,) = (spec for spec in wmt10(data_dir, WMT10, None) if spec.name == name)
    counts: Counter[str] = Counter()
    return list(spec.source.read(split, counts)), counts


def write_tfds(
    folder: Path, name: str, config: str, splits: dict[str, list[dict[str, Any]]], features: Any, version: str = "1.0.0"
) -> None:
    """Prepares a data set as TFDS would."""
    datasets = {
        split: tf.data.Dataset.from_generator(
            lambda examples=examples: iter(examples), output_signature=features.get_tensor_spec()
        )
        for split, examples in splits.items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name, version=version, data_dir=folder, split_datasets=datasets, features=features, config=config
    )


def test_training_text_of_several_files_in_both_directions(data_dir: Path) -> None:
    into, counts = rows(data_dir, "wmt10_cs_en", "train")
    assert into == [Row(*pair) for pair in TRAIN_CS]
    assert {reason: counts[reason] for reason in ("empty", "ratio")} == {"empty": 1, "ratio": 1}
    out_of, _ = rows(data_dir, "wmt10_en_cs", "train")
    assert out_of == [Row(english, czech) for czech, english in TRAIN_CS]


def test_a_test_set_is_read_in_its_own_direction_only(data_dir: Path) -> None:
    found, _ = rows(data_dir, "wmt10_cs_en", "test")
    assert [row.target for row in found][2] == "The bridge has been repaired."
    assert found[0].source == "Řeka po dešti stoupla."
    # The same folder has nothing for the other direction, nor is there a set from English for Gujarati.
    for name in ("wmt10_en_cs", "wmt10_en_gu"):
        with pytest.raises(CorpusError, match=rf"task {name}, split 'test': expected about .* found nothing"):
            rows(data_dir, name, "test")
    assert rows(data_dir, "wmt10_gu_en", "test")[0] == [Row("આજે બજાર બંધ છે.", "The market is closed today.")]


@pytest.mark.parametrize("name", [spec.name for spec in wmt10("x", WMT10, None)])
def test_every_test_set_is_looked_for_under_its_direction(tmp_path: Path, name: str) -> None:
    (spec,) = (spec for spec in wmt10(tmp_path, WMT10, None) if spec.name == name)
    _, source, target = name.split("_")
    with pytest.raises(CorpusError) as caught:
        spec.source.get_dataset("test")
    message = str(caught.value)
    listed = message.split("Looked for: ")[1].split(". Published at ")[0]
    looked_at = [Path(name.split(" (or")[0]).name for name in listed.split("; ")]
    assert "\n" not in message
    joined = "hien" if "hi" in (source, target) else source + target
    assert len(looked_at) == 6
    assert looked_at[:2] == [f"test.{source}-{target}.{source}", f"test.{source}-{target}.{target}"]
    assert [name.split("-", 1)[1] for name in looked_at[2:4]] == [
        f"{joined}-src.{source}.sgm",
        f"{joined}-ref.{target}.sgm",
    ]
    assert [name.split(".", 1)[1] for name in looked_at[4:]] == [f"{source}-{target}.src", f"{source}-{target}.ref"]
    assert f"sacrebleu -t {spec.source.publication.homepage[-5:]} -l {source}-{target} --echo src" in message


def test_sets_that_sacrebleu_has_fetched_are_found(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sacrebleu/wmt19"
    folder.mkdir(parents=True)
    (folder / "wmt19.en-gu.src").write_text("Good morning.\n", encoding="utf-8")
    with pytest.raises(
        CorpusError, match=r"Expected 2 files that belong together, found .*en-gu\.src without .*en-gu\.ref"
    ):
        rows(data_dir, "wmt10_en_gu", "test")
    (folder / "wmt19.en-gu.ref").write_text("સુપ્રભાત.\n", encoding="utf-8")
    assert rows(data_dir, "wmt10_en_gu", "test")[0] == [Row("Good morning.", "સુપ્રભાત.")]


def test_the_names_of_test_sets_are_sacrebleus() -> None:
    """sacreBLEU's table says in which year a pair was tested, and what WMT called the files."""
    from sacrebleu.dataset import DATASETS

    for language in WMT10:
        for source, target in ((language.code, "en"), ("en", language.code)):
            (spec,) = (spec for spec in wmt10("x", WMT10, None) if spec.name == f"wmt10_{source}_{target}")
            files = [Path(name).name for name in DATASETS[language.sacrebleu].langpairs[f"{source}-{target}"]]
            sgm = spec.source.places["test"][1].looked_at
            assert files[:2] == [Path(name.split(" (or")[0]).name for name in sgm]


def test_tfds_is_used_for_training_where_there_are_no_files(data_dir: Path) -> None:
    features = tfds.features.Translation(languages=("et", "en"))
    pairs = [("Tere hommikust kõigile.", "Good morning to everyone."), ("", "Nothing."), ("Jah\0.", "Yes.")]
    examples = [{"et": et, "en": en} for et, en in pairs]
    write_tfds(
        data_dir / "tensorflow_datasets",
        "wmt18_translate",
        "et-en",
        {"train": examples, "validation": examples[:1]},
        features,
    )
    found, counts = rows(data_dir, "wmt10_en_et", "train")
    assert found == [Row(pairs[0][1], pairs[0][0]), Row("Yes.", "Jah.")]
    assert counts["empty"] == 1
    assert rows(data_dir, "wmt10_et_en", "validation")[0] == [Row(*pairs[0])]
    # Its test split is never looked at, whatever is in it.
    with pytest.raises(CorpusError, match="found nothing"):
        rows(data_dir, "wmt10_et_en", "test")
    # A split that the data set does not have.
    write_tfds(data_dir / "tensorflow_datasets", "wmt17_translate", "lv-en", {"train": [{"lv": "a", "en": "b"}]},
               tfds.features.Translation(languages=("lv", "en")))  # fmt: skip
    with pytest.raises(
        CorpusError, match=r"lv-en/1\.0\.0: expected .* split 'validation', found: it has the splits train"
    ):
        rows(data_dir, "wmt10_lv_en", "validation")


def test_the_newest_version_of_tfds_is_taken(data_dir: Path) -> None:
    features = tfds.features.Translation(languages=("et", "en"))
    for version in ("9.0.0", "10.0.0"):
        splits = {"validation": [{"et": f"Versioon {version}", "en": f"Version {version}"}]}
        write_tfds(data_dir / "tensorflow_datasets", "wmt18_translate", "et-en", splits, features, version)
    assert [row.target for row in rows(data_dir, "wmt10_et_en", "validation")[0]] == ["Version 10.0.0"]


@pytest.mark.parametrize("side", ["cs", "en.gz"])
def test_half_of_an_aligned_text_is_an_error(data_dir: Path, side: str) -> None:
    (data_dir / f"wmt10/cs-en/train.more.{side}").write_text("Ano.\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"expected train\.more\.cs and train\.more\.en, found only one"):
        rows(data_dir, "wmt10_cs_en", "train")


def test_the_same_text_twice_is_an_error(data_dir: Path) -> None:
    folder = data_dir / "wmt10/cs-en"
    (folder / "train.talks.en-cs.tsv").write_text("Yes.\tAno.\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a \.tsv is there twice, packed and not: .*train\.talks\.en-cs\.tsv"):
        rows(data_dir, "wmt10_cs_en", "train")
    (folder / "train.talks.en-cs.tsv").unlink()
    (folder / "train.news.cs.gz").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"train\.news\.cs\.gz are the same text twice"):
        rows(data_dir, "wmt10_cs_en", "train")


def test_columns_of_another_pair_are_an_error(data_dir: Path) -> None:
    (data_dir / "wmt10/cs-en/train.more.de-en.tsv").write_text("Ja.\tYes.\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"expected a name that ends in cs-en\.tsv or en-cs\.tsv"):
        rows(data_dir, "wmt10_cs_en", "train")


def test_bad_lines_are_dropped_in_training_and_refused_in_validation(data_dir: Path) -> None:
    folder = data_dir / "wmt10/cs-en"
    for split in ("train.news", "validation"):
        path = folder / f"{split}.cs"
        path.write_bytes(b"\xff\xfe\n" + path.read_bytes().split(b"\n", 1)[1])
    found, counts = rows(data_dir, "wmt10_cs_en", "train")
    assert found == [Row(*pair) for pair in TRAIN_CS[1:]]
    assert counts["invalid_utf8"] == 1
    with pytest.raises(CorpusError, match=r"validation\.cs, line 1: expected UTF-8"):
        rows(data_dir, "wmt10_en_cs", "validation")


def test_pairs_that_do_not_fit_are_dropped_and_counted() -> None:
    pairs = [
        ("a" * 20, "b"),
        ("a" * 21, "b" * 5),
        ("a" * 20, "b" * 81),
        ("a" * 2000, "b" * 2000),
        ("a" * 2001, "b" * 2000),
    ]
    counts: Counter[str] = Counter()
    kept = list(fitting(iter(pairs), counts))
    # 20:1 is short; 21:5 is over 4; 20:81 is over 4; 2000 fits; 2001 does not.
    assert kept == [pairs[0], pairs[3]]
    assert counts == {"ratio": 2, "too_long": 1}


def test_the_limit_is_a_choice_by_hash(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(f"Věta číslo {i}.", f"Sentence number {i}.") for i in range(3000)]
    folder = data_dir / "wmt10/fr-en"
    folder.mkdir()
    (folder / "train.fr").write_text("".join(f"{a}\n" for a, _ in pairs), encoding="utf-8")
    (folder / "train.en").write_text("".join(f"{b}\n" for _, b in pairs), encoding="utf-8")
    monkeypatch.setattr(translation, "MAX_PAIRS", 600)
    into, counts = rows(data_dir, "wmt10_fr_en", "train")
    expected = [p for p in pairs if xxhash.xxh3_64("\t".join(p).encode()).intdigest() / 2**64 < 600 / 3000]
    assert [(row.source, row.target) for row in into] == expected
    assert 500 < len(into) < 700
    assert counts["over_the_limit"] == 3000 - len(into)
    out_of, _ = rows(data_dir, "wmt10_en_fr", "train")
    assert [(row.target, row.source) for row in out_of] == expected  # the same pairs in both directions
    monkeypatch.setattr(translation, "MAX_PAIRS", 3000)
    assert len(rows(data_dir, "wmt10_fr_en", "train")[0]) == 3000


def test_a_sample_does_not_depend_on_the_order() -> None:
    pairs = [(str(i), str(i * i)) for i in range(200)]
    forward = set(sample(iter(pairs), 0.3, Counter()))
    assert forward == set(sample(reversed(pairs), 0.3, Counter()))
    assert forward < set(sample(iter(pairs), 0.6, Counter()))
    assert 30 < len(forward) < 90


def test_rates_of_the_mixtures() -> None:
    rates = wmt10_rates(WMT10)
    assert {name: len(tasks) for name, tasks in rates.items()} == {"wmt10_x2en": 10, "wmt10_en2x": 10, "wmt10_all": 20}
    for of_one in rates.values():
        assert sum(of_one.values()) == pytest.approx(1)
    # 10 million to 80,000 is 125, whose fifth root is 2.627.
    assert rates["wmt10_x2en"]["wmt10_fr_en"] / rates["wmt10_x2en"]["wmt10_gu_en"] == pytest.approx(125**0.2)
    assert rates["wmt10_all"]["wmt10_en_fr"] == pytest.approx(rates["wmt10_en2x"]["wmt10_en_fr"] / 2)
    assert sum(language.train_pairs for language in WMT10) == pytest.approx(32.5e6, rel=0.01)  # the paper's 32.5 M


def test_the_tag_stands_before_sources_from_english(data_dir: Path, vocabulary: Vocabulary) -> None:
    def first(name: str, split: str = "train") -> Any:
        dataset = seqio.get_mixture_or_task(name).get_dataset(sequence_length=None, split=split, shuffle=False)
        return next(dataset.as_numpy_iterator())

    names = register_downstream(data_dir, vocabulary)
    assert len([name for name in names if name.startswith("wmt10_")]) == 23
    example = first("wmt10_en_cs")
    assert example["source"].decode() == "__cs__ The train to Brno arrived late today."
    assert example["target"].decode() == TRAIN_CS[0][0]
    assert example["language"] == b"cs"
    assert first("wmt10_cs_en")["source"].decode() == TRAIN_CS[0][0]
    task = seqio.TaskRegistry.get("wmt10_en_cs")
    assert isinstance(task, DownstreamTask)
    assert (task.source_prefix, task.language, task.metrics) == ("__cs__ ", "en-cs", ("bleu", "chrf++"))
    register_downstream(data_dir, vocabulary, target_tag=None)
    assert first("wmt10_en_cs")["source"].decode() == TRAIN_CS[0][1]
    assert seqio.TaskRegistry.get("wmt10_en_gu").metrics == ("bleu", "chrf++", "bleu_intl")


def test_another_size_than_the_published_one_is_a_warning(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="absl"):
        rows(data_dir, "wmt10_gu_en", "test")
    assert "wmt10_gu_en, test: WMT 2019, gu-en has 1,016 rows, found 1" in caplog.text
    caplog.clear()
    path = data_dir / "wmt10/gu-en"
    for side in ("gu", "en"):
        (path / f"test.gu-en.{side}").write_text("a b\n" * 1000, encoding="utf-8")  # within 3 % of 1,016
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(rows(data_dir, "wmt10_gu_en", "test")[0]) == 1000
    assert "rows, found" not in caplog.text
