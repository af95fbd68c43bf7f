"""From one form of a model to another: reads, starts a DeltaLM from an encoder if it is one, writes.

The output appears when it is complete: it is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deltalm_jax.data.vocabulary import DEFAULT_NUM_SENTINELS, SIZE_MULTIPLE, Vocabulary, VocabularyError
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params
from deltalm_jax.model.warm_start import INITIALIZATIONS, num_decoder_layers, warm_start, with_new_rows
from deltalm_jax.saved_model import open_model
from deltalm_jax.weights import deltalm
from deltalm_jax.weights.files import vocabulary_file
from deltalm_jax.weights.model_folder import write_model
from deltalm_jax.weights.names import FFN_ORDERS
from deltalm_jax.weights.state_dict import abstract_params
from deltalm_jax.weights.tensors import WeightsError
from deltalm_jax.weights.xlm_roberta import read_xlm_roberta

SOURCES = ("xlm_roberta", "deltalm", "huggingface_deltalm", "native")
TARGETS = ("native", "deltalm", "huggingface_deltalm")

# Where the sentinels of a released DeltaLM's table stand: the two readings that its 250,104 rows allow.
SENTINEL_LAYOUTS = ("after_mask", "last_rows")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be converted.

    Attributes:
      source, target: one of `SOURCES` and of `TARGETS`.
      input, output: paths; `output` must not exist.
      initialize: of an encoder, how the DeltaLM starts from it: one of `INITIALIZATIONS`.
      num_decoder_layers: of an encoder; None makes the decoder as large as the encoder.
      num_heads: attention heads; None takes those of a configuration beside the weights or of the published models.
      vocabulary: SentencePiece model; None takes the one beside the weights, if there is one.
      num_sentinels: sentinels of the vocabulary.
      sentinel_layout: "after_mask" (250,002 to 250,101 in the released models) or "last_rows" (250,004 to 250,103).
      vocab_size: rows of the token table; None is the vocabulary's size for an encoder, else what is there.
      ffn_order: one of `names.FFN_ORDERS`, for the released files.
      seed: of what starts randomly.
    """

    source: str
    input: Path
    output: Path
    target: str = "native"
    initialize: str = "interleaved"
    num_decoder_layers: int | None = None
    num_heads: int | None = None
    vocabulary: Path | None = None
    num_sentinels: int = DEFAULT_NUM_SENTINELS
    sentinel_layout: str = "after_mask"
    vocab_size: int | None = None
    ffn_order: str = FFN_ORDERS[0]
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Converted:
    """A DeltaLM between reading and writing; `notes` are sentences on what was done."""

    config: ModelConfig
    params: Params
    vocabulary: Vocabulary | None
    origin: dict[str, Any]
    notes: tuple[str, ...]


def convert(request: Request) -> Converted:
    """Carries out a request; returns what was written.

    Raises:
      WeightsError, VocabularyError, SavedModelError, CheckpointError: names the file, and the tensor where it is one.
    """
    if request.output.exists():
        raise WeightsError(f"{request.output}: exists already: choose another --output, or move it away")
    model = _read(request)
    with _replacing(request.output) as path:
        _write(request, model, path)
    return model


def _read(request: Request) -> Converted:
    if request.source == "native":
        return _read_native(request)
    file = request.vocabulary or vocabulary_file(request.input)
    vocabulary = _load_vocabulary(request, file) if file else None
    if request.source == "xlm_roberta":
        return _from_encoder(request, vocabulary)
    if request.source == "deltalm":
        config, params, notes = deltalm.read_fairseq(request.input, request.ffn_order, request.num_heads)
    else:
        config, params, notes = deltalm.read_hugging_face(request.input, request.num_heads)
    return _with_rows(request, config, params, vocabulary, notes, {})


