"""Inputs and outputs in an object store: fsspec's in memory, which has neither rename nor lock as used here."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from deltalm_jax.data import partial as partial_module
from deltalm_jax.data.chunks import PreparedData, PreparedDataError
from deltalm_jax.data.partial import Partial
from deltalm_jax.data.preparation import Input, PreparationError, prepare
from deltalm_jax.data.readers import read_cc100
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.paths import LocationError, as_path, files_below, is_remote
from tests.data.test_restart import ROOT, SAMPLE_VOCABULARY, files_of


@pytest.fixture
def store() -> Iterator[str]:
    """URL of an empty place in the store."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield "memory://bucket"
    filesystem.store.clear()


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(SAMPLE_VOCABULARY)


def text(seed: int) -> bytes:
    generator = random.Random(seed)
    return "\n\n".join(" ".join(generator.choices(["rot", "grün", "blau"], k=9)) for _ in range(150)).encode()


def sources(folder: Path) -> list[Input]:
    found = []
    for number, code in enumerate(("de", "fr")):
        (folder / f"{code}.txt").write_bytes(text(number))
        found.append(
            Input(f"cc100_{code}", "span_corruption", code, read_cc100, (folder / f"{code}.txt",), part_bytes=2000)
        )
    return found


def run(inputs: list[Input], vocabulary: Vocabulary, output: Any, **changes: Any) -> PreparedData:
    settings: dict[str, Any] = dict(
        mixture="toy", chunk_length=32, validation_fraction=0.1, block_bytes=400, blocks_per_shard=2
    )
    return prepare(inputs, vocabulary, output, **{**settings, **changes}).data


def objects(url: str) -> dict[str, bytes]:
    path = as_path(url)
    return {name: (path / name).read_bytes() for name in files_below(path)}


