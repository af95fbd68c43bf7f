"""Prepared data on disk: the three-byte code, reading against what was written, and every way it can be damaged."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_jax.data import chunks as chunks_module
from deltalm_jax.data.chunks import PreparedData, PreparedDataError, write_manifest
from deltalm_jax.data.shards import MAX_ID, decode_records, digest_file, encode_record, write_shard

LENGTH, VOCABULARY = 16, 500
LENGTHS = {"span_corruption": LENGTH, "translation_span_corruption": 20}
Chunk = list[int]
# task -> split -> shards -> chunks
Contents = dict[str, dict[str, list[list[Chunk]]]]


def objective_of(name: str) -> str:
    return "translation_span_corruption" if name.startswith("ccaligned") else "span_corruption"


def make(folder: Path, contents: Contents) -> Path:
    """Writes a prepared folder with the given chunks."""
    folder.mkdir(parents=True)
    model = b"stands for a SentencePiece model"
    (folder / "vocabulary.model").write_bytes(model)
    tasks = {}
    for name, splits in contents.items():
        entries = {}
        for split, shards in splits.items():
            written = [
                write_shard(folder, f"{name}/{split}-{i}.array_record", (encode_record(np.array(c)) for c in shard))
                for i, shard in enumerate(shards)
            ]
            flat = [chunk for shard in shards for chunk in shard]
            tokens = sum(map(len, flat))
            entries[split] = {
                "documents": 1,
                "tokens": tokens,
                "chunks": len(flat),
                "padding": LENGTHS[objective_of(name)] * len(flat) - tokens,
                "dropped": {},
                "shards": [asdict(shard) for shard in written],
            }
        tasks[name] = {"objective": objective_of(name), "language": name[-2:], "splits": entries}
    vocabulary = {"size": VOCABULARY, "sha256": hashlib.sha256(model).hexdigest()}
    write_manifest(folder, {"mixture": "m", "chunk_lengths": LENGTHS, "vocabulary": vocabulary, "tasks": tasks})
    return folder


def random_contents(seed: int = 0) -> Contents:
    generator = np.random.default_rng(seed)

    def shard(count: int) -> list[Chunk]:
        lengths = generator.integers(1, LENGTH + 1, count)
        return [generator.integers(1, VOCABULARY, n).tolist() for n in lengths]

    return {
        "cc100_de": {"train": [shard(5), shard(1), shard(9)], "validation": [shard(2)]},
        "cc100_fr": {"train": [shard(3)]},
        "cc100_sw": {"train": [shard(4), shard(4)], "validation": [shard(3)]},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "prepared", random_contents())


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def test_code_is_three_little_endian_bytes() -> None:
    assert encode_record(np.array([1, 256, 65536, MAX_ID])) == bytes([1, 0, 0, 0, 1, 0, 0, 0, 1, 255, 255, 255])


@given(st.lists(st.lists(st.integers(0, MAX_ID), min_size=1, max_size=9), max_size=8), st.integers(9, 12))
def test_code_round_trip(rows: list[list[int]], width: int) -> None:
    tokens_BL, lengths_B = decode_records([encode_record(np.array(row, np.int32)) for row in rows], width)
    assert tokens_BL.shape == (len(rows), width)
    assert tokens_BL.dtype == lengths_B.dtype == np.int32
    assert [t[:n].tolist() for t, n in zip(tokens_BL, lengths_B, strict=True)] == rows
    assert all(not t[n:].any() for t, n in zip(tokens_BL, lengths_B, strict=True))


def test_code_of_full_rows() -> None:
    rows = np.arange(12, dtype=np.int32).reshape(3, 4) + MAX_ID - 12
    tokens_BL, lengths_B = decode_records([encode_record(row) for row in rows], 4)
    np.testing.assert_array_equal(tokens_BL, rows)
    np.testing.assert_array_equal(lengths_B, [4, 4, 4])


@pytest.mark.parametrize("ids", [[1, MAX_ID + 1], [-1, 5]])
def test_ids_that_do_not_fit_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.16777215, found"):
        encode_record(np.array(ids))


def test_read_returns_the_chunks_asked_for_in_that_order(folder: Path) -> None:
    contents = random_contents()
    generator = np.random.default_rng(1)
    # Two open files for eight shards: readers are dropped and opened again all the time.
    for data in (PreparedData.open(folder), PreparedData.open(folder, max_open_shards=2)):
        assert [task.name for task in data.tasks] == list(contents)
        for split in ("train", "validation"):
            flat = [[c for shard in splits.get(split, []) for c in shard] for splits in contents.values()]
            assert [data.chunk_count(i, split) for i in range(3)] == [len(f) for f in flat]
            assert [data.tasks[i].tokens(split) for i in range(3)] == [sum(map(len, f)) for f in flat]
            every = [(i, c) for i, f in enumerate(flat) for c in range(len(f))]
            asked = np.array([every[k] for k in generator.integers(0, len(every), 60)] + every)
            tokens_BL, lengths_B = data.read(split, asked[:, 0], asked[:, 1])
            assert tokens_BL.shape == (len(asked), LENGTH)
            for (task, chunk), row, length in zip(asked.tolist(), tokens_BL, lengths_B, strict=True):
                expected = flat[task][chunk]
                assert row.tolist() == expected + [0] * (LENGTH - len(expected))
                assert length == len(expected)


def test_rows_are_as_wide_as_the_objectives_chunks(tmp_path: Path) -> None:
    long, short = list(range(1, 21)), [5] * LENGTH
    data = PreparedData.open(
        make(tmp_path / "p", {"cc100_de": {"train": [[short]]}, "ccaligned_de": {"train": [[long]]}})
    )
    assert data.chunk_lengths == LENGTHS
    for tasks, width in (([0], LENGTH), ([1, 1], 20), ([1, 0], 20)):
        tokens_BL, lengths_B = data.read("train", np.array(tasks), np.zeros(len(tasks), int))
        assert tokens_BL.shape == (len(tasks), width)
        for task, row, length in zip(tasks, tokens_BL, lengths_B, strict=True):
            assert row[:length].tolist() == [short, long][task]
            assert not row[length:].any()


def test_a_chunk_too_long_for_its_own_objective_is_damage(tmp_path: Path) -> None:
    """Also where a batch with longer chunks of another objective would have room for it."""
    contents = {"cc100_de": {"train": [[[7] * 20]]}, "ccaligned_de": {"train": [[[7] * 20]]}}
    data = PreparedData.open(make(tmp_path / "p", contents))
    with pytest.raises(PreparedDataError, match="task cc100_de, .*a record of 60 bytes is not 1 to 16 ids"):
        data.read("train", np.array([1, 0]), np.array([0, 0]))


def test_reading_nothing(folder: Path) -> None:
    tokens_BL, lengths_B = PreparedData.open(folder).read("train", np.zeros(0, int), np.zeros(0, int))
    assert tokens_BL.shape == (0, 20)
    assert lengths_B.shape == (0,)


@pytest.mark.parametrize(
    ("split", "task", "chunk", "message"),
    [
        ("train", 0, 15, "task cc100_de: train chunk 15 of 15"),
        ("train", 2, -1, "task cc100_sw: train chunk -1 of 8"),
        ("validation", 1, 0, "task cc100_fr: validation chunk 0 of 0"),
        ("train", 3, 0, "task number 3 of 3"),
        ("train", -1, 0, "task number -1 of 3"),
    ],
)
def test_chunks_that_do_not_exist(folder: Path, split: str, task: int, chunk: int, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        PreparedData.open(folder).read(split, np.array([0, task]), np.array([0, chunk]))


@pytest.mark.parametrize("slow", [False, True])
def test_threads_read_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """Also while both ways of reading alternate."""
    monkeypatch.setattr(chunks_module, "_SLOW_RECORD", 0.0 if slow else 1e9)
    monkeypatch.setattr(chunks_module, "_BATCHED_READS", 1)
    data = PreparedData.open(folder, max_open_shards=2)
    contents = random_contents()
    flat = [[c for shard in splits["train"] for c in shard] for splits in contents.values()]
    every = np.array([(i, c) for i, f in enumerate(flat) for c in range(len(f))])
    wrong: list[str] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(40):
            asked = every[generator.integers(0, len(every), 20)]
            tokens_BL, lengths_B = data.read("train", asked[:, 0], asked[:, 1])
            for (task, chunk), row, length in zip(asked.tolist(), tokens_BL, lengths_B, strict=True):
                if row[:length].tolist() != flat[task][chunk]:
                    wrong.append(f"{task} {chunk}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_missing_folder_names_it_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(PreparedDataError, match=r"nowhere.*found nothing.*python -m deltalm_jax\.prepare"):
        PreparedData.open(tmp_path / "nowhere")


def test_unfinished_folder_is_refused(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(PreparedDataError, match=r"unfinished.*python -m deltalm_jax\.prepare"):
        PreparedData.open(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"chunks": 5', '"chunks": 6', "digest does not match"),
        ('"mixture": "m"', '"mixture": "n"', "digest does not match"),
        ('"format": 3', '"format": 2', "format 2, this version reads format 3. Prepare again, with --overwrite or"),
        ("{", "[", "not readable as JSON"),
    ],
)
def test_changed_manifest_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(PreparedDataError, match=message):
        PreparedData.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["tasks"]["cc100_de"]["splits"]["train"].update(chunks=14), "do not add up to 14"),
        (lambda m: m["tasks"]["cc100_fr"].pop("objective"), "misses or misstates 'objective'"),
        (lambda m: m.pop("chunk_lengths"), "misses or misstates 'chunk_lengths'"),
        (lambda m: m["chunk_lengths"].pop("span_corruption"), "misses or misstates 'span_corruption'"),
        (
            lambda m: m["tasks"]["cc100_fr"]["splits"]["train"]["shards"][0].update(file="cc100_fr/../../x"),
            "outside the task's folder",
        ),
    ],
)
def test_wrongly_made_manifest_is_refused(folder: Path, change, message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    write_manifest(folder, manifest)
    with pytest.raises(PreparedDataError, match=message):
        PreparedData.open(folder)


def test_missing_and_cut_shards_are_found_on_opening(folder: Path) -> None:
    cut, missing = folder / "cc100_de/train-2.array_record", folder / "cc100_sw/validation-0.array_record"
    cut.write_bytes(cut.read_bytes()[:-1])
    missing.unlink()
    with pytest.raises(PreparedDataError) as caught:
        PreparedData.open(folder)
    assert f"{cut}: expected 131072 bytes, found 131071 bytes" in str(caught.value)
    assert f"{missing}: expected 131072 bytes, found missing" in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_verify_names_every_changed_file(folder: Path) -> None:
    assert PreparedData.open(folder).verify() == 9
    flip(folder / "cc100_de/train-0.array_record", 70)
    flip(folder / "vocabulary.model", 3)
    with pytest.raises(PreparedDataError, match=r"2 of 9 files") as caught:
        PreparedData.open(folder).verify()
    assert "cc100_de/train-0.array_record" in str(caught.value)
    assert "vocabulary.model" in str(caught.value)
    assert "cc100_de/train-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ([5, 6, VOCABULARY], r"record 1: id 500 at position 2, but ids lie in 1\.\.499"),
        ([5, 0, 6], r"record 1: id 0 at position 1"),
        ([7] * (LENGTH + 1), r"record 1: a record of 51 bytes is not 1 to 16 ids"),
    ],
)
def test_impossible_contents_are_named(tmp_path: Path, chunk: Chunk, message: str) -> None:
    data = PreparedData.open(make(tmp_path / "p", {"cc100_de": {"train": [[[9]], [[8, 8], chunk]]}}))
    np.testing.assert_array_equal(data.read("train", np.array([0, 0]), np.array([1, 0]))[1], [2, 1])
    with pytest.raises(PreparedDataError, match=rf"task cc100_de, shard .*train-1\.array_record, {message}"):
        data.read("train", np.array([0, 0, 0]), np.array([0, 1, 2]))


def test_damage_after_opening_is_an_error_with_the_file(folder: Path) -> None:
    """A shard emptied in place: ArrayRecord opens it as a file of no records."""
    data = PreparedData.open(folder)
    path = folder / "cc100_fr/train-0.array_record"
    path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(PreparedDataError, match=r"cc100_fr/train-0\.array_record: cannot be read"):
        data.read("train", np.array([1]), np.array([0]))


def test_a_changed_record_is_an_error_with_the_file(folder: Path) -> None:
    """ArrayRecord's own checksum finds it, also where the size is right and the file opens."""
    path = folder / "cc100_fr/train-0.array_record"
    content = path.read_bytes()
    tokens = random_contents()["cc100_fr"]["train"][0][1]
    at = content.index(encode_record(np.array(tokens)))
    flip(path, at + 1)
    with pytest.raises(PreparedDataError, match=r"cc100_fr/train-0\.array_record: cannot be read"):
        PreparedData.open(folder).read("train", np.array([1]), np.array([1]))


