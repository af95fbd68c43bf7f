"""Files of torch.save: what torch made is read (a golden file; torch itself, where it is there), and torch reads ours."""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from deltalm_jax.weights.pickle_data import Foreign, Global
from deltalm_jax.weights.tensors import StoredTensor, WeightsError, write_safetensors
from deltalm_jax.weights.torch_file import read_torch_file, write_torch_file
from tests.support import torch_saved
from tests.support.torch_saved import numbers
from tests.weights.torch_archives import GOLDEN, plain, tensor_pickle, write_archive


def expected_state_dict() -> dict[str, np.ndarray]:
    """What `tests.support.torch_saved` saves, by NumPy."""
    return {
        "decoder.embed_tokens.weight": numbers(6, 4),
        "decoder.output_projection.weight": numbers(6, 4),
        "encoder.half": numbers(3, 2).astype(np.float16),
        "encoder.bfloat16": numbers(2, 3).astype(ml_dtypes.bfloat16),
        "encoder.transposed": numbers(5, 2).T,
        "encoder.slice": numbers(4, 6)[1:, ::2],
        "encoder.parameter": numbers(7),
        "encoder.version": np.array(3, np.float32),
        "encoder.empty": np.zeros((0, 4), np.float32),
        "encoder.positions": np.arange(5)[None],
        "encoder.mask": np.array([True, False, True]),
    }


def assert_state_dict(stored: dict[str, StoredTensor], wanted: dict[str, np.ndarray]) -> None:
    assert list(stored) == list(wanted)
    for name, tensor in stored.items():
        assert (tensor.name, tensor.shape, tensor.dtype) == (name, wanted[name].shape, wanted[name].dtype.name)
        array = tensor.read()
        assert array.dtype == wanted[name].dtype
        np.testing.assert_array_equal(array, wanted[name])
        assert array.flags.writeable
        assert array.flags.c_contiguous


def assert_checkpoint(checkpoint: dict) -> None:
    """The objects beside the weights in what `tests.support.torch_saved` saves."""
    assert list(checkpoint) == ["args", "cfg", "model", "optimizer_history", "extra_state"]
    args = checkpoint["args"]
    assert isinstance(args, Foreign)
    assert args.class_name == "argparse.Namespace"
    backend = args.state.pop("ddp_backend")
    assert (backend.class_name, backend.arguments) == (
        "fairseq.dataclass.constants.DDP_BACKEND_CHOICES",
        ("pytorch_ddp",),
    )
    assert args.state == {"arch": "deltalm_base", "lr": [0.0005], "update_freq": None}
    config = checkpoint["cfg"]
    assert config.class_name == "omegaconf.dictconfig.DictConfig"
    layers = config.state["_content"]["model"].state["_content"]["layers"].state["_content"]
    assert [layer.state["_val"] for layer in layers] == [12, 6]
    assert checkpoint["optimizer_history"] == [{"num_updates": 10_000_000_000, "lr": (1e-4, -0.0), "best": True}]
    (position, split, meters), *_ = checkpoint["extra_state"]["metrics"]
    assert (position, split, meters["loss"].class_name) == (0, "train", "fairseq.logging.meters.AverageMeter")
    assert meters["loss"].state["count"].read() == 3
    scalar = meters["loss"].state["sum"]
    assert np.frombuffer(scalar.arguments[1])[0] == 2.5
    assert checkpoint["extra_state"]["dtype"] == Global("torch.float16")
    assert checkpoint["extra_state"]["size"].arguments == ((6, 4),)


def test_a_checkpoint_that_torch_saved():
    checkpoint = read_torch_file(GOLDEN)
    assert_state_dict(checkpoint["model"], expected_state_dict())
    assert_checkpoint(checkpoint)


