"""Which file of what the user names holds the weights, and which the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalm_jax.weights.state_dict import StateDict
from deltalm_jax.weights.tensors import StoredTensor, WeightsError, read_safetensors
from deltalm_jax.weights.torch_file import read_torch_file

# As Hugging Face names the weights in a folder, best first.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "model.pt")
_VOCABULARIES = ("sentencepiece.bpe.model", "spm.model", "vocabulary.model")


def weights_file(path: Path) -> Path:
    """The file of weights that a path means: itself, or the one in a folder.

    Raises:
      WeightsError: there is nothing, or nothing of a known name.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: there is no such file or folder")
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise WeightsError(f"{path}: this folder has none of {', '.join(_WEIGHTS)}")


def vocabulary_file(path: Path) -> Path | None:
    """The SentencePiece model beside the weights, under one of its usual names; None if there is none."""
    folder = path if path.is_dir() else path.parent
    return next((folder / name for name in _VOCABULARIES if (folder / name).is_file()), None)


def config_json(path: Path) -> dict[str, Any]:
    """What Hugging Face's `config.json` beside the weights says; nothing where there is none.

    Raises:
      WeightsError: the file is damaged.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: is no configuration, but a {type(content).__name__}")
    return content


def checked_config(path: Path, allowed: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """`config_json`, refused if it contradicts the model that is read.

    Raises:
      WeightsError: a field of `allowed` is there and has none of its values; or the file is damaged.
    """
    content = config_json(path)
    for name, values in allowed.items():
        if name in content and content[name] not in values:
            raise WeightsError(
                f"{path}: config.json says {name}={content[name]!r}, but this kind of model has "
                f"{' or '.join(map(repr, values))}: it is another model, which would convert without a word and be wrong"
            )
    return content


def read_state_dict(path: Path, *keys: str) -> StateDict:
    """The tensors of a file or folder of weights.

    Args:
      path: safetensors or PyTorch's own form.
      keys: where in PyTorch's form the tensors may be, if not at the top ("model" in fairseq's checkpoints).

    Raises:
      WeightsError: the file is missing or damaged, or holds no tensors there.
    """
    file = weights_file(path)
    if file.name.endswith((".safetensors", ".safetensors.index.json")):
        return StateDict(file, read_safetensors(file))
    content = read_torch_file(file)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file}: expected a dictionary of tensors, found {type(content).__name__}")
    found: Any = next((content[key] for key in keys if key in content), content)
    tensors = {n: t for n, t in found.items() if isinstance(t, StoredTensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise WeightsError(
            f"{file}: there are no tensors, neither at the top nor under {' or '.join(map(repr, keys))}; its keys are "
            f"{', '.join(map(repr, list(content)[:8]))}"
        )
    return StateDict(file, tensors)
