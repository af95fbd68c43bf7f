"""Tensors in files, one view for all formats; reading and writing safetensors.

A file is opened for its list of tensors; the numbers are read tensor by tensor, so that a conversion holds one of
them at a time beside what it makes. No file is mapped into memory: the pages of a mapped file count as memory too.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors.numpy

from deltalm_jax.errors import UserError

# safetensors' names of what NumPy (with ml_dtypes) can hold. The library's reader knows bfloat16, its table does not.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}

# What `name_format` says of files of the two kinds that are read.
ZIP_ARCHIVE = "a zip archive, as torch.save writes"
SAFETENSORS = "a safetensors file"


class WeightsError(UserError, ValueError):
    """A file of weights cannot be read, written or used; the message names the file and, where one is meant, the tensor."""


@dataclasses.dataclass(frozen=True)
class StoredTensor(abc.ABC):
    """A tensor in a file: what is known of it before its numbers are read.

    Attributes:
      file: where it is.
      name: its name there; for a state dict, the key.
      shape: sizes.
      dtype: how the file holds it: "float32", "float16", "bfloat16", "float64", "int64", …
    """

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @abc.abstractmethod
    def read(self) -> np.ndarray:
        """The numbers: a fresh array in the stored dtype (`ml_dtypes.bfloat16` for bfloat16), contiguous and writable.

        Raises:
          WeightsError: the file is gone, ends early or is damaged.
        """


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a `StoredTensor.dtype`."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@dataclasses.dataclass(frozen=True)
class _SafetensorsTensor(StoredTensor):
    """A tensor of a safetensors file."""

    def read(self) -> np.ndarray:
        with _opened(self.file) as content:
            return content.get_tensor(self.name)


def read_safetensors(path: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, or of the set of files that an index lists, by name.

    Args:
      path: `….safetensors`, or `….safetensors.index.json` as Hugging Face writes it beside the files of a set.

    Raises:
      WeightsError: a file is missing, cut short or something else; an index and its files do not agree; a tensor has
        a type that NumPy cannot hold.
    """
    if path.suffix == ".json":
        return _read_set(path)
    tensors: dict[str, StoredTensor] = {}
    with _opened(path) as content:
        for name in content.offset_keys():
            view = content.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                raise WeightsError(f"{path}: tensor {name!r} has the type {view.get_dtype()}, which NumPy cannot hold")
            tensors[name] = _SafetensorsTensor(path, name, tuple(view.get_shape()), _DTYPES[view.get_dtype()])
    return tensors


def write_safetensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one safetensors file; a file of that name is replaced only when the new one is whole.

    The library writes straight from the arrays: no further memory is needed, except for arrays that are not contiguous
    (transposed views): they are copied, all at once.

    Args:
      path: the file.
      tensors: arrays by name.
      metadata: texts for the file's header. None says `{"format": "pt"}`, without which older versions of
        transformers refuse the file.

    Raises:
      TypeError: a value is no `np.ndarray`, or its type has no place in safetensors.
      WeightsError: the disk is full, or the folder cannot be written.
    """
    dtypes = {numpy_dtype(name) for name in _DTYPES.values()}
    contiguous = {}
    for name, array in tensors.items():
        if not isinstance(array, np.ndarray) or array.dtype.newbyteorder("=") not in dtypes:
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"{path}: tensor {name!r} must be an np.ndarray of numbers, found {found}")
        # The library would take the memory of a transposed view for its numbers in order. (`ascontiguousarray` would
        # make a scalar one-dimensional.)
        contiguous[name] = np.asarray(array, order="C")
    with whole_file(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                mode = os.fstat(file.fileno()).st_mode
            safetensors.numpy.save_file(contiguous, temporary, {"format": "pt"} if metadata is None else dict(metadata))
            temporary.chmod(mode)  # the library's own is for the owner alone
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Lends a temporary name beside `path`; on leaving without an error the file written there takes its place.

    Raises:
      WeightsError: the system refuses (no such folder, disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def name_format(path: pathlib.Path) -> str:
    """What a file seems to be, from its first bytes: ends the sentence "… is not …, but ".

    Raises:
      WeightsError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page; download the file again, from the address of the file itself"
    if head.startswith(b"PK\x03\x04"):
        return ZIP_ARCHIVE
    if head[8:10] == b'{"':
        return SAFETENSORS
    if head.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"):
        return (
            "the older form of torch.save; convert it with torch 1.6 or newer, if its source is trusted: "
            'torch.save(torch.load("old.pt", map_location="cpu", weights_only=False), "new.pt")'
        )
    if head[257:262] == b"ustar":
        return (
            "a tar archive; unpack it, and if it is a file of torch before 0.1.10, save it anew with torch 1.6 or newer"
        )
    return "something else, or damaged at its beginning"


def _read_set(index: pathlib.Path) -> dict[str, StoredTensor]:
    try:
        files = json.loads(index.read_bytes())["weight_map"]
    except OSError as error:
        raise WeightsError(f"{index} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f'{index} is not an index of safetensors files (JSON with a "weight_map")') from error
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and file == pathlib.PurePath(file).name for file in files.values()
    ):
        raise WeightsError(f'{index}: "weight_map" must give for each tensor the name of a file beside the index')
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(files.values())):
        found = read_safetensors(index.with_name(file))
        wanted = {name for name in files if files[name] == file}
        if found.keys() != wanted:
            name = min(found.keys() ^ wanted)
            has, lacks = ("the index", file) if name in wanted else (file, "the index")
            raise WeightsError(f"{index}: tensor {name!r} is in {has}, but not in {lacks}; the set is not whole")
        tensors.update(found)
    return tensors


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[safetensors.safe_open]:
    try:
        with safetensors.safe_open(path, framework="numpy", backend="pread") as content:
            yield content
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        seems = name_format(path)
        if seems == SAFETENSORS:
            raise WeightsError(f"{path} is damaged or not whole: {error}") from error
        raise WeightsError(f"{path} is not a safetensors file, but {seems}") from error