def test_reading_imports_neither_torch_nor_what_the_file_names():
    program = (
        "import pathlib, sys; from deltalm_jax.weights.torch_file import read_torch_file;"
        f"read_torch_file(pathlib.Path({str(GOLDEN)!r}));"
        "sys.exit(bool({'torch', 'omegaconf', 'fairseq', 'jax', 'tensorflow'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (3, 4), (4, 1)),
        (0, (4, 3), (1, 4)),
        (2, (2, 3), (5, 2)),
        (11, (), ()),
        (1, (3, 3), (1, 1)),  # overlapping, as torch.Tensor.unfold makes
        (5, (0, 7), (7, 1)),
        (0, (1, 12), (999, 1)),  # torch leaves any stride for a size of one
    ],
)
def test_views_of_a_storage(tmp_path, offset, shape, strides):
    storage = np.arange(12, dtype=np.float32)
    path = write_archive(tmp_path, tensor_pickle("w", 12, offset, shape, strides), {"0": storage.tobytes()})
    wanted = np.zeros(shape, np.float32)
    for index in np.ndindex(*shape):
        wanted[index] = storage[offset + sum(i * s for i, s in zip(index, strides, strict=True))]
    assert_state_dict(read_torch_file(path), {"w": wanted})


@pytest.mark.parametrize(
    ("elements", "offset", "shape", "strides", "message"),
    [
        (12, 0, (13,), (1,), "beyond its storage"),
        (12, 1, (3, 4), (4, 1), "beyond its storage"),
        (12, 0, (3, 4), (5, 1), "beyond its storage"),
        (12, -1, (3,), (1,), "impossible"),
        (12, 0, (3,), (-1,), "impossible"),
        (12, 0, (-3,), (1,), "impossible"),
        (12, 0, (3, 4), (1,), "impossible"),
        (12, 0, (2**61, 2**61, 0), (0, 0, 0), "impossible"),
        (12, 0, (2**40,), (0,), "expanded"),
        (12, 0, (1,) * 65, (1,) * 65, "impossible"),
        (13, 0, (3,), (1,), "48 bytes"),
        (11, 0, (3,), (1,), "48 bytes"),
        (-1, 0, (3,), (1,), "48 bytes"),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage(tmp_path, elements, offset, shape, strides, message):
    path = write_archive(tmp_path, tensor_pickle("layer.w", elements, offset, shape, strides), {"0": bytes(48)})
    with pytest.raises(WeightsError, match=message) as error:
        read_torch_file(path)
    assert str(path) in str(error.value)
    assert "layer.w" in str(error.value)


def test_a_missing_storage(tmp_path):
    path = write_archive(tmp_path, tensor_pickle("layer.w", 12, 0, (12,), (1,)), {"1": bytes(48)})
    with pytest.raises(WeightsError, match=r"data/0 is missing \(at 'layer.w'\)"):
        read_torch_file(path)


def test_an_unknown_type_of_numbers(tmp_path):
    pickled = tensor_pickle("layer.w", 12, 0, (12,), (1,), storage_type="QInt8Storage")
    with pytest.raises(WeightsError, match=r"QInt8Storage.*layer\.w"):
        read_torch_file(write_archive(tmp_path, pickled, {"0": bytes(12)}))


def test_big_endian_numbers_are_refused(tmp_path):
    path = write_archive(tmp_path, b"\x80\x02}.", {}, byteorder=b"big")
    with pytest.raises(WeightsError, match="big-endian"):
        read_torch_file(path)


def test_compressed_entries_are_refused(tmp_path):
    path = write_archive(tmp_path, b"\x80\x02}.", {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="is compressed or encrypted"):
        read_torch_file(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    path = write_archive(tmp_path, b"\x80\x02}.", {"0": b"1"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("any/data/0", b"2")
    with pytest.raises(WeightsError, match="same name"):
        read_torch_file(path)


@pytest.mark.parametrize("name", ["decoder.embed_tokens.weight", "encoder.slice"])
def test_a_flipped_bit_is_found_when_the_tensor_is_read(tmp_path, name):
    """Of the slice, in a part of the storage that it does not span, too: nobody can say what else is damaged."""
    content = bytearray(GOLDEN.read_bytes())
    entry = read_torch_file(GOLDEN)["model"][name].entry
    content[entry.start + 3] ^= 1
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    state = read_torch_file(path)["model"]
    for _ in range(2):
        with pytest.raises(WeightsError, match="CRC-32") as error:
            state[name].read()
        assert f"{path}: tensor {name!r}" in str(error.value)
    np.testing.assert_array_equal(state["encoder.parameter"].read(), numbers(7))


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "written.pt"
    write_torch_file(path, {"w": np.arange(100.0)})
    tensor = read_torch_file(path)["w"]
    path.write_bytes(path.read_bytes()[: tensor.entry.start + 5])
    with pytest.raises(WeightsError, match=f"{path}: tensor 'w': .*data/0 ends early"):
        tensor.read()
    path.unlink()
    with pytest.raises(WeightsError, match=f"{path} cannot be read: No such file"):
        tensor.read()


def test_archives_without_checksums(tmp_path):
    """As after torch.serialization.set_crc32_options(False)."""
    content = GOLDEN.read_bytes()
    with zipfile.ZipFile(GOLDEN) as archive:
        for info in archive.infolist():
            if info.CRC:
                content = content.replace(info.CRC.to_bytes(4, "little"), bytes(4))
    path = tmp_path / "unchecked.pt"
    path.write_bytes(content)
    assert_state_dict(read_torch_file(path)["model"], expected_state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "older form of torch.save; convert it"),
        (bytes(257) + b"ustar" + bytes(250), "tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"", "an empty file"),
        (b"\x00" * 1000, "something else"),
    ],
)
def test_other_formats_are_named(tmp_path, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_torch_file(path)


def test_other_archives_are_named(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    with pytest.raises(WeightsError, match="holds no data.pkl"):
        read_torch_file(tmp_path / "arrays.npz")
    write_safetensors(tmp_path / "model.pt", {"a": np.ones(3)})
    with pytest.raises(WeightsError, match="a safetensors file"):
        read_torch_file(tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="No such file"):
        read_torch_file(tmp_path / "absent.pt")
    path = write_archive(tmp_path, b"\x80\x02}.", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("any/constants.pkl", b"")
    with pytest.raises(WeightsError, match="jit"):
        read_torch_file(path)


CONTENT = {
    "model": {
        "a": numbers(2, 3),
        "half": numbers(3).astype(np.float16),
        "bfloat16": numbers(3).astype(ml_dtypes.bfloat16),
        "transposed": numbers(4, 2).T,
        "big-endian": numbers(3).astype(">f4"),
        "scalar": np.array(7, np.int64),
        "none": np.zeros((3, 0), np.float32),
        "mask": np.array([True, False]),
    },
    "args": {"arch": "deltalm_base", "langs": ["de", "sw", "ü\n"], "sizes": (1, -2, 2**40), 3: None},
    "floats": [0.1, -0.0, 1e300],
    "yes": True,
}


class Unpickler(pickle.Unpickler):
    """Reads our files by Python's own unpickler: an oracle beside torch."""

    def __init__(self, archive: zipfile.ZipFile):
        super().__init__(io.BytesIO(archive.read("archive/data.pkl")))
        self.archive = archive

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, gradient, hooks: np.lib.stride_tricks.as_strided(
                storage[offset:], shape, [stride * storage.itemsize for stride in strides]
            )
        if module == "torch":
            names = {"Float": "f4", "Half": "f2", "Long": "i8", "Bool": "?", "BFloat16": ml_dtypes.bfloat16}
            return np.dtype(names[name.removesuffix("Storage")])
        assert (module, name) == ("collections", "OrderedDict")
        return dict

    def persistent_load(self, identity):
        kind, dtype, key, device, elements = identity
        assert (kind, device) == ("storage", "cpu")
        # One more: a view of nothing needs memory to view.
        content = self.archive.read(f"archive/data/{key}")
        assert len(content) == elements * dtype.itemsize
        return np.frombuffer(content + bytes(dtype.itemsize), dtype)


def test_python_reads_what_is_written(tmp_path):
    path = tmp_path / "written.pt"
    write_torch_file(path, CONTENT)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"
        assert plain(Unpickler(archive).load()) == plain(CONTENT)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_read(tmp_path):
    write_torch_file(tmp_path / "written.pt", CONTENT)
    assert plain(read_torch_file(tmp_path / "written.pt")) == plain(CONTENT)


def test_storages_are_aligned_and_shared(tmp_path):
    path, table = tmp_path / "written.pt", numbers(5, 3)
    write_torch_file(path, {"embed": table, "project": table, "equal": table.copy()})
    state = read_torch_file(path)
    assert [tensor.entry.name for tensor in state.values()] == ["archive/data/0", "archive/data/0", "archive/data/1"]
    assert all(tensor.entry.start % 64 == 0 for tensor in state.values())
    with zipfile.ZipFile(path) as archive:
        assert sum(name.startswith("archive/data/") for name in archive.namelist()) == 2


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a.pt", "b.pt"):
        write_torch_file(tmp_path / name, CONTENT)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"args": {"a": argparse.Namespace()}}, "args/a is a Namespace"),
        ({"x": [1, np.float64(1)]}, "x/1 is a float64"),
        ({"x": np.array(["text"])}, "x has the dtype <U4"),
        ({1.5: 1}, "key 1.5"),
        ({"x": [np.zeros(2, np.uint16)]}, "x/0 has the dtype uint16"),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_is_left(tmp_path, content, message):
    path = tmp_path / "written.pt"
    path.write_bytes(b"before")
    with pytest.raises(TypeError, match=message):
        write_torch_file(path, content)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match="No such file or directory"):
        write_torch_file(tmp_path / "absent" / "written.pt", CONTENT)


def test_memory_is_that_of_one_tensor(tmp_path):
    tensor_bytes, path = 1 << 20, tmp_path / "large.pt"
    content = {str(i): np.full((512, 512), i, np.float32).T for i in range(20)}
    tracemalloc.start()
    try:
        write_torch_file(path, content)
        _, writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for tensor in read_torch_file(path).values():
            tensor.read()
        _, reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert writing < 2 * tensor_bytes
    assert reading < 2 * tensor_bytes


@pytest.mark.torch
def test_what_torch_saves_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("omegaconf")
    torch.save(torch_saved.make(), tmp_path / "saved.pt")
    checkpoint = read_torch_file(tmp_path / "saved.pt")
    assert_state_dict(checkpoint["model"], expected_state_dict())
    assert_checkpoint(checkpoint)


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_protocols_and_types_of_torch(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    names = ["bool", "float64", "float32", "float16"] + [f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)]
    saved = {name: torch.randint(0, 2, (3, 4), generator=generator).to(getattr(torch, name)) for name in names}
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    saved |= module.state_dict() | {f"slice {name}": tensor[1:, ::2] for name, tensor in saved.items()}
    wanted = {name: tensor.numpy() for name, tensor in saved.items()}
    saved["numbers"] = [torch.arange(3), (torch.ones(2).untyped_storage(), b"bytes", {1, 2})]
    torch.save(saved, tmp_path / "saved.pt", pickle_protocol=protocol)
    stored = read_torch_file(tmp_path / "saved.pt")
    tensor, (storage, octets, numbers) = stored.pop("numbers")
    assert_state_dict(stored, wanted)
    np.testing.assert_array_equal(tensor.read(), [0, 1, 2])
    assert storage.read().tobytes() == np.ones(2, np.float32).tobytes()
    assert octets == b"bytes"
    assert numbers.class_name.endswith(".set")


@pytest.mark.torch
def test_torch_without_checksums_and_the_older_form(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(6.0)}, tmp_path / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_torch_file(tmp_path / "unchecked.pt")["w"].read(), np.arange(6.0))
    torch.save({"w": torch.arange(6.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="older form"):
        read_torch_file(tmp_path / "old.pt")


@pytest.mark.torch
def test_tensors_that_are_more_than_numbers_are_refused(tmp_path):
    """Their numbers alone would be wrong (a lazy minus sign), or are not there."""
    torch = pytest.importorskip("torch")
    negated = torch.conj(torch.tensor([1 + 2j])).imag
    assert negated.is_neg()
    for tensor, message in ((negated, "negated"), (torch.eye(3).to_sparse(), "_get_layout")):
        torch.save({"w": tensor}, tmp_path / "saved.pt")
        with pytest.raises(WeightsError, match=rf"{message}.*\(at 'w'\)"):
            read_torch_file(tmp_path / "saved.pt")


@pytest.mark.torch
@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_is_written(tmp_path, mapped):
    torch = pytest.importorskip("torch")
    path, table = tmp_path / "written.pt", numbers(3, 2)
    content = {**CONTENT, "tied": [table, table]}
    write_torch_file(path, content)
    loaded = torch.load(path, weights_only=True, mmap=mapped)
    assert loaded["tied"][0].data_ptr() == loaded["tied"][1].data_ptr()
    as_numpy = {
        name: tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if tensor.dtype == torch.bfloat16
        else tensor.numpy()
        for name, tensor in loaded["model"].items()
    }
    assert plain({**loaded, "model": as_numpy, "tied": [t.numpy() for t in loaded["tied"]]}) == plain(content)
