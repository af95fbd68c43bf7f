"""The tasks as seqio's users see them: text, ids, references, metrics, and what is said when something is missing."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from deltalm_jax.data.blocks import ExampleSettings
from deltalm_jax.data.mixture import Registration, inputs_of
from deltalm_jax.data.preparation import prepare
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import CorpusError
from tasks.data_to_text import LINEARIZATIONS, webnlg
from tasks.downstream import add_downstream_task, count_cut, output_text, postprocess, register_downstream
from tasks.downstream_places import Row
from tasks.metrics import METRICS, MetricError
from tests.tasks.downstream.reading import error_of, examples, in_memory
from tests.tasks.downstream.test_translation import write_tfds

EOS = 3


def test_what_is_registered(registered: list[str]) -> None:
    assert len(registered) == len(set(registered)) == 20 + 1 + 4 + 17 + 2 + 3
    for name in registered:
        for task in [seqio.get_mixture_or_task(name)] if name in seqio.TaskRegistry.names() else []:
            assert set(task.metrics) <= set(METRICS)
            assert task.objective == "sequence_to_sequence"
            assert set(task.groups) == {"script", "resource_level"}, name
    assert seqio.TaskRegistry.get("xqg_zh").groups["script"] == "Hans"
    assert list(seqio.TaskRegistry.get("xgiga_zero_shot_fr").splits) == ["validation", "test"]
    lengths = {
        name: (seqio.TaskRegistry.get(name).source_length, seqio.TaskRegistry.get(name).target_length)
        for name in ("wmt10_cs_en", "xqg_zh", "xgiga_fr", "wiki_lingua_es_en", "webnlg_en")
    }
    assert list(lengths.values()) == [(256, 256), (512, 64), (128, 48), (512, 256), (256, 256)]


def test_registering_reads_nothing_and_replaces_what_was_there(
    tmp_path: Path, vocabulary: Vocabulary, registries: None
) -> None:
    before = set(seqio.TaskRegistry.names())
    first = register_downstream(tmp_path / "absent", vocabulary)
    assert register_downstream(tmp_path / "also absent", vocabulary) == first
    assert set(seqio.TaskRegistry.names()) - before == {name for name in first if name in seqio.TaskRegistry.names()}
    with pytest.raises(CorpusError, match="also absent"):
        examples("xqg_zh", "train")


TEXTS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("xqg_zh", "train"): [
        ("北京 | 北京是中国的首都，人口超过2000万。", "中国的首都是哪里？"),
        ("杜甫 | 杜甫是唐代诗人。", "谁是唐代诗人？"),
        ("苹果公司 | iphone 4是苹果公司的手机。", "iphone 4是谁的？"),
    ],
    ("xqg_zh", "test"): [("长江 | 长江是中国最长的河。", "中国最长的河是什么？")],
    ("xgiga_fr", "validation"): [
        ("le maire de la ville a inauguré mardi une nouvelle école .", "une nouvelle école ouvre ses portes"),
        ("les vignerons craignent le gel de cette nuit .", "le gel menace les vignes"),
    ],
    ("xgiga_zero_shot_en", "train"): [
        ("the mayor of the town opened a new school on tuesday .", "new school opens"),
        ("wine growers fear tonight 's frost .", "frost threatens vineyards"),
    ],
    ("xgiga_zero_shot_zh", "test"): [("市长星期二为新学校揭幕。", "新学校开学")],
    ("wiki_lingua_es_en", "test"): [
        ("Llena una olla con agua. Ponla al fuego y espera a que hierva.", "Boil water in a pot."),
        ("Lava las manzanas. Córtalas en cuartos.", "Wash the apples and cut them into quarters."),
    ],
    ("wiki_lingua_tr_en", "validation"): [
        ("Suyu kaynatın. Çayı ekleyin.", "Brew tea."),
        ("Kapıyı çalın.", "Knock and wait."),
    ],
    ("webnlg_en", "train"): [
        ('Aarhus Airport | cityServed | "Aarhus, Denmark"', "Aarhus airport serves the city of Aarhus, Denmark."),
        ('Aarhus Airport | cityServed | "Aarhus, Denmark"', "The airport of Aarhus is in Denmark & serves that city."),
        (
            "Ada Example | birthPlace | Leeds && Ada Example | birthYear | 1931 && Ada Example | nationality | "
            "United Kingdom && Ada Example | occupation | Test pilot && Ada Example | mission | Mission 7 "
            "&& Mission 7 | commander | Bo Sample && Mission 7 | operator | NASA",
            "Ada Example, a British test pilot born in Leeds in 1931, flew on NASA's Mission 7 under Bo Sample.",
        ),
    ],
    ("webnlg_en", "test"): [
        ("Turku | country | Finland && Turku | river | Aura River", "Turku is a Finnish city on the Aura River."),
    ],
    ("webnlg_ru", "train"): [
        ("Turku | country | Finland", "Турку находится в Финляндии."),
        ("Turku | country | Finland", "Турку - город в Финляндии."),
    ],
}


@pytest.mark.parametrize(("name", "split"), TEXTS)
def test_texts_of_a_task(registered: list[str], vocabulary: Vocabulary, name: str, split: str) -> None:
    found = examples(name, split)
    assert [(example["source"], example["target"]) for example in found] == TEXTS[name, split]
    for example in found:
        for feature, field in (("inputs", "source"), ("targets", "target")):
            assert example[feature].tolist() == [*vocabulary.encode(example[field]), EOS]
            assert example[f"{feature}_cut"] == 0
        assert example["references"][0] == example["target"]
        assert example["language"] == seqio.TaskRegistry.get(name).language.rsplit("-", 1)[-1]


def test_several_references(registered: list[str]) -> None:
    assert examples("webnlg_en", "test")[0]["references"] == [
        "Turku is a Finnish city on the Aura River.",
        "The Aura River flows through Turku, Finland.",
    ]
    assert [len(example["references"]) for example in examples("wiki_lingua_tr_en", "validation")] == [1, 2]
    assert len(examples("webnlg_ru", "validation")[0]["references"]) == 2


def test_the_plain_linearization_has_another_name(data_dir: Path) -> None:
    specs = webnlg(data_dir, "plain")
    assert [spec.name for spec in specs] == ["webnlg_en_plain", "webnlg_ru_plain"]
    (row,) = specs[0].source.read("test", Counter())
    assert row.source == "Turku | country | Finland && Turku | river | Aura_River"
    assert set(LINEARIZATIONS) == {"plain", "spaced"}


def test_zero_shot_trains_on_a_part(data_dir: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"sentence {i} ." for i in range(1000)]
    for side in "xy":
        (data_dir / f"xgiga/train.{side}.en").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr("tasks.summarization.ZERO_SHOT_EXAMPLES", 200)
    register_downstream(data_dir, vocabulary)
    found = [example["source"] for example in examples("xgiga_zero_shot_en", "train")]
    assert 150 < len(found) < 250
    assert found == [line for line in lines if line in set(found)]


@pytest.mark.parametrize("lengths", [(8, 6), (8, 60), (60, 6)])
def test_too_long_texts_keep_their_end_of_sequence(
    registered: list[str], vocabulary: Vocabulary, lengths: tuple[int, int]
) -> None:
    found = examples("xgiga_fr", "test", dict(zip(("inputs", "targets"), lengths, strict=True)))
    expected: Counter[str] = Counter({"examples": 2})
    for example, (source, target) in zip(found, TEXTS["xgiga_fr", "validation"], strict=True):
        for feature, text, length in (("inputs", source, lengths[0]), ("targets", target, lengths[1])):
            ids = vocabulary.encode(text)
            assert example[feature].tolist() == [*ids[: length - 1], EOS]
            cut = max(len(ids) - (length - 1), 0)
            assert example[f"{feature}_cut"] == cut
            expected[f"{feature}_cut_ids"] += cut
            expected[f"{feature}_cut_examples"] += cut > 0
    assert count_cut("xgiga_fr", "test", dict(zip(("inputs", "targets"), lengths, strict=True))) == expected
    assert expected["inputs_cut_ids"] + expected["targets_cut_ids"] > 0


def test_a_text_that_just_fits_is_not_cut(vocabulary: Vocabulary, registries: None) -> None:
    text = "The first snow fell during the night."
    length = len(vocabulary.encode(text)) + 1
    rows = in_memory(test=[Row(text, text)])
    for name, room in (("fits", length), ("does_not", length - 1)):
        add_downstream_task(
            name, rows, language="en", metrics=["bleu"], vocabulary=vocabulary, source_length=room, target_length=length
        )
    (fits,), (does_not,) = examples("fits", "test"), examples("does_not", "test")
    assert (len(fits["inputs"]), fits["inputs_cut"], fits["inputs"][-1]) == (length, 0, EOS)
    assert (len(does_not["inputs"]), does_not["inputs_cut"], does_not["inputs"][-1]) == (length - 1, 1, EOS)


def test_any_source_and_preprocessors_of_ones_own(vocabulary: Vocabulary, registries: None) -> None:
    rows = {"question": ["2 + 2?", "3 + 3?"], "answer": ["4", "6"]}
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files=False, seed=None: tf.data.Dataset.from_tensor_slices(rows), splits=["train"]
    )

    def rename(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.map(lambda example: {"source": example["question"], "target": example["answer"]})

    task = add_downstream_task(
        "sums", source, language="en", metrics=["bleu"], vocabulary=vocabulary, source_length=16, target_length=8,
        preprocessors=[rename], source_prefix="sum: ",
    )  # fmt: skip
    found = examples("sums", "train")
    assert [example["source"] for example in found] == ["sum: 2 + 2?", "sum: 3 + 3?"]
    assert [example["references"] for example in found] == [["4"], ["6"]]
    # What a preparation reads: the text, before there are ids.
    dataset = functools.reduce(lambda text, step: step(text), task.text_preprocessors, source.get_dataset("train"))
    assert set(dataset.element_spec) == {"source", "target", "references", "language"}
    for more, error in (({"source_length": 1}, ValueError), ({"metrics": ["blue"]}, MetricError)):
        arguments = {"language": "en", "metrics": ["bleu"], "source_length": 9, "target_length": 9, **more}
        with pytest.raises(error):
            add_downstream_task("other", source, vocabulary=vocabulary, **arguments)
    with pytest.raises(ValueError, match=r"room for text and </s>, found {'targets': 1}"):
        examples("sums", "train", {"inputs": 8, "targets": 1})


def test_outputs_and_references_are_what_metrics_compare(registered: list[str]) -> None:
    for decoded, text in (
        ("</s> Turku is in Finland.</s>", "Turku is in Finland."),
        ("Turku is.</s> and more</s>", "Turku is."),
        ("<s> Turku", "Turku"),
        ("</s></s>", ""),
        ("", ""),
    ):
        assert output_text(decoded) == text
    assert postprocess("ignored", {"references": np.array([b"a", "é".encode()], object)}, is_target=True) == ["a", "é"]
    task = seqio.TaskRegistry.get("webnlg_en")
    raw = next(task.get_dataset(sequence_length=None, split="test", shuffle=False).as_numpy_iterator())
    target = task.postprocess_fn("anything", example=raw, is_target=True)
    output = task.postprocess_fn(" The Aura River flows through Turku, Finland.</s>", example=raw, is_target=False)
    values = {key: value for fn in task.predict_metric_fns for key, value in fn([target], [output]).items()}
    assert values["bleu"].value == pytest.approx(100)
    assert values["bleu_signature"].textdata.startswith("nrefs:2|")
    assert values["rougeL"].value == pytest.approx(100)


def test_targets_are_scored_as_read_and_not_as_decoded(data_dir: Path, vocabulary: Vocabulary) -> None:
    text = "Ωμέγα ﬁne ① …"  # the vocabulary normalises or does not know some of these
    assert vocabulary.decode(vocabulary.encode(text)) != text
    for side in "xy":
        (data_dir / f"xgiga/test.{side}.fr").write_text(text + "\n", encoding="utf-8")
    register_downstream(data_dir, vocabulary)
    assert examples("xgiga_fr", "test")[0]["references"] == [text]


def test_seqios_evaluator_scores_a_perfect_model_with_100(registered: list[str], tmp_path: Path) -> None:
    """Through seqio's own evaluation, with a model that copies the targets."""

    def predict(dataset: tf.data.Dataset, **unused: Any) -> list[tuple[int, Any]]:
        return [(int(index), row["decoder_target_tokens"].tolist()) for index, row in dataset.as_numpy_iterator()]

    evaluator = seqio.Evaluator(
        mixture_or_task_name="wiki_lingua_tr_en",
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        eval_split="validation",
        sequence_length={"inputs": 64, "targets": 64},
    )
    metrics, _ = evaluator.evaluate(
        compute_metrics=True, step=0, predict_fn=predict, score_fn=lambda *unused, **more: []
    )
    values = metrics.result()["wiki_lingua_tr_en"] if hasattr(metrics, "result") else metrics["wiki_lingua_tr_en"]
    assert values["rouge1"].value == pytest.approx(100)
    assert values["script_latin"].value == pytest.approx(100)


