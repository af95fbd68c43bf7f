"""A model wherever it is saved: in a folder that `convert` wrote, or in a run's checkpoints.

`open_model` looks, checks and reads no array; training and conversion then read arrays as they need them. `load_model` is
the public way to a model that computes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.errors import UserError
from deltalm_jax.model.config import ModelConfig, resolve_compute_dtype
from deltalm_jax.model.deltalm import Params, apply_decoder, apply_encoder, logits
from deltalm_jax.model.encoder_model import masked_states
from deltalm_jax.model.warm_start import check_encoder
from deltalm_jax.paths import is_remote
from deltalm_jax.training.saved_steps import SavedSteps
from deltalm_jax.training.storage import check_readable, run_path
from deltalm_jax.weights.model_folder import DESCRIPTION, ModelFolder, load_vocabulary
from deltalm_jax.weights.state_dict import abstract_params


class SavedModelError(UserError, ValueError):
    """There is no model where one was said to be, or it is another one than asked for."""


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model on disk, checked but not read.

    Attributes:
      path: where it is.
      config: its shape.
      vocabulary: None if it is not known.
      fingerprint: of the vocabulary, which may be known where the vocabulary itself is not; None if it is not.
      origin: JSON-able facts on where the weights are from.
      digest: of the arrays: equal digests, equal models.
      read: abstract parameters (`jax.ShapeDtypeStruct`) → parameters, each device reading its own part; without shardings
        (`abstract_params`) all of them, on the host or the default device.
    """

    path: Path
    config: ModelConfig
    vocabulary: Vocabulary | None
    fingerprint: str | None
    origin: dict[str, Any]
    digest: str
    read: Callable[[Params], Params]


def open_model(path: str | Path) -> SavedModel:
    """Finds and checks a model.

    Args:
      path: a folder written by `python -m deltalm_jax.convert --to=native`; or a run directory, or one step in its
        `checkpoints`, of which the moving average is taken if there is one. Of a run, the newest step that verifies. A run
        may be in a bucket (gs://…).

    Raises:
      SavedModelError: there is none of these, or both.
      WeightsError, CheckpointError: it is damaged.
      LocationError: it is in a place that cannot be reached from here.
    """
    path = run_path(path)
    path = path if is_remote(path) else path.absolute()
    check_readable(path)
    is_folder, is_run = (path / DESCRIPTION).is_file(), (path / "checkpoints").is_dir()
    if is_folder and is_run:
        raise SavedModelError(
            f"{path}: holds both a model ({DESCRIPTION}) and a run (checkpoints/): name one of its checkpoints, or move one"
        )
    if is_folder and is_remote(path):
        raise SavedModelError(
            f"{path}: a converted model is read from a disk: copy the folder (gcloud storage cp -r {path} .)"
        )
    if is_folder:
        folder = ModelFolder.open(path)
        fingerprint = folder.vocabulary.fingerprint if folder.vocabulary else None
        return SavedModel(
            path, folder.config, folder.vocabulary, fingerprint, folder.origin, folder.digest, folder.read
        )
    if (path / "record.json").is_file() and path.name.isdigit():
        return _open_step(path.parent, int(path.name))
    if is_run:
        return _open_step(path / "checkpoints", None)
    if path.is_dir():
        raise SavedModelError(
            f"{path}: this folder is neither a model of `python -m deltalm_jax.convert --to=native` ({DESCRIPTION}) nor a "
            "run (checkpoints/)"
        )
    found = (
        "is a file, where a folder is expected (other formats are read by `python -m deltalm_jax.convert`)"
        if path.is_file()
        else "there is no such folder"
    )
    raise SavedModelError(
        f"{path}: {found}: name a model of `python -m deltalm_jax.convert --to=native`, a run, or one of its checkpoints "
        "(RUN_DIR/checkpoints/STEP)"
    )


def _open_step(directory: Path, step: int | None) -> SavedModel:
    checkpoints = SavedSteps(directory, print)
    record = checkpoints.latest() if step is None else checkpoints.verify(step)
    if record is None:
        raise SavedModelError(f"{directory}: there is no checkpoint yet")
    path = directory / str(record["step"])
    try:
        identity, described = record["about"]["identity"], record["about"]["vocabulary"]
        prefix = "ModelConfig."
        config = ModelConfig(**{k.removeprefix(prefix): v for k, v in identity.items() if k.startswith(prefix)})
        # Records of earlier versions hold the fingerprint alone.
        fingerprint = described["fingerprint"] if isinstance(described, dict) else described
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SavedModelError(
            f"{path / 'record.json'}: does not describe a model of this version: {error!r}"
        ) from error
    part = "ema" if any(name.startswith("ema/") for name in record["leaves"]) else "params"
    origin = {"run": str(directory.parent), "step": record["step"], "part": part}
    vocabulary = load_vocabulary(directory.parent, described) if isinstance(described, dict) else None
    digest = hashlib.sha256(json.dumps(record["files"], sort_keys=True).encode()).hexdigest()

    def read(abstract: Params) -> Params:
        return checkpoints.restore_part(record, part, abstract)

    return SavedModel(path, config, vocabulary, fingerprint, origin, digest, read)


