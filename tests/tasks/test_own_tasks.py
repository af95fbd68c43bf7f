"""Tasks over any seqio source: what is prepared of them, what a client of seqio gets, and each mistake's one message."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqio
import tensorflow as tf
import xxhash

import tasks
from deltalm_jax import prepare
from deltalm_jax.data.blocks import TextSource
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.mixture import MixtureError, Registration, inputs_of
from deltalm_jax.data.preparation import PreparationError
from deltalm_jax.data.preparation import prepare as prepare_inputs
from deltalm_jax.data.vocabulary import Vocabulary
from tasks.corpora import SAMPLE_DIR, CorpusError
from tasks.text import TextTask, to_item
from tests.support import runs
from tests.support.toy_data import write_toy_data

MODEL = SAMPLE_DIR / "vocabulary.model"
DOCUMENTS = [f"First paragraph of {i}.\nSecond one, {i * i}." for i in range(40)]
PAIRS = [(f"Hare number {i} runs.", f"Sungura {i} anakimbia.") for i in range(40)]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(MODEL)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    kept = {registry: set(registry.names()) for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)}
    yield
    tasks.register()
    for registry, names in kept.items():
        for name in set(registry.names()) - names:
            registry.remove(name)


def source(**splits: Rows) -> seqio.FunctionDataSource:
    """A seqio source over rows in memory."""

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        rows = splits[split]
        return tf.data.Dataset.from_tensor_slices({name: [row[name] for row in rows] for name in rows[0]})

    return seqio.FunctionDataSource(dataset, splits=tuple(splits))


def documents(texts: list[str]) -> Rows:
    return [{"text": text, "id": i} for i, text in enumerate(texts)]


def pairs(sides: list[tuple[str, str]]) -> Rows:
    return [{"english": english, "other": other} for english, other in sides]


def add(name: str, its_source: seqio.DataSource, objective: str = "span_corruption", **more: Any) -> TextTask:
    return tasks.add_task(
        name, its_source, **{"objective": objective, "language": "sw", "vocabulary": MODEL, **more}
    )  # fmt: skip


def run(vocabulary: Vocabulary, folder: Path, mixture: str, **more: Any) -> PreparedData:
    inputs = inputs_of(mixture, Registration(vocabulary))
    settings = dict(mixture=mixture, chunk_length=64, validation_fraction=0.2)
    return prepare_inputs(inputs, vocabulary, folder, **{**settings, **more}).data


def texts(data: PreparedData, vocabulary: Vocabulary, task: int, split: str) -> list[str]:
    """The documents or pairs of a split: joined chunks, decoded, and cut at their beginnings."""
    count = data.chunk_count(task, split)
    tokens_BL, lengths_B = data.read(split, np.full(count, task), np.arange(count))
    ids = [token for row, length in zip(tokens_BL, lengths_B, strict=True) for token in row[:length].tolist()]
    return [part.strip() for part in vocabulary.decode(ids).split("<s>") if part]


def as_written(document: str) -> str:
    """How the sample's vocabulary shows a document of two paragraphs."""
    return "</s> ".join(document.split("\n")) + "</s>"


def held_out(text: str, fraction: float = 0.2) -> bool:
    return xxhash.xxh3_64(text.encode()).intdigest() / 2**64 < fraction


def test_documents_without_a_validation_split_are_held_out_by_hash(vocabulary: Vocabulary, tmp_path: Path) -> None:
    add("own_documents", source(train=documents(DOCUMENTS)))
    data = run(vocabulary, tmp_path / "out", "own_documents")
    for split, wanted in (("train", False), ("validation", True)):
        expected = [as_written(d) for d in DOCUMENTS if held_out(d) == wanted]
        assert texts(data, vocabulary, 0, split) == expected
        assert len(expected) == data.tasks[0].splits[split].units > 3
    assert data.tasks[0].groups == {"script": "Latn", "resource_level": "medium"}
    assert (data.tasks[0].language, data.tasks[0].objective) == ("sw", "span_corruption")


def test_a_validation_split_is_used_as_it_is(vocabulary: Vocabulary, tmp_path: Path) -> None:
    add("own_documents", source(train=documents(DOCUMENTS[:30]), validation=documents(DOCUMENTS[30:])))
    data = run(vocabulary, tmp_path / "out", "own_documents")
    assert texts(data, vocabulary, 0, "train") == [as_written(d) for d in DOCUMENTS[:30]]
    assert texts(data, vocabulary, 0, "validation") == [as_written(d) for d in DOCUMENTS[30:]]


