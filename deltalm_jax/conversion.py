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

from deltalm_jax.averaging import average, checkpoints_of
from deltalm_jax.data.vocabulary import DEFAULT_NUM_SENTINELS, Vocabulary, padded_size
from deltalm_jax.data.vocabulary_extension import is_extension
from deltalm_jax.data.vocabulary_trimming import is_trimmed
from deltalm_jax.errors import UserError
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params
from deltalm_jax.model.warm_start import INITIALIZATIONS, num_decoder_layers, warm_start, with_new_rows
from deltalm_jax.paths import is_remote
from deltalm_jax.saved_model import open_model
from deltalm_jax.weights import deltalm
from deltalm_jax.weights.files import config_json, vocabulary_file
from deltalm_jax.weights.model_folder import write_model
from deltalm_jax.weights.names import FFN_ORDERS
from deltalm_jax.weights.new_pieces import move_rows
from deltalm_jax.weights.state_dict import MAX_PADDING_ROWS, abstract_params
from deltalm_jax.weights.tensors import WeightsError
from deltalm_jax.weights.xlm_roberta import read_xlm_roberta

SOURCES = ("xlm_roberta", "deltalm", "huggingface_deltalm", "native")
TARGETS = ("native", "deltalm", "huggingface_deltalm")

# Where the sentinels of a released DeltaLM's table stand: the two readings that its 250,104 rows allow.
SENTINEL_LAYOUTS = ("after_mask", "last_rows")


