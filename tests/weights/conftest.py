"""Files of other people's formats, written by the tests, and what stands in them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from deltalm_jax.conversion import convert
from deltalm_jax.conversion_request import Request
from deltalm_jax.weights.torch_file import write_torch_file
from tests.model.conftest import GOLDEN
from tests.support import official_model


@pytest.fixture(scope="session")
def official_state() -> official_model.State:
    """A released file's tensors, in sizes of its own: 6-3 layers × 48, with LayerNorms on the embeddings."""
    return official_model.random_state(6, 3, 48, 80, 61, 20, embedding_layer_norm=True)


@pytest.fixture(scope="session")
def official_state_like_large() -> official_model.State:
    """The same without LayerNorms on the embeddings."""
    return official_model.random_state(6, 3, 48, 80, 61, 20, embedding_layer_norm=False, seed=1)


@pytest.fixture(scope="session")
def golden_state() -> dict[str, np.ndarray]:
    """All arrays of the golden file of the base architecture."""
    return dict(np.load(GOLDEN / "deltalm_tiny_postnorm_lnemb.npz"))


@pytest.fixture(scope="session")
def golden_encoder() -> dict[str, np.ndarray]:
    """All arrays of the golden file with an XLM-R in fairseq's names and the DeltaLM that starts from it."""
    return dict(np.load(GOLDEN / "init_from_xlmr_tiny.npz"))


@pytest.fixture
def save(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Writes {"weights": tensors} (or another key) as a .pt file."""

    def write(tensors: dict[str, np.ndarray], key: str = "weights", **more: Any) -> pathlib.Path:
        path = tmp_path / "model.pt"
        write_torch_file(path, {key: tensors, **more})
        return path

    return write


@pytest.fixture
def save_hugging_face_encoder(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Writes the golden `XLMRobertaModel` as a folder, with some tensors changed, added or (None) left out."""

    def write(changes: dict[str, np.ndarray | None] | None = None, prefix: str = "") -> pathlib.Path:
        arrays = dict(np.load(GOLDEN / "xlmr_tiny_hf.npz"))
        tensors = {k.removeprefix("hf/"): v for k, v in arrays.items() if k.startswith("hf/")} | (changes or {})
        folder = tmp_path / "xlmr"
        folder.mkdir()
        kept = {prefix + name: np.ascontiguousarray(v) for name, v in tensors.items() if v is not None}
        safetensors.numpy.save_file(kept, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
        return folder

    return write


@pytest.fixture
def converted(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Converts and returns the output's path."""

    def run(source: str, path: pathlib.Path, name: str = "out", **options: Any) -> pathlib.Path:
        convert(Request(source=source, input=path, output=tmp_path / name, **options))
        return tmp_path / name

    return run