def test_pairs_and_what_is_left_out(vocabulary: Vocabulary, tmp_path: Path) -> None:
    broken = pairs([("", "nothing"), (" \t", "blank"), ("long", "x" * (2 << 20))])
    broken += [{"english": b"caf\xe9", "other": "not UTF-8"}]
    clean = pairs([(f" {english}\r", f"\x01{other}") for english, other in PAIRS])
    add(
        "own_pairs",
        source(train=clean + broken),
        "translation_span_corruption",
        language="gsw",
        groups={"script": "Latn"},
    )
    data = run(vocabulary, tmp_path / "out", "own_pairs", validation_fraction=0.0)
    found = [side for chunk in texts(data, vocabulary, 0, "train") for side in chunk.split("</s>")]
    sides = [side.strip() for side in found if side]
    assert sorted(sorted(pair) for pair in zip(sides[::2], sides[1::2], strict=True)) == sorted(map(sorted, PAIRS))
    assert data.tasks[0].splits["train"].dropped == {"empty": 2, "invalid_utf8": 1, "long_line": 1}
    assert data.tasks[0].groups == {"script": "Latn"}


def test_files_of_several_shards_are_read_in_order_and_seeded_steps_alike(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for i in range(3):
        (tmp_path / f"part-{i}.txt").write_text("".join(f"Line {i} {j}.\n" for j in range(50)))

    @seqio.map_over_dataset(num_seeds=1)
    def with_a_draw(line: tf.Tensor, seed: Any) -> dict[str, tf.Tensor]:
        drawn = tf.random.stateless_uniform([], seed, 0, 1000, tf.int32)
        return {"text": tf.strings.join([line, " ", tf.strings.as_string(drawn)])}

    lines = seqio.TextLineDataSource({"train": str(tmp_path / "part-*.txt")})
    add("own_lines", lines, preprocessors=[with_a_draw])
    one, two = (run(vocabulary, tmp_path / name, "own_lines", validation_fraction=0.0) for name in ("one", "two"))
    assert one.manifest == two.manifest
    found = texts(one, vocabulary, 0, "train")
    assert len(found) == 150
    assert {text.rsplit(" ", 1)[0] for text in found} == {f"Line {i} {j}." for i in range(3) for j in range(50)}
    assert len({text.rsplit(" ", 1)[1] for text in found}) > 50


def test_the_same_texts_are_prepared_once(vocabulary: Vocabulary, tmp_path: Path) -> None:
    def again(texts_: list[str], **more: Any) -> None:
        if "own" in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove("own")
        add("own", source(train=documents(texts_)), **more)
        run(vocabulary, tmp_path / "out", "own")

    again(DOCUMENTS)
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    again(DOCUMENTS)
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    for other in (DOCUMENTS[::-1], [*DOCUMENTS[:-1], "Another text."]):
        with pytest.raises(PreparationError, match="own train text: other content in seqio task own, split train"):
            again(other)
    with pytest.raises(PreparationError, match="own language: sw there, so asked for"):
        again(DOCUMENTS, language="so", groups={"script": "Latn", "resource_level": "medium"})
    with pytest.raises(PreparationError, match="own groups: .* there, {} asked for"):
        again(DOCUMENTS, groups={})


def test_a_client_of_seqio_gets_inputs_and_targets(vocabulary: Vocabulary) -> None:
    text = " First.\t\n\n\nSecond, and much longer than a chunk of these few tokens may be. "
    add("own_documents", source(train=documents([text])), chunk_length=12)
    task = seqio.get_mixture_or_task("own_documents")
    chunks: list[list[int]] = []
    for example in task.get_dataset(None, "train", shuffle=False).as_numpy_iterator():
        spans: dict[int, list[int]] = {}
        for token in example["targets"].tolist():
            if token >= vocabulary.sentinel_start:
                spans[token] = current = []
            else:
                current.append(token)
        chunks.append([t for token in example["inputs"].tolist() for t in spans.get(token, [token])])
    assert {len(chunk) for chunk in chunks[:-1]} == {12}
    expected = "<s> First.</s> Second, and much longer than a chunk of these few tokens may be.</s>"
    assert vocabulary.decode([token for chunk in chunks for token in chunk]) == expected


def test_mixed_with_the_samples_tasks_and_left_alone_by_register(vocabulary: Vocabulary) -> None:
    add("own_documents", source(train=documents(DOCUMENTS)))
    seqio.MixtureRegistry.add("own_mixture", ["own_documents", "cc100_sw"], default_rate=1)
    inputs: list[TextSource] = inputs_of("own_mixture", Registration(vocabulary))
    assert [(i.task, i.splits) for i in inputs] == [
        ("cc100_sw", ("train", "validation")),
        ("own_documents", ("train",)),
    ]
    tasks.register(languages=["de"])
    assert {"own_documents", "cc100_de"} <= set(seqio.TaskRegistry.names())
    assert "own_mixture" in seqio.MixtureRegistry.names()


def test_a_module_that_registers_other_corpora_is_refused(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Else --data_dir would be passed over in silence."""
    (tmp_path / "cc100").mkdir()
    (tmp_path / "cc100" / "sw.txt").write_text("Hapo zamani.\n")
    tasks.register(tmp_path, vocabulary)
    (source_,) = inputs_of("cc100_sw", Registration(vocabulary, {"data_dir": str(tmp_path)}))
    assert source_.where("train") == str(tmp_path / "cc100" / "sw.txt")
    for options in ({}, {"data_dir": str(tmp_path / "cc100" / "other")}):
        with pytest.raises(
            MixtureError, match=r"task cc100_sw reads .*sw\.txt, which is not in .*mine registers another"
        ):
            inputs_of("cc100_sw", Registration(vocabulary, options, "mine"))


WORKER = """
import pickle, sys, xxhash
from collections import Counter
source, digest = pickle.load(open("source.pickle", "rb")), xxhash.xxh3_128()
before = "seqio" in sys.modules
print(before, list(source.read("train", 0, Counter(), digest)), digest.hexdigest() == source.digest("train", 0))
"""


def test_a_worker_process_registers_the_task_by_itself(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module's mixture holds a task of the corpora's folder, so that has to be registered there too."""
    (tmp_path / "corpora" / "cc100").mkdir(parents=True)
    (tmp_path / "corpora" / "cc100" / "xx.txt").write_text("A language of its own.\n")
    (tmp_path / "lines.txt").write_text("One.\nTwo.\n")
    (tmp_path / "mine_in_worker.py").write_text(
        "import seqio, tasks\n"
        "tasks.add_task('lines', seqio.TextLineDataSource({'train': 'lines.txt'}), objective='span_corruption',\n"
        "               language='xx', preprocessors=[lambda lines: lines.map(lambda line: {'text': line})],\n"
        "               vocabulary='sample')\n"
        "seqio.MixtureRegistry.add('lines_and_xx', ['lines', 'cc100_xx'], default_rate=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    registration = Registration(vocabulary, {"data_dir": "corpora"}, "mine_in_worker")
    registration.register()
    files, own = inputs_of("lines_and_xx", registration)
    assert (files.task, own.task) == ("cc100_xx", "lines")
    (tmp_path / "source.pickle").write_bytes(pickle.dumps(own))
    env = os.environ | {"PYTHONPATH": str(runs.ROOT)}
    done = subprocess.run([sys.executable, "-c", WORKER], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False [['One.'], ['Two.']] True", done.stderr


def failing(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
    def rows() -> Iterator[str]:
        yield "a text"
        raise RuntimeError("the download broke off")

    return tf.data.Dataset.from_generator(rows, output_signature=tf.TensorSpec([], tf.string)).map(
        lambda text: {"text": text}
    )


@pytest.mark.parametrize(
    ("register", "error", "message"),
    [
        (
            lambda: add("own", source(train=[{"inputs": "a", "targets": "b"}])),
            CorpusError,
            "task own: expected examples of documents with 'text' .* found 'inputs' .*, 'targets' .*have to give text",
        ),
        (
            lambda: add("own", source(train=documents(["a"])), "translation_span_corruption"),
            CorpusError,
            "expected examples of pairs with 'english' .*, 'other' .* found 'text'",
        ),
        (lambda: add("own", source(train=[{"text": 3}])), CorpusError, r"'text' \(<dtype: 'int32'> \[\]\)"),
        (lambda: add("own", source(train=[{"text": ["a", "b"]}])), CorpusError, r"found 'text' .*\[2\]"),
        (
            lambda: add("own", source(test=documents(["a"]))),
            CorpusError,
            "task own: expected its source to have the split 'train', found test",
        ),
        (
            lambda: add("own", seqio.TextLineDataSource({"train": "/nowhere/*.txt"})),
            CorpusError,
            "task own: its split 'train' cannot be read: .*/nowhere",
        ),
        (
            lambda: add("own", source(train=documents(["a"])), vocabulary=Vocabulary.load(MODEL, num_sentinels=50)),
            MixtureError,
            "task own is registered with another vocabulary .*50 sentinels.*100 sentinels.*--vocabulary here",
        ),
        (
            lambda: seqio.TaskRegistry.add(
                "own",
                source=source(train=[{"inputs": [4], "targets": [5]}]),
                output_features=dict.fromkeys(("inputs", "targets"), seqio.Feature(seqio.PassThroughVocabulary(8))),
            ),
            MixtureError,
            "task own, over FunctionDataSource, is a plain seqio Task, which gives inputs and targets.*tasks.add_task",
        ),
        (
            lambda: add("own", source(train=documents(["", " \n "]))),
            PreparationError,
            r"no training text for own \(seqio task own, split train; dropped: empty: 2\)",
        ),
        (
            lambda: add("own", seqio.FunctionDataSource(failing, splits=("train",))),
            PreparationError,
            "^task own: reading the split 'train' failed: .*the download broke off$",
        ),
    ],
)  # fmt: skip
def test_mistakes(
    vocabulary: Vocabulary, tmp_path: Path, register: Callable[[], Any], error: type[Exception], message: str
) -> None:
    register()
    with pytest.raises(error, match=message):
        run(vocabulary, tmp_path / "out", "own")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_objective() -> None:
    with pytest.raises(ValueError, match=r"task own: unknown objective 'spam'; known: span_corruption"):
        add("own", source(train=documents(["a"])), "spam")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine_absent", None, "task module 'mine_absent': there is no module 'mine_absent' in /"),
        (
            "mine_failing",
            "import tasks\n\n\nprint(undefined)\n",
            r"NameError: name 'undefined' .*mine_failing\.py, line 4\)",
        ),
        (
            "mine_needing",
            "import no_such_package\n",
            r"ModuleNotFoundError: No module named 'no_such_package' .*line 1\)",
        ),
        ("mine_broken", "def broken(:\n", "task module 'mine_broken' fails: SyntaxError"),
        (
            "mine_twice",
            "import seqio\nimport tasks\n\nfor source in [seqio.TextLineDataSource({'train': 'x'})] * 2:\n    tasks.add_task("
            "'twice', source, objective='span_corruption', language='de', vocabulary='sample', preprocessors=[])\n",
            r"task module 'mine_twice' fails: ValueError: .*duplicate.* twice .*mine_twice\.py, line 5\)",
        ),
    ],
)
def test_a_module_that_cannot_be_imported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    text: str | None,
    message: str,
) -> None:
    """The working directory is searched although it is not on Python's path, as in a console script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    assert prepare.main([f"--task_module={name}", "--mixture=x", "--output=out"]) == 2
    printed = capfd.readouterr().err.strip().splitlines()
    assert re.search(message, printed[-1]), printed
    assert printed[-1].startswith("error: ")
    assert not any("Traceback" in line for line in printed)


def test_texts_are_cleaned_by_the_rules_of_files() -> None:
    counts: Counter[str] = Counter()
    assert to_item([b" a\tb \n\n\x07\nc\r"], "documents", counts) == ["a b", "c"]
    assert counts == {}
    assert to_item([b"\n \n"], "documents", counts) is None
    assert to_item([b"x" * ((1 << 20) + 1) + b"\nrest"], "documents", counts) == ["rest"]
    assert to_item([b"a", b"\xff"], "pairs", counts) is None
    assert counts == {"empty": 1, "long_line": 1, "invalid_utf8": 1}


def test_groups_of_languages_are_kept_and_may_be_absent(tmp_path: Path) -> None:
    """Prepared data of earlier versions have none."""
    toy = {"cc100_a": ("span_corruption", 3, 1), "cc100_b": ("span_corruption", 3, 1)}
    data = write_toy_data(tmp_path / "data", toy, groups={"cc100_b": {"script": "Latn", "resource_level": "low"}})
    assert [task.groups for task in data.tasks] == [{}, {"script": "Latn", "resource_level": "low"}]
