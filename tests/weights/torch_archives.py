"""Archives like those of torch.save, put together by hand; and values in a form that can be compared."""

from __future__ import annotations

import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np

from deltalm_jax.weights.pickle_data import Foreign
from deltalm_jax.weights.tensors import StoredTensor

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch_saved.pt"


def write_archive(
    folder: pathlib.Path,
    pickled: bytes,
    storages: dict[str, bytes],
    byteorder: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
    """Writes `folder/model.pt` around a pickle."""
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("any/data.pkl", pickled)
        archive.writestr("any/byteorder", byteorder)
        for key, content in storages.items():
            archive.writestr(f"any/data/{key}", content)
    return path


def instructions(value: Any) -> bytes:
    """A plain value's part of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor_pickle(
    name: str,
    elements: int,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    storage_type: str = "FloatStorage",
) -> bytes:
    """The pickle of {name: a tensor that views data/0}."""
    return b"".join(
        [
            b"\x80\x02}",
            instructions(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            instructions("storage"),
            f"ctorch\n{storage_type}\n".encode(),
            *map(instructions, ("0", "cpu", elements)),
            b"tQ",
            *map(instructions, (offset, shape, strides, False)),
            b"ccollections\nOrderedDict\n)RtRs.",
        ]
    )


def plain(value: Any, seen: dict[int, int] | None = None) -> Any:
    """A value with its tensors read, as tuples that compare equal only if all types, names and bits are equal.

    Objects may hold one another in circles (omegaconf's do): what comes again is its number.
    """
    seen = {} if seen is None else seen
    if isinstance(value, StoredTensor):
        value = value.read()
    if isinstance(value, np.ndarray):
        little = value.astype(value.dtype.newbyteorder("<"))
        return ("array", little.dtype.name, little.shape, little.tobytes())
    if isinstance(value, tuple):
        return ("tuple", *(plain(item, seen) for item in value))
    if not isinstance(value, (Foreign, dict, list)):
        return repr(value)
    if id(value) in seen:
        return ("again", seen[id(value)])
    seen[id(value)] = len(seen)
    if isinstance(value, Foreign):
        parts = (value.arguments, value.state, value.contents)
        return ("Foreign", value.class_name, *(plain(part, seen) for part in parts))
    if isinstance(value, dict):
        return ("dict", *((repr(key), plain(item, seen)) for key, item in value.items()))
    return ("list", *(plain(item, seen) for item in value))