def _from_encoder(request: Request, vocabulary: Vocabulary | None) -> Converted:
    encoder = read_xlm_roberta(request.input, vocabulary, request.num_heads)
    initialize = request.initialize
    rows = len(encoder.params["token_embedding"])
    without_vocabulary = -(-(rows + request.num_sentinels) // SIZE_MULTIPLE) * SIZE_MULTIPLE
    size = vocabulary.size if vocabulary else without_vocabulary
    layers = encoder.config.num_encoder_layers
    config = dataclasses.replace(
        encoder.config,
        vocab_size=request.vocab_size or size,
        decoder="vanilla" if initialize.startswith("vanilla") else "interleaved",
        num_decoder_layers=request.num_decoder_layers or num_decoder_layers(initialize, layers),
    )
    try:
        params = warm_start(config, encoder.params, jax.random.key(request.seed), initialize)
    except ValueError as error:
        raise WeightsError(f"{request.input}: {error}") from error
    used = config.num_decoder_layers * (2 if initialize == "interleaved" else 1)
    notes = [*encoder.notes, f"{config.vocab_size - rows} new token rows, drawn from N(0, 1/{config.hidden_size})"]
    if used < layers and initialize != "random":
        notes.append(f"the decoder starts from encoder layers 0 to {used - 1}; those above are not used in it")
    origin = _origin(request) | {"initialize": initialize, "seed": request.seed}
    return Converted(config, params, vocabulary, origin, tuple(notes))


def _read_native(request: Request) -> Converted:
    saved = open_model(request.input)
    vocabulary = _load_vocabulary(request, request.vocabulary) if request.vocabulary else saved.vocabulary
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), abstract_params(saved.config)
    )
    params = jax.tree.map(np.asarray, saved.read(shapes))
    return _with_rows(request, saved.config, params, vocabulary, (), saved.origin)


def _with_rows(
    request: Request,
    config: ModelConfig,
    params: Params,
    vocabulary: Vocabulary | None,
    notes: tuple[str, ...],
    origin: dict[str, Any],
) -> Converted:
    """A DeltaLM with as many token rows as asked for; by default with those it has."""
    rows = len(params["token_embedding"])
    if vocabulary is not None and not vocabulary.mask_id <= rows <= vocabulary.size + _MAX_PADDING_ROWS:
        raise WeightsError(
            f"{request.input}: the token table has {rows:,} rows, but the vocabulary {vocabulary.file_name} with its "
            f"sentinels asks for {vocabulary.mask_id:,} to {vocabulary.size:,}: model and vocabulary do not belong together"
        )
    size = request.vocab_size or rows
    if size > rows:
        table = with_new_rows(params["token_embedding"], size, jax.random.key(request.seed))
        notes += (f"{size - rows} new token rows, drawn from N(0, 1/{config.hidden_size})",)
    else:
        table = params["token_embedding"][:size]
        notes += (f"{rows - size} token rows left out",) if size < rows else ()
    if vocabulary is not None and size < vocabulary.size:
        notes += (
            f"{size:,} token rows: none for {vocabulary.size - size} of the ids of <mask>, sentinels and filler, as in "
            f"fine-tuned models; to pretrain on, --vocab_size={vocabulary.size}",
        )
    config = dataclasses.replace(config, vocab_size=size)
    return Converted(config, params | {"token_embedding": table}, vocabulary, origin | _origin(request), notes)


# A table may be padded to a round number of rows; one that is longer than this is another vocabulary's.
_MAX_PADDING_ROWS = 1024


def _load_vocabulary(request: Request, file: Path) -> Vocabulary:
    try:
        vocabulary = Vocabulary.load(file, num_sentinels=request.num_sentinels)
        if request.sentinel_layout == "last_rows":
            start = vocabulary.size - request.num_sentinels
            vocabulary = Vocabulary.load(file, num_sentinels=request.num_sentinels, sentinel_start=start)
    except FileNotFoundError as error:
        raise VocabularyError(str(error)) from error
    return vocabulary


def _origin(request: Request) -> dict[str, Any]:
    return {"format": request.source, "input": str(request.input)}


def _write(request: Request, model: Converted, path: Path) -> None:
    if request.target == "native":
        path.mkdir()
        write_model(path, model.config, model.params, model.vocabulary, model.origin)
    elif request.target == "deltalm":
        deltalm.write_official(path, model.config, model.params, request.ffn_order)
    else:
        path.mkdir()
        deltalm.write_hugging_face(path, model.config, model.params, model.vocabulary)


@contextlib.contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A path beside `output`, renamed to it at the end, and removed if the end is not reached."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.rename(output)
    except OSError as error:
        raise WeightsError(f"{output}: cannot be written ({error})") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


__all__ = ["INITIALIZATIONS", "SENTINEL_LAYOUTS", "SOURCES", "TARGETS", "Converted", "Request", "convert"]