def test_the_same_bytes_as_on_a_disk(store: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    inputs = sources(as_path(f"{store}/text"))
    assert is_remote(inputs[0].train[0])
    run(inputs, vocabulary, f"{store}/out")
    (tmp_path / "text").mkdir()
    run(sources(tmp_path / "text"), vocabulary, tmp_path / "out")
    expected = files_of(tmp_path / "out")
    assert inputs[0].parts("train") > 2
    assert objects(f"{store}/out") == expected
    assert not files_below(as_path(f"{store}/out.partial"))
    # Again: nothing to do; other settings: refused; replaced if asked for.
    assert not prepare(
        inputs, vocabulary, f"{store}/out", mixture="toy", chunk_length=32, validation_fraction=0.1, block_bytes=400,
        blocks_per_shard=2,
    ).made  # fmt: skip
    with pytest.raises(PreparationError, match="blocks_per_shard: 2 there, 3 asked for"):
        run(inputs, vocabulary, f"{store}/out", blocks_per_shard=3)
    run(inputs, vocabulary, f"{store}/out", blocks_per_shard=3, overwrite=True)
    run(inputs, vocabulary, tmp_path / "other", blocks_per_shard=3)
    assert {n: b for n, b in objects(f"{store}/out").items() if n != "manifest.json"} == {
        name: content for name, content in files_of(tmp_path / "other").items() if name != "manifest.json"
    }


def test_training_reads_a_copy(store: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    data = run(sources(as_path(f"{store}/text")), vocabulary, f"{store}/out")
    with pytest.raises(PreparedDataError, match=r"copy the folder to a disk, or mount it \(gcsfuse"):
        data.read("train", np.zeros(1, int), np.zeros(1, int))
    as_path(f"{store}/out").fs.get(f"{store}/out", str(tmp_path / "copy"), recursive=True)  # type: ignore[attr-defined]
    copy = PreparedData.open(tmp_path / "copy")
    assert copy.manifest["digest"] == data.manifest["digest"]
    copy.verify()


def test_an_ended_run_looks_incomplete_and_goes_on(
    store: str, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst place to end: while the objects are copied to their final place."""
    inputs = sources(as_path(f"{store}/text"))
    run(inputs, vocabulary, f"{store}/whole")
    real, copied = Partial._copy_to_output, []

    def half_way(self: Partial, files: list[str], write_manifest: Any) -> None:
        def no_manifest(folder: Path) -> None:
            raise KeyboardInterrupt

        real(self, files[: len(files) // 2], no_manifest)

    monkeypatch.setattr(Partial, "_copy_to_output", half_way)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, vocabulary, f"{store}/out")
    assert objects(f"{store}/out")
    with pytest.raises(PreparedDataError, match="unfinished"):
        PreparedData.open(f"{store}/out")  # type: ignore[arg-type]

    def counting(self: Partial, files: list[str], write_manifest: Any) -> None:
        copied.extend(files)
        real(self, files, write_manifest)

    monkeypatch.setattr(Partial, "_copy_to_output", counting)
    monkeypatch.setattr("deltalm_jax.data.prepare_part.encode_block", None)  # nothing is tokenised again
    run(inputs, vocabulary, f"{store}/out")
    assert len(copied) == len(set(copied)) == len(objects(f"{store}/whole")) - 1
    assert objects(f"{store}/out") == objects(f"{store}/whole")
    assert not files_below(as_path(f"{store}/out.partial"))


def test_a_foreign_folder_is_left_alone(store: str, vocabulary: Vocabulary) -> None:
    inputs = sources(as_path(f"{store}/text"))
    as_path(f"{store}/thesis/chapter.txt").write_bytes(b"years of work")
    for overwrite in (False, True):
        with pytest.raises(PreparationError, match="exists and is no prepared data"):
            run(inputs, vocabulary, f"{store}/thesis", overwrite=overwrite)
    assert objects(f"{store}/thesis") == {"chapter.txt": b"years of work"}


def test_files_that_change_have_another_state(store: str) -> None:
    source = sources(as_path(f"{store}/text"))[0]
    first = source.identity("train", 0)
    as_path(f"{store}/text/de.txt").write_bytes(text(7)[: len(text(0))].ljust(len(text(0))))
    again = Input(source.task, source.objective, source.language, source.reader, source.train, part_bytes=2000)
    assert again.identity("train", 0) != first


def test_places_that_cannot_be_reached_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LocationError, match="nowhere://x"):
        as_path("nowhere://x/y")
    assert as_path(f"file://{tmp_path}/x") == tmp_path / "x"
    assert as_path("a/b") == Path("a/b")
    assert partial_module.was_being_published(tmp_path) is False


# A store in files, for several processes: sitecustomize is imported by every one of them. What stores do not have, fails.
STORE = """
import fsspec
from fsspec.implementations.local import LocalFileSystem
from upath import UPath
from upath.registry import register_implementation

class Objects(LocalFileSystem):
    protocol = "objects"
    root_marker = "/"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("objects:/"))

    def open(self, path, mode="rb", **options):
        assert mode in ("rb", "wb"), mode
        return super().open(path, mode, **options)

    def mkdir(self, *arguments, **options):
        raise NotImplementedError("there are no folders")

    mv = mv_file = mkdir

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, auto_mkdir=True, **options)

class ObjectsPath(UPath):
    pass

fsspec.register_implementation("objects", Objects)
register_implementation("objects", ObjectsPath)
"""
USE = """
import sys
from pathlib import Path
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.paths import as_path, is_remote
from tests.data import test_object_store as t
if __name__ == "__main__":
    folder, vocabulary = Path(sys.argv[1]), Vocabulary.load(t.SAMPLE_VOCABULARY)
    (folder / "bucket" / "text").mkdir(parents=True)
    inputs = t.sources(as_path(f"objects:/{folder}/bucket/text"))
    assert is_remote(inputs[0].train[0])
    t.run(inputs, vocabulary, f"objects:/{folder}/bucket/out", num_workers=2)
"""


@pytest.mark.slow
def test_worker_processes_write_to_a_store(vocabulary: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STORE)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", USE, str(tmp_path)], env=environment, check=True, cwd=tmp_path)
    (tmp_path / "text").mkdir()
    run(sources(tmp_path / "text"), vocabulary, tmp_path / "out")
    assert files_of(tmp_path / "bucket" / "out") == files_of(tmp_path / "out")
    assert not any((tmp_path / "bucket").rglob("*.work"))