def check_fits(saved: SavedModel, config: ModelConfig, name: str) -> None:
    """Whether a model can go on as one of this shape, or a DeltaLM of it be interleaved from an encoder alone.

    Args:
      saved: the model.
      config: the shape.
      name: says whose shape it is.

    Raises:
      SavedModelError: they differ; names the fields.
    """
    # What a step does on top of a model's shape, and how it is carried out, may change from one run to the next.
    free = {field.name for field in dataclasses.fields(ModelConfig) if field.name.endswith("dropout_rate")}
    free |= {"compute_dtype", "remat", "scan_layers", "attention"}
    if is_interleaved_from(saved, config):
        free |= {"num_decoder_layers", "decoder", "sentence_layer"}
        free |= {"max_length"} if config.max_length < saved.config.max_length else set()
    differences = [
        f"  ModelConfig.{field.name}: {getattr(saved.config, field.name)!r} in {saved.path}, "
        f"{getattr(config, field.name)!r} in {name}"
        for field in dataclasses.fields(ModelConfig)
        if field.name not in free and getattr(saved.config, field.name) != getattr(config, field.name)
    ]
    if differences:
        raise SavedModelError(
            "the model to start from has another shape:\n"
            + "\n".join(differences)
            + "\nTake the model's values, or another model."
        )
    if is_interleaved_from(saved, config):
        if config.decoder != "interleaved":
            raise SavedModelError(
                f"{saved.path} is an encoder alone, and ModelConfig.decoder is {config.decoder!r} in {name}: a "
                "run interleaves its decoder. For another one, make the DeltaLM first: python -m deltalm_jax.convert "
                "--from=native --architecture=encoder_decoder --initialize=…"
            )
        try:
            check_encoder(config, abstract_params(saved.config))
        except ValueError as error:
            raise SavedModelError(f"{saved.path}: {error}") from error


def is_interleaved_from(saved: SavedModel, config: ModelConfig) -> bool:
    """Whether a DeltaLM of this shape is not the saved model gone on, but starts from it as from an encoder."""
    return saved.config.is_encoder and not config.is_encoder


def check_has_decoder(config: ModelConfig, what: str) -> None:
    """Raises SavedModelError for an encoder alone; `what` is where it is from, or "the model"."""
    if config.is_encoder:
        raise SavedModelError(
            f"{what} is an encoder alone (num_decoder_layers=0), which writes nothing: start a DeltaLM from it "
            "(TrainConfig.init_from) and train that"
        )


class Model:
    """A model that computes; made by `load_model`.

    Ids are in this project's order: 0 padding, 1 `<unk>`, 2 `<s>`, 3 `</s>`, then SentencePiece's plus one
    (`deltalm_jax.data.vocabulary.from_fairseq_ids` turns others' into them). Padding may stand anywhere.

    Attributes:
      config: its shape.
      params: nested dictionary of float32 arrays.
      vocabulary: None if it is not known.
    """

    def __init__(self, config: ModelConfig, params: Params, vocabulary: Vocabulary | None) -> None:
        self.config, self.params, self.vocabulary = config, params, vocabulary
        dtype = resolve_compute_dtype(config, jax.default_backend())
        self._encode = jax.jit(partial(apply_encoder, config, compute_dtype=dtype))
        self._logits = jax.jit(partial(_logits, config, dtype))
        self._masked_logits = jax.jit(partial(_masked_logits, config, dtype))

    def encode(self, tokens_BS: jax.typing.ArrayLike) -> jax.Array:
        """The encoder's output for int ids [B, S], as float32 [B, S, D]."""
        return self._encode(self.params, jnp.asarray(tokens_BS)).astype(jnp.float32)

    def logits(self, tokens_BS: jax.typing.ArrayLike, decoder_tokens_BT: jax.typing.ArrayLike) -> jax.Array:
        """Scores of the next token after each of the decoder's, float32 [B, T, V].

        Args:
          tokens_BS: the encoder's ids.
          decoder_tokens_BT: the decoder's, of which the first is `</s>` (`deltalm_jax.model.deltalm.shift_right`).

        Raises:
          SavedModelError: it is an encoder alone.
        """
        if self.config.is_encoder:
            raise SavedModelError("the model is an encoder alone, without a decoder: ask for masked_logits(tokens_BS)")
        return self._logits(self.params, jnp.asarray(tokens_BS), jnp.asarray(decoder_tokens_BT))

    def masked_logits(self, tokens_BS: jax.typing.ArrayLike) -> jax.Array:
        """Scores of what may stand at each position, of an encoder alone: float32 [B, S, V].

        Args:
          tokens_BS: int ids, some of them `<mask>` (`vocabulary.mask_id`).

        Raises:
          SavedModelError: it has a decoder, and so no head for masked language modelling.
        """
        if not self.config.is_encoder:
            raise SavedModelError(
                "the model has a decoder, and no head for masked language modelling: ask for logits(tokens_BS, "
                "decoder_tokens_BT)"
            )
        return self._masked_logits(self.params, jnp.asarray(tokens_BS))


def _logits(
    config: ModelConfig, dtype: str, params: Params, tokens_BS: jax.Array, decoder_tokens_BT: jax.Array
) -> jax.Array:
    encoded_BSD = apply_encoder(config, params, tokens_BS, compute_dtype=dtype)
    hidden_BTD = apply_decoder(config, params, encoded_BSD, tokens_BS, decoder_tokens_BT, compute_dtype=dtype)
    return logits(params, hidden_BTD)


def _masked_logits(config: ModelConfig, dtype: str, params: Params, tokens_BS: jax.Array) -> jax.Array:
    places_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    hidden_BSD = masked_states(config, params, tokens_BS, places_BS, compute_dtype=dtype)
    return logits(params, hidden_BSD) + params["lm_head"]["bias"]


def load_model(path: str | Path) -> Model:
    """Loads a model onto the default device; `path` and errors as for `open_model`."""
    saved = open_model(path)
    params = jax.tree.map(jnp.asarray, saved.read(abstract_params(saved.config)))
    return Model(saved.config, params, saved.vocabulary)
