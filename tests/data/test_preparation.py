"""Preparation against a computation of its own, and against everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import deltalm_jax
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.preparation import Input, PreparationError, Progress, prepare
from deltalm_jax.data.vocabulary import Vocabulary
from tests.support.toy_data import SAMPLE_VOCABULARY

ROOT = Path(deltalm_jax.__file__).parents[1]
BOS, EOS = 2, 3
LENGTH = 64
MIXTURE = "toy"


def read_documents(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    """Documents of a file: paragraphs are lines, a blank line ends a document; "#" begins a line to be dropped."""
    for block in path.read_text().split("\n\n"):
        lines = block.strip("\n").split("\n")
        counts["comment"] += sum(line.startswith("#") for line in lines)
        if document := [line for line in lines if line and not line.startswith("#")]:
            yield document


def read_pairs(path: Path, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Pairs (English, other) of a file of two columns."""
    for line in path.read_text().splitlines():
        english, other = line.split("\t")
        yield english, other


def read_cut_file(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    """A reader that meets damage half way, as those of compressed files do."""
    yield ["whole paragraph"]
    raise ValueError(f"{path}: the .xz data ends too early; fetch the file again")


def read_and_die(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    """Kills the process it runs in, as the system does when memory runs out."""
    yield ["a paragraph"]
    os.kill(os.getpid(), signal.SIGKILL)


def read_and_press_ctrl_c(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    """The user interrupts in the middle of reading. (Not by a signal: where tests run in the background, it is ignored.)"""
    yield ["a paragraph"]
    raise KeyboardInterrupt


def words(generator: np.random.Generator, count: int) -> str:
    table = [
        "house",
        "water",
        "and",
        "the",
        "freedom",
        "árbol",
        "Straße",
        "мир",
        "自由",
        "नमस्ते",
        "right",
        "12.5",
        "¿qué?",
    ]
    return " ".join(generator.choice(table, count))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_VOCABULARY)


@pytest.fixture
def inputs(tmp_path: Path) -> list[Input]:
    """Four tasks: documents and pairs, with and without a validation file; French has next to no text."""
    generator = np.random.default_rng(0)

    def documents(name: str, count: int) -> Path:
        text = "\n\n".join(
            "\n".join(words(generator, int(generator.integers(1, 30))) for _ in range(generator.integers(1, 5)))
            for _ in range(count)
        )
        path = tmp_path / name
        path.write_text(text + "\n# a comment\n")
        return path

    def pairs(name: str, count: int) -> Path:
        lines = [
            f"{words(generator, int(generator.integers(1, 60)))}\t{words(generator, int(generator.integers(1, 60)))}"
            for _ in range(count)
        ]
        path = tmp_path / name
        path.write_text("\n".join(lines * 2) + "\n")
        return path

    span, translation = "span_corruption", "translation_span_corruption"
    return [
        Input("toy_de", span, "de", read_documents, (documents("de", 120),)),
        Input("toy_fr", span, "fr", read_documents, (documents("fr", 1),), (documents("fr.validation", 4),)),
        Input("pairs_de", translation, "de", read_pairs, (pairs("de-en", 150),)),
        Input("pairs_sw", translation, "sw", read_pairs, (pairs("sw-en", 20),), (pairs("sw-en.validation", 5),)),
    ]


def run(inputs: list[Input], vocabulary: Vocabulary, output: Path, **changes: Any) -> PreparedData:
    settings: dict[str, Any] = dict(
        mixture=MIXTURE, chunk_length=LENGTH, validation_fraction=0.2, block_bytes=2000, blocks_per_shard=3
    )
    return prepare(inputs, vocabulary, output, **{**settings, **changes}).data


def contents(data: PreparedData, task: int, split: str) -> list[list[int]]:
    """All chunks of a split."""
    count = data.chunk_count(task, split)
    tokens_BL, lengths_B = data.read(split, np.full(count, task), np.arange(count))
    return [row[:length].tolist() for row, length in zip(tokens_BL, lengths_B, strict=True)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held_out(text: str, fraction: float) -> bool:
    return xxhash.xxh3_64(text.encode()).intdigest() / 2**64 < fraction


def blocks(items: list[Any], block_bytes: int) -> list[list[Any]]:
    """Runs of items, each closed as soon as it holds enough text."""
    out: list[list[Any]] = [[]]
    for item in items:
        out[-1].append(item)
        if sum(len(text.encode()) for texts in out[-1] for text in texts) >= block_bytes:
            out.append([])
    return [block for block in out if block]


@pytest.mark.parametrize("block_bytes", [2000, 10**9])
def test_documents_are_joined_and_cut_block_by_block(
    inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path, block_bytes: int
) -> None:
    data = run(inputs, vocabulary, tmp_path / "out", block_bytes=block_bytes)
    everything = list(read_documents(inputs[0].train[0], Counter()))
    for task, split, documents in (
        (0, "train", [d for d in everything if not held_out("\n".join(d), 0.2)]),
        (0, "validation", [d for d in everything if held_out("\n".join(d), 0.2)]),
        (1, "train", list(read_documents(inputs[1].train[0], Counter()))),
        (1, "validation", list(read_documents(inputs[1].validation[0], Counter()))),
    ):
        expected = []
        for block in blocks(documents, block_bytes):
            stream = []
            for document in block:
                stream += [BOS]
                for paragraph in document:
                    stream += [*vocabulary.encode(paragraph), EOS]
            cut = [stream[i : i + LENGTH] for i in range(0, len(stream), LENGTH)]
            expected += [chunk for chunk in cut if len(chunk) > 1]
        found = contents(data, task, split)
        assert found == expected
        counted = data.tasks[task].splits[split]
        assert counted.units == len(documents) > 0
        assert (counted.chunks, counted.tokens) == (len(expected), sum(map(len, expected)))
        assert counted.padding == LENGTH * len(expected) - counted.tokens
    assert data.tasks[0].splits["train"].dropped == {"comment": 1}
    many = len(data.tasks[0].splits["train"].shards) > 1
    assert many == (block_bytes == 2000)


def ordered_pairs(data: PreparedData) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The training pairs of the third task, sides in the order in which they stand."""
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for chunk in contents(data, 2, "train"):
        ends = [i for i, token in enumerate(chunk) if token == EOS]
        sides = [tuple(chunk[a + 1 : b]) for a, b in zip([0, *ends], ends, strict=False)]
        found.update(zip(sides[::2], sides[1::2], strict=True))
    return found


def test_pairs_are_packed_whole_and_in_both_orders(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    data = run(inputs, vocabulary, tmp_path / "out")
    side = (LENGTH - 3) // 2
    everything = list(read_pairs(inputs[2].train[0], Counter()))
    english_first = []
    for split, wanted in (("train", False), ("validation", True)):
        pairs = [pair for pair in everything if held_out(pair[0], 0.2) == wanted]
        expected = Counter((tuple(vocabulary.encode(a)[:side]), tuple(vocabulary.encode(b)[:side])) for a, b in pairs)
        found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
        for chunk in contents(data, 2, split):
            assert chunk[0] == BOS
            assert chunk[-1] == EOS
            ends = [i for i, token in enumerate(chunk) if token == EOS]
            sides = [tuple(chunk[a + 1 : b]) for a, b in zip([0, *ends], ends, strict=False)]
            for pair in zip(sides[::2], sides[1::2], strict=True):
                english_first.append(pair in expected)
                found[pair if pair in expected else pair[::-1]] += 1
        assert found == expected
        assert data.tasks[2].splits[split].units == len(pairs) > 0
    assert 0.35 < np.mean(english_first) < 0.65
    # A pair's order is its own: other blocks, other chunks, the same orders.
    whole = run(inputs, vocabulary, tmp_path / "whole", block_bytes=10**9)
    assert ordered_pairs(whole) == ordered_pairs(data)
    changed = data.manifest["tasks"]["pairs_de"]["splits"]["train"]["changed"]
    assert changed["side_truncated"] > 0


def test_each_objective_has_its_chunk_length(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    """As in two preparations of one length each: same bytes, and both lengths in the manifest."""
    lengths = {"translation_span_corruption": 40, "span_corruption": 56}
    data = run(inputs, vocabulary, tmp_path / "both", chunk_length=lengths)
    assert data.chunk_lengths == data.manifest["chunk_lengths"] == lengths
    found = files_of(tmp_path / "both")
    for part, length in ((inputs[:2], 56), (inputs[2:], 40)):
        alone = run(part, vocabulary, tmp_path / str(length), chunk_length=length)
        assert list(alone.chunk_lengths.values()) == [length]
        for name, content in files_of(tmp_path / str(length)).items():
            assert name == "manifest.json" or found[name] == content
    assert max(map(len, contents(data, 0, "train"))) == 56
    assert 35 < max(map(len, contents(data, 2, "train"))) <= 40
    padding = data.tasks[2].splits["train"].padding
    assert padding == sum(40 - len(chunk) for chunk in contents(data, 2, "train"))


def test_held_out_texts_are_in_one_split_only(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Copies of a pair (each stands twice in the toy file) and other translations of its English side stay together."""
    first = list(read_pairs(inputs[2].train[0], Counter()))
    other = tmp_path / "other"
    other.write_text("".join(f"{english}\tanother {i}\n" for i, (english, _) in enumerate(first)))
    both = [inputs[2], Input("pairs_xh", "translation_span_corruption", "xh", read_pairs, (other,))]
    data = run(both, vocabulary, tmp_path / "out", chunk_length=512)
    encoded = {tuple(vocabulary.encode(english)): english for english, _ in first}
    seen: dict[str, set[str]] = {"train": set(), "validation": set()}
    for split, sides in seen.items():
        for task in (0, 1):
            for chunk in contents(data, task, split):
                ends = [i for i, token in enumerate(chunk) if token == EOS]
                parts = [tuple(chunk[a + 1 : b]) for a, b in zip([0, *ends], ends, strict=False)]
                sides.update(encoded[part] for part in parts if part in encoded)
    assert seen["train"]
    assert seen["validation"]
    assert not seen["train"] & seen["validation"]


def test_manifest_and_folder(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    progress: list[Progress] = []
    data = run(inputs[:2], vocabulary, tmp_path / "out", validation_fraction=0.0, on_progress=progress.append)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["without_validation"] == ["toy_de"]
    assert manifest["vocabulary"]["fingerprint"] == vocabulary.fingerprint
    assert manifest["tasks"]["toy_fr"]["inputs"]["validation"] == [
        {
            "files": [["fr.validation", inputs[1].validation[0].stat().st_size]],
            "xxh3": xxhash.xxh3_128(inputs[1].validation[0].read_bytes()).hexdigest(),
        }
    ]
    assert (tmp_path / "out" / "vocabulary.model").read_bytes() == SAMPLE_VOCABULARY.read_bytes()
    names = {name.split("/")[0] for name in files_of(tmp_path / "out")}
    assert names == {"manifest.json", "vocabulary.model", "toy_de", "toy_fr"}
    assert data.tasks[0].splits["train"].shards[1].file.startswith("toy_de/train-00000-00001.")
    assert data.verify() == len(files_of(tmp_path / "out")) - 1
    assert data.chunk_count(0, "validation") == 0
    assert not (tmp_path / "out.partial").exists()
    shards = sum(len(split.shards) for task in data.tasks for split in task.splits.values())
    assert progress[-1] == Progress(3, 3, shards)


def test_bytes_do_not_depend_on_workers_or_runner(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    run(inputs, vocabulary, tmp_path / "one")
    run(inputs, vocabulary, tmp_path / "two", num_workers=2)
    run(inputs, vocabulary, tmp_path / "other", runner="BundleBasedDirectRunner")
    expected = files_of(tmp_path / "one")
    assert len(expected) > 10
    assert files_of(tmp_path / "two") == expected
    assert files_of(tmp_path / "other") == expected


def test_many_files_are_read_in_parts(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Small files are read as if they were one; a part ends with a file, and blocks and shards with a part."""
    files = []
    for number in range(9):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text("".join(f"File {number} says {i} things.\n\n" for i in range(20)))
    (tmp_path / "all.txt").write_text("".join(path.read_text() for path in files))

    def tokens(*train: Path, workers: int = 1, **options: int) -> tuple[bytes, list[Any]]:
        source = Input("toy_en", "span_corruption", "en", read_documents, train, **options)
        output = tmp_path / f"out-{train[0].name}-{len(train)}-{workers}-{source.parts('train')}"
        data = run([source], vocabulary, output, validation_fraction=0.0, num_workers=workers, block_bytes=1 << 20)
        ids = [data.read("train", np.array([0]), np.array([i]))[0] for i in range(data.chunk_count(0, "train"))]
        return np.concatenate(ids, axis=None).tobytes(), data.manifest["tasks"]["toy_en"]["inputs"]["train"]

    together, entries = tokens(*files)
    assert len(entries) == 1
    assert [name for name, _ in entries[0]["files"]] == [path.name for path in files]
    assert together == tokens(tmp_path / "all.txt")[0]

    part_bytes = 3 * files[0].stat().st_size
    divided, entries = tokens(*files, part_bytes=part_bytes)
    assert [len(entry["files"]) for entry in entries] == [3, 3, 3]
    assert divided == tokens(*files, workers=2, part_bytes=part_bytes)[0]
    for run_of_files in (files[:3], files[3:6], files[6:]):
        assert tokens(*run_of_files)[0].rstrip(b"\0") in divided


def test_the_same_again_does_nothing_and_another_is_refused(
    inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    output, inputs = tmp_path / "out", inputs[1:2]
    settings: dict[str, Any] = dict(mixture=MIXTURE, chunk_length=LENGTH, validation_fraction=0.2)
    assert prepare(inputs, vocabulary, output, **settings).made
    before = (output / "manifest.json").stat().st_mtime_ns
    assert not prepare(inputs, vocabulary, output, **settings).made
    assert (output / "manifest.json").stat().st_mtime_ns == before

    for change, message in (
        ({"chunk_length": 32}, "chunk_length of span_corruption: 64 there, 32 asked for"),
        ({"chunk_length": {"span_corruption": 65}}, "chunk_length of span_corruption: 64 there, 65 asked for"),
        ({"mixture": "other"}, "mixture: toy there, other asked for"),
        ({"validation_fraction": 0.3}, "validation_fraction: 0.2 there, 0.3 asked for"),
    ):
        with pytest.raises(PreparationError, match=message):
            prepare(inputs, vocabulary, output, **{**settings, **change})
    with pytest.raises(PreparationError, match=r"vocabulary: \w+ there, \w+ asked for"):
        prepare(inputs, Vocabulary.load(SAMPLE_VOCABULARY, num_sentinels=50), output, **settings)
    more = Input("toy_de", "span_corruption", "de", read_documents, (tmp_path / "de",))
    with pytest.raises(PreparationError, match="toy_de train text: nothing there, de of"):
        prepare([more, *inputs], vocabulary, output, **settings)

    text = inputs[0].train[0].read_text()
    inputs[0].train[0].write_text(text.replace("e", "a", 1))
    with pytest.raises(PreparationError, match=r"toy_fr train text: other content in .*--overwrite"):
        prepare(inputs, vocabulary, output, **settings)
    assert prepare(inputs, vocabulary, output, **settings, overwrite=True).made
    assert not prepare(inputs, vocabulary, output, **settings).made
    assert not (tmp_path / "out.replaced").exists()


def test_a_damaged_output_is_refused_and_can_be_replaced(
    inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    data = run(inputs[1:2], vocabulary, tmp_path / "out")
    shard = tmp_path / "out" / data.tasks[0].splits["train"].shards[0].file
    shard.unlink()
    with pytest.raises(PreparationError, match=r"not whole: .*train-00000-00000\.array_record"):
        run(inputs[1:2], vocabulary, tmp_path / "out")
    run(inputs[1:2], vocabulary, tmp_path / "out", overwrite=True).verify()
    assert shard.is_file()


def test_a_foreign_folder_is_never_touched(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(PreparationError, match="exists and is no prepared data"):
            run(inputs[1:2], vocabulary, tmp_path / "thesis", overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_in_a_file_is_one_line_and_leaves_no_output(
    inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path, workers: int
) -> None:
    cut = tmp_path / "xx.txt.xz"
    cut.write_text("…")
    with pytest.raises(PreparationError) as caught:
        run(
            [Input("toy_xx", "span_corruption", "xx", read_cut_file, (cut,))],
            vocabulary,
            tmp_path / "out",
            num_workers=workers,
        )
    assert str(caught.value) == f"task toy_xx: {cut}: the .xz data ends too early; fetch the file again"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_worker_that_dies_ends_the_run(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    dying = Input("toy_xx", "span_corruption", "xx", read_and_die, inputs[0].train)
    with pytest.raises(PreparationError, match=r"worker process ended .*--num_workers"):
        run([inputs[0], dying], vocabulary, tmp_path / "out", num_workers=2)
    assert not (tmp_path / "out").exists()


def test_missing_and_empty_files_are_all_named_before_the_work(
    inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    inputs[0].train[0].unlink()
    inputs[3].validation[0].write_text("")
    with pytest.raises(PreparationError) as caught:
        run(inputs, vocabulary, tmp_path / "out")
    assert f"toy_de (train): {inputs[0].train[0]} is missing" in str(caught.value)
    assert f"pairs_sw (validation): {inputs[3].validation[0]} is empty" in str(caught.value)


def test_a_language_without_text_is_refused(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    inputs[0].train[0].write_text("# nothing\n\n# but comments\n")
    with pytest.raises(PreparationError, match=r"no training text for toy_de \(.*dropped: comment: 2\)"):
        run(inputs[:2], vocabulary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_be(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    for change, message in (
        ({"chunk_length": 4}, "chunk_length of translation_span_corruption must be at least 5, found 4"),
        ({"chunk_length": 1}, "chunk_length of span_corruption must be at least 2, found 1"),
        ({"chunk_length": {"span_corruption": 64}}, "chunk_length says nothing of translation_span_corruption"),
        ({"validation_fraction": 1.0}, r"validation_fraction must lie in \[0, 1\), found 1\.0"),
        ({"blocks_per_shard": 0}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            run(inputs, vocabulary, tmp_path / "out", **change)
    with pytest.raises(ValueError, match="task toy_de is given 2 times"):
        run([inputs[0], inputs[0]], vocabulary, tmp_path / "out")
    with pytest.raises(ValueError, match="no tasks to prepare"):
        run([], vocabulary, tmp_path / "out")
    with pytest.raises(ValueError, match=r"'\.\./x': its name must be usable"):
        run([Input("../x", "span_corruption", "x", read_documents, inputs[0].train)], vocabulary, tmp_path / "out")
    with pytest.raises(ValueError, match="task x: unknown objective 'spam'"):
        Input("x", "spam", "x", read_documents, inputs[0].train)


def test_an_interruption_is_one_and_leaves_nothing(inputs: list[Input], vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Beam would make another error of it."""
    source = Input("toy_xx", "span_corruption", "xx", read_and_press_ctrl_c, inputs[0].train)
    with pytest.raises(KeyboardInterrupt):
        run([source], vocabulary, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


SLOW_RUN = """
import pathlib, sys, time
from deltalm_jax.data.preparation import Input, prepare
from deltalm_jax.data.vocabulary import Vocabulary

folder = pathlib.Path(sys.argv[1])

def read_slowly(path, counts):
    for line in path.read_text().splitlines():
        yield [line]
        (folder / "reading").touch()
        time.sleep(0.3)

source = Input("toy_de", "span_corruption", "de", read_slowly, (folder / "text",))
prepare([source], Vocabulary.load(sys.argv[2]), folder / "out", mixture="toy", chunk_length=64, block_bytes=10)
"""


def read_lines(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    """The reader of `SLOW_RUN`, without the waiting."""
    for line in path.read_text().splitlines():
        yield [line]


def test_killed_in_the_middle(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """kill -9 leaves no finished folder; a second run meanwhile is refused; a run afterwards starts over."""
    (tmp_path / "text").write_text("".join(f"paragraph number {i}\n" for i in range(100)))
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(tmp_path), str(SAMPLE_VOCABULARY)], cwd=ROOT)
    source = Input("toy_de", "span_corruption", "de", read_lines, (tmp_path / "text",))
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "reading").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(PreparationError, match=f"process {process.pid} is preparing this folder"):
            run([source], vocabulary, tmp_path / "out", block_bytes=10)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out").exists()
    assert any((tmp_path / "out.partial").rglob("*.json"))
    run([source], vocabulary, tmp_path / "out", block_bytes=10).verify()
    run([source], vocabulary, tmp_path / "undisturbed", block_bytes=10)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")
    assert not (tmp_path / "out.partial").exists()


def test_a_chunk_reads_as_its_text(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """The bytes in the shard are the ids, three bytes each, of the text with its specials."""
    (tmp_path / "text").write_text("The house.\n\nThe right to freedom.\nAll of it.\n")
    source = Input("toy_en", "span_corruption", "en", read_documents, (tmp_path / "text",))
    data = run([source], vocabulary, tmp_path / "out", validation_fraction=0.0)
    [chunk] = contents(data, 0, "train")
    assert vocabulary.decode(chunk) == "<s> The house.</s><s> The right to freedom.</s> All of it.</s>"
    record = b"".join(token.to_bytes(3, "little") for token in chunk)
    assert record in (tmp_path / "out" / data.tasks[0].splits["train"].shards[0].file).read_bytes()
    assert hashlib.sha256(SAMPLE_VOCABULARY.read_bytes()).hexdigest() == data.manifest["vocabulary"]["sha256"]