def test_splits_and_shards(registered: list[str]) -> None:
    source = seqio.TaskRegistry.get("xgiga_zero_shot_zh").source
    with pytest.raises(ValueError, match="Unknown split 'train'"):
        source.get_dataset("train")
    with pytest.raises(ValueError, match="has one shard"):
        source.get_dataset("test", shard_info=seqio.ShardInfo(0, 2))
    task = seqio.TaskRegistry.get("xqg_zh")
    shards = [
        task.get_dataset(sequence_length=None, split="train", shuffle=False, shard_info=seqio.ShardInfo(i, 2))
        for i in range(2)
    ]
    assert sum(len(list(shard)) for shard in shards) == 3


def test_tfds_of_gem(data_dir: Path, vocabulary: Vocabulary) -> None:
    folder = data_dir / "tensorflow_datasets"
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {"input": tfds.features.Sequence(text), "target": text, "references": tfds.features.Sequence(text), "category": text}
    )  # fmt: skip
    triples = ["Turku | country | Finland", "Turku | river | Aura_River"]
    train = [{"input": triples, "target": t, "references": [], "category": "City"} for t in ("Turku is.", "Aura is.")]
    test = [{"input": triples, "target": "Turku is.", "references": ["Turku is.", "Aura is."], "category": "City"}]
    write_tfds(folder, "gem", "web_nlg_ru", {"train": train, "test": test}, features)
    pair = {"es": text, "en": text}
    features = tfds.features.FeaturesDict(
        {
            "source": text, "target": text, "references": tfds.features.Sequence(text),
            "source_aligned": tfds.features.FeaturesDict(pair), "target_aligned": tfds.features.FeaturesDict(pair),
        }
    )  # fmt: skip
    example = {
        "source": "Lava las manzanas.", "target": "Wash the apples.", "references": ["Wash the apples."],
        "source_aligned": {"es": "Lava las manzanas.", "en": "Wash apples."},
        "target_aligned": {"es": "Lávalas.", "en": "Wash the apples."},
    }  # fmt: skip
    swapped = {**example, "source": "Wash apples."}
    write_tfds(folder, "gem", "wiki_lingua_spanish_es", {"train": [example], "test": [example, swapped]}, features)
    for path in [*data_dir.glob("webnlg/ru/*/*.xml"), *data_dir.glob("wiki_lingua/spanish/*")]:
        path.unlink()
    register_downstream(data_dir, vocabulary)
    source = "Turku | country | Finland && Turku | river | Aura River"
    assert [(e["source"], e["target"]) for e in examples("webnlg_ru", "train")] == [
        (source, "Turku is."),
        (source, "Aura is."),
    ]
    (found,) = examples("webnlg_ru", "test")
    assert (found["source"], found["references"]) == (source, ["Turku is.", "Aura is."])
    (found,) = examples("wiki_lingua_es_en", "train")
    assert (found["source"], found["target"]) == ("Lava las manzanas.", "Wash the apples.")
    # TFDS shuffles what it writes.
    message = str(error_of("wiki_lingua_es_en", "test"))
    assert re.search(r"test, example [01]: expected 'source' to be source_aligned\['es'\], found another text", message)
    assert "found: it has the splits" in str(error_of("wiki_lingua_es_en", "validation"))