class _Failing(Sequence[bytes]):
    """Records that end in an error, as a full disk or a killed worker would."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index):
        if index < 2:
            return b"abc"
        raise OSError("no space left on device")


def test_a_shard_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        write_shard(tmp_path, "t/train-0.array_record", _Failing())
    assert list((tmp_path / "t").iterdir()) == []
    shard = write_shard(tmp_path, "t/train-0.array_record", [b"abc", b"abcdef"])
    path = tmp_path / "t/train-0.array_record"
    assert (shard.chunks, shard.bytes, shard.xxh3) == (2, path.stat().st_size, digest_file(path))
    assert list((tmp_path / "t").iterdir()) == [path]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file size stands for the full disk; in a process of its own, since it cannot be lifted again."""
    code = (
        "import resource, sys; from deltalm_jax.data.shards import write_shard\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))\n"
        "try: write_shard(sys.argv[1], 't/train-0.array_record', [bytes(1500)] * 1000)\n"
        "except OSError as error: print(error)"
    )
    root = Path(chunks_module.__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.startswith(f"cannot write {tmp_path}/t/train-0.array_record: ")
    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.parametrize("slow", [False, True])
def test_how_records_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """One after the other, each once and in the file's order; after a slow batch, some batches a shard at a time."""
    calls: list[tuple[str, list[int]]] = []
    real = chunks_module.array_record_module.ArrayRecordReader

    class Counting:
        def __init__(self, path: str, options: str):
            self.path, self.reader, self.at = path, real(path, options), -1

        def num_records(self) -> int:
            return self.reader.num_records()

        def seek(self, record: int) -> None:
            self.at = record
            self.reader.seek(record)

        def read(self, *records: list[int]) -> list[bytes]:
            calls.append((self.path.removeprefix(f"{folder}/"), records[0] if records else self.at))
            return self.reader.read(*records)

    monkeypatch.setattr(chunks_module.array_record_module, "ArrayRecordReader", Counting)
    monkeypatch.setattr(chunks_module, "_SLOW_RECORD", 0.0 if slow else 1e9)
    monkeypatch.setattr(chunks_module, "_BATCHED_READS", 2)
    task_B, chunk_B = np.array([0, 2, 0, 0, 2, 0, 0]), np.array([14, 0, 0, 5, 7, 13, 1])
    data = PreparedData.open(folder)
    shards = {"cc100_de/train-0": [0, 1], "cc100_de/train-1": [0], "cc100_de/train-2": [7, 8]}
    shards |= {"cc100_sw/train-0": [0], "cc100_sw/train-1": [3]}
    single = [(f"{name}.array_record", record) for name, records in shards.items() for record in records]
    batched = [(f"{name}.array_record", records) for name, records in shards.items()]
    expected, _ = data.read("train", task_B, chunk_B)
    assert calls == single
    for wanted in (batched, batched, single, batched) if slow else (single, single):
        calls.clear()
        np.testing.assert_array_equal(data.read("train", task_B, chunk_B)[0], expected)
        assert calls == wanted


def test_digest_of_known_bytes(tmp_path: Path) -> None:
    """The empty-input value of XXH3's 128-bit variant, from its specification."""
    (tmp_path / "empty").write_bytes(b"")
    assert digest_file(tmp_path / "empty") == "99aa06d3014798d86001c324468d497f"


def test_opening_needs_no_tensorflow(folder: Path) -> None:
    code = (
        "import sys; from deltalm_jax.data.chunks import PreparedData; import numpy as np;"
        f"PreparedData.open({str(folder)!r}).read('train', np.array([0]), np.array([0]));"
        "print([m for m in ('tensorflow', 'seqio', 'apache_beam', 'jax') if m in sys.modules])"
    )
    root = Path(chunks_module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
