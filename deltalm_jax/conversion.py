"""From one form of a model to another: reads, starts a DeltaLM from an encoder if that is asked for, writes.

The output appears when it is complete: it is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deltalm_jax.averaging import average, checkpoints_of
from deltalm_jax.conversion_request import ConversionError, Request
from deltalm_jax.data.vocabulary import DEFAULT_NUM_SENTINELS, Vocabulary, padded_size
from deltalm_jax.data.vocabulary_extension import is_extension
from deltalm_jax.data.vocabulary_trimming import is_trimmed
from deltalm_jax.errors import UserError
from deltalm_jax.model.config import ModelConfig
from deltalm_jax.model.deltalm import Params
from deltalm_jax.model.warm_start import (
    INITIALIZATIONS,
    continue_encoder,
    num_decoder_layers,
    warm_start,
    with_new_rows,
    with_zeros,
)
from deltalm_jax.paths import is_remote
from deltalm_jax.saved_model import open_model
from deltalm_jax.weights import deltalm, xlm_roberta
from deltalm_jax.weights.files import config_json, vocabulary_file
from deltalm_jax.weights.model_folder import write_model
from deltalm_jax.weights.names import FFN_ORDERS
from deltalm_jax.weights.new_pieces import move_bias, move_rows
from deltalm_jax.weights.state_dict import MAX_PADDING_ROWS, abstract_params
from deltalm_jax.weights.tensors import WeightsError
from deltalm_jax.weights.xlm_roberta import Encoder, read_xlm_roberta


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model between reading and writing; `notes` are sentences on what was done."""

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
        if request.target == "xlm_roberta":
            model = _laid_out_as_xlm_roberta(model)
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
    is_encoder = request.architecture == "encoder"
    _check_target(request, is_encoder)
    encoder = read_xlm_roberta(request.input, old or vocabulary, request.num_heads, with_head=is_encoder)
    if old and vocabulary:
        params, note = _moved(request, encoder.params, old, vocabulary)
        encoder = dataclasses.replace(encoder, params=params, notes=(*encoder.notes, note))
    if is_encoder:
        return _encoder_alone(request, encoder, vocabulary)
    return _encoder_decoder(request, encoder, vocabulary, _origin(request))


def _encoder_alone(request: Request, encoder: Encoder, vocabulary: Vocabulary | None) -> Converted:
    """The encoder gone on with, with a head for masked language modelling."""
    rows = len(encoder.params["token_embedding"])
    try:
        config = dataclasses.replace(
            encoder.config,
            vocab_size=request.vocab_size or _size(request, vocabulary, rows),
            num_decoder_layers=0,
            sentence_layer=request.sentence_layer or 0,
        )
        params = continue_encoder(config, encoder.params, jax.random.key(request.seed))
    except ValueError as error:
        raise WeightsError(f"{request.input}: {error}") from error
    notes = [*encoder.notes, *_new_rows(config, rows)]
    if "lm_head" not in encoder.params:
        notes.append("there is no head for masked language modelling in it (lm_head): drawn")
    notes += _sentence_note(config, encoder.params)
    origin = _origin(request) | {"architecture": "encoder", "seed": request.seed}
    return Converted(config, params, vocabulary, origin, tuple(notes))


def _size(request: Request, vocabulary: Vocabulary | None, rows: int) -> int:
    """Rows of a table with sentinels."""
    return vocabulary.size if vocabulary else padded_size(rows + (request.num_sentinels or DEFAULT_NUM_SENTINELS))


def _new_rows(config: ModelConfig, rows: int) -> list[str]:
    new = config.vocab_size - rows
    return [f"{new} new token rows, drawn from N(0, 1/{config.hidden_size})"] if new else []