def test_a_mixture_goes_on_when_its_smallest_language_is_exhausted(data_dir: Path, vocabulary: Vocabulary) -> None:
    for language in ("fr", "de", "fi", "lv", "et", "ro", "hi", "tr", "gu"):
        folder = data_dir / f"wmt10/{language}-en"
        folder.mkdir(exist_ok=True)
        for side in (language, "en"):
            lines = "".join(f"{language} {i}\n" for i in range(1 if language == "gu" else 5))
            (folder / f"train.{side}").write_text(lines, encoding="utf-8")
    register_downstream(data_dir, vocabulary)
    dataset = seqio.get_mixture_or_task("wmt10_x2en").get_dataset(
        sequence_length={"inputs": 16, "targets": 16}, split="train", num_epochs=1, shuffle=False
    )
    assert len(list(dataset)) == 4 + 8 * 5 + 1


@pytest.mark.slow
def test_a_script_that_reads_a_task_ends(data_dir: Path) -> None:
    program = (
        "import sys, seqio\nfrom tasks.downstream import register_downstream\nfrom tasks.corpora import SAMPLE_DIR\n"
        "register_downstream(sys.argv[1], SAMPLE_DIR / 'vocabulary.model')\n"
        "for example in seqio.get_mixture_or_task('xqg_zh').get_dataset(\n"
        "    sequence_length=None, split='train', num_epochs=None).take(5): print(len(example['inputs']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(data_dir)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 5


def test_prepared_examples_are_the_texts(data_dir: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """`deltalm_jax.prepare`'s own work over a mixture of these Tasks: what the training stream gives is what was read."""
    names = ["webnlg_ru", "wmt10_en_cs"]
    register_downstream(data_dir, vocabulary)
    seqio.MixtureRegistry.add("two_of_them", names, default_rate=1)
    inputs = inputs_of("two_of_them", Registration(vocabulary))
    data = prepare(inputs, vocabulary, tmp_path / "out", mixture="two_of_them", examples=ExampleSettings(64, 64)).data
    assert [(task.name, task.language, task.objective) for task in data.tasks] == [
        ("webnlg_ru", "ru", "sequence_to_sequence"),
        ("wmt10_en_cs", "en-cs", "sequence_to_sequence"),
    ]
    for number, name in enumerate(names):
        for split in ("train", "validation"):
            count = data.chunk_count(number, split)
            tokens_BL, lengths_B = data.read(split, np.full(count, number), np.arange(count))
            # A chunk is its sources and then its targets, each closed by </s>.
            found: list[tuple[str, str]] = []
            for row, length in zip(tokens_BL, lengths_B, strict=True):
                sides = [vocabulary.decode(part) for part in split_at_eos(row[:length].tolist())]
                found += zip(sides[: len(sides) // 2], sides[len(sides) // 2 :], strict=True)
            assert sorted(found) == sorted((e["source"], e["target"]) for e in examples(name, split))


def split_at_eos(ids: list[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == EOS:
            parts.append([])
        else:
            parts[-1].append(token)
    assert parts.pop() == []
    return parts
