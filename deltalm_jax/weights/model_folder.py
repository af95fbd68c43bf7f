"""A model in a folder of our own form: what `convert` writes, and training starts from.

    model.json          configuration, layout of the vocabulary, where the weights are from, digest of the arrays
    model.safetensors   the parameters, float32, under their paths ("encoder/layers/self_attention/query/kernel")
    vocabulary.model    the SentencePiece model, if it is known

Arrays are read by slices: a device that holds a part of a parameter reads that part only.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from deltalm_jax.data.chunks import VOCABULARY_MODEL
from deltalm_jax.data.shards import digest_file, write_atomically
from deltalm_jax.data.vocabulary import Vocabulary, VocabularyError
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params
from deltalm_jax.weights.state_dict import flatten, unflatten
from deltalm_jax.weights.tensors import WeightsError, read_safetensors, write_safetensors

FORMAT = 1
DESCRIPTION, _ARRAYS = "model.json", "model.safetensors"


def write_model(
    folder: Path, config: ModelConfig, params: Params, vocabulary: Vocabulary | None, origin: dict[str, Any]
) -> None:
    """Writes a model into an existing folder.

    Args:
      folder: the folder.
      config: the model's shape.
      params: its parameters.
      vocabulary: None if it is not known.
      origin: JSON-able facts on where the weights are from.
    """
    arrays = {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in flatten(params).items()}
    write_safetensors(folder / _ARRAYS, arrays)
    if vocabulary is not None:
        (folder / VOCABULARY_MODEL).write_bytes(vocabulary.model)
    description = {
        "format": FORMAT,
        "model": dataclasses.asdict(config),
        "vocabulary": vocabulary.describe() if vocabulary else None,
        "origin": origin,
        "arrays": {"bytes": (folder / _ARRAYS).stat().st_size, "xxh3": digest_file(folder / _ARRAYS)},
    }
    write_atomically(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model in a folder, opened and checked; its arrays are still on disk.

    Attributes:
      folder: where it is.
      config: its shape.
      vocabulary: None if it is not known.
      origin: where the weights are from.
      digest: of the arrays.
    """

    folder: Path
    config: ModelConfig
    vocabulary: Vocabulary | None
    origin: dict[str, Any]
    digest: str

    @classmethod
    def open(cls, folder: Path) -> ModelFolder:
        """Opens a folder and checks the digest of its arrays.

        Raises:
          WeightsError: it is no model, or damaged; names the file.
        """
        file = folder / DESCRIPTION
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
            version = description["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{file}: cannot be read as a model's description: {error!r}") from error
        if version != FORMAT:
            raise WeightsError(f"{file}: has the format {version}; this version reads format {FORMAT}")
        path = folder / _ARRAYS
        try:
            config, origin = ModelConfig(**description["model"]), dict(description["origin"])
            layout = None if description["vocabulary"] is None else dict(description["vocabulary"])
            size, digest = int(description["arrays"]["bytes"]), str(description["arrays"]["xxh3"])
            whole = path.is_file() and path.stat().st_size == size and digest_file(path) == digest
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{file}: cannot be read as a model's description: {error!r}") from error
        if not whole:
            raise WeightsError(
                f"{path}: is missing or not what {DESCRIPTION} beside it vouches for: convert the model again"
            )
        return cls(folder, config, load_vocabulary(folder, layout) if layout else None, origin, digest)

    def read(self, abstract: Params) -> Params:
        """The parameters, each device reading its own part.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct`; a leaf without a sharding is returned as a NumPy array.

        Raises:
          WeightsError: the trees differ; names the leaves.
        """
        path, wanted = self.folder / _ARRAYS, flatten(abstract)
        tensors = read_safetensors(path)
        found = {name: tensor.shape for name, tensor in tensors.items()}
        for name in sorted(found.keys() | wanted.keys()):
            shape = tuple(wanted[name].shape) if name in wanted else None
            if shape != found.get(name):
                raise WeightsError(
                    f"{path}: {name} has the shape {found.get(name)} there and {shape} in the model asked for (None: absent)"
                )
        return unflatten(
            {
                name: tensors[name].read() if leaf.sharding is None else _read_sharded(path, name, leaf)
                for name, leaf in wanted.items()
            }
        )


def _read_sharded(path: Path, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    # Opened for each array anew: the library maps the file, and what was read of a mapped file counts as memory.
    with safe_open(path, framework="numpy") as file:
        array = file.get_slice(name)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])


def load_vocabulary(folder: Path, layout: dict[str, Any]) -> Vocabulary:
    """`vocabulary.model` in a folder, of which a description (`Vocabulary.describe`) tells the layout.

    Raises:
      WeightsError: it is missing or another one.
    """
    path = folder / VOCABULARY_MODEL
    try:
        vocabulary = Vocabulary.load(
            path, sentinel_start=layout["sentinel_start"], num_sentinels=layout["num_sentinels"]
        )
        if vocabulary.fingerprint != layout["fingerprint"]:
            raise WeightsError(f"{path}: is not the vocabulary that was described (sha256 {layout['sha256'][:12]}…)")
    except (OSError, KeyError, TypeError, VocabularyError) as error:
        raise WeightsError(f"{path}: cannot be loaded as described: {error}") from error
    return vocabulary
