"""Examples of one's own, from the rows of a file to the batches of a training run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import seqio

import tasks
from deltalm_jax.data.blocks import ExampleSettings
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.mixture import Registration, inputs_of
from deltalm_jax.data.preparation import prepare
from deltalm_jax.data.readers import read_examples
from deltalm_jax.data.stream import Objective, Stream
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.objectives import SequenceToSequence
from tasks.corpora import SAMPLE_DIR, CorpusError, find_files

EOS = 3
ROWS = [
    (f"Satz {number} hat Nummer {number * 7}.", f"Sentence {number} has number {number * 7}.") for number in range(30)
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_DIR / "vocabulary.model")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "examples"
    (folder / "validation").mkdir(parents=True)
    (folder / "de-en.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in ROWS[:24]))
    (folder / "validation" / "de-en.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in ROWS[24:]))
    yield folder.parent
    tasks.register()


def prepared(data_dir: Path, vocabulary: Vocabulary, **settings) -> PreparedData:
    registration = Registration(vocabulary, {"data_dir": data_dir})
    registration.register()
    inputs = inputs_of("deltalm_sequence_to_sequence", registration)
    examples = ExampleSettings(**{"source_length": 64, "target_length": 48, **settings})
    output = data_dir / "prepared"
    return prepare(inputs, vocabulary, output, mixture="deltalm_sequence_to_sequence", examples=examples).data


def texts(row: np.ndarray, vocabulary: Vocabulary) -> list[str]:
    real = row[: np.count_nonzero(row)]
    ends = np.flatnonzero(real == EOS)
    return [vocabulary.decode(part[:-1].tolist()) for part in np.split(real, ends[:-1] + 1)]


@pytest.mark.parametrize("packing", [True, False])
def test_a_stream_gives_every_example_with_its_prefix(data_dir: Path, vocabulary: Vocabulary, packing: bool):
    data = prepared(data_dir, vocabulary, packing=packing, source_prefix="to {target}: ")
    (task,) = data.tasks
    assert (task.name, task.language, task.objective) == ("examples_de_en", "de-en", "sequence_to_sequence")
    assert (task.splits["train"].units, task.splits["validation"].units) == (24, 6)
    assert (task.chunks("train") == 24) is not packing
    size = task.chunks("train")
    stream = Stream(data, {"sequence_to_sequence": Objective(SequenceToSequence(64, 48), size, 1.0)}, seed=0)
    batch = stream.batch(0)["sequence_to_sequence"]
    assert batch["inputs"].shape == (size, 64)
    assert batch["targets"].shape == (size, 48)
    found = Counter()
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
        found.update(zip(texts(inputs, vocabulary), texts(targets, vocabulary), strict=True))
    assert found == Counter((f"to en: {source}", target) for source, target in ROWS[:24])
    held_out = stream.validation_batch("sequence_to_sequence", 0)
    shown = [text for row in held_out["targets"] if row.any() for text in texts(row, vocabulary)]
    assert sorted(shown) == sorted(target for _, target in ROWS[24:])


def test_settings_are_on_record_and_long_examples_counted(data_dir: Path, vocabulary: Vocabulary):
    long = " ".join(["word"] * 100)
    with (data_dir / "examples" / "de-en.tsv").open("a") as file:
        file.write(f"{long}\tshort\nkurz\t{long}\nnur eine Spalte\n\tleer\n")
    data = prepared(data_dir, vocabulary)
    assert data.manifest["settings"]["examples"] == {
        "source_length": 64, "target_length": 48, "packing": True, "source_prefix": "",
    }  # fmt: skip
    split = data.manifest["tasks"]["examples_de_en"]["splits"]["train"]
    assert split["examples"] == 25
    assert split["dropped"] == {"columns": 1, "empty": 1, "long_target": 1}
    assert split["changed"] == {"source_truncated": 1}


def test_through_seqio_they_are_one_example_each(data_dir: Path, vocabulary: Vocabulary):
    prepared(data_dir, vocabulary)
    task = seqio.TaskRegistry.get("examples_de_en")
    lengths = {"inputs": 64, "targets": 48}
    found = list(task.get_dataset(lengths, "validation", shuffle=False).as_numpy_iterator())
    for example, (source, target) in zip(found, ROWS[24:], strict=True):
        assert example["inputs"].tolist() == [*vocabulary.encode(source), EOS]
        assert example["targets"].tolist() == [*vocabulary.encode(target), EOS]
    (first, *_) = task.get_dataset({"inputs": 4, "targets": 48}, "validation", shuffle=False).as_numpy_iterator()
    assert first["inputs"].tolist() == [*vocabulary.encode(ROWS[24][0])[:3], EOS], "</s> is never what is cut off"


def test_a_file_is_read_row_by_row(tmp_path: Path):
    path = tmp_path / "x.tsv"
    path.write_bytes("\ufeffa\tb\r\nc\td\t0.9\n\n\xff\n".encode("utf-8", "surrogatepass").replace(b"\xc3\xbf", b"\xff"))
    counts = Counter[str]()
    assert list(read_examples(path, counts)) == [("a", "b"), ("c", "d")]
    assert counts == {"empty": 1, "invalid_utf8": 1}


def test_names_that_no_task_can_have_are_refused(data_dir: Path):
    (data_dir / "examples" / "my file.tsv").write_text("a\tb\n")
    with pytest.raises(CorpusError, match=r"my file.tsv: expected a name of letters"):
        find_files(data_dir, "examples")