def _encoder_decoder(
    request: Request, encoder: Encoder, vocabulary: Vocabulary | None, origin: dict[str, Any]
) -> Converted:
    """The DeltaLM that starts from an encoder."""
    initialize = request.initialize or INITIALIZATIONS[0]
    rows, layers = len(encoder.params["token_embedding"]), encoder.config.num_encoder_layers
    size = rows if encoder.config.is_encoder else _size(request, vocabulary, rows)
    try:
        config = dataclasses.replace(
            encoder.config,
            vocab_size=request.vocab_size or size,
            sentence_layer=0,
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
        notes = [*encoder.notes, *_new_rows(config, rows)]
        used = config.num_decoder_layers * (2 if initialize == "interleaved" else 1)
        if used < layers:
            notes.append(f"the decoder starts from encoder layers 0 to {used - 1}; those above are not used in it")
    origin = origin | {"initialize": initialize, "seed": request.seed}
    if request.decoder_output_rms is not None:
        origin["decoder_output_rms"] = request.decoder_output_rms
    return Converted(config, params, vocabulary, origin, tuple(notes))


def _read_native(request: Request) -> Converted:
    saved = open_model(request.input)
    is_encoder = saved.config.is_encoder
    if request.architecture and not is_encoder:
        raise ConversionError(
            f"--architecture does not apply to {request.input}: it says what to make of an encoder, and this is a DeltaLM"
        )
    _check_target(request, is_encoder and not request.makes_decoder)
    if request.target == "xlm_roberta" and (lacking := xlm_roberta.differences(saved.config)):
        raise ConversionError(
            f"{request.input} cannot be written as xlm_roberta, an encoder that normalises after each residual sum, which "
            f"has no place for {' and '.join(lacking)}"
        )
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
    model = _with_rows(request, saved.config, params, vocabulary, old, (), origin)
    if request.makes_decoder:
        encoder = Encoder(model.config, model.params, model.notes)
        return _encoder_decoder(request, encoder, vocabulary, model.origin)
    return model if request.sentence_layer is None else _with_sentence_layer(request, model, request.sentence_layer)


def _with_sentence_layer(request: Request, model: Converted, layer: int) -> Converted:
    """An encoder alone that contrasts sentences from now on, or by another layer than it did."""
    try:
        config = dataclasses.replace(model.config, sentence_layer=layer)
    except ValueError as error:
        raise WeightsError(f"{request.input}: {error}") from error
    params = continue_encoder(config, model.params, jax.random.key(request.seed))
    notes = (*model.notes, *_sentence_note(config, model.params))
    return dataclasses.replace(model, config=config, params=params, notes=notes)


def _sentence_note(config: ModelConfig, params: Params) -> list[str]:
    if not config.sentence_layer:
        return []
    how = "kept" if "sentence_projection" in params else "drawn"
    return [f"the projection of sentences, of the states after layer {config.sentence_layer}, is {how}"]


def _with_rows(
    request: Request,
    config: ModelConfig,
    params: Params,
    vocabulary: Vocabulary | None,
    old: Vocabulary | None,
    notes: tuple[str, ...],
    origin: dict[str, Any],
) -> Converted:
    """A model with as many token rows as asked for; by default with those it has.

    Where `old` is given, `vocabulary` is an extension or a part of it: the table is one of `old`, and is first moved.
    """
    _check_rows(request, params, old or vocabulary)
    if old and vocabulary:
        params, note = _moved(request, params, old, vocabulary)
        notes = (*notes, note)
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
    return Converted(
        dataclasses.replace(config, vocab_size=size),
        _with_table(params, table, lambda bias_V: with_zeros(bias_V, size)),
        vocabulary,
        origin | _origin(request),
        notes,
    )


def _moved(request: Request, params: Params, old: Vocabulary, new: Vocabulary) -> tuple[Params, str]:
    table, note = move_rows(params["token_embedding"], old, new, _key_of_rows(request))
    return _with_table(params, table, lambda bias_V: move_bias(bias_V, old, new)), note


def _with_table(params: Params, table_VD: np.ndarray, bias: Callable[[np.ndarray], np.ndarray]) -> Params:
    """The same model with another token table, and with what `bias` makes of its output layer's bias, if it has one."""
    params = params | {"token_embedding": table_VD}
    if "lm_head" in params:
        params["lm_head"] = params["lm_head"] | {"bias": bias(params["lm_head"]["bias"])}
    return params


def _laid_out_as_xlm_roberta(model: Converted) -> Converted:
    """Without the rows behind `<mask>`, which XLM-R does not have."""
    notes, rows = model.notes, model.config.vocab_size
    kept = min(rows, model.vocabulary.mask_id + 1) if model.vocabulary else rows
    if kept < rows:
        notes += (f"{rows - kept} token rows after <mask> left out (sentinels, filler): an XLM-R's table ends with it",)
    if model.vocabulary is None:
        notes += (f"the vocabulary is not known: all {rows:,} token rows are kept, sentinels among them if there are",)
    if model.config.sentence_layer:
        notes += ("the projection of sentences has no place in an XLM-R, and is left out",)
    params = {name: part for name, part in model.params.items() if name != "sentence_projection"}
    params = _with_table(params, params["token_embedding"][:kept], lambda bias_V: bias_V[:kept])
    config = dataclasses.replace(model.config, vocab_size=kept, sentence_layer=0)
    return dataclasses.replace(model, config=config, params=params, notes=notes)


def _check_target(request: Request, is_encoder: bool) -> None:
    if is_encoder and request.target in ("deltalm", "huggingface_deltalm"):
        raise ConversionError(
            f"--to={request.target} is a DeltaLM's, and {request.input} stays an encoder alone: "
            "--architecture=encoder_decoder starts a DeltaLM from it, --to=xlm_roberta hands on the encoder"
        )


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
    elif request.target == "xlm_roberta":
        path.mkdir()
        xlm_roberta.write_xlm_roberta(path, model.config, model.params, model.vocabulary)
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
