"""safetensors: read and written as the library itself and torch do; what is not whole is refused by name."""

from __future__ import annotations

import errno
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from deltalm_jax.weights.tensors import WeightsError, read_safetensors, whole_file, write_safetensors
from tests.support.torch_saved import numbers
from tests.weights.torch_archives import GOLDEN

ARRAYS = {
    "a": numbers(2, 3),
    "half": numbers(3).astype(np.float16),
    "bfloat16": numbers(5).astype(ml_dtypes.bfloat16),
    "transposed": numbers(4, 2).T,
    "slice": numbers(4, 6)[1:, ::2],
    "big-endian": numbers(3).astype(">f4"),
    "scalar": np.array(7, np.int64),
    "none": np.zeros((3, 0), np.float32),
    "mask": np.array([True, False]),
}


def assert_equal(tensors, arrays):
    assert sorted(tensors) == sorted(arrays)
    for name, tensor in tensors.items():
        array = tensor.read()
        assert (tensor.name, tensor.shape, tensor.dtype) == (name, arrays[name].shape, arrays[name].dtype.name)
        assert (array.shape, array.dtype) == (arrays[name].shape, arrays[name].dtype.newbyteorder("="))
        np.testing.assert_array_equal(array, arrays[name])
        assert array.flags.writeable
        assert array.flags.c_contiguous


def write_set(folder, parts):
    """A set of files by the library, and its index."""
    files = {}
    for number, arrays in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        safetensors.numpy.save_file(arrays, folder / file)
        files |= dict.fromkeys(arrays, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, ARRAYS)
    with safetensors.safe_open(path, "numpy") as content:
        assert content.metadata() == {"format": "pt"}
        assert sorted(content.keys()) == sorted(ARRAYS)
        for name, array in ARRAYS.items():
            assert content.get_tensor(name).dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(content.get_tensor(name), array)
    assert list(tmp_path.iterdir()) == [path]
    write_safetensors(path, ARRAYS, {"by": "deltalm_jax"})
    with safetensors.safe_open(path, "numpy") as content:
        assert content.metadata() == {"by": "deltalm_jax"}


def test_what_the_library_writes_is_read(tmp_path):
    arrays = {name: np.array(array, array.dtype.newbyteorder("=")) for name, array in ARRAYS.items()}
    safetensors.numpy.save_file(
        {n: np.asarray(a, order="C") for n, a in arrays.items()}, tmp_path / "model.safetensors"
    )
    assert_equal(read_safetensors(tmp_path / "model.safetensors"), arrays)


def test_a_set_of_files(tmp_path):
    parts = [{"a": numbers(2, 3), "b": numbers(4)}, {"c": numbers(1)}]
    tensors = read_safetensors(write_set(tmp_path, parts))
    assert_equal(tensors, parts[0] | parts[1])
    assert tensors["c"].file == tmp_path / "model-00002-of-00002.safetensors"


def test_a_set_that_is_not_whole(tmp_path):
    index = write_set(tmp_path, [{"a": numbers(2, 3), "b": numbers(4)}, {"c": numbers(1)}])
    second = tmp_path / "model-00002-of-00002.safetensors"
    safetensors.numpy.save_file({"other": numbers(1)}, second)
    with pytest.raises(WeightsError, match=f"'c' is in the index, but not in {second.name}"):
        read_safetensors(index)
    safetensors.numpy.save_file({"c": numbers(1), "other": numbers(1)}, second)
    with pytest.raises(WeightsError, match=f"'other' is in {second.name}, but not in the index"):
        read_safetensors(index)
    second.unlink()
    with pytest.raises(WeightsError, match=f"{second.name} cannot be read: No such file"):
        read_safetensors(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not an index"),
        ("[]", "not an index"),
        ("{}", "not an index"),
        ('{"weight_map": ["a"]}', "name of a file beside"),
        ('{"weight_map": {"a": 1}}', "name of a file beside"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "name of a file beside"),
        ('{"weight_map": {"a": "/model.safetensors"}}', "name of a file beside"),
    ],
)
def test_an_index_that_is_none(tmp_path, content, message):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=message):
        read_safetensors(tmp_path / "model.safetensors.index.json")


def test_a_type_that_numpy_lacks(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(3, ml_dtypes.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="tensor 'w' has the type F8_E4M3"):
        read_safetensors(tmp_path / "model.safetensors")


def test_files_cut_anywhere(tmp_path):
    write_safetensors(tmp_path / "whole.safetensors", ARRAYS)
    content, path = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "cut.safetensors"
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(WeightsError, match="cut.safetensors is"):
            read_safetensors(path)


def test_files_with_flipped_bits_raise_nothing_else(tmp_path):
    """The format has no checksums: damage to numbers goes unseen, damage to the header must not come as another error."""
    write_safetensors(tmp_path / "whole.safetensors", ARRAYS)
    content, path = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "flipped.safetensors"
    rng, refused = np.random.default_rng(5), 0
    for position in range(0, len(content), 2):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            for tensor in read_safetensors(path).values():
                tensor.read()
        except WeightsError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "but a Git LFS pointer"),
        (b"<!doctype html>" + bytes(100), "but a web page"),
        (GOLDEN.read_bytes(), "but a zip archive, as torch.save writes"),
        (b"", "but an empty file"),
    ],
)
def test_other_formats_are_named(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{path} is not a safetensors file, {message}"):
        read_safetensors(path)


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": numbers(100)})
    tensor = read_safetensors(path)["w"]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(WeightsError, match=f"{path} is damaged or not whole"):
        tensor.read()
    path.unlink()
    with pytest.raises(WeightsError, match=f"{path} cannot be read: No such file"):
        tensor.read()


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": numbers(3)})
    before = path.read_bytes()
    for value in (1.0, [1.0], np.array(["text"]), np.ones(3, np.complex64)):
        with pytest.raises(TypeError, match="tensor 'w' must be an np.ndarray of numbers, found"):
            write_safetensors(path, {"w": value})
    with pytest.raises(WeightsError, match="cannot be written"):
        write_safetensors(tmp_path / "absent" / "model.safetensors", {"w": numbers(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"before")

    def fill_disk() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WeightsError, match=f"{path} cannot be written: No space left on device"):
        fill_disk()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_reading_holds_one_tensor(tmp_path):
    tensor_bytes, path = 1 << 20, tmp_path / "large.safetensors"
    write_safetensors(path, {str(i): np.full((512, 512), i, np.float32) for i in range(20)})
    tracemalloc.start()
    try:
        for tensor in read_safetensors(path).values():
            tensor.read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tensor_bytes <= peak < 2 * tensor_bytes


@pytest.mark.torch
def test_torch_reads_and_writes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    write_safetensors(path, ARRAYS)
    loaded = safetensors_torch.load_file(path)
    assert loaded["bfloat16"].dtype == torch.bfloat16
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.float().numpy(), ARRAYS[name].astype(np.float32))
    safetensors_torch.save_file(loaded, path)
    assert_equal(read_safetensors(path), {n: np.array(a, a.dtype.newbyteorder("=")) for n, a in ARRAYS.items()})


def test_a_written_file_is_for_whom_other_files_are(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"a": np.ones(2, np.float32)})
    (tmp_path / "other").write_text("")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
