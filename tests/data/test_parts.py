"""How files make parts, against the definition; and data of a divided file against those of an undivided one."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltalm_jax.data import prepare_part
from deltalm_jax.data.blocks import Digest
from deltalm_jax.data.chunks import PreparedData
from deltalm_jax.data.parts import divide
from deltalm_jax.data.preparation import Input, prepare
from deltalm_jax.data.readers import read_cc100
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.paths import state_of
from tests.data.readers.test_spans import multi_block
from tests.data.test_restart import files_of, make_input, run
from tests.support.toy_data import SAMPLE_VOCABULARY


def make_files(folder: Path, sizes: list[int], suffix: str = ".txt") -> list[Path]:
    paths = [folder / f"{number}{suffix}" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes((b"word\n\n" * size)[:size])
    return paths


def test_small_files_are_put_together_and_large_ones_divided(tmp_path: Path) -> None:
    sizes = [30, 60, 20, 450, 10, 199, 5, 90, 5]
    paths = make_files(tmp_path, sizes)
    alone = [["3.txt"], ["4.txt"], ["5.txt"], ["6.txt", "7.txt", "8.txt"]]
    whole = divide(paths, 100, in_spans=False)
    assert [[piece.path.name for piece in part] for part in whole] == [["0.txt", "1.txt"], ["2.txt"], *alone]
    parts = divide(paths, 100, in_spans=True)
    assert [[(p.path.name, p.number, p.count) for p in part] for part in parts] == [
        [("0.txt", 0, 1), ("1.txt", 0, 1)],
        [("2.txt", 0, 1)],
        *([("3.txt", number, 5)] for number in range(5)),
        *([(name, 0, 1) for name in names] for names in alone[1:]),
    ]
    assert max(sum(piece.size for piece in part) for part in parts if part[0].path.name != "5.txt") <= 100
    places = [piece.stored for part in parts for piece in part if piece.path.name == "3.txt"]
    assert places[0][0] == 0
    assert places[-1][1] == 450
    assert all(a[1] == b[0] for a, b in itertools.pairwise(places))
    assert sum(piece.size for part in parts for piece in part) == sum(sizes)
    # A .gz is one stream: it stays whole, however large.
    gz = make_files(tmp_path, [500], ".txt.gz")
    assert [len(part) for part in divide(gz, 100, in_spans=True)] == [1]


def test_the_state_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("one")
    before, times = state_of(path), path.stat()
    assert state_of(path) == before
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert state_of(path) != before


@pytest.mark.parametrize("suffix", [".txt", ".txt.xz"])
def test_a_divided_file_gives_the_same_text_once(tmp_path: Path, suffix: str) -> None:
    generator = np.random.default_rng(0)
    documents = [
        [
            " ".join(generator.choice(["house", "water", "право"], 8)) + f" {number}"
            for _ in range(generator.integers(1, 4))
        ]
        for number in range(200)
    ]
    text = "\n\n".join("\n".join(document) for document in documents).encode()
    path = tmp_path / f"xx{suffix}"
    if suffix == ".txt":
        path.write_bytes(text)
    else:
        multi_block(path, text, 1500)
    size = path.stat().st_size
    vocabulary = Vocabulary.load(SAMPLE_VOCABULARY)

    def prepared(part_bytes: int, name: str, **changes: Any) -> tuple[Input, PreparedData]:
        source = Input("toy", "span_corruption", "xx", read_cc100, (path,), part_bytes=part_bytes)
        settings: dict[str, Any] = dict(mixture="toy", chunk_length=900, validation_fraction=0.0, block_bytes=1000)
        return source, prepare([source], vocabulary, tmp_path / name, **{**settings, **changes}).data

    divided, data = prepared(-(-size // 7), "divided")
    assert divided.parts("train") == 7
    read: list[Any] = []
    for part in range(7):
        digest = Digest()
        read += divided.read("train", part, Counter(), digest)
        assert digest.hexdigest() == divided.digest("train", part)
    assert read == documents
    _, whole = prepared(10 * size, "whole")
    assert data.tasks[0].splits["train"].units == whole.tasks[0].splits["train"].units == 200

    def ids(found: PreparedData) -> list[int]:
        count = found.chunk_count(0, "train")
        tokens_BL, lengths_B = found.read("train", np.zeros(count, int), np.arange(count))
        return [token for row, length in zip(tokens_BL, lengths_B, strict=True) for token in row[:length].tolist()]

    assert ids(data) == ids(whole)
    assert data.manifest["tasks"]["toy"]["inputs"]["train"][6]["files"] == [[path.name, size, "piece 7 of 7"]]


def test_a_large_part_is_tokenised_by_several_threads_to_the_same_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_input(tmp_path, files=1, lines=200)
    run(source, tmp_path / "one")
    used: list[int] = []
    real = Vocabulary.encode_batch

    def counted(self: Vocabulary, texts: Any, threads: int = 1) -> list[list[int]]:
        used.append(threads)
        return real(self, texts, threads)

    monkeypatch.setattr(Vocabulary, "encode_batch", counted)
    monkeypatch.setattr(prepare_part, "PART_BYTES", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    run(source, tmp_path / "three")
    assert 3 in used
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")