class ConversionError(UserError, ValueError):
    """A conversion that cannot be asked for so; the message names the option."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be converted. None leaves a choice to the file, or to the default that is named.

    Attributes:
      source, target: one of `SOURCES` and of `TARGETS`.
      input, output: paths; `output` must not exist.
      initialize: of an encoder, how the DeltaLM starts from it: one of `INITIALIZATIONS`; None is the first.
      num_decoder_layers: of an encoder; None makes the decoder as large as the encoder.
      decoder_output_rms: of an encoder, see `warm_start`.
      num_heads: attention heads; None takes those of a configuration beside the weights or of the published models.
      vocabulary: SentencePiece model; None takes the one beside the weights, if there is one. An extension of that one
        (`python -m deltalm_jax.vocabulary extend`) gives the model rows for its new pieces; a part of it (`trim`) leaves it
        those of its pieces.
      num_sentinels: sentinels of the vocabulary; None is 100.
      sentinel_layout: None is "after_mask" (250,002 to 250,101 in the released models); or "last_rows" (250,004 to
        250,103).
      vocab_size: rows of the token table; None is the vocabulary's size for an encoder, else what is there.
      ffn_order: one of `names.FFN_ORDERS`, for the released files; None is the first.
      average_last: of a run, how many of its newest checkpoints are averaged, as is usual for translation; None: the newest
        is taken as it is.
      seed: of what starts randomly.

    Raises:
      ConversionError: a number is out of range, or an option does not apply to this source and target.
    """

    source: str
    input: Path
    output: Path
    target: str = "native"
    initialize: str | None = None
    num_decoder_layers: int | None = None
    decoder_output_rms: float | None = None
    num_heads: int | None = None
    vocabulary: Path | None = None
    num_sentinels: int | None = None
    sentinel_layout: str | None = None
    vocab_size: int | None = None
    ffn_order: str | None = None
    average_last: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        ones = ("num_decoder_layers", "num_heads", "num_sentinels", "average_last")
        for name, least in (*((name, 1) for name in ones), ("vocab_size", 4)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConversionError(f"--{name} must be at least {least}, found {value}")
        if self.decoder_output_rms is not None and not self.decoder_output_rms > 0:
            raise ConversionError(f"--decoder_output_rms must be above 0, found {self.decoder_output_rms}")
        if self.seed < 0:
            raise ConversionError(f"--seed must not be negative, found {self.seed}")
        applies = {
            "initialize": self.source == "xlm_roberta",
            "num_decoder_layers": self.source == "xlm_roberta",
            "decoder_output_rms": self.source == "xlm_roberta",
            "num_heads": self.source != "native",
            "num_sentinels": self.source != "native" or self.vocabulary is not None,
            "sentinel_layout": self.source != "native" or self.vocabulary is not None,
            "ffn_order": "deltalm" in (self.source, self.target),
            "average_last": self.source == "native",
        }
        for name, does in applies.items():
            if getattr(self, name) is not None and not does:
                raise ConversionError(
                    f"--{name} does not apply to --from={self.source} --to={self.target}: what it says is settled when the "
                    "original file is read"
                )


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
      UserError: ConversionError, WeightsError, VocabularyError, SavedModelError or CheckpointError; names the option, or
        the file and the tensor where it is one.
    """
    with _replacing(request.output) as path:
        model = _read(request)
        _write(request, model, path)
    return model


def _read(request: Request) -> Converted:
    if request.source == "native":
        return _read_native(request)
    if is_remote(request.input):
        raise ConversionError(
            f"--input={request.input}: weights of this format are read from a disk: copy them there first"
        )
    old, vocabulary = _vocabularies(request)
    if request.source == "xlm_roberta":
        return _from_encoder(request, vocabulary, old)
    if request.source == "deltalm":
        config, params, notes = deltalm.read_fairseq(
            request.input, request.ffn_order or FFN_ORDERS[0], request.num_heads
        )
    else:
        config, params, notes = deltalm.read_hugging_face(request.input, request.num_heads)
    return _with_rows(request, config, params, vocabulary, old, notes, {})


def _from_encoder(request: Request, vocabulary: Vocabulary | None, old: Vocabulary | None) -> Converted:
    encoder = read_xlm_roberta(request.input, old or vocabulary, request.num_heads)
    if old and vocabulary:
        table, note = move_rows(encoder.params["token_embedding"], old, vocabulary, _key_of_rows(request))
        params = encoder.params | {"token_embedding": table}
        encoder = dataclasses.replace(encoder, params=params, notes=(*encoder.notes, note))
    initialize = request.initialize or INITIALIZATIONS[0]
    rows, layers = len(encoder.params["token_embedding"]), encoder.config.num_encoder_layers
    sentinels = request.num_sentinels or DEFAULT_NUM_SENTINELS
    size = vocabulary.size if vocabulary else padded_size(rows + sentinels)
    try:
        config = dataclasses.replace(
            encoder.config,
            vocab_size=request.vocab_size or size,
            decoder="vanilla" if initialize.startswith("vanilla") else "interleaved",
            num_decoder_layers=request.num_decoder_layers or num_decoder_layers(initialize, layers),
        )
        key = jax.random.key(request.seed)
        params = warm_start(config, encoder.params, key, initialize, request.decoder_output_rms)
    except ValueError as error:
        raise WeightsError(f"{request.input}: {error}") from error
    if initialize == "random":
        notes = ["nothing of the encoder but its sizes is used"]
    else:
        new = config.vocab_size - rows
        notes = [*encoder.notes, f"{new} new token rows, drawn from N(0, 1/{config.hidden_size})"]
        used = config.num_decoder_layers * (2 if initialize == "interleaved" else 1)
        if used < layers:
            notes.append(f"the decoder starts from encoder layers 0 to {used - 1}; those above are not used in it")
    origin = _origin(request) | {"initialize": initialize, "seed": request.seed}
    if request.decoder_output_rms is not None:
        origin["decoder_output_rms"] = request.decoder_output_rms
    return Converted(config, params, vocabulary, origin, tuple(notes))


def _read_native(request: Request) -> Converted:
    saved = open_model(request.input)
    old, vocabulary = None, saved.vocabulary
    if request.vocabulary:
        extension = _moved_to(request, saved.vocabulary)
        old = saved.vocabulary if extension else None
        vocabulary = extension or _load_vocabulary(request, request.vocabulary)
    if request.average_last is None:
        params, origin = jax.tree.map(np.asarray, saved.read(abstract_params(saved.config))), saved.origin
    else:
        averaged = checkpoints_of(request.input, request.average_last)
        params = average(averaged)
        origin = saved.origin | {"step": [model.origin["step"] for model in averaged]}
    return _with_rows(request, saved.config, params, vocabulary, old, (), origin)


def _with_rows(
    request: Request,
    config: ModelConfig,
    params: Params,
    vocabulary: Vocabulary | None,
    old: Vocabulary | None,
    notes: tuple[str, ...],
    origin: dict[str, Any],
) -> Converted:
    """A DeltaLM with as many token rows as asked for; by default with those it has.

    Where `old` is given, `vocabulary` is an extension or a part of it: the table is one of `old`, and is first moved.
    """
    _check_rows(request, params, old or vocabulary)
    if old and vocabulary:
        table, note = move_rows(params["token_embedding"], old, vocabulary, _key_of_rows(request))
        params, notes = params | {"token_embedding": table}, (*notes, note)
    rows = len(params["token_embedding"])
    size = rows if request.vocab_size is None else request.vocab_size
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


def _check_rows(request: Request, params: Params, vocabulary: Vocabulary | None) -> None:
    """Rows of the token table; raises where they cannot be this vocabulary's."""
    rows = len(params["token_embedding"])
    if vocabulary is not None and not vocabulary.mask_id <= rows <= vocabulary.size + MAX_PADDING_ROWS:
        raise WeightsError(
            f"{request.input}: the token table has {rows:,} rows, but the vocabulary {vocabulary.file_name} with its "
            f"sentinels asks for {vocabulary.mask_id:,} to {vocabulary.size:,}: model and vocabulary do not belong together"
        )


def _key_of_rows(request: Request) -> jax.Array:
    return jax.random.fold_in(jax.random.key(request.seed), 2)  # other bits than those of the rows behind


def _vocabularies(request: Request) -> tuple[Vocabulary | None, Vocabulary | None]:
    """The model's own vocabulary where it is extended, else None; and the one that it is to have."""
    beside = vocabulary_file(request.input)
    if request.vocabulary is None:
        return None, _load_vocabulary(request, beside) if beside else None
    old = None
    if beside and beside.resolve() != request.vocabulary.resolve():
        # The one asked for stands in place of what is beside the weights, which may as well be damaged.
        with contextlib.suppress(UserError):
            old = _load_vocabulary(request, beside)
    extension = _moved_to(request, old)
    return (old, extension) if extension else (None, _load_vocabulary(request, request.vocabulary))


def _moved_to(request: Request, old: Vocabulary | None) -> Vocabulary | None:
    """The vocabulary asked for, if it is an extension of the model's own or a part of it; with as many sentinels."""
    if old is None or request.vocabulary is None or not request.vocabulary.is_file():
        return None
    new = Vocabulary.load(request.vocabulary, num_sentinels=request.num_sentinels or old.num_sentinels)
    return new if is_extension(old, new) or is_trimmed(old, new) else None


def _load_vocabulary(request: Request, file: Path) -> Vocabulary:
    """The vocabulary with the layout asked for, or the one that an exported folder tells of."""
    told = config_json(request.input) if request.source == "huggingface_deltalm" else {}
    sentinels = request.num_sentinels or told.get("num_sentinels") or DEFAULT_NUM_SENTINELS
    start = told.get("sentinel_start") if request.sentinel_layout is None else None
    try:
        vocabulary = Vocabulary.load(file, num_sentinels=sentinels, sentinel_start=start)
        if request.sentinel_layout == "last_rows":
            vocabulary = Vocabulary.load(file, num_sentinels=sentinels, sentinel_start=vocabulary.size - sentinels)
    except (OSError, TypeError) as error:
        raise WeightsError(f"{file}: cannot be used as the model's vocabulary: {error}") from error
    return vocabulary


def _origin(request: Request) -> dict[str, Any]:
    return {"format": request.source, "input": str(request.input)}


def _write(request: Request, model: Converted, path: Path) -> None:
    if request.target == "native":
        path.mkdir()
        write_model(path, model.config, model.params, model.vocabulary, model.origin)
    elif request.target == "deltalm":
        deltalm.write_official(path, model.config, model.params, request.ffn_order or FFN_ORDERS[0])
    else:
        path.mkdir()
        deltalm.write_hugging_face(path, model.config, model.params, model.vocabulary)


@contextlib.contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A path beside `output`, renamed to it at the end, and removed if the end is not reached.

    Raises:
      WeightsError: there is something at `output`, at the beginning or at the end, or it cannot be written.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        _refuse_if_there(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _refuse_if_there(output)
        partial.rename(output)
    except OSError as error:
        raise WeightsError(f"{output}: cannot be written ({error})") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def _refuse_if_there(output: Path) -> None:
    if os.path.lexists(output):
        raise WeightsError(f"{output}: exists already: choose another --output, or move it away")
