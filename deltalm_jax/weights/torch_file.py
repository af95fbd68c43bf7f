"""Files of `torch.save` (fairseq's and Hugging Face's `.pt`, `.bin`), read and written without torch, read without trust.

Such a file is a zip archive of plain entries: ROOT/data.pkl, a pickle of the saved object in which each tensor is a call
of `torch._utils._rebuild_tensor_v2` with (storage, offset, shape, strides, …); and ROOT/data/KEY, the numbers of one
storage each, which several tensors may view. The pickle is read as data (`pickle_data`): nothing that it names is
imported or called. The numbers of a tensor are read when asked for, and checked against the archive's CRC-32.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deltalm_jax.weights.pickle_data import Global, PickleError, read_pickle, show
from deltalm_jax.weights.tensors import ZIP_ARCHIVE, StoredTensor, WeightsError, name_format, numpy_dtype, whole_file
from deltalm_jax.weights.zip_entries import Entries, Entry, EntryError

_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    # Bytes, for the types that came after the storages with types had been given up.
    "torch.storage.UntypedStorage": "uint8",
}
_LATER_DTYPES = {"torch.uint16": "uint16", "torch.uint32": "uint32", "torch.uint64": "uint64"}

# Calls in the arguments, configurations and statistics that trainers save beside the weights. They are recorded, not
# carried out; a list, so that a pickle that would call anything else is refused loudly rather than half understood.
_RECORDED_PACKAGES = ("argparse.", "fairseq.", "omegaconf.")
_RECORDED = frozenset(
    [
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "complex")),
        *(f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
        "numpy.dtype",
        "torch.Size",
        "torch.device",
        "collections.defaultdict",
        "collections.Counter",
        "datetime.datetime",
        "datetime.timedelta",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",
        "_operator.getitem",  # typing.Dict[str, int]
        "copy_reg._reconstructor",  # an object, as protocols 0 and 1 had it
        "copyreg._reconstructor",
    ]
)

_MAX_PICKLE_BYTES = 64 << 20
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class _TorchTensor(StoredTensor):
    """A view of a storage; offset and strides are in elements."""

    entry: Entry
    offset: int
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        dtype = numpy_dtype(self.dtype)
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        try:
            # Of a storage of many tensors, or of which a slice was saved, only the part that this one spans.
            raw = self.entry.read(self.offset * dtype.itemsize, _span(self.shape, self.strides) * dtype.itemsize)
        except EntryError as error:
            raise WeightsError(f"{self.file}: tensor {self.name!r}: {error}") from error
        except OSError as error:
            raise WeightsError(f"{self.file} cannot be read: {error.strerror or error}") from error
        values = np.frombuffer(raw, dtype)
        if self.strides == _contiguous_strides(self.shape):
            return values.reshape(self.shape)
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.array(np.lib.stride_tricks.as_strided(values, self.shape, strides), order="C")


def read_torch_file(path: pathlib.Path) -> Any:
    """The object in a file of `torch.save`, with a `StoredTensor` in place of each tensor (and parameter, and storage).

    Dicts (an OrderedDict too), lists, tuples, strings, numbers, None are themselves. An object of any other class is a
    `pickle_data.Foreign`, a class or function a `pickle_data.Global`: records of what the file says, made without importing
    or calling anything (records may hold one another in circles). A tensor is named by its key in the dict that holds it,
    else by its storage ("data/7").

    Raises:
      WeightsError: the file is cut short, damaged or no zip archive of `torch.save`; a tensor reaches outside its storage,
        has more elements than it, or a type that NumPy cannot hold; the pickle calls something that weights do not need.
    """
    seems = name_format(path)
    if seems != ZIP_ARCHIVE:
        raise WeightsError(f"{path} is not a file of torch.save (1.6 or newer), but {seems}")
    try:
        entries = Entries(path)
        names = entries.names()
        root = names[0].partition("/")[0] if names else ""
        if f"{root}/constants.pkl" in names:
            raise WeightsError(f"{path} is a program (torch.jit.save); save its state_dict() with torch.save")
        if f"{root}/data.pkl" not in names:
            raise WeightsError(f"{path} is a zip archive, but not one of torch.save: it holds no data.pkl")
        if f"{root}/byteorder" in names and entries.find(f"{root}/byteorder").read() != b"little":
            raise WeightsError(f"{path} is of a machine with another order of bytes (big-endian): save it on another")
        description = entries.find(f"{root}/data.pkl")
        if description.size > _MAX_PICKLE_BYTES:
            raise WeightsError(
                f"{path}: its data.pkl has {description.size} bytes; beside weights, thousands are usual"
            )
        return read_pickle(
            bytes(description.read()),
            calls=_calls(),
            is_recorded=lambda name: name in _RECORDED or name.startswith(_RECORDED_PACKAGES),
            persistent=lambda identity: _storage(identity, entries, root),
            name_item=_name_item,
        )
    except PickleError as error:
        raise WeightsError(f"{path}: the pickle in it (data.pkl) {error}") from error
    except EntryError as error:
        raise WeightsError(f"{path}: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def write_torch_file(path: pathlib.Path, content: Any) -> None:
    """Writes a file that `torch.load(path, weights_only=True)` reads; one of that name is replaced when the new one is whole.

    Arrays become tensors, written one after the other (a copy of one is made only if it is not contiguous); an array
    that occurs twice is one storage that two tensors share. The same content gives the same bytes.

    Args:
      path: the file.
      content: arrays (`np.ndarray`), strings, ints, floats, bools, None, and dicts, lists and tuples of these.

    Raises:
      TypeError: something else is in it; names it.
      WeightsError: the disk is full, or the folder cannot be written.
    """
    arrays: dict[int, tuple[int, np.ndarray]] = {}
    description = b"".join([b"\x80\x02", *_describe(content, arrays, ""), b"."])
    with whole_file(path) as temporary, open(temporary, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        _write_entry(archive, file.tell(), "data.pkl", memoryview(description))
        _write_entry(archive, file.tell(), "byteorder", memoryview(b"little"))
        for key, array in arrays.values():
            _write_entry(archive, file.tell(), f"data/{key}", _little_endian(array))
        _write_entry(archive, file.tell(), "version", memoryview(b"3\n"))


def _storage(identity: Any, entries: Entries, root: str) -> _TorchTensor:
    """A storage, as the one-dimensional tensor that it is: of ("storage", type, key, device, number of elements)."""
    match identity:
        case ("storage", Global(storage_type), str(key), str(), int(elements)):
            pass
        case _:
            raise PickleError("refers to something outside it that is not a storage of a tensor")
    if storage_type not in _STORAGES:
        raise PickleError(f"has a storage of type {show(storage_type)}, which NumPy cannot hold")
    dtype = _STORAGES[storage_type]
    try:
        entry = entries.find(f"{root}/data/{key}")
    except EntryError as error:
        raise PickleError(f"needs a storage, but {show(str(error))}") from error
    # A few bytes may be left over: of a storage of bytes seen as numbers.
    if not 0 <= entry.size - elements * numpy_dtype(dtype).itemsize < numpy_dtype(dtype).itemsize:
        raise PickleError(
            f"gives data/{show(key)} {show(str(elements))} numbers of type {dtype}, but it has {entry.size} bytes"
        )
    return _TorchTensor(entries.file, f"data/{key}", (elements,), dtype, entry, 0, (1,))


def _calls() -> dict[str, Callable[[tuple], Any]]:
    """The calls that are carried out, by functions of this module."""
    return {
        "collections.OrderedDict": _ordered_dict,
        "_codecs.encode": _bytes,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_later_type,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
    }


def _ordered_dict(arguments: tuple) -> dict:
    if arguments:
        raise PickleError("fills an OrderedDict in a way that torch.save does not")
    return {}


def _bytes(arguments: tuple) -> bytes:
    """Protocol 2 has no bytes; Python writes them as text of as many characters."""
    match arguments:
        case (str(text), "latin1"):
            return text.encode("latin-1")  # a UnicodeError is a ValueError, as of the disassembler
    raise PickleError("encodes a text in a way that torch.save does not")


def _tensor(arguments: tuple) -> _TorchTensor:
    match arguments:
        case (_TorchTensor() as storage, offset, shape, strides, _, _, *metadata) if not any(metadata):
            return _view(storage, storage.dtype, offset, shape, strides)
    raise PickleError("describes a tensor in a way that is not read (negated or conjugated, perhaps)")


def _tensor_of_later_type(arguments: tuple) -> _TorchTensor:
    match arguments:
        case (_TorchTensor(dtype="uint8") as storage, offset, shape, strides, _, _, Global(dtype), *metadata) if (
            not any(metadata)
        ):
            if dtype not in _LATER_DTYPES:
                raise PickleError(f"has a tensor of type {show(dtype)}, which NumPy cannot hold")
            return _view(storage, _LATER_DTYPES[dtype], offset, shape, strides)
    raise PickleError("describes a tensor in a way that is not read")


def _parameter(arguments: tuple) -> _TorchTensor:
    match arguments:
        case (_TorchTensor() as data, _, _, *_):
            return data
    raise PickleError("describes a parameter that is no tensor")


def _view(storage: _TorchTensor, dtype: str, offset: Any, shape: Any, strides: Any) -> _TorchTensor:
    def is_size(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**62

    if not (
        is_size(offset)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= 64
        and all(map(is_size, (*shape, *strides)))
        and math.prod(size or 1 for size in shape) < 2**59
    ):
        raise PickleError(f"gives a tensor of {show(storage.name)} an impossible offset, shape or strides")
    elements = storage.entry.size // numpy_dtype(dtype).itemsize
    if 0 not in shape and offset + _span(shape, strides) > elements:
        raise PickleError(
            f"has a tensor of shape {shape} that reaches beyond its storage {show(storage.name)}, {elements} numbers"
        )
    # A few bytes of file could else ask for any amount of memory.
    if math.prod(shape) > elements:
        raise PickleError(
            f"has a tensor of shape {shape} expanded from a storage of {elements} numbers; save it as `tensor.contiguous()`"
        )
    return _TorchTensor(storage.file, storage.name, shape, dtype, storage.entry, offset, strides)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The number of elements from the first to the last of a tensor that is not empty."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _name_item(key: str, value: Any) -> Any:
    return dataclasses.replace(value, name=key) if isinstance(value, _TorchTensor) else value


def _describe(value: Any, arrays: dict[int, tuple[int, np.ndarray]], where: str) -> Iterator[bytes]:
    """The pickle of a value, of protocol 2, without a memo (nothing is referred to twice); collects its arrays by id."""
    if isinstance(value, np.ndarray):
        storage_type = next(
            (name for name, dtype in _STORAGES.items() if numpy_dtype(dtype) == value.dtype.newbyteorder("=")), None
        )
        if storage_type is None:
            raise TypeError(f"{where or 'the content'} has the dtype {value.dtype}, which torch does not know")
        key, _ = arrays.setdefault(id(value), (len(arrays), value))
        yield _global("torch._utils._rebuild_tensor_v2")
        yield b"(("
        yield _literal("storage")
        yield _global(storage_type)
        yield from map(_literal, (str(key), "cpu", value.size))
        yield b"tQ"
        yield from map(_literal, (0, value.shape, _contiguous_strides(value.shape), False))
        yield _global("collections.OrderedDict")
        yield b")RtR"
    elif isinstance(value, dict):
        yield b"}("
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where or 'the content'} has the key {key!r}; keys are strings or ints")
            yield _literal(key)
            yield from _describe(item, arrays, f"{where}/{key}" if where else str(key))
        yield b"u"
    elif type(value) in (list, tuple):
        yield b"](" if type(value) is list else b"("
        for index, item in enumerate(value):
            yield from _describe(item, arrays, f"{where}/{index}" if where else str(index))
        yield b"e" if type(value) is list else b"t"
    elif value is None or type(value) in (str, bool, int, float):
        yield _literal(value)
    else:
        raise TypeError(
            f"{where or 'the content'} is a {type(value).__name__}, which is not written to a file of torch.save"
        )


def _literal(value: Any) -> bytes:
    """A plain value's instructions, without those at a pickle's beginning and end."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode("ascii")


def _little_endian(array: np.ndarray) -> memoryview:
    """The bytes of an array in order; a copy if they do not lie so."""
    ordered = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return ordered.reshape(-1).view(np.uint8).data


def _write_entry(archive: zipfile.ZipFile, position: int, name: str, data: memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")  # of 1980, so that equal content gives equal bytes
    large = data.nbytes > zipfile.ZIP64_LIMIT // 2  # some way before zipfile itself must use its larger header
    header_bytes = 30 + len(info.filename) + (20 if large else 0)
    # As torch does: a field "FB" of padding, so that a tensor can be used where it lies when the file is mapped.
    padding = -(position + header_bytes + 4) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as entry:
        entry.write(data)
